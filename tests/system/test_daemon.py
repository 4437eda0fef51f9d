"""The daemon as its users run it: a process beside the pipelines, a hub that comes and goes."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.hubs import Hub
from tests.support.programs import BIN, COMMAND_LIMIT_S, environment, until
from tests.support.sites import SiteFolder, folded

from cmf_agent.activity import read_activity
from cmf_graph.database import connect

MakeSite = Callable[[str], SiteFolder]
LIMIT_S = 90.0


class Daemons:
    """Starts `cmf-agent daemon` for sites, and ends whatever still runs."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, site: SiteFolder, *options: str, **variables: str) -> "subprocess.Popen[bytes]":
        with (site.folder / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(
                [BIN / "cmf-agent", "daemon", *options], cwd=site.folder, env=environment(**variables), stdout=log, stderr=log
            )  # fmt: skip
        self._running.append(daemon)
        return daemon

    def end(self) -> None:
        for daemon in self._running:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    made = Daemons()
    yield made
    made.end()


def said(site: SiteFolder) -> str:
    return (site.folder / "daemon.log").read_text()


def is_confirmed(site: SiteFolder) -> bool:
    status = site.status()
    return bool(status["confirmed"] == len(site.events()) and status["pending"] == 0)


def state_of(site: SiteFolder) -> str:
    found = read_activity(site.home)
    return found.state if found else "none"


def is_open_in(file: Path, command: str) -> bool:
    """Tell if a process that has this word in its command line has the file open."""
    for process in psutil.process_iter():
        try:
            if command in process.cmdline() and any(each.path == str(file) for each in process.open_files()):
                return True
        except psutil.Error:
            continue
    return False


def stop(daemon: "subprocess.Popen[bytes]", with_signal: int = signal.SIGTERM) -> int:
    daemon.send_signal(with_signal)
    return daemon.wait(LIMIT_S)


def test_what_is_recorded_is_brought_over_by_itself(hub: Hub, site: MakeSite, daemons: Daemons, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    daemon = daemons.start(ana)
    for _ in range(3):
        ana.record(2)
        until(lambda: is_confirmed(ana), "the events to be confirmed", LIMIT_S)
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])
    until(lambda: state_of(ana) == "idle", "the daemon to have nothing to do", LIMIT_S)
    status = ana.ask("status")
    assert status["daemon"]["pid"] == daemon.pid
    assert status["daemon"]["state"] == "idle"
    assert stop(daemon) == 0
    assert ana.ask("status")["daemon"] is None
    assert "Traceback" not in said(ana)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_whether_or_not_there_is_a_hub(site: MakeSite, daemons: Daemons, number: int) -> None:
    ana = site("ana")
    daemon = daemons.start(ana)
    until(lambda: state_of(ana) == "waiting", "the daemon to wait for a hub", LIMIT_S)
    assert "cmf-agent join" in ana.ask("status")["daemon"]["detail"]
    assert stop(daemon, number) == 0
    assert "Traceback" not in said(ana)


