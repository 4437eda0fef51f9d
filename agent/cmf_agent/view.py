"""The local view: the same fold as at the hub, over this site's own events, so that questions have answers offline.

Rules
- A projection: disposable, in `.cmf/view.db`, brought up to the log's head whenever it is opened; made anew when another version made it.
- One process at a time projects, under `view.lock`; a log is never made to wait for it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from cmf_agent.home import Home
from cmf_agent.reading import LogReader
from cmf_graph import schema
from cmf_graph.database import connect
from cmf_graph.graph import Graph, open_graph
from cmf_graph.locks import try_lock
from cmf_graph.projection import Projection
from cmf_protocol.errors import StoreError
from cmf_protocol.fold import FOLD_VERSION

#: How long another process may take to bring the view up, s.
PROJECT_WAIT_S = 60.0
_LOOK_EVERY_S = 0.01


@contextmanager
def local_view(home: Home) -> Iterator[Graph]:
    """Lend the graph of everything that this site has recorded."""
    _bring_up(home)
    graph = open_graph(home.view_path)
    try:
        yield graph
    finally:
        graph.connection.close()


def _bring_up(home: Home) -> None:
    deadline = time.monotonic() + PROJECT_WAIT_S
    while (lock := try_lock(home.path / "view.lock")) is None:
        if time.monotonic() > deadline:
            raise StoreError(f"another process holds {home.path / 'view.lock'}", "wait until it is done, or end it")
        time.sleep(_LOOK_EVERY_S)
    with lock, LogReader(home.log_path) as reader:
        _drop_outdated(home)
        projection = Projection(home.view_path)
        try:
            for log in reader.logs():
                source = f"log:{log.log_id.hex()}"
                done = projection.graph.checkpoint(source)
                if done < log.head_sequence:
                    events = (stored.decoded() for stored in reader.events(log.number, after=done))
                    projection.apply(islice(events, log.head_sequence - done), {source: log.head_sequence})
        finally:
            projection.close()


def _drop_outdated(home: Home) -> None:
    if not home.view_path.exists():
        return
    connection = connect(home.view_path)
    found = schema.version(connection)
    connection.close()
    if found not in (None, (schema.SCHEMA_VERSION, FOLD_VERSION)):
        for suffix in ("", "-wal", "-shm"):
            home.view_path.with_name(home.view_path.name + suffix).unlink(missing_ok=True)
