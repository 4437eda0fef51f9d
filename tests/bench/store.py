"""Benchmarks of custody, projection and wire, without a network."""

import gzip
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.bench.data import a_log, new_file, segments_of
from tests.bench.measure import ROUNDS, Row, alternate, rate

from cmf_graph.database import connect
from cmf_graph.projection import Projection
from cmf_hub.custody import Custody
from cmf_hub.finding import run_of
from cmf_hub.registry import Registry
from cmf_protocol.encoding import INTEGER_MAX
from cmf_protocol.signing import Signer

EVENTS = 50_000
_SIGNER = Signer(b"b" * 32)
#: What a projection writes for good; `meta`, `trees` and `branches` have a handful of rows.
_TABLES = ("events", "event_ids", "nodes", "about", "edges", "executions", "artifacts", "artifact_names", "aliases")


def custody(folder: Path) -> Iterator[Row]:
    """Decode, verify, store and commit whole segments; floor: an executemany of the same bytes, a row per segment."""
    segments = segments_of(a_log(EVENTS, _SIGNER), _SIGNER)
    names = count()
    registry = Registry(folder / "registry.db")
    registry.add("site", login=None, key=_SIGNER.public_key, now_us=1)
    stores = [Custody(folder / f"store-{next(names)}.db", registry) for _ in range(ROUNDS + 1)]

    def subject() -> None:
        store = stores.pop()
        for start in range(0, len(segments), 16):
            store.receive([("site", data) for data in segments[start : start + 16]], 1)
        store.close()

    def floor() -> None:
        connection = connect(new_file(folder, "floor.db"))
        connection.execute("CREATE TABLE segments (id INTEGER PRIMARY KEY, data BLOB)")
        for start in range(0, len(segments), 16):
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO segments (data) VALUES (?)", [(d,) for d in segments[start : start + 16]]
            )
            connection.execute("COMMIT")
        connection.close()

    ours, bare = alternate(subject, floor)
    yield Row(
        "custody (decode, verify, store, commit)",
        rate(EVENTS, ours),
        rate(EVENTS, bare),
        f"{bare / ours:.2f}",
        "≥ 200,000/s",
    )


def projection(folder: Path) -> Iterator[Row]:
    """Fold stored segments into SQLite; floor: an executemany of the same final rows into the same tables."""
    segments = segments_of(a_log(EVENTS, _SIGNER), _SIGNER)

    def subject() -> None:
        projection_ = Projection(new_file(folder, "graph.db"))
        projection_.apply((event for data in segments for event in run_of(data, 0, INTEGER_MAX).events), {"store": 1})
        projection_.close()

    subject()
    source = connect(folder / "graph.db")
    rows = {table: source.execute(f"SELECT * FROM {table}").fetchall() for table in _TABLES}
    source.close()

    def floor() -> None:
        projection_ = Projection(new_file(folder, "floor.db"))
        connection = projection_.graph.connection
        connection.execute("BEGIN")
        for table, found in rows.items():
            connection.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(found[0]))})", found)
        connection.execute("COMMIT")
        projection_.close()

    ours, bare = alternate(subject, floor)
    yield Row(
        "projection into SQLite", rate(EVENTS, ours), rate(EVENTS, bare), f"{bare / ours:.2f}", "≥ 0.6, ≥ 60,000/s"
    )


def wire(_folder: Path) -> Iterator[Row]:
    """Bytes of segments beside the stored events' bytes, and beside gzip of the same."""
    events = a_log(EVENTS, _SIGNER)
    raw = b"".join(event.header_bytes + (event.body or b"") for event in events)
    sent = sum(map(len, segments_of(events, _SIGNER)))
    packed = len(gzip.compress(raw, 6))
    yield Row("wire, bytes an event", f"{sent / EVENTS:.0f}", f"raw {len(raw) / EVENTS:.0f}, gzip -6 {packed / EVENTS:.0f}",
              f"{sent / len(raw):.2f}", "≤ 0.6 of raw")  # fmt: skip
