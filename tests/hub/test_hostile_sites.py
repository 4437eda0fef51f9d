"""What an enrolled site that means harm can't do: be expensive, lose others' data, or speak for them."""

import asyncio
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, NOW_US, Store
from tests.support.strategies import make_event, segment_of

from cmf_hub import consumer as consumer_module
from cmf_hub import custody as custody_module
from cmf_hub import finding as finding_module
from cmf_hub.consumer import Consumer
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.finding import Run
from cmf_hub.registry import Registry
from cmf_protocol import types as t
from cmf_protocol.admit import admit
from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import AccessDenied, DecodeError, PeerError
from cmf_protocol.messages import (
    HELLO_LOGS_MAX,
    HELLO_POINTS_MAX,
    Confirm,
    HelloAnswer,
    decode_answer,
    decode_confirm,
    decode_hello,
    points_of,
    sign_hello,
)
from cmf_protocol.segments import Segment, decode_segment, encode_segment, sign_segment, statement_of
from cmf_protocol.signing import Signer

HUB = b"h" * 16
NOTE = t.note_added(("execution", bytes(16)), "x")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of stored segments that were decoded, as one element."""
    count = [0]
    real = finding_module.run_of

    def counted(data: bytes, skip: int, last_sequence: int) -> Run:
        count[0] += 1
        return real(data, skip, last_sequence)

    monkeypatch.setattr(finding_module, "run_of", counted)
    return count


# --- many forks


def test_two_thousand_forks_of_one_event_cost_a_decoding_each_at_most(store: Store, decoded: list[int]) -> None:
    log = MadeLog(ANA).say(5)
    store.take(log.cut(1, 6))
    forks = [log.fork(3).say(3) for _ in range(2_000)]
    for start in range(0, 2_000, 100):
        store.bring("ana", *(fork.cut(4, 6) for fork in forks[start : start + 100]))
    assert store.count("branches") == 2_001
    assert decoded[0] <= 3 * finding_module.SPANS_MAX, "forks of the same event decode each other"
    before = decoded[0]
    for fork in forks[::100]:
        assert store.custody.find(fork.log_id, *fork.points(5)[0]) is not None
        assert store.custody.find(fork.log_id, 5, b"?" * 32) is None
        assert store.take(fork.cut(2, 5)).duplicates == 4
    assert decoded[0] - before <= 20 * 2
    later = log.fork(3).say(3)
    store.take(later.cut(4, 6))
    assert store.custody.find(later.log_id, *later.points(4)[0]) is not None
    assert store.custody.find(log.log_id, 7, b"?" * 32) is None
    assert store.count("indexed_logs") == 1


def test_an_index_is_made_outside_of_a_transaction_too_and_holds_what_comes_later(store: Store) -> None:
    log = MadeLog(ANA).say(5)
    forks = [log.fork(3).say(3) for _ in range(20)]
    store.take(log.cut(1, 6), *(fork.cut(4, 6) for fork in forks))
    store.reopen()
    key = ANA.public_key
    for fork in forks:
        assert store.custody.confirmations(fork.log_id, fork.points(5), key)[-1] == (fork.log_id, *fork.head)
    forks.append(log.fork(2).say(9))
    store.take(forks[-1].cut(3, 11))
    store.reopen()
    for fork in forks:
        for point in fork.points(*range(1, 7)):
            assert store.custody.find(fork.log_id, *point) is not None


def test_a_plain_log_is_never_indexed(store: Store, decoded: list[int]) -> None:
    log = MadeLog(ANA).say(199)
    store.take(*(log.cut(at, at + 9) for at in range(1, 200, 10)))
    for sequence, event_id in log.points(*range(10, 201, 10)):
        assert store.custody.find(log.log_id, sequence, event_id) is not None
    assert decoded[0] == 0, "the last event of a segment is found without decoding"
    assert store.custody.find(log.log_id, *log.points(55)[0]) is not None
    assert decoded[0] == 1
    assert store.count("event_ids") == store.count("indexed_logs") == 0


# --- parked


def test_parked_segments_are_decoded_one_at_a_time_and_never_all_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MadeLog(ANA).say(60)
    monkeypatch.setattr(custody_module, "READY_MAX", 10)
    store.bring("ana", *log.singles()[1:])
    steps = []
    store.bring("boris", MadeLog(BORIS).cut(1, 1))
    store.bring("ana", log.cut(1, 1))
    while store.custody.has_ready():
        steps.append(store.count("parked"))
        (answer,) = store.bring("ana")
        assert (answer.carrier, answer.admitted_events) == ("ana", 10)
    assert steps == [50, 40, 30, 20, 10]
    assert (log.log_id, *log.head) in store.heads()


def test_what_is_ready_is_taken_after_a_restart_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MadeLog(ANA).say(9)
    monkeypatch.setattr(custody_module, "READY_MAX", 1)
    store.bring("ana", *log.singles()[1:])
    store.bring("ana", log.cut(1, 1))
    store.reopen()
    assert store.custody.has_ready()
    while store.custody.has_ready():
        store.bring("boris")
    assert (log.log_id, *log.head) in store.heads()


def test_a_parked_segment_whose_log_is_damaged_waits_and_hinders_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = MadeLog(ANA).say(9), MadeLog(BORIS).say(4)
    store.bring("ana", log.cut(5, 10))

    def failing(segment: Segment, *rest: object) -> object:
        if segment.statement.first_sequence == 5:
            raise PeerError("damaged")
        return admit(segment, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(custody_module, "admit", failing)
    store.bring("ana", log.cut(1, 4))
    assert not store.custody.has_ready()
    store.bring("boris", other.cut(1, 5))
    assert store.count("parked") == 1
    assert (other.log_id, *other.head) in store.heads()


def test_a_segment_whose_sequence_does_not_follow_is_parked_and_does_not_go_round(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    second = log.events[1]
    jumped = make_event(second._replace(header=second.header._replace(sequence=5)), NOTE, salt=1)
    assert (jumped.header.previous, jumped.header.sequence) == (second.event_id, 6)
    store.bring("ana", segment_of([jumped], ANA))
    (answer,) = store.bring("ana", log.cut(1, 10))
    assert (answer.admitted_events, answer.parked) == (10, [(log.log_id, 6)])
    assert not store.custody.has_ready()
    assert store.count("parked") == 1


class QuietStream:
    """A stream on which nothing comes; it ends the test when it is waited on for long."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def fetch(self, _count: int, timeout_s: float) -> list[object]:
        self.waits.append(timeout_s)
        if timeout_s >= consumer_module.FETCH_WAIT_S:
            raise asyncio.CancelledError
        return []


