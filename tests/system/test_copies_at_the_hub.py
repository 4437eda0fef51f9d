"""Copies of a site at its hub: every branch is stored and folded, none takes another's confirmation for its own, each goes on by itself."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import Hub
from tests.support.sites import SiteFolder, copy_of, folded, twin_of

from cmf_agent.place import FORKED
from cmf_graph.database import connect
from cmf_protocol import types as t

EXECUTION = bytes(range(16))
ANOTHER_FILE = "the file is another one"


@pytest.fixture
def original(hub: Hub, site: Callable[[str], SiteFolder]) -> SiteFolder:
    """A site that has pushed what it holds."""
    made = site("ana")
    hub.join(made)
    made.record(executions=3)
    made.push()
    return made


def say(site: SiteFolder) -> str:
    """Record something that only this copy says, and return the id of the log in which it stands."""
    (event,) = site.append([t.metrics_recorded(EXECUTION, metrics={f"of {site.folder.name}": len(site.events())})])
    return event.header.log_id.hex()


def heads(hub: Hub) -> dict[str, list[int]]:
    """Return how far the hub confirmed each branch, by log."""
    (item,) = hub.ask("query", "sites")["items"]
    logs: list[dict[str, Any]] = item["logs"]
    return {log["log_id"]: sorted(branch["confirmed"] for branch in log["branches"]) for log in logs}


def assert_the_hub_holds(hub: Hub, tmp_path: Path, *copies: SiteFolder) -> None:
    """Check that the hub holds each event of these copies once, and folds them all; that each copy knows it."""
    assert hub.events() == len({event.event_id for copy in copies for event in copy.events()})
    assert hub.digest() == folded(tmp_path / f"graph-{hub.events()}.db", copies)
    assert hub.ask("verify")["ok"] is True
    for copy in copies:
        status = copy.status()
        assert (status["confirmed"], status["pending"], status["note"]) == (len(copy.events()), 0, None)
        assert copy.ask("verify")["ok"] is True


def test_a_copied_site_and_the_original_push_logs_of_their_own(hub: Hub, original: SiteFolder, tmp_path: Path) -> None:
    copy = copy_of(original, tmp_path / "copy")
    old, new = say(original), say(copy)
    assert old != new
    for site in (copy, original):
        site.push()
    assert_the_hub_holds(hub, tmp_path, original, copy)
    assert heads(hub) == {old: [14], new: [2]}
    (item,) = hub.ask("query", "sites")["items"]
    assert {log["log_id"]: log["predecessor"] for log in item["logs"]} == {old: None, new: old}
    assert [log["reason"] for log in copy.status()["logs"]] == [None, ANOTHER_FILE]


def test_an_older_backup_that_is_put_back_pushes_a_successor_and_loses_nothing(
    hub: Hub, original: SiteFolder, tmp_path: Path
) -> None:
    with closing(connect(original.home.log_path)) as log, closing(connect(tmp_path / "backup.db")) as backup:
        log.backup(backup)
    old = say(original)
    original.push()
    lost = original.events()[-1]
    with closing(connect(original.home.log_path)) as log, closing(connect(tmp_path / "backup.db")) as backup:
        backup.backup(log)
    new = say(original)
    assert original.status()["logs"][-1]["reason"] == "an older copy was put back: event 14, which was sent, is missing"
    original.push()
    assert heads(hub) == {old: [14], new: [2]}
    assert lost.event_id not in {event.event_id for event in original.events()}
    assert hub.events() == len(original.events()) + 1
    assert original.status()["pending"] == 0


def test_twins_that_nothing_betrays_fork_the_log_and_part_after_the_next_hello(
    hub: Hub, original: SiteFolder, tmp_path: Path
) -> None:
    twin = twin_of(original, tmp_path / "twin")
    log_id = say(original)
    assert [say(twin), say(twin)] == [log_id, log_id]
    before = twin.status()
    original.push()
    assert twin.status()["confirmed"] == before["confirmed"] == 13
    twin.push()
    assert heads(hub) == {log_id: [14, 15]}
    assert (original.status()["confirmed"], twin.status()["confirmed"]) == (14, 15)
    assert FORKED in twin.status()["note"]
    new = say(twin)
    assert new != log_id
    assert twin.status()["logs"][-1]["reason"] == FORKED
    assert say(original) == log_id  # which no one else continues any more
    for site in (twin, original):
        site.push()
    assert_the_hub_holds(hub, tmp_path, original, twin)
    assert heads(hub) == {log_id: [15, 15], new: [2]}


def test_a_twin_that_appends_to_what_another_has_not_sent_yet_is_heard_of_too(
    hub: Hub, original: SiteFolder, tmp_path: Path
) -> None:
    log_id = say(original)
    twin = twin_of(original, tmp_path / "twin")
    assert say(twin) == log_id
    twin.push()
    original.push()  # nothing is left to send; the hub names an event beyond
    assert original.status()["confirmed"] == 14
    assert say(original) != log_id
    assert say(twin) == log_id
    for site in (original, twin):
        site.push()
    assert_the_hub_holds(hub, tmp_path, original, twin)
