"""Successor logs: who appends meanwhile, what goes wrong while one is opened, and what several logs of one site mean."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tests.agent.copying import append, backup, copy_of, logs_of, pretend_copied, put_back, succession
from tests.agent.helpers import DRAFT, cli_json, environment, of_type, python, recorded, wait_until

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.keys import make_key, read_signer
from cmf_agent.locking import QueueLock
from cmf_agent.log import Log, read_head
from cmf_agent.opening import open_successor
from cmf_agent.place import FORKED, mark_forked, note_pushed
from cmf_agent.reading import LogReader, StoredEvent
from cmf_agent.schema import open_database
from cmf_agent.status import site_status, status_text
from cmf_agent.successions import succession_of
from cmf_agent.verify import verify
from cmf_agent.view import local_view
from cmf_graph.database import connect
from cmf_protocol.errors import StoreError

#: Appends one event at a time to the log at argv[1], until told on standard input;
#: says on standard error that it does, and how many at the end.
WRITER = """
import sys, threading
from pathlib import Path
from cmf_agent.log import Log
from cmf_protocol.types import metrics_recorded
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
log, count = Log(Path(sys.argv[1])), 0
while not (count and over.is_set()):
    log.append([metrics_recorded(bytes(16), metrics={"x": 1})])
    count += 1
    if count == 1:
        print("appends", file=sys.stderr, flush=True)
print(count)
"""


# -- whoever appends meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_an_open_log_goes_on_in_the_successor_that_another_opened(home: Home, count: int) -> None:
    with Log(home.log_path) as ours, Log(home.log_path) as others:
        ours.append([DRAFT])
        pretend_copied(home)
        others.append([DRAFT])
        before = logs_of(home)[0].head_sequence
        events = ours.append([DRAFT] * count)
        assert {event.header.log_id for event in events} == {logs_of(home)[1].log_id}
        assert ours.head().log_id == logs_of(home)[1].log_id
        assert ours.append([DRAFT])[0].header.previous == events[-1].event_id
    assert logs_of(home)[0].head_sequence == before
    assert not verify(home).problems


def test_an_open_log_looks_again_from_time_to_time(home: Home) -> None:
    with Log(home.log_path) as log:
        log.append([DRAFT])
        mark_forked(home, log.head().log_id)
        log._look_at_s = 0.0  # the time is over
        log.append([DRAFT])
        log.append([DRAFT])
    assert succession(home).reason == FORKED
    assert [row.head_sequence for row in logs_of(home)] == [2, 3]


def test_an_open_log_whose_older_copy_is_put_back_says_so_and_goes_on(home: Home, tmp_path: Path) -> None:
    with Log(home.log_path) as log:
        log.append([DRAFT])
        log.close()
        backup(home, tmp_path / "backup.db")
        sent = log.append([DRAFT] * 3)[-1]
        note_pushed(home, sent.header.log_id, sent.header.sequence, sent.event_id)
        put_back(home, tmp_path / "backup.db")
        with pytest.raises(StoreError, match="an older copy was put back"):
            log.append([DRAFT])
        log.append([DRAFT])
    assert succession(home).sequence == 2
    assert not verify(home).problems


def start_writers(home: Home, count: int) -> "list[subprocess.Popen[str]]":
    command = [sys.executable, "-c", WRITER, str(home.log_path)]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(count)
    ]


def end_writers(writers: "list[subprocess.Popen[str]]") -> list[int]:
    """Return how many events each has appended."""
    return [int(writer.communicate("\n", timeout=60)[0]) for writer in writers]


def test_processes_that_append_all_the_time_open_one_successor_and_leave_the_old_log_alone(home: Home) -> None:
    writers = start_writers(home, 3)
    for writer in writers:
        assert writer.stderr is not None
        assert writer.stderr.readline() == "appends\n"
    pretend_copied(home)
    appended = append(home)
    said = end_writers(writers)
    old, new = logs_of(home)
    assert (succession(home).log_id, appended[0].header.log_id) == (old.log_id, new.log_id)
    assert old.head_sequence + new.head_sequence == sum(said) + 3  # the two openings, and what this process appended
    assert not verify(home).problems


def test_processes_that_find_a_copy_at_once_open_one_successor(home: Home, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    said = end_writers(start_writers(copy, 6))
    assert [log.head_sequence for log in logs_of(copy)] == [1, 1 + sum(said)]
    assert not verify(copy).problems


def test_of_all_who_have_seen_a_copy_and_wait_for_their_turn_one_opens_the_successor(
    home: Home, tmp_path: Path
) -> None:
    copy = copy_of(home, tmp_path / "copy")
    logs = [Log(copy.log_path) for _ in range(5)]
    with ThreadPoolExecutor(len(logs)) as pool, closing(QueueLock(copy.lock_path)) as lock:
        with lock:
            made = [pool.submit(log.append, [DRAFT]) for log in logs]
            wait_until(lambda: [thread.name for thread in threading.enumerate()].count("cmf-lock") == len(logs))
        assert sorted(each.result(timeout=60)[0].header.sequence for each in made) == [2, 3, 4, 5, 6]
    for log in logs:
        log.close()
    assert [row.head_sequence for row in logs_of(copy)] == [1, 6]


def test_threads_that_find_a_copy_at_once_open_one_successor(home: Home, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    with Log(copy.log_path) as log, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: log.append([DRAFT])[0], range(40)))
    assert sorted(event.header.sequence for event in made) == list(range(2, 42))
    assert [row.head_sequence for row in logs_of(copy)] == [1, 41]


def test_forked_children_in_a_copy_share_its_successor(home: Home, tmp_path: Path) -> None:
    append(home)
    copy = copy_of(home, tmp_path / "copy")
    script = f"""
