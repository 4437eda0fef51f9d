"""Holes that an operator accepts: what is admitted beyond them, where it stands, and what becomes of it when the missing events come."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.held import MemoryRegistry
from tests.support.logs import EXECUTION, MadeLog
from tests.support.model import Model, first_difference
from tests.support.store import ANA, BORIS, CHEN, NOW_US, Store
from tests.support.strategies import SIGNERS, History, gaps_of, histories, segmentations

from cmf_graph.projection import Projection
from cmf_hub.care import verify
from cmf_hub.custody import Answer, Custody, stored_runs
from cmf_hub.projector import project
from cmf_protocol import types as t
from cmf_protocol.admit import Enrolled
from cmf_protocol.events import Draft
from cmf_protocol.segments import decode_segment


def holed_log(count: int = 9) -> MadeLog:
    """Return a log of updates of one value, so that what is later than what shows."""
    log = MadeLog(ANA)
    for at in range(count):
        log.say(1, t.execution_updated(EXECUTION, params={"lr": at}))
    return log


def acceptance(log: MadeLog, before: int, after: int, log_id: bytes | None = None) -> Draft:
    ids = [log.events[sequence - 1].event_id for sequence in (before, after)]
    return t.gap_accepted(log.signer.public_key, log_id or log.log_id, *ids, reason="burnt")


def accepting(log: MadeLog, before: int = 4, after: int = 8) -> MadeLog:
    """Return a log of boris that accepts a gap between two sequences of another log."""
    return MadeLog(BORIS).say(1, acceptance(log, before, after))


@pytest.fixture
def operated(store: Store) -> Store:
    store.registry.allow("boris", operator=True)
    return store


def drain(store: Store) -> list[Answer]:
    answers = []
    while store.custody.has_ready():
        answers += store.bring(None)
    return answers


def confirmed(answers: Iterable[Answer]) -> set[tuple[bytes, int, bytes]]:
    return {value for answer in answers for value in answer.confirmed.values()}


def projected(custody: Custody) -> Projection:
    projection = Projection(":memory:")
    while project(projection, custody):
        pass
    return projection


def check_graph(custody: Custody, projection: Projection) -> None:
    """Check that a graph is that of what is stored, and that its branches are the store's, by their numbers."""
    runs = [run for _, run in stored_runs(custody, 0, 1_000_000)]
    signers = {event.event_id: run.key for run in runs for event in run.events}
    model, graph = Model([event for run in runs for event in run.events], signers), projection.graph
    if graph.digest().digest != model.digest().hex():
        pytest.fail(str(first_difference(model, graph._digest_rows())))
    assert graph.digest().events_digest == model.events_digest().hex()
    columns = "b.id, b.parent, b.parent_sequence, b.first_sequence, b.head_sequence, b.head_id, l.root"
    ours = custody.rows(f"SELECT {columns} FROM branches b JOIN logs l ON l.id = b.log ORDER BY b.id")
    assert ours == graph.rows(f"SELECT {columns} FROM branches b JOIN trees l ON l.id = b.tree ORDER BY b.id")


def check_whole(store: Store, *logs: MadeLog) -> None:
    """Check that exactly the events of these logs are held, each once, that the store verifies, and the graph is theirs."""
    held = [event.event_id for event in store.events()]
    assert len(held) == len(set(held)), "an event is stored twice"
    assert set(held) == {event.event_id for log in logs for event in log.events}
    projection = projected(store.custody)
    check_graph(store.custody, projection)
    assert verify(store.data, projection.graph, lambda _number: None).problems == []
    projection.close()


def params(store: Store) -> list[object]:
    """Return the candidates of the value that `holed_log` changes."""
    projection = projected(store.custody)
    node = projection.graph.node_id(("execution", EXECUTION))
    assert node is not None
    found = [each.value for each in projection.graph.state(node).values["params", "lr"].candidates]
    projection.close()
    return found


# -- who may -----------------------------------------------------------------------------------------------------------


def test_what_lies_beyond_an_accepted_gap_is_admitted_and_confirmed(operated: Store) -> None:
    log = holed_log()
    operated.bring("ana", log.cut(1, 4), log.cut(8, 10))
    assert operated.heads() == {(log.log_id, *log.points(4)[0])}
    answers = operated.bring("boris", accepting(log).cut(1, 2))
    assert [answer.carrier for answer in answers] == ["boris", "ana"], "who brought what waited is told"
    assert (log.log_id, *log.head) in confirmed(answers)
    assert operated.count("parked") == 0
    assert params(operated) == [8]


