"""What people get wrong and what machines run out of: a clear error that names the thing and the way out, and nothing lost."""

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.hubs import Hub, hub_at, running_hub
from tests.support.nats import HOST, free_port
from tests.support.programs import Done, until
from tests.support.sites import SiteFolder, folded

from cmf_agent.hub_file import hub_in_force
from cmf_agent.push import push
from cmf_graph.locks import try_lock
from cmf_protocol.errors import LinkError

MakeSite = Callable[[str], SiteFolder]


def told(done: Done, code: int, *texts: str) -> None:
    """Check the exit code, and that standard error names the thing and the way out."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    for text in texts:
        assert text in done.stderr


def nothing_lost(site: SiteFolder, events: int) -> None:
    assert len(site.events()) == events
    assert site.ask("verify")["ok"] is True


# --- join files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a join file"),
        (b"{}", "version is None"),
        (b'{"version": 2}', "version is 2"),
        (b'{"version": 1, "site": "ana"}', "'hub_id' is missing or wrong"),
    ],
)
def test_a_wrong_join_file_is_named(site: MakeSite, content: bytes, said: str) -> None:
    ana = site("ana")
    ana.record(1)
    (ana.folder / "wrong.join").write_bytes(content)
    told(ana.call("join", "wrong.join"), 2, "wrong.join", said)
    assert ana.status()["site"] is None


def test_a_push_before_joining_says_what_to_do(site: MakeSite) -> None:
    ana = site("ana")
    ana.record(1)
    told(ana.call("push"), 2, "has not joined a hub", "cmf-agent join FILE")
    nothing_lost(ana, 5)


def test_a_join_file_that_is_not_there_is_named(site: MakeSite) -> None:
    ana = site("ana")
    done = ana.call("join", "none.join")
    assert done.returncode == 1
    assert "none.join: No such file or directory" in done.stderr


def test_another_hubs_join_file_is_not_taken_by_accident(shared_hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    shared_hub.join(ana)
    ana.record(1)
    ana.push()
    with running_hub(tmp_path / "other") as other:
        file = other.enrol("ana")
        told(ana.call("join", file), 2, "this site has joined", "--replace")
        assert ana.push()["pending"] == 0  # still the first
        ana.ask("join", file, "--replace")
        said = ana.push()
        assert (said["sent"], said["pending"]) == (5, 0)
        assert other.ask("status")["events"] == 5
        # the login of one hub, at the address of another
        told(
            ana.call("push", "--hub", f"nats://{shared_hub.address}", "--timeout", "60"),
            4,
            shared_hub.address,
            "refuses this login",
        )
    nothing_lost(ana, 5)


def test_a_hub_that_is_not_the_one_that_was_joined_is_noticed(shared_hub: Hub, site: MakeSite) -> None:
    boris = site("boris")
    shared_hub.join(boris)
    boris.record(1)
    joined = json.loads(boris.home.hub_path.read_text())
    boris.home.hub_path.write_text(json.dumps(joined | {"hub_id": "ab" * 16}))
    told(boris.call("push", "--timeout", "60"), 4, "signature does not verify", "cmf-hub site add")
    boris.home.hub_path.write_text(json.dumps(joined))
    assert boris.push()["pending"] == 0


# --- nobody there


def test_a_hub_that_is_down_is_told(site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    ana.record(3)
    with running_hub(tmp_path / "hub") as hub:
        hub.join(ana)
        assert hub.stop() == 0
        told(ana.call("push", "--timeout", "2"), 4, f"nobody answers at {hub.address}")
        assert (ana.status()["confirmed"], ana.status()["pending"]) == (0, 13)
        hub.start()
        assert ana.push()["confirmed"] == 13
    nothing_lost(ana, 13)


def test_a_wrong_port_is_told(shared_hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    carl = site("carl")
    shared_hub.join(carl)
    told(carl.call("push", "--hub", f"nats://{HOST}:{free_port()}", "--timeout", "2"), 4, "nobody answers")
    told(
        carl.call("push", "--hub", "nats://no-such-host.invalid:4222", "--timeout", "2"),
        4,
        "no-such-host.invalid:4222",
    )
    told(carl.call("push", "--hub", "not an address", "--timeout", "60"), 2, "not an address", "nats://HOST:PORT")


def test_a_hub_that_hangs_is_waited_for_no_longer_than_asked(hub: Hub, site: MakeSite) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(1)
    assert hub.process is not None
    hub.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(LinkError, match="did not answer"):
            push(ana.home, hub_in_force(ana.home), timeout_s=0.5)
        assert time.monotonic() - began < 60
    finally:
        hub.process.send_signal(signal.SIGCONT)
    assert ana.push()["pending"] == 0


def test_a_hub_that_goes_away_in_the_middle_leaves_the_push_unconfirmed_at_its_timeout(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(15, metrics=1_000)
    pushing = ana.start_push(7)
    until(lambda: hub.events() > 0 or pushing.poll() is not None, "the push to arrive")
    hub.end()
    out, err = pushing.communicate(timeout=180)
    if pushing.returncode != 0:  # 0: it was done before
        assert pushing.returncode == 3, err
        assert json.loads(out)["pending"] > 0
    hub.start()
    assert ana.push()["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])


# --- two at once


def test_a_push_while_another_runs_is_refused_and_harms_neither(shared_hub: Hub, site: MakeSite) -> None:
    dora = site("dora")
    shared_hub.join(dora)
    dora.record(1)
    lock = try_lock(dora.home.path / "push.lock")  # as a push holds it
    assert lock is not None
    with lock:
        told(dora.call("push"), 1, "another push of this site is running", "it pushes your events too")
    assert dora.push()["pending"] == 0


def test_what_is_recorded_during_a_push_comes_with_the_next(shared_hub: Hub, site: MakeSite) -> None:
    emma = site("emma")
    shared_hub.join(emma)
    emma.record(10, metrics=300)
    pushing = emma.start_push()
    more = 0
    while pushing.poll() is None:
        emma.record(1)
        more += 1
    pushing.communicate()
    assert pushing.returncode == 0
    assert emma.push()["pending"] == 0
    assert emma.status()["confirmed"] == len(emma.events()) == 1 + 10 * 302 + 4 * more


# --- no room


def lift(pids: list[int], bytes_max: int) -> None:
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))


def test_a_hub_on_a_full_disk_confirms_nothing_that_it_does_not_store_and_drains_later(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
        each.record(2)
        each.push()
    ana.record(6, metrics=500)
    assert hub.process is not None
    full = hub.data.store.with_name("store.db-wal").stat().st_size
    lift([hub.process.pid], full + 4_096)  # the store can't grow, the server's stream can
    done = ana.call("push", "--timeout", "6", "--json")
    assert done.returncode == 3, done.stderr
    said = json.loads(done.stdout)
    held = hub.events()
    assert said["pending"] > 0
    assert ana.status()["confirmed"] <= held - len(boris.events())
    assert hub.runs
    assert "segments could not be stored, they come again" in hub.said()
    lift([hub.process.pid], resource.RLIM_INFINITY)
    boris.record(1)
    assert boris.push()["pending"] == 0
    assert ana.push()["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana, boris])
    assert hub.ask("verify")["ok"] is True
    assert hub.stop() == 0


def test_a_hub_whose_folder_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with hub_at(tmp_path / "file" / "hub") as hub:
        hub.ready_file, hub.log_file = tmp_path / "ready", tmp_path / "log"
        hub.spawn()
        assert hub.process is not None
        assert hub.process.wait(120) == 1
        assert "Not a directory" in hub.said()
        assert "Traceback" not in hub.said()


def test_a_ready_file_that_can_not_be_written_ends_the_hub_with_nothing_left(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.ready_file = tmp_path / "none" / "ready"
        hub.spawn()
        assert hub.process is not None
        assert hub.process.wait(120) == 1
        assert "No such file or directory" in hub.said()
        assert "Traceback" not in hub.said()
        assert hub.pids(str(os.sep)) == []
