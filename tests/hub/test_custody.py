import itertools
import random
import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.held import MemoryRegistry
from tests.support.logs import MadeLog
from tests.support.model import Model, first_difference
from tests.support.store import ANA, BORIS, CHEN, NOW_US, STRANGER, Store
from tests.support.strategies import SIGNERS, History, histories, segmentations

from cmf_graph.projection import Projection
from cmf_hub import custody as custody_module
from cmf_hub import waiting as waiting_module
from cmf_hub.care import verify
from cmf_hub.custody import Answer, Custody
from cmf_hub.projector import project
from cmf_hub.registry import Registry
from cmf_protocol.admit import Enrolled
from cmf_protocol.errors import StoreError
from cmf_protocol.events import Event


def confirmed(*answers: Answer) -> set[tuple[bytes, int, bytes]]:
    return {value for answer in answers for value in answer.confirmed.values()}


def codes(*answers: Answer) -> list[str]:
    return [row[3] for answer in answers for row in answer.refused]


def holds_once(store: Store, *logs: MadeLog) -> None:
    """Check that every event of the logs is held, exactly once, and nothing else."""
    held = [event.event_id for event in store.events()]
    assert len(held) == len(set(held)), "an event is stored twice"
    assert set(held) == {event.event_id for log in logs for event in log.events}


# --- admit, duplicate, overlap