import os
from pathlib import Path
from cmf_agent.log import Log
from tests.agent.helpers import DRAFT
log = Log(Path({str(copy.log_path)!r}))
children = []
for at in range(4):
    if at == 2:
        log.append([DRAFT])
    child = os.fork()
    if not child:
        log.append([DRAFT])
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""
    done = python(script, cwd=Path.cwd(), PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr
    assert [log.head_sequence for log in logs_of(copy)] == [2, 6]
    assert not verify(copy).problems


def test_a_run_that_is_copied_in_its_midst_goes_on_in_both(home: Home, tmp_path: Path) -> None:
    with cmf.run("p", "s") as run:
        run.metric("before", 1)
        copy = copy_of(home, tmp_path / "copy")
        with cmf.run("p", "s", execution_id=run.id, home=copy.path) as second:
            second.metric("there", 2)
        run.metric("here", 3)
    assert len(logs_of(home)) == 1
    assert [log.head_sequence > 1 for log in logs_of(copy)] == [True, True]
    for each in (home, copy):
        assert not verify(each).problems
        (item,) = cli_json("query", "executions", cwd=each.root)["items"]
        assert item["status"] == "finished"


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_crash_before_the_successor_is_committed_leaves_one(home: Home) -> None:
    append(home)
    pretend_copied(home)
    script = f"""
import os, signal
from pathlib import Path
from cmf_agent.home import Home
from cmf_agent.opening import succeed_if_copied
from cmf_agent.schema import open_database
home = Home(Path({str(home.path)!r}), Path({str(home.root)!r}))
connection = open_database(home.log_path)
connection.set_trace_callback(lambda sql: os.kill(os.getpid(), signal.SIGKILL) if sql == "COMMIT" else None)
succeed_if_copied(connection, home)
"""
    assert python(script, cwd=home.root).returncode == -9
    assert len(logs_of(home)) == 1
    append(home)
    append(home)
    assert [log.head_sequence for log in logs_of(home)] == [2, 3]
    assert succession(home).reason == "the log that was opened here last is missing"
    assert not verify(home).problems


def test_a_copy_without_its_key_records_nothing_and_says_what_is_missing(home: Home, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    seed = copy.key_path.read_bytes()
    copy.key_path.unlink()
    with Log(copy.log_path) as log:
        for ask in (lambda: log.append([DRAFT]), log.head, lambda: log.append([DRAFT])):
            with pytest.raises(StoreError, match=r"was copied .*signing key .* is missing") as failure:
                ask()
        assert "cmf-agent init" in failure.value.hint
        assert len(recorded(copy)) == 1
        copy.key_path.write_bytes(seed)
        log.append([DRAFT])
    assert succession(copy).sequence == 1


def test_a_run_in_a_copy_without_its_key_goes_on_and_says_what_was_not_recorded(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of(home, tmp_path / "copy")
    copy.key_path.unlink()
    with cmf.run("p", "s", home=copy.path) as run:
        run.metric("loss", 1)
    assert "NOT recorded" in capsys.readouterr().err
    assert len(recorded(copy)) == 1


def test_a_copy_with_another_key_makes_a_claim(home: Home, tmp_path: Path) -> None:
    append(home)
    copy = copy_of(home, tmp_path / "copy")
    copy.key_path.unlink()
    make_key(copy.key_path)
    append(copy)
    with LogReader(copy.log_path) as reader:
        old, new = reader.logs()
        found = succession_of(reader, new)
    assert found is not None
    assert (found.log_id, found.sequence, found.signature) == (old.log_id, 2, None)
    assert new.key == read_signer(copy.key_path).public_key != old.key
    assert not verify(copy).problems


def test_a_successor_of_a_log_that_is_not_held_is_a_claim(home: Home) -> None:
    signer = read_signer(home.key_path)
    with closing(open_database(home.log_path)) as connection, closing(QueueLock(home.lock_path)) as lock, lock:
        head = read_head(connection, home.log_path)[1]._replace(log_id=b"M" * 16)
        opened = open_successor(connection, home, signer, predecessor=head, reason="the disk was lost")
    assert logs_of(home)[-1].log_id == opened
    assert append(home)[0].header.log_id == opened
    report = verify(home)
    assert (report.signatures, report.problems) == (0, [])


# -- what several logs mean --------------------------------------------------------------------------------------------


def test_an_environment_is_recorded_in_each_log(home: Home, tmp_path: Path) -> None:
    with cmf.run("p", "s"):
        pass
    copy = copy_of(home, tmp_path / "copy")
    for _ in range(2):
        with cmf.run("p", "s", home=copy.path):
            pass
    found = [header.log_id for header, _ in of_type(copy, "environment.recorded")]
    assert found == [log.log_id for log in logs_of(copy)]


def test_a_run_that_ends_in_the_successor_is_finished_in_the_local_view(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.metric("before", 1)
        pretend_copied(home)
        append(home)  # as another process does
    old, new = logs_of(home)
    assert [header.log_id for header, _ in of_type(home, "execution.started")] == [old.log_id]
    assert [header.log_id for header, _ in of_type(home, "execution.finished")] == [new.log_id]
    (item,) = cli_json("query", "executions", "--pipeline", "p", cwd=home.root)["items"]
    assert (item["status"], item["conflicts"]) == ("finished", [])
    with local_view(home) as view:
        assert view.digest().events == len(recorded(home))
    assert len(cli_json("log", cwd=home.root)["items"]) == len(recorded(home))


def test_the_local_view_forgets_what_an_older_backup_lacks(home: Home, tmp_path: Path) -> None:
    backup(home, tmp_path / "backup.db")
    for count in (1, 3):  # fewer than the view had folded, and more
        append(home, 2)
        with local_view(home) as view:
            assert view.digest().events == len(recorded(home))
        put_back(home, tmp_path / "backup.db")
        append(home, count)
        with local_view(home) as view:
            assert set(view.event_ids()) == {event.event_id for event in events_of(home)}
    assert len(logs_of(home)) == 1


def test_status_names_the_logs_and_why_there_are_several(home: Home, tmp_path: Path) -> None:
    append(home, 2)
    assert site_status(home)["note"] is None
    assert "logs" not in site_status(home)
    copy = copy_of(home, tmp_path / "copy")
    said = cli_json("status", cwd=copy.root)
    assert said["note"] == "the next event opens a successor log: the file is another one"
    assert "the file is another one" in status_text(site_status(copy))
    append(copy, 4)
    said = cli_json("status", cwd=copy.root)
    old, new = logs_of(copy)
    assert (said["log_id"], said["events"], said["note"]) == (new.log_id.hex(), 8, None)
    first, second = said["logs"]
    assert (first["log_id"], first["predecessor"], first["reason"], first["events"]) == (
        old.log_id.hex(),
        None,
        None,
        3,
    )
    assert (second["log_id"], second["predecessor"], second["events"]) == (new.log_id.hex(), old.log_id.hex(), 5)
    assert (second["reason"], second["confirmed"]) == ("the file is another one", 0)
    assert second["opened"].endswith("Z")
    text = status_text(site_status(copy))
    assert f"goes on from {old.log_id.hex()[:8]}: the file is another one" in text


def test_status_tells_of_a_fork(home: Home) -> None:
    mark_forked(home, logs_of(home)[0].log_id)
    assert FORKED in str(site_status(home)["note"])


def events_of(home: Home) -> list[StoredEvent]:
    with LogReader(home.log_path) as reader:
        return list(reader.all_events())


def shift_first(home: Home) -> None:
    """Let the old log end before the event from which the successor goes on."""
    connection = connect(home.log_path)
    connection.execute("DROP TRIGGER events_refuse_delete")
    connection.execute("DELETE FROM events WHERE position = (1 << 40) + 3")
    connection.close()


def exchange_key(home: Home) -> None:
    connection = connect(home.log_path)
    connection.execute("DROP TRIGGER logs_refuse_update")
    connection.execute("UPDATE logs SET key = zeroblob(32) WHERE id = 1")
    connection.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [(shift_first, "from which it goes on, 3 of"), (exchange_key, "the signature of its succession")],
)
def test_verify_finds_a_succession_that_does_not_hold(home: Home, damage: Callable[[Home], None], words: str) -> None:
    append(home, 2)
    pretend_copied(home)
    append(home)
    assert not verify(home).problems
    damage(home)
    problems = [problem for problem in verify(home).problems if problem.log_id == logs_of(home)[1].log_id]
    assert [(problem.sequence, words in problem.text) for problem in problems] == [(1, True)]