def test_a_site_may_join_while_its_daemon_waits(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana = site("ana")
    ana.record(3)
    daemons.start(ana)
    until(lambda: state_of(ana) == "waiting", "the daemon to wait for a hub", LIMIT_S)
    hub.join(ana)
    until(lambda: is_confirmed(ana), "what was recorded before to be confirmed", LIMIT_S)


def test_one_daemon_serves_a_site(site: MakeSite, daemons: Daemons) -> None:
    ana = site("ana")
    first = daemons.start(ana)
    until(lambda: state_of(ana) == "waiting", "the daemon to wait for a hub", LIMIT_S)
    second = ana.call("daemon")
    assert second.returncode == 1
    assert str(first.pid) in second.stderr


def test_a_push_beside_the_daemon_waits_for_what_the_daemon_brings_over(
    hub: Hub, site: MakeSite, daemons: Daemons
) -> None:
    ana = site("ana")
    hub.join(ana)
    daemons.start(ana)
    until(lambda: state_of(ana) == "idle", "the daemon to be connected", LIMIT_S)
    ana.record(5)
    pushed = ana.push()
    assert pushed["pending"] == 0
    assert is_confirmed(ana)


def test_what_would_be_sent_is_said_beside_the_daemon_at_once(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana = site("ana")
    hub.join(ana)
    assert hub.stop() == 0
    daemons.start(ana)
    until(lambda: state_of(ana) == "connecting", "the daemon to look for the hub", LIMIT_S)
    ana.record(5)
    said = ana.ask("push", "--dry-run")
    assert (said["sent"], said["pending"], said["segments"]) == (0, len(ana.events()), 1)


def test_a_push_says_so_if_the_daemon_that_it_waits_for_ends(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana = site("ana")
    hub.join(ana)
    assert hub.stop() == 0
    daemon = daemons.start(ana)
    until(lambda: state_of(ana) == "connecting", "the daemon to look for the hub", LIMIT_S)
    push = ana.start_push(COMMAND_LIMIT_S - 10)
    until(lambda: is_open_in(ana.home.log_path, "push"), "the push to wait", LIMIT_S)
    stop(daemon)
    _, err = push.communicate(timeout=LIMIT_S)
    assert push.returncode == 3
    assert "the daemon has ended" in err


def test_an_older_copy_of_the_log_that_is_put_in_its_place_is_served(
    hub: Hub, site: MakeSite, daemons: Daemons, tmp_path: Path
) -> None:
    ana = site("ana")
    ana.record(2)
    hub.join(ana)
    older = tmp_path / "older.db"
    with closing(connect(ana.home.log_path)) as source:
        source.execute("VACUUM INTO ?", (str(older),))
    ana.record(2)
    daemons.start(ana)
    until(lambda: is_confirmed(ana), "all to be confirmed", LIMIT_S)
    for suffix in ("-wal", "-shm"):
        ana.home.log_path.with_name(f"{ana.home.log_path.name}{suffix}").unlink(missing_ok=True)
    older.replace(ana.home.log_path)
    ana.record(2)
    until(lambda: is_confirmed(ana), "what was recorded since to be confirmed", LIMIT_S)
    assert len(ana.ask("status")["logs"]) == 2


def test_while_the_hub_is_away_it_says_why_it_waits_and_goes_on_by_itself(
    hub: Hub, site: MakeSite, daemons: Daemons, tmp_path: Path
) -> None:
    ana = site("ana")
    hub.join(ana)
    assert hub.stop() == 0
    daemon = daemons.start(ana)
    ana.record(4)
    until(lambda: state_of(ana) == "connecting" and ana.ask("status")["daemon"]["detail"], "it to say why", LIMIT_S)
    assert str(hub.port) in ana.ask("status")["daemon"]["detail"]
    assert ana.call("push", "--timeout", "1").returncode == 4
    hub.start()
    until(lambda: is_confirmed(ana), "the daemon to find the hub again", LIMIT_S)
    hub.kill()
    ana.record(4)
    hub.start()
    until(lambda: is_confirmed(ana), "the daemon to find the killed hub again", LIMIT_S)
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])
    assert daemon.poll() is None


def test_what_is_subscribed_comes_as_it_is_recorded_elsewhere(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
    ana.run("mnist", "train", outputs={"model.pkl": b"first"})
    ana.push()
    boris.ask("subscribe", "-p", "mnist")
    daemons.start(boris)
    until(lambda: state_of(boris) == "idle", "the daemon to be connected", LIMIT_S)
    execution = ana.run("mnist", "train", outputs={"model.pkl": b"second"})
    ana.push()

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = boris.ask("query", "executions", "--pipeline", "mnist")["items"]
        return found

    until(lambda: execution in [item["id"] for item in listed()], "the new execution to be known offline", LIMIT_S)


def test_what_is_subscribed_while_the_daemon_works_comes_by_itself(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
    daemons.start(boris)
    until(lambda: state_of(boris) == "idle", "the daemon to be connected", LIMIT_S)
    boris.ask("subscribe", "-p", "mnist", "--no-pull")
    until(lambda: boris.ask("subscriptions")["items"][0]["complete"], "the subscription to be pulled", LIMIT_S)
    ana.run("mnist", "train", outputs={"model.pkl": b"first"})
    ana.push()
    until(lambda: len(boris.ask("query", "executions")["items"]) == 1, "the execution to be known offline", LIMIT_S)


def test_systemd_hears_of_start_life_and_end(site: MakeSite, daemons: Daemons, tmp_path: Path) -> None:
    ana = site("ana")
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(LIMIT_S)
        daemon = daemons.start(ana, NOTIFY_SOCKET=address, WATCHDOG_USEC="100000")
        heard: list[str] = []

        def hears(line: str) -> bool:
            heard.extend(manager.recv(4096).decode().splitlines())
            return line in heard

        until(lambda: hears("READY=1"), "systemd to hear that it is ready", LIMIT_S)
        for _ in range(3):
            heard.clear()
            until(lambda: hears("WATCHDOG=1"), "a sign of life", LIMIT_S)
        daemon.send_signal(signal.SIGTERM)
        until(lambda: hears("STOPPING=1"), "systemd to hear that it ends", LIMIT_S)
        assert daemon.wait(LIMIT_S) == 0


def test_killed_with_9_it_leaves_nothing_that_hinders_the_next(hub: Hub, site: MakeSite, daemons: Daemons) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(2)
    daemon = daemons.start(ana)
    until(lambda: state_of(ana) != "none", "the daemon to run", LIMIT_S)
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    assert ana.ask("status")["daemon"] is None
    daemons.start(ana)
    until(lambda: is_confirmed(ana), "the next daemon to bring it over", LIMIT_S)
