"""Hubs that lose what they had: sites notice by themselves, send what is missing, and nothing that is there."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.hubs import Hub
from tests.support.programs import until
from tests.support.replaying import Replaying
from tests.support.sites import SiteFolder, folded

from cmf_agent.hub_file import hub_in_force
from cmf_agent.outbox import Outbox

LIMIT_S = 60.0
MakeSite = Callable[[str], SiteFolder]


@contextmanager
def daemon_of(site: SiteFolder) -> Iterator[Replaying]:
    daemon = Replaying(site)
    try:
        until(lambda: daemon.idle, f"{site.name} to be confirmed", LIMIT_S)
        yield daemon
    finally:
        daemon.end()


def drained(hub: Hub, *sites: SiteFolder) -> None:
    """Wait until the hub holds everything."""
    until(lambda: hub.events() == sum(len(site.events()) for site in sites), "the hub to hold everything", LIMIT_S)


def published(site: SiteFolder) -> None:
    """Wait until all that the site has recorded is noted as published."""
    hub_id = hub_in_force(site.home).hub_id
    with Outbox(site.home.log_path, read_only=True) as outbox:

        def all_of(log_id: bytes) -> bool:
            mark = outbox.mark(hub_id, log_id)
            return mark is not None and mark.sequence == outbox.head(log_id)[0]

        until(lambda: all(map(all_of, outbox.logs())), "it to be published", LIMIT_S)


def store_files(hub: Hub) -> list[Path]:
    return list(hub.folder.glob(f"{hub.data.store.name}*"))


def lose_store(hub: Hub) -> None:
    for file in store_files(hub):
        file.unlink()


def lose_stream(hub: Hub) -> None:
    shutil.rmtree(hub.data.nats / "jetstream")


def test_a_quiet_agent_notices_that_the_hub_was_put_back_to_an_older_copy(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana = site("ana")
    ana.record(3)
    hub.join(ana)
    with daemon_of(ana) as daemon:
        hub.stop()
        copy = tmp_path / "older"
        copy.mkdir()
        for file in store_files(hub):
            shutil.copy(file, copy / file.name)
        hub.start()
        ana.record(5)
        daemon.poke()
        drained(hub, ana)
        until(lambda: daemon.idle, "the confirmation", LIMIT_S)
        hub.stop()
        lose_store(hub)
        for file in copy.iterdir():
            shutil.copy(file, hub.folder / file.name)
        hub.start()
        drained(hub, ana)
        until(lambda: daemon.idle, "the confirmation", LIMIT_S)
    assert len(daemon.warnings) == 1
    assert daemon.sent == len(ana.events()) + 5 * 4, "what the older copy held was sent again"
    assert hub.digest() == folded(tmp_path / "folded.db", [ana])


def test_what_was_published_into_a_stream_that_was_wiped_is_sent_again(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana = site("ana")
    hub.join(ana)
    with daemon_of(ana) as daemon:
        assert hub.process is not None
        os.kill(hub.process.pid, signal.SIGSTOP)  # the buffer goes on without it
        ana.record(10)
        daemon.poke()
        published(ana)
        hub.end()
        lose_stream(hub)
        hub.start()
        drained(hub, ana)
    assert daemon.sent == len(ana.events()) + 40, "what was lost is not what was sent again"
    assert hub.digest() == folded(tmp_path / "folded.db", [ana])


def test_a_hub_that_lost_everything_but_its_registry_is_filled_by_its_sites(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana, boris = site("ana"), site("boris")
    for one in (ana, boris):
        one.record(20, metrics=30)
        hub.join(one)
        one.push()
    before = hub.digest()
    with daemon_of(ana):
        hub.end()
        lose_store(hub)
        lose_stream(hub)
        hub.start()
        drained(hub, ana)
    said = boris.push()
    assert (said["sent"], said["confirmed"], said["pending"]) == (len(boris.events()), len(boris.events()), 0)
    assert hub.digest() == before == folded(tmp_path / "folded.db", [ana, boris])


@pytest.mark.parametrize("hub_is_killed", [False, True])
def test_a_killed_agent_does_not_send_again_what_the_stream_holds(
    hub: Hub, site: MakeSite, hub_is_killed: bool
) -> None:
    ana = site("ana")
    hub.join(ana)
    with daemon_of(ana) as daemon:
        assert hub.process is not None
        os.kill(hub.process.pid, signal.SIGSTOP)
        ana.record(20)
        daemon.poke()
        published(ana)
    if hub_is_killed:
        hub.kill()
        hub.start()
    else:
        os.kill(hub.process.pid, signal.SIGCONT)
    said = ana.push()
    assert (said["sent"], said["bytes"], said["pending"]) == (0, 0, 0)
    assert said["confirmed"] == 80
