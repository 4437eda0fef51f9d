"""Leaving: only when the hub has everything, said to it, and then complete."""

import os
import pty
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.programs import BIN, environment, until
from tests.support.sites import SiteFolder

from cmf_agent.activity import lock_path
from cmf_agent.hub_file import joined_hub
from cmf_agent.leave import leave
from cmf_agent.listings import Listings
from cmf_agent.log import Log
from cmf_agent.pull import note_subscriptions
from cmf_agent.pulled import Pulled
from cmf_graph.database import connect
from cmf_graph.locks import try_lock
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.filters import filter_of
from cmf_protocol.types import note_added

MakeSite = Callable[[str], SiteFolder]
EXECUTION = bytes(range(16))


def state(hub: Hub, name: str) -> str:
    (found,) = [row["state"] for row in hub.ask("query", "sites")["items"] if row["name"] == name]
    return str(found)


def test_a_site_that_leaves_pushes_first_and_is_known_to_have_left(shared_hub: Hub, site: MakeSite) -> None:
    ana = site("ana")
    ana.record(20)
    file = shared_hub.enrol("ana")
    ana.ask("join", file)
    note_subscriptions(ana.home, [filter_of(pipelines=["bulk"])], prove=False)
    said = ana.ask("leave")
    total = len(ana.events())
    assert said == {"site": "ana", "left": True, "events": total, "pending": 0, "purged": False}
    until(lambda: state(shared_hub, "ana") == "left", "the hub to note it")
    (row,) = [row for row in shared_hub.ask("query", "sites")["items"] if row["name"] == "ana"]
    assert row["events"] == total
    assert row["left"].endswith("Z")
    assert not ana.home.hub_path.exists()
    with Pulled(ana.home.pulled_path) as pulled:
        assert [asked.subscribed for asked in Listings(pulled).filters()] == [False]
    assert ana.call("push").returncode == 2
    assert ana.call("leave").returncode == 2
    assert len(ana.events()) == total  # the log stays
    ana.record(1)
    assert ana.status()["pending"] == total + 4


def test_with_purge_nothing_is_left_and_who_records_on_is_told(shared_hub: Hub, site: MakeSite) -> None:
    boris = site("boris")
    boris.record(5)
    shared_hub.join(boris)
    with Log(boris.home.log_path) as log:
        draft = note_added(("execution", EXECUTION), "still running")
        log.append([draft])
        unsure = boris.call("leave", "--purge")
        assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)
        total = len(boris.events())
        assert boris.ask("leave", "--purge", "--yes") == {
            "site": "boris", "left": True, "events": total, "pending": 0, "purged": True,
        }  # fmt: skip
        assert not boris.home.path.exists()
        with pytest.raises(StoreError):
            log.append([draft])
    until(lambda: state(shared_hub, "boris") == "left", "the hub to note it")


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_on_a_terminal_it_asks_before_it_removes(shared_hub: Hub, site: MakeSite, answer: str, code: int) -> None:
    kim = site(f"kim-{answer}")
    shared_hub.join(kim)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode() + b"\n")
        done = subprocess.run(
            [BIN / "cmf-agent", "leave", "--purge"], cwd=kim.folder, env=environment(), stdin=theirs, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"Remove {kim.home.path}" in done.stderr
    assert kim.home.path.exists() is (code == 1)
    if code == 1:
        assert joined_hub(kim.home).site == kim.name


def test_without_a_hub_nothing_is_given_up(site: MakeSite, tmp_path: Path) -> None:
    lea = site("lea")
    lea.record(3)
    assert lea.call("leave").returncode == 2  # none was joined
    with running_hub(tmp_path / "hub") as hub:
        hub.join(lea)
        hub.stop()
        done = lea.call("leave", "--purge", "--yes", "--timeout", "1")
        assert done.returncode == 4, done.stderr
        assert joined_hub(lea.home).site == "lea"
        assert len(lea.events()) == 13


def test_while_the_daemon_runs_the_site_does_not_leave(shared_hub: Hub, site: MakeSite) -> None:
    nora = site("nora")
    shared_hub.join(nora)
    lock = try_lock(lock_path(nora.home))  # as the daemon holds it
    assert lock is not None
    with lock, pytest.raises(CallerError, match="daemon runs"):
        leave(nora.home, joined_hub(nora.home), timeout_s=30)
    assert leave(nora.home, joined_hub(nora.home), timeout_s=30).pending == 0


def test_what_the_hub_does_not_confirm_keeps_the_site(hub: Hub, site: MakeSite) -> None:
    """The hub answers, and can store nothing."""
    mara = site("mara")
    hub.join(mara)
    mara.push()
    mara.record(2)
    with closing(connect(hub.data.store)) as store:
        store.execute("CREATE TRIGGER no_more BEFORE INSERT ON segments BEGIN SELECT RAISE(ABORT, 'test'); END")
        done = mara.call("leave", "--purge", "--yes", "--timeout", "3")
        assert done.returncode == 3, done.stderr
        assert "NOT left: the hub has not confirmed 8 events" in done.stdout
        assert joined_hub(mara.home).site == "mara"
        assert state(hub, "mara") == "8 behind"