def test_an_acceptance_of_a_site_without_the_right_is_stored_and_opens_nothing_until_it_has_it(store: Store) -> None:
    log = holed_log()
    accepts = accepting(log)
    store.bring("boris", accepts.cut(1, 2))
    store.bring("ana", log.cut(1, 4), log.cut(8, 10))
    assert store.heads() == {(accepts.log_id, *accepts.head), (log.log_id, *log.points(4)[0])}
    assert not store.custody.has_ready()
    assert projected(store.custody).graph.digest().unfolded == 0
    store.registry.allow("boris", operator=True)
    assert store.count("parked") == 1
    store.custody.reconsider_gaps()
    store.reopen()
    assert (log.log_id, *log.head) in confirmed(drain(store))
    assert store.count("parked") == 0
    store.registry.allow("boris", operator=False)
    log.say(2)
    assert (log.log_id, *log.head) in confirmed(store.bring("ana", log.cut(11, 12))), "what was admitted stays"


def test_a_revoked_operator_accepts_nothing_more(operated: Store) -> None:
    log = holed_log()
    operated.bring("boris", accepting(log).cut(1, 2))
    operated.registry.revoke("boris", NOW_US)
    operated.bring("ana", log.cut(1, 4), log.cut(8, 10))
    assert operated.count("parked") == 1


def test_an_operator_may_not_let_another_key_go_on_in_a_log(operated: Store) -> None:
    log = holed_log(3)
    stranger = MadeLog(CHEN, events=log.fork(4).say(6).events)
    operated.bring("ana", log.cut(1, 4))
    operated.bring("chen", stranger.cut(8, 10))
    operated.bring("boris", accepting(stranger).cut(1, 2))
    assert operated.count("parked") == 1
    assert operated.heads() >= {(log.log_id, *log.head)}


@pytest.mark.parametrize("first", [True, False])
def test_a_site_can_not_draw_anothers_log_into_a_tree_of_its_own(operated: Store, first: bool) -> None:
    log = holed_log()
    trap = MadeLog(CHEN, log.log_id).say(5)  # the same log id, and reaching nearer to the hole
    ids = trap.events[5].event_id, log.events[7].event_id
    lure = MadeLog(CHEN).say(1, t.gap_accepted(CHEN.public_key, log.log_id, *ids))
    theirs = [("chen", trap.cut(1, 6)), ("chen", lure.cut(1, 2))]
    honest = [("ana", log.cut(1, 4)), ("ana", log.cut(8, 10)), ("boris", accepting(log).cut(1, 2))]
    for carrier, segment in theirs + honest if first else honest + theirs:
        operated.bring(carrier, segment)
    log.say(1)
    assert (log.log_id, *log.head) in confirmed(operated.bring("ana", log.cut(11, 11)))
    projection = projected(operated.custody)
    sql = "SELECT t.root FROM branches b JOIN trees t ON t.id = b.tree WHERE b.head_id = ?"
    assert projection.graph.rows(sql, (log.head[1],)) == [(log.events[0].event_id,)]


@pytest.mark.parametrize(
    ("before", "after", "other_log"), [(7, 8, False), (4, 9, False), (9, 8, False), (8, 8, False), (4, 8, True)]
)
def test_what_names_no_gap_opens_none(operated: Store, before: int, after: int, other_log: bool) -> None:
    log = holed_log()
    log_id = b"?" * 16 if other_log else None
    operated.bring("boris", MadeLog(BORIS).say(1, acceptance(log, before, after, log_id)).cut(1, 2))
    operated.bring("ana", log.cut(1, 4), log.cut(8, 10))
    assert operated.count("parked") == 1
    operated.bring("ana", log.cut(5, 7))
    assert (log.log_id, *log.head) in operated.heads()
    check_graph(operated.custody, projected(operated.custody))


# -- where it stands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_whatever_the_order_all_of_it_is_held_and_folded_alike(operated: Store, order: Sequence[int]) -> None:
    log = holed_log()
    accepts = accepting(log)
    segments = [log.cut(1, 4), log.cut(5, 7), log.cut(8, 10), accepts.cut(1, 2)]
    incremental = Projection(":memory:")
    for at in order:
        operated.take(segments[at])
        while project(incremental, operated.custody):
            pass
        check_graph(operated.custody, incremental)
    assert operated.count("parked") == 0
    check_whole(operated, log, accepts)
    assert params(operated) == [8]
    log.say(1)
    assert (log.log_id, *log.head) in confirmed(operated.bring("ana", log.cut(11, 11)))
    incremental.close()


def test_the_nearest_acceptance_counts_and_what_it_names_may_come_later(operated: Store) -> None:
    log = holed_log()
    far, near = accepting(log, 2, 8), accepting(log, 5, 8)
    operated.take(far.cut(1, 2), near.cut(1, 2), log.cut(1, 3), log.cut(8, 10))
    check_whole(operated, far, near, MadeLog(ANA, events=log.events[:3] + log.events[7:]))
    assert params(operated) == [1, 8], "what was missing when it was accepted is not superseded"
    operated.take(log.cut(4, 5))
    check_graph(operated.custody, projected(operated.custody))
    assert params(operated) == [8]
    operated.take(log.cut(6, 7))
    check_whole(operated, far, near, log)


