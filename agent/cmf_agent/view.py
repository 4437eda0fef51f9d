"""The local view: the hub's fold over this site's own events and those that were pulled, so that questions have answers offline.

Rules
- A projection: disposable, in `.cmf/view.db`, brought up to the log's head and to what was pulled whenever it is opened; made anew
  when another version made it, when what was pulled is no longer there or stands elsewhere (`Pulled.generation`), and when an older copy of
  the log was put back.
- Own logs first: where a pulled event stands in a tree of this site's own, what is held of its chain says more than what was told.
- One process at a time projects, under `view.lock`; a log is never made to wait for it. Who asks opens the file before letting go of the
  lock: one that another process makes anew is half made meanwhile, and the old one still answers.
- A file that is damaged is made anew.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from cmf_agent.brought import BroughtSegments
from cmf_agent.home import Home
from cmf_agent.pulled import Pulled
from cmf_agent.reading import LogReader
from cmf_graph import schema
from cmf_graph.database import connect, store_errors
from cmf_graph.graph import Graph, open_graph
from cmf_graph.locks import try_lock
from cmf_graph.projection import Projection
from cmf_protocol.errors import IntegrityError, StoreError
from cmf_protocol.fold import FOLD_VERSION

#: How long another process may take to bring the view up, s.
PROJECT_WAIT_S = 60.0
_LOOK_EVERY_S = 0.01
#: What the view has of the pulled events: up to which number, and of which generation.
_PULLED, _GENERATION = "pulled", "generation"


@contextmanager
def local_view(home: Home) -> Iterator[Graph]:
    """Lend the graph of everything that this site has recorded, pulled, and been brought in bundles."""
    with _view_lock(home):
        _bring_up(home)
        graph = open_graph(home.view_path)
    try:
        yield graph
    finally:
        graph.connection.close()


def _view_lock(home: Home) -> IO[str]:
    deadline = time.monotonic() + PROJECT_WAIT_S
    while (lock := try_lock(home.path / "view.lock")) is None:
        if time.monotonic() > deadline:
            raise StoreError(f"another process holds {home.path / 'view.lock'}", "wait until it is done, or end it")
        time.sleep(_LOOK_EVERY_S)
    return lock


def _bring_up(home: Home) -> None:
    with ExitStack() as stack:
        reader = stack.enter_context(LogReader(home.log_path))
        pulled = stack.enter_context(Pulled(home.pulled_path)) if home.pulled_path.exists() else None
        with pulled.reading() if pulled is not None else ExitStack():
            _drop_outdated(home, pulled.generation if pulled is not None else 0, reader)
            projection = Projection(home.view_path)
            stack.callback(projection.close)
            _apply_own(projection, reader)
            _apply_brought(projection, home.brought_path)
            if pulled is not None:
                _apply_pulled(projection, pulled)


def _apply_own(projection: Projection, reader: LogReader) -> None:
    for log in reader.logs():
        source = f"log:{log.log_id.hex()}"
        done = projection.graph.checkpoint(source)
        if done < log.head_sequence:
            events = (stored.decoded() for stored in reader.events(log.number, after=done))
            projection.apply(islice(events, log.head_sequence - done), {source: log.head_sequence})


def _apply_brought(projection: Projection, path: Path) -> None:
    if not path.exists():
        return
    with BroughtSegments(path) as brought:
        done, upto = projection.graph.checkpoint(brought.source), brought.last_segment()
        if done < upto:
            projection.apply(brought.events(done, upto), {brought.source: upto})


def _apply_pulled(projection: Projection, pulled: Pulled) -> None:
    done, upto = projection.graph.checkpoint(_PULLED), pulled.upto()
    if done == upto and projection.graph.checkpoint(_GENERATION) == pulled.generation:
        return
    structure = pulled.structure()
    projection.apply_placed(structure, pulled.roots())
    projection.apply_placed(structure, pulled.events(done, upto), {_PULLED: upto, _GENERATION: pulled.generation})


def _fits_logs(graph: Graph, reader: LogReader) -> bool:
    """Tell if what was folded of each log still stands there: it does not where an older copy of the log was put back."""
    for log in reader.logs():
        done = graph.checkpoint(f"log:{log.log_id.hex()}")
        last = next(reader.events(log.number, after=done - 1), None) if done else None
        if done and (last is None or last.sequence != done or graph.place(last.event_id) is None):
            return False
    return True


def _drop_outdated(home: Home, generation: int, reader: LogReader) -> None:
    if home.view_path.exists() and not _is_current(home.view_path, generation, reader):
        for suffix in ("", "-wal", "-shm"):
            home.view_path.with_name(home.view_path.name + suffix).unlink(missing_ok=True)


def _is_current(path: Path, generation: int, reader: LogReader) -> bool:
    try:
        with closing(connect(path)) as connection, store_errors(path):
            found = schema.version(connection)
            graph = Graph(connection, str(path))
            if found != (schema.SCHEMA_VERSION, FOLD_VERSION):
                return found is None
            return graph.checkpoint(_GENERATION) in (0, generation) and _fits_logs(graph, reader)
    except IntegrityError:
        return False
