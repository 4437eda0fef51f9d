"""How far each hub is: published, confirmed, signed."""

from contextlib import closing
from pathlib import Path

import pytest
from tests.agent.helpers import DRAFT

from cmf_agent.home import Home
from cmf_agent.keys import read_signer
from cmf_agent.log import Log
from cmf_agent.outbox import Cut, Outbox
from cmf_graph.database import connect
from cmf_protocol.chains import Mark
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Event
from cmf_protocol.segments import sign_segment, statement_of

HUB, OTHER_HUB = b"h" * 16, b"o" * 16


@pytest.fixture
def events(home: Home) -> list[Event]:
    with Log(home.log_path) as log:
        return log.append([DRAFT] * 9)


def test_what_follows_a_sequence_is_listed_in_order(home: Home, events: list[Event]) -> None:
    with Outbox(home.log_path) as outbox:
        (log_id,) = outbox.logs()
        assert log_id == events[0].header.log_id
        assert outbox.head(log_id) == (10, events[-1].event_id)
        assert [event.sequence for event in outbox.after(log_id, 7)] == [8, 9, 10]
        assert [event.sequence for event in outbox.after(log_id, 0, limit=2)] == [1, 2]
        assert outbox.after(log_id, 10) == []
        assert outbox.event_id(log_id, 5) == events[3].event_id
        assert outbox.event_id(log_id, 11) is None
        with pytest.raises(CallerError):
            outbox.after(b"x" * 16, 0)


def test_the_version_changes_when_a_commit_of_others_can_be_read_and_not_before(
    home: Home, events: list[Event]
) -> None:
    files = home.log_path.with_name(f"{home.log_path.name}-wal")
    with Outbox(home.log_path) as outbox, closing(connect(home.log_path)) as other:
        before, size = outbox.version(), files.stat().st_size
        other.execute("PRAGMA cache_size = 1")  # so that pages go to the file before the commit
        other.execute("BEGIN IMMEDIATE")
        other.executemany("INSERT INTO hubs VALUES (?, ?, 1)", ((bytes([n]) * 16, b"i" * 4_000) for n in range(50)))
        assert files.stat().st_size > size
        assert outbox.version() == before
        other.execute("COMMIT")
        changed = outbox.version()
        assert changed != before
        outbox.record_contact(HUB, b"i")
        assert outbox.version() == changed, "its own commits are no news"


def test_a_confirmation_counts_only_for_the_own_chain_and_never_goes_back(home: Home, events: list[Event]) -> None:
    log_id = events[0].header.log_id
    with Outbox(home.log_path) as outbox:
        assert outbox.confirmed(HUB, log_id) is None
        assert not outbox.record_confirmed(HUB, log_id, 5, events[4].event_id)
        assert not outbox.record_confirmed(HUB, log_id, 50, events[4].event_id)
        assert outbox.confirmed(HUB, log_id) is None
        assert outbox.record_confirmed(HUB, log_id, 5, events[3].event_id)
        assert outbox.record_confirmed(HUB, log_id, 3, events[1].event_id)
        assert outbox.confirmed(HUB, log_id) == (5, events[3].event_id)
        assert outbox.confirmed(OTHER_HUB, log_id) is None
        assert outbox.record_confirmed(HUB, log_id, 3, events[1].event_id, reset=True)
        assert outbox.confirmed(HUB, log_id) == (3, events[1].event_id)
        outbox.forget_confirmed(HUB, log_id)
        assert outbox.confirmed(HUB, log_id) is None


def test_what_was_noted_outlives_the_process(home: Home, events: list[Event]) -> None:
    log_id = events[0].header.log_id
    with Outbox(home.log_path) as outbox:
        assert outbox.contact(HUB) is None
        outbox.record_progress(HUB, {}, {log_id: Mark(7, "life", 41)})
        outbox.record_contact(HUB, b"i" * 16)
    with Outbox(home.log_path, read_only=True) as outbox:
        assert (outbox.published(HUB, log_id), outbox.published(OTHER_HUB, log_id)) == (7, 0)
        assert outbox.mark(HUB, log_id) == Mark(7, "life", 41)
        assert outbox.mark(OTHER_HUB, log_id) is None
        contact = outbox.contact(HUB)
        assert contact is not None
        assert contact.incarnation == b"i" * 16
        assert contact.last_contact_us > events[0].header.wall_us


def test_what_a_push_keeps_is_one_commit_and_lowers_nothing(home: Home, events: list[Event]) -> None:
    log_id = events[0].header.log_id
    with Outbox(home.log_path) as outbox:
        outbox.record_progress(HUB, {log_id: (6, events[4].event_id)}, {log_id: Mark(9, "life", 3)})
        assert (outbox.confirmed(HUB, log_id), outbox.published(HUB, log_id)) == ((6, events[4].event_id), 9)
        outbox.record_progress(HUB, {log_id: (4, events[2].event_id)}, {})
        assert (outbox.confirmed(HUB, log_id), outbox.published(HUB, log_id)) == ((6, events[4].event_id), 9)
        outbox.record_progress(HUB, {log_id: (10, events[8].event_id)}, {})
        assert (outbox.confirmed(HUB, log_id), outbox.published(HUB, log_id)) == ((10, events[8].event_id), 10)


def test_signatures_are_kept_once_and_listed_in_order(home: Home, events: list[Event], tmp_path: Path) -> None:
    signer = read_signer(home.key_path)
    cuts = []
    for part in (events[3:], events[:3]):
        statement = statement_of(part, events[-1], signer.public_key)
        cuts.append(Cut(statement, sign_segment(statement, signer)))
    with Outbox(home.log_path) as outbox:
        outbox.record_cuts(cuts)
        outbox.record_cuts(cuts[:1])
        log_id = events[0].header.log_id
        assert outbox.cuts(log_id) == [cuts[1], cuts[0]]
        assert outbox.cuts(log_id, 4) == [cuts[0]]
        assert outbox.cuts(log_id, 10) == []