class HeardLink:
    """A link that remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Confirm]] = []

    async def send(self, subject: str, data: bytes) -> None:
        self.sent.append((subject, decode_confirm(data)))


def test_what_is_ready_is_taken_and_confirmed_although_nothing_comes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MadeLog(ANA).say(9)
    monkeypatch.setattr(custody_module, "READY_MAX", 3)
    store.bring("ana", *log.singles()[1:])
    store.bring(None, log.cut(1, 1))
    consumer = Consumer(store.custody, store.registry, HUB, lambda: None)
    stream, link = QuietStream(), HeardLink()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(consumer.consume(link, stream))  # type: ignore[arg-type]
    consumer.close()
    assert len(stream.waits) == 3
    assert {subject for subject, _ in link.sent} == {"cmf.v1.confirm.ana"}
    assert link.sent[-1][1].confirmed[-1] == (log.log_id, *log.head)


def test_what_another_parked_on_a_log_does_not_make_it_look_incomplete(store: Store) -> None:
    log = MadeLog(ANA).say(5)
    store.bring("ana", log.cut(1, 6))
    number = store.custody.rows("SELECT id FROM logs")[0][0]
    assert store.custody.parked.first(number, 1) is None
    store.bring("boris", MadeLog(BORIS, events=log.fork(6).say(3).events).cut(8, 9))
    assert store.count("parked") == 1
    assert store.custody.parked.first(number, 1) is None
    log.say(6)
    store.bring("ana", log.cut(11, 12), log.cut(9, 9))
    assert store.custody.parked.first(number, 1) == (9, log.events[8].event_id)


# --- segments


def test_a_statement_that_names_another_head_at_its_last_sequence_is_malformed() -> None:
    log = MadeLog(ANA).say(3)
    statement = statement_of(log.events, log.events[-1], ANA.public_key)._replace(head_id=b"?" * 32)
    pairs = [(event.header_bytes, event.body) for event in log.events]
    with pytest.raises(DecodeError):
        decode_segment(encode_segment(statement, sign_segment(statement, ANA), pairs))
    assert decode_segment(segment_of(log.events, ANA))


def test_a_fault_of_the_hub_is_told_as_one_and_lack_of_memory_as_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_data: bytes) -> Segment:
        raise RuntimeError("oh")

    def full(_data: bytes) -> Segment:
        raise MemoryError

    monkeypatch.setattr(custody_module, "decode_segment", broken)
    (answer,) = store.bring("ana", b"1")
    assert answer.refused[0][3] == "hub-error"
    assert store.custody.rows("SELECT code FROM quarantine") == [("hub-error",)]
    monkeypatch.setattr(custody_module, "decode_segment", full)
    with pytest.raises(MemoryError):
        store.bring("ana", b"2")
    assert store.count("quarantine") == 1


# --- hello


def logs_of(*logs: MadeLog) -> list[Value]:
    return [[log.log_id, [list(point) for point in log.points(*points_of(len(log.events)))]] for log in logs]


def hello_of(logs: list[Value], signer: Signer = ANA, time_us: int = NOW_US) -> bytes:
    return sign_hello(signer, site="ana", hub_id=HUB, token=None, time_us=time_us, agent="test", logs=logs)


@pytest.fixture
def consumer(store: Store) -> Iterator[Consumer]:
    made = Consumer(store.custody, store.registry, HUB, lambda: None)
    yield made
    made.close()


def ask(consumer: Consumer, hello: bytes) -> HelloAnswer:
    return decode_answer(asyncio.run(consumer.hello("cmf.v1.rpc.ana.hello", hello)))


def test_a_hello_is_bounded_in_logs_and_points() -> None:
    assert decode_hello(hello_of([[bytes(16), [[1, bytes(32)]] * HELLO_POINTS_MAX]] * HELLO_LOGS_MAX))
    for logs in ([[bytes(16), []]] * (HELLO_LOGS_MAX + 1), [[bytes(16), [[1, bytes(32)]] * (HELLO_POINTS_MAX + 1)]]):
        with pytest.raises(DecodeError):
            decode_hello(hello_of(logs))


@pytest.mark.parametrize("head", [1, 2, 3, 1_000, 2**40, 2**62 + 1, 2**63 - 1])
def test_the_points_of_any_head_fit_a_hello(head: int) -> None:
    points = points_of(head)
    assert len(points) <= HELLO_POINTS_MAX
    assert (points[0], points[-1]) == (head, 1)
    assert sorted(set(points), reverse=True) == points


def test_the_signature_of_a_hello_covers_its_logs(store: Store, consumer: Consumer) -> None:
    log = MadeLog(ANA).say(4)
    store.take(log.cut(1, 5))
    good = hello_of(logs_of(log))
    assert ask(consumer, good).confirmed == ((log.log_id, *log.head),)
    parts = decode(good)
    for logs in ([], logs_of(MadeLog(ANA))):
        with pytest.raises(AccessDenied, match="signature"):
            ask(consumer, encode({**parts, "logs": logs}))


def test_a_hello_is_told_nothing_about_the_logs_of_other_keys(store: Store, consumer: Consumer) -> None:
    mine, other = MadeLog(ANA).say(4), MadeLog(BORIS).say(4)
    store.take(mine.cut(1, 5), other.cut(1, 5))
    assert ask(consumer, hello_of(logs_of(other, mine))).confirmed == ((mine.log_id, *mine.head),)


@pytest.mark.parametrize("time_us", [-(2**63), 2**63 - 1, 0])
def test_any_time_may_be_told(store: Store, consumer: Consumer, time_us: int) -> None:
    assert ask(consumer, hello_of([], time_us=time_us)).site == "ana"
    assert abs(store.custody.rows("SELECT ahead_us FROM contacts")[0][0]) <= consumer_module.AHEAD_US_MAX


def test_the_incarnation_is_read_once(store: Store, consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = store.custody.incarnation
    monkeypatch.setattr(Custody, "incarnation", property(lambda _self: pytest.fail("read again")))
    assert consumer._confirm([]).incarnation == ask(consumer, hello_of([])).incarnation == expected


# --- opening


def _open(folder: Path, start: float) -> bytes:
    while os.times().elapsed < start:
        pass
    data = DataFolder(folder)
    registry = Registry(data.registry)
    custody = Custody(data.store, registry)
    try:
        return custody.incarnation
    finally:
        custody.close()
        registry.close()


def test_processes_that_open_a_new_folder_at_once_make_one_store(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for at in range(5):
            folder = tmp_path / str(at)
            DataFolder(folder).prepare()
            start = os.times().elapsed + (0.5 if at == 0 else 0.1)
            assert len(set(pool.starmap(_open, [(folder, start)] * 4))) == 1
