"""A graph as it is read: nodes, the events about them, their resolved state, digests.

Rules
- Reading never writes; a graph may be read by any number of processes while one projects into it.
- What is read of one node is resolved by `cmf_protocol.resolve`; nothing here decides what the fold means.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from cmf_graph import schema
from cmf_graph.database import Connection, connect, store_errors
from cmf_protocol.encoding import encode, unpack
from cmf_protocol.errors import StoreError
from cmf_protocol.events import Header, Node, trusted_body, trusted_header
from cmf_protocol.fold import FOLD_VERSION
from cmf_protocol.resolve import Chains, NodeState, Said, digest_row, resolve


class Digest(NamedTuple):
    """What two graphs are compared by (protocol/README.md, section 9); digests are lowercase hex."""

    digest: str
    events_digest: str
    fold_version: int
    events: int
    unfolded: int


class Tree(NamedTuple):
    """A tree of events: a log, as the key that signs it owns it; `predecessor` is the tree that it provably succeeds."""

    id: int
    log_id: bytes
    root: bytes
    key: bytes
    claim_event: bytes | None
    claim: bytes | None
    predecessor: int | None


class EventRow(NamedTuple):
    """An event as the graph holds it."""

    id: int
    event_id: bytes
    branch: int
    header: Header
    body: bytes | None


#: Nodes that a digest reads at a time: a query for each costs more than all the rest.
DIGEST_NODES = 500
_EVENT_COLUMNS = "e.id, e.branch, e.header_size, e.data"


class Graph:
    """Reads one graph database; not for several threads at once."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self._chains: tuple[int, Chains] | None = None

    # -- chains ------------------------------------------------------------------------------------------------------

    def trees(self) -> dict[int, Tree]:
        """Return all trees by their number."""
        return {
            row[0]: Tree._make(row)
            for row in self.rows("SELECT id, log_id, root, key, claim_event, claim, predecessor FROM trees ORDER BY id")
        }

    def chains(self) -> Chains:
        """Return which event is later than which, as of the last commit."""
        version = self.connection.execute("PRAGMA data_version").fetchone()[0]
        if self._chains is None or self._chains[0] != version:
            self._chains = version, self._read_chains()
        return self._chains[1]

    def forget_chains(self) -> None:
        """Read the chains anew: this connection has changed them."""
        self._chains = None

    def _read_chains(self) -> Chains:
        chains = Chains()
        roots = {}
        for branch, tree, parent, sequence in self.rows("SELECT id, tree, parent, parent_sequence FROM branches"):
            chains.trees[branch] = tree
            if parent is None:
                roots[tree] = branch
            else:
                chains.parents[branch] = (parent, sequence)
        for tree in self.trees().values():
            if tree.predecessor is None or tree.claim_event is None:
                continue
            place = self.place(tree.claim_event)
            if place is not None:
                chains.successions[tree.id] = tree.predecessor
                chains.parents[roots[tree.id]] = place
        return chains

    # -- nodes and events --------------------------------------------------------------------------------------------

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """Return the rows of a query."""
        with store_errors(self.name):
            return self.connection.execute(sql, parameters).fetchall()

    def node_id(self, node: Node) -> int | None:
        """Return the number of a node, or None if nothing is said about it."""
        found = self.rows("SELECT id FROM nodes WHERE kind = ? AND key = ?", schema.node_key(node))
        return None if not found else int(found[0][0])

    def node(self, node_id: int) -> Node:
        """Return the node of a number."""
        kind, key = self.rows("SELECT kind, key FROM nodes WHERE id = ?", (node_id,))[0]
        return schema.node_of(kind, key)

    def events_about(self, node_id: int) -> list[EventRow]:
        """Return the folded events about a node."""
        sql = (
            f"SELECT {_EVENT_COLUMNS} FROM events e WHERE e.id IN (SELECT event FROM about WHERE node = ?1 "
            "UNION SELECT event FROM edges WHERE execution = ?1 UNION SELECT event FROM edges WHERE artifact = ?1)"
        )
        return [_event_row(row) for row in self.rows(sql, (node_id,))]

    def statements(self, node_id: int) -> list[Said]:
        """Return what the folded events about a node say."""
        return [said(row) for row in self.events_about(node_id)]

    def state(self, node_id: int, node: Node | None = None) -> NodeState:
        """Return a node as all that is said of it."""
        return resolve(node or self.node(node_id), self.statements(node_id), self.chains())

    def event(self, event_id: bytes) -> EventRow | None:
        """Return the event with this id, or None if it is not held."""
        sql = f"SELECT {_EVENT_COLUMNS} FROM event_ids i JOIN events e ON e.id = i.event WHERE i.prefix = ?"
        found = [_event_row(row) for row in self.rows(sql, (schema.id_prefix(event_id),))]
        return next((row for row in found if row.event_id == event_id), None)

    def place(self, event_id: bytes) -> tuple[int, int] | None:
        """Return (branch, sequence) of an event, or None if it is not held."""
        row = self.event(event_id)
        return None if row is None else (row.branch, row.header.sequence)

    def unfolded(self, limit: int = 1000) -> list[tuple[EventRow, str]]:
        """Return events that are held without effect, with the reason."""
        sql = f"SELECT {_EVENT_COLUMNS}, u.reason FROM unfolded u JOIN events e ON e.id = u.event ORDER BY e.id LIMIT ?"
        return [(_event_row(row[:4]), row[4]) for row in self.rows(sql, (limit,))]

    def event_ids(self) -> Iterator[bytes]:
        """Yield the ids of all events, sorted."""
        sql = (
            "SELECT i.prefix, substr(e.data, 1, 32) FROM event_ids i JOIN events e ON e.id = i.event ORDER BY i.prefix"
        )
        for _, same in groupby(self.connection.execute(sql), key=itemgetter(0)):
            yield from sorted(event_id for _, event_id in same)

    def checkpoint(self, source: str) -> int:
        """Return up to where the projection has read `source`; 0 at the beginning."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", (f"checkpoint:{source}",))
        return int(found[0][0]) if found else 0

    def mark(self, name: str) -> bytes | None:
        """Return what was saved under a name with the checkpoint."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", (f"checkpoint:{name}",))
        return None if not found else bytes(found[0][0])

    # -- digest ------------------------------------------------------------------------------------------------------

    def digest(self) -> Digest:
        """Return the digests of all that is folded, in one snapshot; the time grows with the whole graph."""
        with self.snapshot():
            ids = sha256()
            count = 0
            for event_id in self.event_ids():
                ids.update(event_id)
                count += 1
            unfolded = self.rows("SELECT count(*) FROM unfolded")[0][0]
            rows = sha256()
            for row in self._digest_rows():
                rows.update(row)
        return Digest(rows.hexdigest(), ids.hexdigest(), FOLD_VERSION, count, unfolded)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything read in the block be of one moment."""
        if self.connection.in_transaction:
            yield
            return
        with store_errors(self.name):
            self.connection.execute("BEGIN")
            self.forget_chains()
            try:
                yield
            finally:
                self.connection.execute("COMMIT")
                self.forget_chains()

    def _digest_rows(self) -> Iterator[bytes]:
        chains = self.chains()
        logs = self._logs_by_key()
        nodes = [(encode(list(schema.node_of(kind, key))), id_) for id_, kind, key in self.rows("SELECT * FROM nodes")]
        nodes.sort(key=lambda found: (len(found[0]), found[0]))  # a row begins with the length of its node's bytes
        with no_collector():
            for start in range(0, len(nodes), DIGEST_NODES):
                chunk = nodes[start : start + DIGEST_NODES]
                statements = self._statements_of([node_id for _, node_id in chunk])
                for canonical, node_id in chunk:
                    node: Node = unpack(canonical)
                    state = resolve(node, statements.get(node_id, ()), chains)
                    yield digest_row(state, chains, logs.get(node[1], ()) if node[0] == "key" else ())

    def _statements_of(self, node_ids: Sequence[int]) -> dict[int, list[Said]]:
        found: dict[int, list[Said]] = {}
        numbers = json.dumps(node_ids)
        for table, column in (("about", "node"), ("edges", "execution"), ("edges", "artifact")):
            sql = f"SELECT j.value, {_EVENT_COLUMNS} FROM json_each(?) j CROSS JOIN {table} x ON x.{column} = j.value"
            for node_id, *row in self.rows(f"{sql} CROSS JOIN events e ON e.id = x.event", (numbers,)):
                found.setdefault(node_id, []).append(said(_event_row(row)))
        return found

    def _logs_by_key(self) -> dict[bytes, list[tuple[bytes, bytes, bytes | None]]]:
        logs: dict[bytes, list[tuple[bytes, bytes, bytes | None]]] = {}
        sql = "SELECT t.key, t.log_id, t.root, CASE WHEN t.predecessor IS NULL THEN NULL ELSE t.claim_event END"
        for key, log_id, root, before in self.rows(sql + " FROM trees t WHERE t.folded"):
            logs.setdefault(key, []).append((log_id, root, before))
        return logs


def said(row: EventRow) -> Said:
    """Return what a folded event says."""
    header = row.header
    body = trusted_body(row.body or b"")
    return Said(
        row.branch, header.sequence, header.clock, row.event_id, header.wall_us, header.type, header.about, body
    )


def _event_row(row: Sequence[Any]) -> EventRow:
    id_, branch, header_size, data = row
    event_id, header, body = schema.unpack_event(header_size, data)
    return EventRow(id_, event_id, branch, trusted_header(header), body)


@contextmanager
def no_collector() -> Iterator[None]:
    """Turn the cyclic garbage collector off for a batch that makes many lasting objects; it costs a third there."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def open_graph(path: Path | str, *, read_only: bool = True) -> Graph:
    """Open the graph in the database file `path`; raise `StoreError` if it is missing or of another version."""
    if read_only and str(path) != ":memory:" and not Path(path).exists():
        raise StoreError(f"there is no graph at {path}", "has anything been recorded or pushed here yet?")
    graph = Graph(connect(path, read_only=read_only), str(path))
    if schema.version(graph.connection) != (schema.SCHEMA_VERSION, FOLD_VERSION):
        raise StoreError(f"the graph at {path} was made by another version", "rebuild it: cmf-hub rebuild")
    return graph