def test_a_segment_that_spans_gaps_brings_each_run_that_was_missing(operated: Store) -> None:
    log = holed_log(19)
    first, second = accepting(log, 4, 8), accepting(log, 10, 15)
    operated.take(first.cut(1, 2), second.cut(1, 2), log.cut(1, 4), log.cut(8, 10), log.cut(15, 16))
    answer = operated.take(log.cut(2, 20))
    assert answer.admitted_events == 3 + 4 + 4
    assert (log.log_id, *log.head) in confirmed([answer])
    assert operated.take(log.cut(1, 20)).admitted_events == 0
    check_whole(operated, log, first, second)
    for point in log.points(*range(1, 21)):
        place = operated.custody.find(log.log_id, *point)
        assert place is not None
        assert operated.custody.event_id_at(*place[:2]) == point[1]


@pytest.mark.parametrize("together", [True, False])
def test_a_fork_at_an_event_that_came_late_is_kept_beside_what_was_there(operated: Store, together: bool) -> None:
    log = holed_log()
    accepts, fork = accepting(log), log.fork(7).say(3)
    incremental = Projection(":memory:")
    operated.take(accepts.cut(1, 2), log.cut(1, 4), log.cut(8, 10))
    for segment in [fork.cut(5, 10)] if together else [log.cut(5, 7), fork.cut(8, 10)]:
        operated.take(segment)
        while project(incremental, operated.custody):
            pass
        check_graph(operated.custody, incremental)
    check_whole(operated, log, accepts, fork)


def test_an_acceptance_whose_body_was_withheld_opens_the_gap_once_it_is_there(operated: Store) -> None:
    log = holed_log()
    accepts = accepting(log)
    bare = MadeLog(BORIS, events=[event._replace(body=None) for event in accepts.events])
    operated.take(bare.cut(1, 2), log.cut(1, 4), log.cut(8, 10))
    assert operated.count("parked") == 1
    operated.take(accepts.cut(1, 2))
    drain(operated)
    assert operated.count("parked") == 0
    check_graph(operated.custody, projected(operated.custody))
    assert params(operated) == [8]


def test_a_confirmation_covers_what_lies_before_an_accepted_gap(operated: Store) -> None:
    log = holed_log()
    operated.take(accepting(log).cut(1, 2), log.cut(1, 4), log.cut(8, 10))
    head = (log.log_id, *log.head)
    assert operated.custody.confirmations(log.log_id, log.points(10, 7, 4, 1), ANA.public_key) == [head]
    old_disk = operated.custody.confirmations(log.log_id, log.points(7, 6, 4, 1), ANA.public_key)
    assert old_disk == [(log.log_id, *log.points(4)[0])], "who has what was lost learns that it is missing"


# -- any delivery ------------------------------------------------------------------------------------------------------


@dataclass
class Delivery:
    """A history, some of its segments in any order, and all of them in any order."""

    history: History
    some: list[bytes] = field(repr=False)
    every: list[bytes] = field(repr=False)


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    """Draw a delivery in which events are lost, mostly before those where a gap is accepted."""
    history = draw(histories(min_size=6, max_size=28))
    segments = draw(segmentations(history)) + draw(segmentations(history))
    order = random.Random(draw(st.integers(0, 2**32)))
    lost = {event.event_id for event in history.events if order.random() < 0.1}
    accepted = {after for event in history.events for *_, after in gaps_of(event)}
    lost |= {
        event.header.previous or b"" for event in history.events if event.event_id in accepted and order.random() < 0.7
    }
    some = [each for each in segments if lost.isdisjoint(event.event_id for event in decode_segment(each).events)]
    order.shuffle(some)
    order.shuffle(segments)
    return Delivery(history, some, segments)


@given(deliveries())
def test_any_delivery_with_losses_gives_the_graph_of_what_is_held(
    delivery: Delivery,
) -> None:
    history = delivery.history
    sites = {signer.public_key: Enrolled(f"site{at}", False, at != 1) for at, signer in enumerate(SIGNERS)}
    custody = Custody(":memory:", MemoryRegistry(sites))
    incremental = Projection(":memory:")
    for segments in (delivery.some, delivery.every):
        for segment in segments:
            answers = custody.receive([(None, segment)], NOW_US)
            assert not any(answer.refused for answer in answers)
            project(incremental, custody)
        check_graph(custody, incremental)
    rebuilt = projected(custody)
    assert rebuilt.graph.digest() == incremental.graph.digest()
    assert rebuilt.graph.digest().digest == Model(history.events).digest().hex()
    assert custody.rows("SELECT count(*) FROM parked") == [(0,)]
    for closing in (custody, incremental, rebuilt):
        closing.close()
