"""Append, chain, order; many processes and threads; a writer that is killed; what a disk refuses."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import DRAFT, EXECUTION, environment, python, recorded, wait_until

from cmf_agent.home import Home
from cmf_agent.locking import LOCK_WAIT_S
from cmf_agent.log import Log, TurnHeld
from cmf_agent.reading import LogReader
from cmf_agent.verify import verify
from cmf_graph.database import connect
from cmf_protocol.errors import CallerError, CmfError, IntegrityError, StoreError
from cmf_protocol.events import Draft, Event, decode_event
from cmf_protocol.types import metrics_recorded

WRITER = """
import sys
from pathlib import Path
from cmf_agent.log import Log
from cmf_protocol.types import metrics_recorded
log, number = Log(Path(sys.argv[1])), int(sys.argv[2])
for at in range(int(sys.argv[3])):
    event = log.append([metrics_recorded(bytes(16), metrics={"writer": number, "at": at})])[0]
    print(event.event_id.hex(), flush=True)
"""

HOLDER = """
import sys
from fcntl import LOCK_EX, flock
file = open(sys.argv[1])
flock(file, LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def start_writer(home: Home, number: int, count: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home.log_path), str(number), str(count)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_appended_events_are_chained_in_order(home: Home) -> None:
    with Log(home.log_path) as log:
        events = [log.append([DRAFT])[0], *log.append([DRAFT, DRAFT]), log.append([DRAFT])[0]]
    assert [event.header.sequence for event in events] == [2, 3, 4, 5]
    assert [event.header.previous for event in events[1:]] == [event.event_id for event in events[:-1]]
    with LogReader(home.log_path) as reader:
        stored = list(reader.all_events())
    assert [event.event_id for event in stored[1:]] == [event.event_id for event in events]
    assert stored[0].header.type == "log.opened"
    for event in stored:
        assert decode_event(event.header_bytes, event.body).event_id == event.event_id


def test_appending_nothing_records_nothing(home: Home) -> None:
    with Log(home.log_path) as log:
        assert log.append([]) == []
        assert log.head().sequence == 1


def test_a_log_that_was_closed_opens_again(home: Home) -> None:
    log = Log(home.log_path)
    log.append([DRAFT])
    log.close()
    assert log.append([DRAFT])[0].header.sequence == 3
    log.close()


def test_two_logs_on_one_file_take_turns(home: Home) -> None:
    with Log(home.log_path) as one, Log(home.log_path) as other:
        sequences = [log.append([DRAFT])[0].header.sequence for log in (one, other, one, one, other, one)]
    assert sequences == [2, 3, 4, 5, 6, 7]
    assert not verify(home).problems


def test_bulk_appends_are_one_chain(home: Home) -> None:
    with Log(home.log_path) as log:
        events = log.append([DRAFT] * 5_000)
        assert len(events) == 5_000
        assert log.append([DRAFT])[0].header.previous == events[-1].event_id
    assert verify(home).events == 5_002


def test_a_draft_that_cannot_be_an_event_records_nothing(home: Home) -> None:
    bad = Draft("metrics.recorded", DRAFT.about, {"metrics": {"x": object()}})
    with Log(home.log_path) as log:
        for drafts in ([bad], [DRAFT, bad]):
            with pytest.raises(CallerError):
                log.append(drafts)
        assert log.append([DRAFT])[0].header.sequence == 2


def test_threads_commit_together_and_each_gets_its_own(home: Home) -> None:
    def write(number: int) -> list[Event]:
        return [log.append([metrics_recorded(EXECUTION, metrics={"thread": number, "at": at})])[0] for at in range(50)]

    with Log(home.log_path) as log, ThreadPoolExecutor(8) as pool:
        of_threads = list(pool.map(write, range(8)))
    in_log = {header.sequence: body["metrics"] for header, body in recorded(home) if header.type != "log.opened"}
    assert len(in_log) == 400
    for number, events in enumerate(of_threads):
        assert [in_log[e.header.sequence] for e in events] == [{"thread": number, "at": at} for at in range(50)]
    assert not verify(home).problems


def test_threads_that_wait_share_one_commit_and_only_the_bad_draft_fails(home: Home) -> None:
    bad = Draft("metrics.recorded", DRAFT.about, {"metrics": {"x": object()}})
    commits = []
    with Log(home.log_path) as log, ThreadPoolExecutor(6) as pool:
        log.append([DRAFT])
        assert log._connection is not None
        log._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        with log._alone():  # the threads queue up behind this
            futures = [pool.submit(log.append, [draft]) for draft in (DRAFT, DRAFT, bad, DRAFT, DRAFT, DRAFT)]
            wait_until(lambda: len(log._waiting) == 6)
        results = [future.exception(timeout=60) or future.result() for future in futures]
        log._connection.set_trace_callback(None)
    assert [isinstance(result, CallerError) for result in results] == [False, False, True, False, False, False]
    assert sorted(r[0].header.sequence for r in results if isinstance(r, list)) == [3, 4, 5, 6, 7]
    assert commits == ["COMMIT"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_commit_that_fails_fails_for_every_caller_of_it(home: Home, count: int) -> None:
    with Log(home.log_path) as log, ThreadPoolExecutor(6) as pool:
        log.append([DRAFT])
        assert log._connection is not None
        log._connection.close()
        with log._alone():
            futures = [pool.submit(log.append, [DRAFT] * count) for _ in range(6)]
            wait_until(lambda: len(log._waiting) == 6)
        results = [future.exception(timeout=60) for future in futures]
        assert all(isinstance(result, CmfError) for result in results), results
        assert log.append([DRAFT])[0].header.sequence == 3


def test_what_ends_a_commit_unexpectedly_is_an_error_for_every_caller_of_it(home: Home) -> None:
    bad: Any = object()  # no draft at all: an AttributeError within the commit
    with Log(home.log_path) as log, ThreadPoolExecutor(6) as pool:
        log.append([DRAFT])
        with log._alone():
            futures = [pool.submit(log.append, [draft]) for draft in (DRAFT, DRAFT, bad, DRAFT)]
            wait_until(lambda: len(log._waiting) == 4)
        results = [future.exception(timeout=60) for future in futures]
        assert [type(result) for result in results] == [StoreError] * 4
        with pytest.raises(StoreError, match="object"):
            log.append([bad])
        assert log.append([DRAFT])[0].header.sequence == 3
    assert not verify(home).problems


def test_a_writer_that_was_stopped_is_named_and_the_log_goes_on_with_it(home: Home) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.lock_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with Log(home.log_path) as log:
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"another process holds .*log\.lock") as failure:
            log.append([DRAFT])
        assert time.monotonic() - began >= LOCK_WAIT_S
        assert "kill -CONT" in failure.value.hint
        holder.communicate("\n")
        assert log.append([DRAFT])[0].header.sequence == 2
        assert log.append([DRAFT])[0].header.sequence == 3
    assert not verify(home).problems


def test_a_signal_handler_that_appends_is_told_instead_of_waiting_for_itself(home: Home) -> None:
    with Log(home.log_path) as log:
        with log._alone():  # as in the midst of an append
            for drafts in ([DRAFT], [DRAFT, DRAFT]):
                with pytest.raises(TurnHeld):
                    log.append(drafts)
            log.close()
        assert log.append([DRAFT])[0].header.sequence == 2


def test_sixteen_processes_lose_nothing_and_none_starves(home: Home) -> None:
    writers = [start_writer(home, number, 60) for number in range(16)]
    ids = [line for writer in writers for line in writer.communicate(timeout=120)[0].split()]
    assert all(writer.returncode == 0 for writer in writers)
    assert len(set(ids)) == 16 * 60
    with LogReader(home.log_path) as reader:
        stored = list(reader.all_events())
    assert {event.event_id.hex() for event in stored[1:]} == set(ids)
    report = verify(home)
    assert (report.events, report.problems) == (961, [])
    for number in range(16):
        said = [body["metrics"]["at"] for _, body in recorded(home)[1:] if body["metrics"]["writer"] == number]
        assert said == list(range(60))


def test_a_writer_that_is_killed_loses_nothing_that_it_was_told(home: Home) -> None:
    told: list[str] = []
    for number in range(8):
        writer = start_writer(home, number, 1_000_000)
        assert writer.stdout is not None
        told += [writer.stdout.readline().strip() for _ in range(5 + 7 * number)]
        writer.send_signal(signal.SIGKILL)
        told += writer.communicate(timeout=120)[0].split()
    with LogReader(home.log_path) as reader:
        stored = {event.event_id.hex() for event in reader.all_events()}
    assert {event_id for event_id in told if len(event_id) == 64} <= stored
    assert not verify(home).problems
    with Log(home.log_path) as log:
        assert log.append([DRAFT])[0].header.sequence == len(stored) + 1


def test_a_forked_child_opens_its_own_connection(home: Home) -> None:
    script = f"""
import os
from pathlib import Path
from cmf_agent.log import Log
from tests.agent.helpers import DRAFT
log = Log(Path({str(home.log_path)!r}))
log.append([DRAFT])
child = os.fork()
for _ in range(50):
    log.append([DRAFT])
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""
    done = python(script, cwd=Path.cwd(), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    report = verify(home)
    assert (report.events, report.problems) == (102, [])


@pytest.mark.parametrize("table", ["events", "logs", "segments"])
@pytest.mark.parametrize("change", ["UPDATE {} SET rowid = rowid + 100", "DELETE FROM {}"])
def test_the_database_refuses_to_change_what_was_recorded(home: Home, table: str, change: str) -> None:
    connection = connect(home.log_path)
    connection.execute("INSERT INTO segments VALUES (1, 1, 1, 1, x'00', x'00')")
    with pytest.raises(connection.DatabaseError, match="append-only"):
        connection.execute(change.format(table))
    connection.close()


def test_a_missing_log_is_named_with_the_way_out(home: Home) -> None:
    home.log_path.unlink()
    with pytest.raises(StoreError, match=r"log\.db is missing") as failure:
        Log(home.log_path).append([DRAFT])
    assert "cmf-agent init" in failure.value.hint


def test_a_file_that_is_no_database_is_an_integrity_error(home: Home) -> None:
    home.log_path.write_bytes(b"this is not a database, and it is long enough to be read as a header" * 100)
    with pytest.raises(IntegrityError, match=r"log\.db"):
        Log(home.log_path).append([DRAFT])


def test_a_full_disk_fails_the_append_and_the_log_goes_on_when_there_is_space(home: Home) -> None:
    script = f"""
import os, resource, sys
from pathlib import Path
from cmf_agent.log import Log
from cmf_protocol.errors import CmfError
from tests.agent.helpers import DRAFT
path = Path({str(home.log_path)!r})
log = Log(path)
log.append([DRAFT])
size = path.with_name("log.db-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
failures = 0
for _ in range(3):
    try:
        log.append([DRAFT] * 100)
    except CmfError as error:
        failures += 1
        print(type(error).__name__, error, error.hint)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failures, log.append([DRAFT])[0].header.sequence)
"""
    done = python(script, cwd=Path.cwd(), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "3 3"
    assert all(line.startswith(f"StoreError {home.log_path}: ") and "disk" in line for line in lines[:3])
    report = verify(home)
    assert (report.events, report.problems) == (3, [])


def test_a_read_only_home_is_said_and_nothing_is_half_done(home: Home) -> None:
    script = f"""
import os
from pathlib import Path
from cmf_agent.log import Log
from cmf_protocol.errors import StoreError
from tests.agent.helpers import DRAFT
os.setgid(65534); os.setuid(65534)
try:
    Log(Path({str(home.log_path)!r})).append([DRAFT])
except StoreError as error:
    print(error, "|", error.hint)
"""
    for folder in (home.path, *home.path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    home.lock_path.chmod(0o644)
    home.log_path.chmod(0o644)
    done = python(script, cwd=Path("/"), PYTHONPATH=str(Path(__file__).parents[2]), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert "log.db" in done.stdout
    assert "CMF_HOME" in done.stdout
    assert len(recorded(home)) == 1
