import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, NOW_US, STRANGER, Store

from cmf_hub.care import Findings, quarantined, status, verify
from cmf_hub.projector import SOURCE, caught_up_graph


def verified(store: Store) -> Findings:
    graph, _ = caught_up_graph(store.data)
    try:
        return verify(store.data, graph, lambda _number: None)
    finally:
        graph.connection.close()


@contextmanager
def damage(store: Store, sql: str, *parameters: object) -> Iterator[None]:
    """Let the graph catch up, then change the store behind everyone's back."""
    assert verified(store).problems == []
    connection = store.custody._connection
    connection.execute("PRAGMA foreign_keys=OFF")
    assert connection.execute(sql, parameters).rowcount == 1
    yield


@pytest.fixture
def logs(store: Store) -> tuple[MadeLog, MadeLog, MadeLog]:
    """Store a log, its copy that forks after event 5, and another site's log: six segments."""
    log, other = MadeLog(ANA).say(9), MadeLog(BORIS).say(4)
    copy = log.fork(5).say(4)
    store.take(log.cut(1, 3), log.cut(4, 6), log.cut(7, 10), other.cut(1, 5), copy.cut(2, 7), copy.cut(8, 9))
    return log, copy, other


# --- verify


def test_a_whole_store_is_found_whole(store: Store, logs: tuple[MadeLog, ...]) -> None:
    found = verified(store)
    assert (found.segments, found.events, found.problems) == (6, 10 + 4 + 5, [])


def test_an_empty_store_is_found_whole(store: Store) -> None:
    found = verified(store)
    assert (found.segments, found.events, found.problems) == (0, 0, [])


@pytest.mark.parametrize("segment", range(1, 7))
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_flipped_byte_in_a_stored_segment_is_found(
    store: Store, logs: tuple[MadeLog, ...], segment: int, part: float
) -> None:
    data = bytearray(store.custody.rows("SELECT data FROM segments WHERE id = ?", (segment,))[0][0])
    data[int(part * len(data))] ^= 0x10
    with damage(store, "UPDATE segments SET data = ? WHERE id = ?", bytes(data), segment):
        problems = verified(store).problems
    assert any(problem.startswith(f"segment {segment}: ") for problem in problems), problems


@pytest.mark.parametrize("segment", range(1, 7))
def test_a_missing_segment_is_found(store: Store, logs: tuple[MadeLog, ...], segment: int) -> None:
    with damage(store, "DELETE FROM segments WHERE id = ?", segment):
        assert verified(store).problems


def test_a_segment_in_the_place_of_another_is_found(store: Store, logs: tuple[MadeLog, ...]) -> None:
    log = logs[0]
    with damage(store, "UPDATE segments SET data = ? WHERE id = 2", log.cut(7, 10)):
        assert any(problem.startswith("segment 2: ") for problem in verified(store).problems)


def test_a_segment_signed_by_another_key_is_found(store: Store, logs: tuple[MadeLog, ...]) -> None:
    log = logs[0]
    for data in (log.cut(4, 6, STRANGER), log.forged(4, 6, STRANGER)):
        with damage(store, "UPDATE segments SET data = ? WHERE id = 2", data):
            assert "segment 2: its signature does not verify with the key of its log" in verified(store).problems
        store.custody._connection.execute("UPDATE segments SET data = ? WHERE id = 2", (log.cut(4, 6),))


def test_a_watermark_that_names_what_is_not_there_is_found(store: Store, logs: tuple[MadeLog, ...]) -> None:
    with damage(store, "UPDATE branches SET head_id = ?, head_sequence = 11 WHERE id = 1", b"\x01" * 32):
        assert verified(store).problems == ["branch 1: the watermark is not its last stored event"]


def test_a_graph_that_lacks_events_is_found(store: Store, logs: tuple[MadeLog, ...]) -> None:
    assert verified(store).problems == []
    graph, _ = caught_up_graph(store.data)
    store_of_graph = store.data.graph_file()
    graph.connection.close()
    from cmf_graph.database import connect

    connection = connect(store_of_graph)
    connection.execute("DELETE FROM event_ids WHERE event = 4")
    connection.close()
    (problem,) = verified(store).problems
    assert "rebuild" in problem


def test_verify_finds_nothing_wrong_while_segments_arrive(store: Store) -> None:
    log = MadeLog(ANA).say(2_000)
    failures: list[Any] = []
    stop = threading.Event()
    reader = Store.__new__(Store)
    reader.data = store.data

    def verify_on() -> None:
        try:
            while not stop.is_set():
                failures.extend(verified(reader).problems)
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=verify_on)
    thread.start()
    try:
        for first in range(1, 2_000, 5):
            store.take(log.cut(first, first + 4))
    finally:
        stop.set()
        thread.join(60)
    assert failures == []


# --- status, quarantine


def test_status_counts_what_is_held(store: Store, logs: tuple[MadeLog, ...]) -> None:
    store.take(MadeLog(ANA).say(9).cut(5, 8), b"junk")
    graph, _ = caught_up_graph(store.data)
    found = status(store.data, graph)
    assert graph.checkpoint(SOURCE) == 6
    graph.connection.close()
    assert {key: found[key] for key in ("serving", "events", "segments", "parked_segments", "quarantine", "unfolded")} == {
        "serving": False, "events": 19, "segments": 6, "parked_segments": 1, "quarantine": 1, "unfolded": 0,
    }  # fmt: skip
    assert found["projection_behind_segments"] == 0
    assert found["parked_bytes"] > 0


def test_quarantine_is_listed_newest_first_with_the_reason(store: Store) -> None:
    store.bring("ana", b"junk", now_us=NOW_US)
    store.bring("boris", MadeLog(STRANGER).cut(1, 1), now_us=NOW_US + 1)
    found = quarantined(store.data)
    assert [(item["carrier"], item["code"]) for item in found] == [("boris", "unknown-key"), ("ana", "malformed")]
    assert found[1]["bytes"] == 4
    assert STRANGER.public_key.hex() in found[0]["message"]
