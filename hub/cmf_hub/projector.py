"""Keeps the graph up with the event store: in a process of its own while the hub serves, in any command's while none does.

Theory of operation: whoever holds `projector.lock` reads the segments after the graph's checkpoint and applies them, batch and
checkpoint in one transaction. `serve` runs this file as a child and pokes it through its standard input after each commit; when that pipe
closes, the hub is gone and the child ends. A command that asks a question waits until the graph has what was in custody when it
asked, and projects itself if nobody else does.

Rules
- A slow or broken fold delays no confirmation: custody never waits for this.
- An event on which this program fails is set aside as unfolded, with a traceback in the log: it stops no other one.
- The graph is disposable: one of another version is built anew beside it, then put in its place.
"""

import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO

from cmf_graph import schema
from cmf_graph.database import connect
from cmf_graph.graph import Graph
from cmf_graph.locks import try_lock
from cmf_graph.projection import Projection
from cmf_hub.custody import Custody, stored_runs
from cmf_hub.data import DataFolder
from cmf_hub.finding import Run
from cmf_hub.registry import Registry
from cmf_protocol.errors import CmfError, StoreError
from cmf_protocol.events import Event
from cmf_protocol.fold import FOLD_VERSION

logger = logging.getLogger("cmf_hub")

SOURCE = "store"
MARK = "store:mark"
#: Segments in one transaction: at most 100,000 events, so that a reader sees progress every second or so.
SEGMENTS_PER_COMMIT = 100
#: How long a commit of the projector may take before a rebuild gives up, s.
REBUILD_WAIT_S = 60.0
#: A projector that starts holds the rebuild's lock while it removes the leftovers of killed ones: milliseconds, s.
LEFTOVERS_WAIT_S = 2.0
#: How often the store is looked at without a poke (another process imported a bundle), s.
LOOK_EVERY_S = 0.2
#: Sites that wait for confirmations go before folding, where there are not cores enough for both.
NICE = 5
#: How long a question waits for the projection (design, section 4), s.
QUERY_WAIT_S = 5.0


def project(projection: Projection, custody: Custody) -> int:
    """Apply one commit's worth of segments; return how many there were."""
    position = projection.graph.checkpoint(SOURCE)
    segments = list(stored_runs(custody, position, SEGMENTS_PER_COMMIT))
    if segments:
        try:
            projection.apply(_flat(segments), _checkpoint(custody, segments[-1][0]), _signers(segments))
        except CmfError:
            raise
        except Exception:
            logger.exception("folding failed: looking for the event")
            _apply_singly(projection, custody, segments)
    return len(segments)


def _checkpoint(custody: Custody, number: int) -> dict[str, int | bytes]:
    """Return what is saved with a commit: the number of the last segment, and what tells it from another store's of that number."""
    return {SOURCE: number, MARK: _mark(custody, number)}


def _mark(custody: Custody, number: int) -> bytes:
    """Return what tells a stored segment from another store's of that number: not its bytes, which may get damaged."""
    sql = "SELECT branch, first_sequence, last_sequence, last_id, carrier, arrived_us FROM segments WHERE id = ?"
    found = custody.rows(sql, (number,))
    return sha256(repr(found[0]).encode()).digest() if found else b""


def _apply_singly(projection: Projection, custody: Custody, segments: list[tuple[int, Run]]) -> None:
    """Apply events one by one, and those that this program fails on without effect: they are listed, the others go on."""
    signers = _signers(segments)
    for number, run in segments:
        for event in run.events:
            try:
                projection.apply([event], signers=signers)
            except CmfError:
                raise
            except Exception as error:
                logger.exception("event %s can't be folded by this program", event.event_id.hex())
                projection.skip(event.event_id, f"internal error: {type(error).__name__}")
                projection.apply([event], signers=signers)
        projection.apply([], _checkpoint(custody, number))


def _flat(segments: list[tuple[int, Run]]) -> Iterator[Event]:
    for _, run in segments:
        yield from run.events


def _signers(segments: list[tuple[int, Run]]) -> dict[bytes, bytes]:
    """Return the key that signed each run, by its first event: what begins beyond a hole belongs to that key."""
    return {run.events[0].event_id: run.key for _, run in segments}


def open_custody(data: DataFolder) -> Custody:
    """Open the event store of a hub."""
    return Custody(data.store, Registry(data.registry))


