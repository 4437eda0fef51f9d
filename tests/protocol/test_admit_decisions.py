"""Admit: the table of decisions, and that any delivery of a history ends with the same events."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.held import MemoryHeld, MemoryRegistry
from tests.support.strategies import SIGNERS, History, histories, make_event, segment_of, segmentations

from cmf_protocol import types as t
from cmf_protocol.admit import Admit, Duplicate, Enrolled, Parked, Place, Refused, Supply
from cmf_protocol.events import Event
from cmf_protocol.segments import Segment, decode_segment
from cmf_protocol.signing import Signer

MINE, OTHER, UNKNOWN = SIGNERS
LOG = b"l" * 16
NOTE = t.note_added(("execution", b"e" * 16), "x")


def grow(after: Event | None, count: int, salt: int = 0, signer: Signer = MINE, log_id: bytes = LOG) -> list[Event]:
    """Return this many events after one, or a new log."""
    events = []
    for at in range(count):
        draft = t.log_opened(signer.public_key, agent="") if after is None else NOTE
        after = make_event(after, draft, salt=100 * salt + at, log_id=log_id)
        events.append(after)
    return events


LINE = grow(None, 6)
BRANCH = grow(LINE[2], 3, salt=1)
STRANGERS = grow(None, 3, salt=2, signer=OTHER)


def segment(events: Sequence[Event], signer: Signer = MINE) -> Segment:
    return decode_segment(segment_of(events, signer))


def registry(mine_revoked: bool = False) -> MemoryRegistry:
    sites = {MINE.public_key: Enrolled("ward-1", mine_revoked), OTHER.public_key: Enrolled("ward-2", False)}
    return MemoryRegistry(sites, {"courier"})


def holding(*parts: Sequence[Event], signer: Signer = MINE) -> MemoryHeld:
    held = MemoryHeld()
    for part in parts:
        assert isinstance(held.receive(segment(part, signer), None, registry()), Admit)
    return held


def test_a_new_log_is_admitted_whole() -> None:
    held = MemoryHeld()
    assert held.receive(segment(LINE[:3]), "ward-1", registry()) == Admit(0, 3, None, "ward-1")
    assert held.receive(segment(LINE[3:]), "ward-1", registry()) == Admit(0, 3, held.places[LINE[2].event_id], "ward-1")
    assert len({place.branch for place in held.places.values()}) == 1


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("known", range(1, 6))
def test_what_overlaps_is_admitted_from_where_it_is_new(start: int, known: int) -> None:
    held = holding(LINE[:known])
    decision = held.receive(segment(LINE[start:]), "ward-1", registry())
    if start <= known:
        assert decision == Admit(known - start, 6 - start, held.places[LINE[known - 1].event_id], "ward-1")
        assert set(held.events) == {event.event_id for event in LINE}
    else:
        assert decision == Parked("ward-1")
        assert len(held.events) == known


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 6), (2, 4), (5, 6)])
def test_what_is_held_is_a_duplicate(start: int, stop: int) -> None:
    held = holding(LINE)
    place = Place(held.places[LINE[0].event_id].branch, stop, MINE.public_key)
    assert held.receive(segment(LINE[start:stop]), "ward-1", registry()) == Duplicate(place)


def test_a_duplicate_is_one_whatever_became_of_its_key_and_whoever_brings_it() -> None:
    held = holding(LINE)
    for books in (registry(mine_revoked=True), MemoryRegistry()):
        for carrier in ("ward-1", "ward-2", None):
            assert isinstance(held.receive(segment(LINE), carrier, books), Duplicate)


def test_what_is_held_without_its_body_is_supplied_by_anybody() -> None:
    bare = [*LINE[:2], LINE[2]._replace(body=None), *LINE[3:]]
    for books in (registry(), registry(mine_revoked=True), MemoryRegistry()):
        held = holding(bare[:5])
        place = held.places[LINE[3].event_id]
        assert held.receive(segment(bare[:4]), "ward-2", books) == Duplicate(place)
        assert held.receive(segment(LINE[:2]), "ward-2", books) == Duplicate(held.places[LINE[1].event_id])
        assert held.receive(segment(LINE[:4]), "ward-2", books) == Supply(place)
        assert held.receive(segment(LINE[:4]), "ward-2", books) == Duplicate(place)
        assert held.events == {event.event_id: event for event in LINE[:5]}
    held = holding(bare[:5])
    assert held.receive(segment(LINE), "ward-1", registry()) == Admit(5, 6, held.places[LINE[4].event_id], "ward-1")
    assert held.events[LINE[2].event_id].body is not None


def test_a_forged_segment_supplies_nothing() -> None:
    held = holding([*LINE[:2], LINE[2]._replace(body=None)])
    decision = held.receive(segment(LINE[:3])._replace(signature=bytes(64)), "ward-1", registry())
    assert isinstance(decision, Refused)


def test_a_fork_is_admitted_after_the_event_that_it_branches_from() -> None:
    for first, second in ((LINE, BRANCH), (LINE[:3] + BRANCH, LINE[3:])):
        held = holding(first)
        decision = held.receive(segment(second), "ward-1", registry())
        assert decision == Admit(0, len(second), held.places[LINE[2].event_id], "ward-1")
        assert held.places[LINE[-1].event_id].branch != held.places[BRANCH[-1].event_id].branch


def test_a_fork_inside_a_segment_is_admitted_from_where_it_branches() -> None:
    held = holding(LINE)
    for start in range(3):
        other = MemoryHeld(dict(held.events), dict(held.places))
        decision = other.receive(segment(LINE[start:3] + BRANCH), "ward-1", registry())
        assert decision == Admit(3 - start, 6 - start, held.places[LINE[2].event_id], "ward-1")


def test_an_event_at_a_held_place_that_is_another_is_no_duplicate() -> None:
    held = holding(LINE)
    assert BRANCH[0].header.sequence == LINE[3].header.sequence
    assert isinstance(held.receive(segment(BRANCH[:1]), "ward-1", registry()), Admit)


def test_two_roots_with_one_log_id_are_two_trees() -> None:
    held = holding(LINE)
    assert held.receive(segment(STRANGERS, OTHER), "ward-2", registry()) == Admit(0, 3, None, "ward-2")
    again = grow(None, 2, salt=3)
    assert held.receive(segment(again), "ward-1", registry()) == Admit(0, 2, None, "ward-1")
    roots = {held.places[events[0].event_id].branch for events in (LINE, STRANGERS, again)}
    assert len(roots) == 3


def test_beyond_a_hole_is_parked_and_admitted_once_the_hole_is_filled() -> None:
    held = holding(LINE[:2])
    late = segment(LINE[4:])
    assert held.receive(late, "ward-1", registry()) == Parked("ward-1")
    assert held.receive(segment(BRANCH[1:]), "ward-1", registry()) == Parked("ward-1")
    held.receive(segment(LINE[2:4]), "ward-1", registry())
    assert isinstance(held.receive(late, "ward-1", registry()), Admit)


def accepting(before: Event, after: Event, signer: Signer = OTHER) -> list[Event]:
    """Return a log of `signer` that accepts the gap between two events."""
    log = grow(None, 1, salt=7, signer=signer, log_id=b"o" * 16)
    draft = t.gap_accepted(MINE.public_key, LOG, before.event_id, after.event_id)
    return [*log, make_event(log[0], draft, salt=710)]


def operators(*signers: Signer, revoked: bool = False) -> MemoryRegistry:
    """Return a registry in which these may operate."""
    books = registry()
    for signer in signers:
        books.sites[signer.public_key] = Enrolled(books.sites[signer.public_key].site, revoked, may_operate=True)
    return books


def test_beyond_a_gap_is_admitted_after_the_event_that_an_operator_has_accepted() -> None:
    held = holding(LINE[:2])
    held.receive(segment(accepting(LINE[1], LINE[4]), OTHER), "ward-2", operators(OTHER))
    beyond = segment(LINE[4:])
    for books in (registry(), operators(MINE)):
        assert MemoryHeld(dict(held.events), dict(held.places)).receive(beyond, "ward-1", books) == Parked("ward-1")
    assert held.receive(segment(LINE[3:4]), "ward-1", operators(OTHER)) == Parked("ward-1"), "another event begins it"
    place = held.places[LINE[1].event_id]
    assert held.receive(beyond, "ward-1", operators(OTHER)) == Admit(0, 2, place, "ward-1")
    assert held.receive(beyond, "ward-1", registry()) == Duplicate(held.places[LINE[5].event_id])


def test_a_revoked_site_operates_no_more() -> None:
    held = holding(LINE[:2])
    held.receive(segment(accepting(LINE[1], LINE[4]), OTHER), "ward-2", registry())
    assert held.receive(segment(LINE[4:]), "ward-1", operators(OTHER, revoked=True)) == Parked("ward-1")


def test_a_gap_in_anothers_log_lets_nobody_go_on_there() -> None:
    held = holding(LINE[:2])
    held.receive(segment(accepting(LINE[1], LINE[4]), OTHER), "ward-2", operators(OTHER))
    assert held.receive(segment(LINE[4:], OTHER), "ward-2", operators(OTHER)) == Parked("ward-2")


def test_of_a_segment_that_spans_a_gap_only_what_is_missing_is_admitted() -> None:
    held = holding(LINE[:2])
    books = operators(OTHER)
    held.receive(segment(accepting(LINE[1], LINE[4]), OTHER), "ward-2", books)
    held.receive(segment(LINE[4:5]), "ward-1", books)
    assert held.receive(segment(LINE[3:6]), "ward-1", books) == Parked("ward-1")
    whole = segment(LINE)
    assert held.receive(whole, "ward-1", books) == Admit(2, 4, held.places[LINE[1].event_id], "ward-1")
    assert held.receive(whole, "ward-1", books) == Duplicate(held.places[LINE[5].event_id])
    assert {event.event_id for event in LINE} <= held.events.keys()


@pytest.mark.parametrize(
    ("events", "signer", "carrier", "revoked", "code"),
    [
        (LINE, UNKNOWN, "ward-1", False, "unknown-key"),
        (LINE[3:], UNKNOWN, "ward-1", False, "unknown-key"),
        (LINE, MINE, "ward-1", True, "revoked"),
        (LINE[4:], MINE, "ward-1", True, "revoked"),
        (LINE, MINE, "ward-2", False, "carrier"),
        (LINE[4:], MINE, "nobody", False, "carrier"),
        (LINE, OTHER, "ward-2", False, "root"),
        (LINE[3:], OTHER, "ward-2", False, "wrong-key"),
        (STRANGERS, MINE, "ward-1", False, "root"),
    ],
)
def test_what_can_not_be_authenticated_is_refused(
    events: Sequence[Event], signer: Signer, carrier: str, revoked: bool, code: str
) -> None:
    held = holding(LINE[:3])
    decision = held.receive(segment(events, signer), carrier, registry(mine_revoked=revoked))
    assert isinstance(decision, Refused)
    assert decision.code == code
    assert decision.message
    assert len(held.events) == 3


def test_a_root_that_opens_no_log_or_names_other_nodes_is_refused() -> None:
    opened = t.log_opened(MINE.public_key, agent="")
    for draft in (
        NOTE,
        opened._replace(type="log.continued"),
        opened._replace(about=(("execution", b"e" * 16), ("key", MINE.public_key))[::-1]),
        t.log_opened(OTHER.public_key, agent=""),
    ):
        decision = MemoryHeld().receive(segment([make_event(None, draft, salt=1, log_id=LOG)]), "ward-1", registry())
        assert isinstance(decision, Refused)
        assert decision.code == "root"


def test_a_root_whose_body_is_malformed_or_withheld_is_admitted() -> None:
    opened = t.log_opened(MINE.public_key, agent="")
    for root in (
        make_event(None, opened, salt=1, log_id=LOG, withheld=True),
        make_event(None, opened, salt=1, log_id=LOG, body=b"?"),
    ):
        assert isinstance(MemoryHeld().receive(segment([root]), "ward-1", registry()), Admit)


def test_a_wrong_signature_is_refused_before_anything_else_is_looked_at() -> None:
    good = segment(LINE)
    forged = good._replace(signature=bytes(64))
    for held in (MemoryHeld(), holding(LINE)):
        decision = held.receive(forged, "ward-1", registry())
        assert isinstance(decision, Refused)
        assert decision.code == "signature"


def test_who_may_carry_others_logs_brings_them_and_so_does_the_operator() -> None:
    for carrier in ("courier", None):
        assert isinstance(MemoryHeld().receive(segment(LINE), carrier, registry()), Admit)


@given(st.data(), st.randoms(use_true_random=False))
def test_any_delivery_in_any_order_ends_with_the_same_events(data: st.DataObject, chance: random.Random) -> None:
    history: History = data.draw(histories())
    books = MemoryRegistry({signer.public_key: Enrolled(f"s{at}", False) for at, signer in enumerate(SIGNERS)})
    waiting = [decode_segment(raw) for _ in range(2) for raw in data.draw(segmentations(history))]
    chance.shuffle(waiting)
    held = MemoryHeld()
    while waiting:
        decisions = [(each, held.receive(each, None, books)) for each in waiting]
        assert all(isinstance(decision, Admit | Duplicate | Parked) for _, decision in decisions)
        parked = [each for each, decision in decisions if isinstance(decision, Parked)]
        assert len(parked) < len(waiting), "nothing was admitted, yet nothing is missing"
        waiting = parked
    assert held.events == {event.event_id: event for event in history.events}
    assert all(held.places[e.event_id].key == history.signer_of(e).public_key for e in history.events)