def test_what_is_admitted_is_stored_and_confirmed_by_its_last_event(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    first, second = store.bring("ana", log.cut(1, 4), log.cut(5, 10))
    assert (first.admitted_events, second.admitted_events) == (4, 6)
    assert confirmed(first) == {(log.log_id, *log.points(4)[0])}
    assert confirmed(second) == {(log.log_id, *log.head)} == store.heads()
    holds_once(store, log)


def test_what_comes_again_is_a_duplicate_and_confirmed_again(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.take(log.cut(1, 4), log.cut(5, 10))
    (answer,) = store.bring("ana", log.cut(1, 4))
    assert (answer.admitted_events, answer.duplicates) == (0, 4)
    assert confirmed(answer) == {(log.log_id, *log.points(4)[0]), (log.log_id, *log.head)}
    assert store.count("segments") == 2


@pytest.mark.parametrize(("first", "last", "new"), [(1, 10, 6), (3, 10, 6), (4, 5, 1), (2, 4, 0), (5, 6, 2)])
def test_of_an_overlapping_cut_only_what_is_new_is_stored(store: Store, first: int, last: int, new: int) -> None:
    log = MadeLog(ANA).say(9)
    answer = store.take(log.cut(1, 4), log.cut(first, last))
    assert (answer.admitted_events, answer.duplicates) == (new, last - first + 1 - new)
    store.take(log.cut(2, 10))
    holds_once(store, log)
    assert store.heads() == {(log.log_id, *log.head)}


def test_a_crash_between_commit_and_confirmation_confirms_at_the_next_delivery(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.bring("ana", log.cut(1, 10))  # nobody hears the answer
    store.reopen()
    (answer,) = store.bring("ana", log.cut(1, 10))
    assert (answer.admitted_events, answer.duplicates) == (0, 10)
    assert confirmed(answer) == {(log.log_id, *log.head)}
    holds_once(store, log)


def test_withheld_bodies_are_stored_counted_and_confirmed(store: Store) -> None:
    log = MadeLog(ANA).say(3).say(2, withheld=True).say(1)
    (answer,) = store.bring("ana", log.cut(1, 7))
    assert answer.admitted_events == 7
    assert confirmed(answer) == {(log.log_id, *log.head)}
    assert [event.body is None for event in store.events()] == [False] * 4 + [True] * 2 + [False]


# --- bodies that come later


def without_bodies(log: MadeLog, *sequences: int) -> MadeLog:
    """Return the log as a carrier has it that lacks the bodies at these sequences."""
    events = [e._replace(body=None) if e.header.sequence in sequences else e for e in log.events]
    return MadeLog(log.signer, events=events)


def projected(store: Store) -> Projection:
    projection = Projection(":memory:")
    while project(projection, store.custody):
        pass
    return projection


@pytest.mark.parametrize(("first", "last"), [(1, 7), (3, 4), (3, 5), (4, 9), (4, 7)])
@pytest.mark.parametrize("before", [True, False])
def test_bodies_that_were_withheld_are_supplied_later(store: Store, first: int, last: int, before: bool) -> None:
    log = MadeLog(ANA).say(8)
    bare = without_bodies(log, 3, 4)
    store.take(bare.cut(1, 7))
    incremental = projected(store) if before else None
    assert store.count("withheld") == 2
    answer = store.take(log.cut(first, last))
    assert (answer.admitted_events, answer.duplicates) == (max(last - 7, 0), min(last, 7) - first + 1)
    assert (log.log_id, *log.points(last)[0]) in confirmed(answer)
    store.take(log.cut(1, 9))  # the rest, of bodies and of events
    assert store.count("withheld") == 0
    assert store.heads() == {(log.log_id, *log.head)}
    stored = store.count("segments")
    assert store.take(log.cut(1, 9), bare.cut(1, 7), log.cut(2, 6)).admitted_events == 0
    assert store.count("segments") == stored, "a duplicate is stored"
    rebuilt = projected(store)
    check_against_model(rebuilt, log.events)
    if incremental is not None:
        while project(incremental, store.custody):
            pass
        assert incremental.graph.digest() == rebuilt.graph.digest()


def test_supplying_bodies_needs_no_right_and_gives_none(store: Store) -> None:
    log = MadeLog(ANA).say(5)
    store.take(without_bodies(log, 2, 5).cut(1, 6))
    store.registry.revoke("ana", NOW_US)
    (answer,) = store.bring("boris", log.cut(1, 3))
    assert (answer.refused, answer.duplicates, answer.admitted_events) == ([], 3, 0)
    assert confirmed(answer) == {(log.log_id, *log.points(3)[0]), (log.log_id, *log.head)}
    log.say(1)
    assert codes(*store.bring("boris", log.cut(4, 7))) == ["revoked"], "what brings an event too is no supply"
    store.bring("boris", log.cut(5, 6))
    check_against_model(projected(store), log.events[:6])
    fork = log.fork(4).say(1)
    assert codes(*store.bring("boris", fork.cut(5, 5))) == ["revoked"]


def test_a_segment_stored_for_its_bodies_holds_no_place(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.take(without_bodies(log, 3, 4, 8).cut(1, 6), without_bodies(log, 8).cut(7, 10), log.cut(2, 5), log.cut(8, 8))
    assert store.count("segments") == 4
    assert store.custody.rows("SELECT last_id IS NULL FROM segments WHERE supplies") == [(1,), (1,)]
    for sequence, event_id in log.points(*range(1, 11)):
        place = store.custody.find(log.log_id, sequence, event_id)
        assert place is not None
        assert place.sequence == sequence
        assert store.custody.event_id_at(place.branch, sequence) == event_id
    found = verify(store.data, projected(store).graph, lambda _number: None)
    assert (found.problems, found.segments, found.events) == ([], 4, 10)
    fork = log.fork(4).say(2)
    store.take(fork.cut(3, 6))
    check_against_model(projected(store), log.events + fork.events[4:])


# --- forks and trees


def test_both_branches_of_a_fork_are_kept_and_confirmed_each_by_its_own_head(store: Store) -> None:
    log = MadeLog(ANA).say(7)
    copy = log.fork(5).say(3)
    answers = [store.take(each) for each in (log.cut(1, 8), copy.cut(4, 8))]
    assert confirmed(answers[1]) == {(copy.log_id, *copy.head)}
    assert (store.count("branches"), store.count("logs")) == (2, 1)
    holds_once(store, log, copy)
    assert store.heads() == {(log.log_id, *log.head), (copy.log_id, *copy.head)}


def test_a_fork_in_the_middle_of_a_stored_segment_and_a_fork_of_the_fork(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    copy = log.fork(3).say(5)
    third = copy.fork(6).say(2)
    store.take(log.cut(1, 10), copy.cut(2, 8), third.cut(1, 8))
    holds_once(store, log, copy, third)
    assert store.count("branches") == 3
    again = store.take(third.cut(5, 8), copy.cut(5, 8))
    assert confirmed(again) == {(copy.log_id, *copy.head)}


def test_a_copy_does_not_take_the_confirmation_of_the_other_for_its_own(store: Store) -> None:
    log = MadeLog(ANA).say(7)
    copy = log.fork(5).say(3)

    def own() -> int:
        """Return up to where the copy's own events are confirmed."""
        found = store.custody.confirmations(copy.log_id, copy.points(8, 7, 6, 4, 1), ANA.public_key)
        return max(sequence for _, sequence, event_id in found if (sequence, event_id) in copy.points(*range(1, 9)))

    store.take(log.cut(1, 8))
    assert own() == 4
    store.take(copy.cut(6, 8))
    assert own() == 8


def test_two_roots_with_one_log_id_are_two_trees_each_of_its_key(store: Store) -> None:
    one, other = MadeLog(ANA, b"L" * 16).say(4), MadeLog(BORIS, b"L" * 16).say(6)
    answers = store.bring("ana", one.cut(1, 5)) + store.bring("boris", other.cut(1, 7))
    assert confirmed(*answers) == {(b"L" * 16, *one.head), (b"L" * 16, *other.head)}
    assert (store.count("logs"), store.count("branches")) == (2, 2)
    holds_once(store, one, other)
    assert store.custody.confirmations(b"L" * 16, one.points(5), ANA.public_key) == [(b"L" * 16, *one.head)]
    assert store.custody.confirmations(b"L" * 16, one.points(5), BORIS.public_key) == []


def test_confirmations_name_nothing_for_a_chain_that_is_not_held(store: Store) -> None:
    log, stranger = MadeLog(ANA).say(4), MadeLog(BORIS).say(4)
    store.take(log.cut(1, 5))
    assert store.custody.confirmations(stranger.log_id, stranger.points(5, 4, 1), ANA.public_key) == []
    assert store.custody.confirmations(log.log_id, stranger.points(5, 4, 1), ANA.public_key) == []
    sequence_is_wrong = [(3, log.events[4].event_id)]
    assert store.custody.confirmations(log.log_id, sequence_is_wrong, ANA.public_key) == []


# --- parked


def test_whatever_the_order_all_is_stored_once_and_nothing_stays_parked(store: Store) -> None:
    logs = []
    for order in itertools.permutations(range(5)):
        log = MadeLog(ANA).say(9)
        cuts = [log.cut(1, 2), log.cut(3, 5), log.cut(4, 7), log.cut(8, 8), log.cut(9, 10)]
        for at in order:
            store.bring("ana", cuts[at])
        assert (log.log_id, *log.head) in store.heads(), order
        logs.append(log)
    holds_once(store, *logs)
    assert store.count("parked") == 0


def test_what_is_parked_is_neither_stored_nor_confirmed_until_the_hole_is_filled(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    first, beyond = store.bring("ana", log.cut(1, 3), log.cut(6, 10))
    assert beyond.parked == [(log.log_id, 6)]
    assert not beyond.confirmed
    assert store.heads() == {(log.log_id, *log.points(3)[0])}
    assert store.custody.confirmations(log.log_id, log.points(10, 9, 8, 6, 2), ANA.public_key) == [
        (log.log_id, *log.points(2)[0]),
        (log.log_id, *log.points(3)[0]),
    ]
    store.reopen()
    (filled,) = store.bring("ana", log.cut(4, 5))
    assert filled.admitted_events == 7
    assert (log.log_id, *log.head) in confirmed(filled)
    assert confirmed(first) == {(log.log_id, *log.points(3)[0])}
    holds_once(store, log)


def test_fifteen_hundred_segments_in_reverse_order(store: Store) -> None:
    log = MadeLog(ANA).say(1_499)
    cuts = log.singles()
    store.bring("ana", *reversed(cuts[1:]))
    assert store.count("parked") == 1_499
    (answer,) = store.bring("ana", cuts[0])
    assert answer.admitted_events == 1 + custody_module.READY_MAX
    answers = []
    while store.custody.has_ready():  # what one transaction left
        answers += store.bring("ana")
    assert {each.carrier for each in answers} == {"ana"}
    assert sum(each.admitted_events for each in answers) == 1_499 - custody_module.READY_MAX
    assert (log.log_id, *log.head) in confirmed(*answers)
    assert store.count("parked") == 0
    holds_once(store, log)


def test_parked_branches_of_a_fork_wait_for_the_same_event(store: Store) -> None:
    log = MadeLog(ANA).say(7)
    copy = log.fork(4).say(4)
    store.take(log.cut(5, 8), copy.cut(5, 6), copy.cut(7, 8), log.cut(2, 4))
    assert store.count("segments") == 0
    store.take(log.cut(1, 1))
    holds_once(store, log, copy)
    assert store.count("parked") == 0


def test_what_one_carrier_has_parked_is_bounded_and_hinders_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = MadeLog(ANA).say(30), MadeLog(BORIS).say(30)
    cuts = [log.cut(at, at + 9) for at in (2, 12, 22)]
    sizes = [len(event.header_bytes) + len(event.body or b"") for event in log.events]
    monkeypatch.setattr(waiting_module, "PARKED_BYTES_MAX", sum(sizes[1:21]))
    answers = store.bring("ana", *cuts)
    assert [answer.parked for answer in answers] == [[(log.log_id, 2)], [(log.log_id, 12)], []]  # what is kept is told
    assert store.bring("ana", cuts[1])[0].parked, "what is kept already needs no room"
    store.bring("boris", other.cut(2, 11))
    assert store.custody.rows("SELECT carrier, count(*) FROM parked GROUP BY carrier") == [("ana", 2), ("boris", 1)]
    (answer,) = store.bring("ana", log.cut(1, 1))
    assert confirmed(answer) >= {(log.log_id, *log.points(21)[0])}
    assert (log.log_id, *log.head) not in confirmed(answer)  # what was dropped was never confirmed, and is sent again
    store.bring("ana", cuts[2])
    assert (log.log_id, *log.head) in store.heads()


def test_what_is_parked_again_takes_no_more_room(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    for _ in range(3):
        store.bring("ana", log.cut(4, 10))
    assert store.count("parked") == 1


# --- refused


def test_what_can_not_be_authenticated_is_refused_with_a_reason_and_kept_aside(store: Store) -> None:
    log, strange = MadeLog(ANA).say(4), MadeLog(STRANGER).say(4)
    cases = {
        "malformed": b"\x01 no segment",
        "signature": log.forged(1, 3, BORIS),
        "unknown-key": strange.cut(1, 2),
        "carrier": MadeLog(BORIS).cut(1, 1),
        "root": MadeLog(BORIS, events=log.events).cut(1, 2),
    }
    for code, data in cases.items():
        (answer,) = store.bring("boris" if code == "root" else "ana", data)
        assert codes(answer) == [code]
        assert not answer.confirmed
    rows = store.custody.rows("SELECT code, data FROM quarantine ORDER BY id")
    assert rows == list(cases.items())
    assert store.count("segments") == 0


def test_nobody_goes_on_with_the_log_of_another_key(store: Store) -> None:
    log = MadeLog(ANA).say(4)
    store.take(log.cut(1, 5))
    theirs = MadeLog(BORIS, events=log.events).say(3)
    assert codes(*store.bring("boris", theirs.cut(6, 8))) == ["wrong-key"]
    assert codes(*store.bring("boris", theirs.cut(2, 8))) == ["wrong-key"]
    log.say(2)
    assert confirmed(store.take(log.cut(6, 7))) == {(log.log_id, *log.head)}
    holds_once(store, log)


def test_carrying_others_logs_is_a_right_of_its_own(store: Store) -> None:
    log = MadeLog(BORIS).say(4)
    assert codes(*store.bring("ana", log.cut(1, 3))) == ["carrier"]
    store.allow_carrying("ana")
    (answer,) = store.bring("ana", log.cut(1, 3))
    assert confirmed(answer) == {(log.log_id, *log.points(3)[0])}
    assert confirmed(store.take(log.cut(4, 5))) == {(log.log_id, *log.head)}  # the operator always may


def test_of_a_revoked_site_what_is_held_is_a_duplicate_and_all_else_is_refused(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    store.take(log.cut(1, 5), log.cut(8, 10))
    store.registry.revoke("ana", NOW_US)
    (answer,) = store.bring("ana", log.cut(1, 5))
    assert confirmed(answer) == {(log.log_id, *log.points(5)[0])}
    assert codes(*store.bring("ana", log.cut(6, 7))) == codes(store.take(log.cut(6, 7))) == ["revoked"]
    assert codes(store.take(log.cut(4, 6))) == ["revoked"]
    assert codes(store.take(MadeLog(ANA).cut(1, 1))) == ["revoked"]
    assert store.heads() == {(log.log_id, *log.points(5)[0])}


def test_quarantine_is_bounded_in_rows_and_bytes_and_forgets_the_oldest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "QUARANTINE_ROWS_MAX", 5)
    for at in range(9):
        store.bring("ana", b"junk %d" % at)
    store.bring("ana", b"junk 8")  # again: no second row
    assert [data for (data,) in store.custody.rows("SELECT data FROM quarantine ORDER BY id")] == [
        b"junk %d" % at for at in range(4, 9)
    ]
    monkeypatch.setattr(waiting_module, "QUARANTINE_BYTES_MAX", 100)
    store.bring("ana", b"x" * 90)
    assert [size for (size,) in store.custody.rows("SELECT size FROM quarantine ORDER BY id")] == [6, 90]


def test_quarantine_of_one_carrier_is_bounded_and_pushes_out_no_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "QUARANTINE_CARRIER_ROWS_MAX", 3)
    monkeypatch.setattr(waiting_module, "QUARANTINE_CARRIER_BYTES_MAX", 100)
    store.bring("boris", b"junk of boris")
    store.bring(None, b"junk of the operator")
    for at in range(9):
        store.bring("ana", b"junk %d" % at)
    kept = "SELECT carrier, data FROM quarantine ORDER BY id"
    others = [("boris", b"junk of boris"), (None, b"junk of the operator")]
    assert store.custody.rows(kept) == [*others, *(("ana", b"junk %d" % at) for at in (6, 7, 8))]
    store.bring("ana", b"x" * 95)
    assert store.custody.rows(kept) == [*others, ("ana", b"x" * 95)]


def test_a_bad_segment_hinders_no_other_of_its_batch(store: Store) -> None:
    log, other = MadeLog(ANA).say(4), MadeLog(BORIS).say(4)
    answers = store.custody.receive(
        [("ana", log.cut(1, 2)), ("chen", b"\0"), ("boris", other.cut(1, 5)), ("ana", log.cut(3, 5))], NOW_US
    )
    assert codes(*answers) == ["malformed"]
    assert store.heads() == {(log.log_id, *log.head), (other.log_id, *other.head)}


def test_what_another_parked_on_a_log_does_not_stop_its_owner(store: Store) -> None:
    log = MadeLog(ANA).say(5)
    intruder = MadeLog(BORIS, events=log.events).say(2)
    (parked,) = store.bring("boris", intruder.cut(7, 8))
    assert parked.parked
    answer, theirs = store.bring("ana", log.cut(1, 6))
    assert not answer.refused, "the owner is told of a refusal that is not its own"
    assert (theirs.carrier, codes(theirs)) == ("boris", ["wrong-key"])
    assert (log.log_id, *log.head) in confirmed(answer)
    assert store.custody.rows("SELECT carrier, code FROM quarantine") == [("boris", "wrong-key")]
    assert store.count("parked") == 0


# --- transactions


def test_a_full_disk_stores_and_confirms_nothing_of_the_batch_and_later_all(store: Store) -> None:
    big = MadeLog(ANA)
    store.take(big.cut(1, 1))
    rest = big.say(1_500).cut(2, 900), big.cut(901, 1_501)
    connection = store.custody._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 12}")
    with pytest.raises(StoreError, match="full"):
        store.bring("ana", *rest)
    assert store.heads() == {(big.log_id, *big.points(1)[0])}
    connection.execute(f"PRAGMA max_page_count = {2**30}")
    store.bring("ana", *rest)
    holds_once(store, big)


def test_after_a_batch_that_failed_nothing_of_it_is_remembered(store: Store) -> None:
    log, other = MadeLog(ANA).say(30), MadeLog(BORIS).say(30)
    connection = store.custody._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    big = MadeLog(CHEN).say(1_000).cut(1, 1_000)
    with pytest.raises(StoreError, match="full"):
        store.bring("ana", log.cut(1, 31), log.cut(4, 30), big)
    connection.execute(f"PRAGMA max_page_count = {2**30}")
    store.bring("boris", other.cut(1, 31))
    fork = other.fork(12).say(3)
    (answer,) = store.bring("boris", fork.cut(13, 15))
    assert (answer.admitted_events, answer.parked) == (3, [])
    holds_once(store, other, fork)


def test_two_processes_that_store_the_same_segments_store_each_event_once(store: Store) -> None:
    log = MadeLog(ANA).say(199)
    orders = [log.singles(), [log.cut(at, at + 2) for at in range(1, 199, 3)] + [log.cut(199, 200)]]
    failures: list[BaseException] = []

    def bring(segments: list[bytes]) -> None:
        registry = Registry(store.data.registry)
        custody = Custody(store.data.store, registry)
        try:
            for segment in segments:
                custody.receive([(None, segment)], NOW_US)
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failures.append(error)
        finally:
            custody.close()
            registry.close()

    threads = [threading.Thread(target=bring, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    holds_once(store, log)
    assert store.count("branches") == 1


def test_a_store_keeps_its_incarnation_and_another_has_its_own(store: Store) -> None:
    first = store.custody.incarnation
    store.reopen()
    assert store.custody.incarnation == first
    assert len(first) == 16


# --- any delivery of any history


def registry_of(history: History) -> MemoryRegistry:
    return MemoryRegistry({signer.public_key: Enrolled(f"site{at}", False) for at, signer in enumerate(SIGNERS)})


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[History, list[list[bytes]]]:
    """Draw a history, and its segments in two ways of cutting, in any order, repeated, dealt into batches."""
    history = draw(histories(max_size=24))
    segments = draw(segmentations(history)) + draw(segmentations(history))
    order = random.Random(draw(st.integers(0, 2**32)))
    segments += order.sample(segments, k=len(segments) // 2)
    order.shuffle(segments)
    batches: list[list[bytes]] = [[]]
    for segment in segments:
        if order.random() < 0.4:
            batches.append([])
        batches[-1].append(segment)
    return history, batches


def check_against_model(projection: Projection, events: Iterable[Event]) -> None:
    model = Model(events)
    graph = projection.graph
    found = graph.digest()
    assert found.events_digest == model.events_digest().hex()
    if found.digest != model.digest().hex():
        pytest.fail(str(first_difference(model, graph._digest_rows())))
    assert found.unfolded == model.unfolded


@given(deliveries())
def test_any_order_split_and_repetition_gives_the_same_digest(delivery: tuple[History, list[list[bytes]]]) -> None:
    history, batches = delivery
    custody = Custody(":memory:", registry_of(history))
    incremental, rebuilt = Projection(":memory:"), Projection(":memory:")
    for batch in batches:
        answers = custody.receive([(None, segment) for segment in batch], NOW_US)
        assert codes(*answers) == []
        project(incremental, custody)
    while project(rebuilt, custody):
        pass
    assert custody.rows("SELECT count(*) FROM parked") == [(0,)]
    check_against_model(incremental, history.events)
    assert rebuilt.graph.digest() == incremental.graph.digest()
    for closing in (custody, incremental, rebuilt):
        closing.close()