class Projector:
    """Projects into the graph in use, under the projector's lock."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._custody = open_custody(data)
        self._projection: Projection | None = None
        self._file: Path | None = None
        self._version = 0

    def catch_up(self) -> bool:
        """Project all that is stored; return False if someone else projects."""
        lock = try_lock(self._data.root / "projector.lock")
        if lock is None:
            return False
        with lock:
            if self._projection is None:
                self._data.remove_leftovers()
            while project(self._current(), self._custody):
                pass
        return True

    def _current(self) -> Projection:
        """Return the projection of the graph in use, opened anew if another process has put one in its place or written to it."""
        file = self._data.graph_file()
        if self._projection is not None and file == self._file and _version(self._projection) == self._version:
            return self._projection
        if self._projection is not None:
            self._projection.close()
            self._projection = None
        if _is_outdated(file, self._custody):
            logger.warning("the graph was made by another version, or of another store: building it anew")
            file = self._built_anew()
        self._projection, self._file = Projection(file), file
        self._version = _version(self._projection)
        return self._projection

    def _built_anew(self) -> Path:
        """Build a graph beside the one in use, and put it in its place once it is whole."""
        file = new_graph_file(self._data)
        projection = Projection(file)
        while project(projection, self._custody):
            pass
        projection.close()
        self._data.use_graph(file)
        return file


def _version(projection: Projection) -> int:
    """Return a number that changes when another connection writes to the graph (sqlite.org/pragma.html#pragma_data_version)."""
    return int(projection.graph.rows("PRAGMA data_version")[0][0])


def _usable_graph(file: Path, custody: Custody) -> Graph | None:
    """Return the graph in a file, None if there is none of this version and of this store."""
    if not file.exists():
        return None
    graph = Graph(connect(file, read_only=True), str(file))
    if schema.version(graph.connection) == (schema.SCHEMA_VERSION, FOLD_VERSION):
        position = graph.checkpoint(SOURCE)
        if position == 0 or graph.mark(MARK) == _mark(custody, position):
            return graph  # else the store is another, or was restored from an older copy
    graph.connection.close()
    return None


def _is_outdated(file: Path, custody: Custody) -> bool:
    """Tell if there is a graph, but of another version or another store."""
    if not file.exists():
        return False
    graph = _usable_graph(file, custody)
    if graph is not None:
        graph.connection.close()
        return False
    connection = connect(file, read_only=True)
    found = schema.version(connection)
    connection.close()
    return found is not None


def new_graph_file(data: DataFolder) -> Path:
    """Return a name for a new graph's database."""
    return data.root / "graph" / f"graph-{os.urandom(4).hex()}.db"


def rebuild(data: DataFolder) -> int:
    """Build the graph from zero beside the one in use, then put it in its place; return the number of segments.

    Raises `StoreError` if another rebuild is running.
    """
    building = _lock_within(data.rebuild_lock, LEFTOVERS_WAIT_S)
    if building is None:
        raise StoreError("another rebuild is running", "wait until it is done")
    with building:
        custody = open_custody(data)
        file = new_graph_file(data)
        projection = Projection(file)
        count = 0
        while done := project(projection, custody):
            count += done
        with _projector_lock(data):
            while done := project(projection, custody):
                count += done
            projection.close()
            data.use_graph(file)
    return count


def _projector_lock(data: DataFolder) -> IO[str]:
    lock = _lock_within(data.root / "projector.lock", REBUILD_WAIT_S)
    if lock is None:
        raise StoreError("the projector does not let go of the graph", "stop the hub, then rebuild")
    return lock


def _lock_within(file: Path, wait_s: float) -> IO[str] | None:
    """Lock a file, or return None if someone else has held it for `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    while (lock := try_lock(file)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return lock


def caught_up_graph(data: DataFolder, *, wait_s: float = QUERY_WAIT_S) -> tuple[Graph, int]:
    """Return the graph with what is in custody now, and how many segments it is behind after `wait_s` seconds (0: none).

    Raises `StoreError` if there is no graph at all, and someone else has been making it for longer than a question waits.
    """
    custody = open_custody(data)
    target = custody.last_segment()
    asked = time.monotonic()
    projector: Projector | None = None
    while True:
        waited_s = time.monotonic() - asked
        file = data.graph_file()
        try:
            graph = _usable_graph(file, custody)
            behind = 0 if graph is None else target - graph.checkpoint(SOURCE)
        except CmfError:
            if data.graph_file() == file:
                raise
            continue  # it was replaced while it was being opened
        if graph is not None:
            if behind <= 0 or waited_s >= wait_s:
                return graph, max(behind, 0)
            graph.connection.close()
        projector = projector or Projector(data)
        if not projector.catch_up():
            if graph is None and waited_s >= max(wait_s, QUERY_WAIT_S):
                raise StoreError("there is no graph yet: another process is making it", "ask again in a moment")
            time.sleep(0.01)


def main() -> None:
    """Run as the hub's child on the folder that the first argument names, until standard input closes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s projector: %(message)s")
    os.nice(NICE)
    projector = Projector(DataFolder(Path(sys.argv[1])))
    while True:
        try:
            projector.catch_up()
        except CmfError as error:
            logger.error("projecting failed, trying again: %s", error)
            time.sleep(1.0)
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], LOOK_EVERY_S)
        if ready and not os.read(sys.stdin.fileno(), 65536):
            return


if __name__ == "__main__":
    main()
