"""Folding events into a graph database: one transaction for a batch and its checkpoint.

Theory of operation: events come in an order in which each follows its previous one. A batch is read twice: first each event gets
its place (branch) and its body is read, then its nodes get numbers and rows are collected, and everything is written with `executemany`.
Columns of `executions` and `artifacts` are updated from the batch alone where one branch says everything, and by resolving the node where not.

Rules
- One writer per graph (the caller holds a lock); applying an event again changes nothing.
- Whatever the order, the tables that digests and queries read are the same function of the set of events.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cmf_graph import schema
from cmf_graph.columns import ArtifactColumns, ExecutionColumns
from cmf_graph.database import connect, transaction
from cmf_graph.graph import Graph, no_collector
from cmf_protocol import types as t
from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event, Node
from cmf_protocol.fold import Unfolded, nodes_of, read
from cmf_protocol.resolve import retractions
from cmf_protocol.signing import Succession

#: Events folded at a time: large enough that statements cost little per event, small enough to stay under 50 MB.
BATCH_EVENTS = 5_000
#: Nodes whose numbers are remembered between batches.
NODE_CACHE_MAX = 200_000
_LOOKUP_CHUNK = 500


class Placed(NamedTuple):
    """An event with its number and branch, and what its body says (None if it is not folded)."""

    id: int
    branch: int
    event: Event
    body: dict[str, Value] | None
    unfolded: str | None


class Projection:
    """The writer of one graph."""

    def __init__(self, path: Path | str) -> None:
        connection = connect(path)
        schema.create(connection, str(path))
        connection.execute("PRAGMA synchronous=NORMAL")  # disposable: what a power cut takes is projected again
        connection.execute("PRAGMA cache_size=-65536")
        self.graph = Graph(connection, str(path))
        self._connection = connection
        self._node_ids: dict[Node, int] = {}
        self._load_positions()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _load_positions(self) -> None:
        rows = self.graph.rows
        self._heads: dict[bytes, tuple[int, int]] = {
            head: (branch, sequence)
            for branch, sequence, head in rows("SELECT id, head_sequence, head_id FROM branches")
        }
        self._roots = {root for (root,) in rows("SELECT root FROM trees")}
        self._next_event = rows("SELECT coalesce(max(id), 0) + 1 FROM events")[0][0]
        self._next_node = rows("SELECT coalesce(max(id), 0) + 1 FROM nodes")[0][0]
        self._next_branch = rows("SELECT coalesce(max(id), 0) + 1 FROM branches")[0][0]
        self._claims = rows("SELECT count(*) FROM trees WHERE claim IS NOT NULL AND predecessor IS NULL")[0][0]

    def apply(self, events: Iterable[Event], checkpoints: dict[str, int] | None = None) -> int:
        """Fold `events`, each after its previous one, and save `checkpoints` with them; return how many were new.

        Raises `IntegrityError` if an event's previous one is not held; then nothing of this call was written.
        """
        applied = 0
        try:
            with transaction(self._connection, self.graph.name), no_collector():
                stream = iter(events)
                while batch := list(islice(stream, BATCH_EVENTS)):
                    applied += self._apply_batch(batch)
                if self._claims:
                    self._prove_successions()
                self._connection.executemany(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    [(f"checkpoint:{source}", value) for source, value in (checkpoints or {}).items()],
                )
        except BaseException:
            self._node_ids.clear()
            self._load_positions()
            raise
        finally:
            self.graph.forget_chains()
        return applied

    # -- places --------------------------------------------------------------------------------------------------------

    def _apply_batch(self, events: Sequence[Event]) -> int:
        known: dict[bytes, tuple[int, int]] = {}
        placed: list[Placed] = []
        touched: dict[int, tuple[int, bytes]] = {}
        for event in events:
            branch = self._place(event, known)
            if branch is None:
                continue
            body = read(event.header, event.body)
            reason = body.reason if isinstance(body, Unfolded) else None
            placed.append(Placed(self._next_event, branch, event, None if reason else body, reason))  # type: ignore[arg-type]
            self._next_event += 1
            known[event.event_id] = (branch, event.header.sequence)
            touched[branch] = (event.header.sequence, event.event_id)
            if event.header.type == t.LOG_OPENED and not reason:
                self._note_claim(event, body)  # type: ignore[arg-type]
        if placed:
            self._connection.executemany(
                "UPDATE branches SET head_sequence = ?, head_id = ? WHERE id = ?",
                [(sequence, head, branch) for branch, (sequence, head) in touched.items()],
            )
            self._write(placed)
        return len(placed)

    def _place(self, event: Event, known: dict[bytes, tuple[int, int]]) -> int | None:
        """Return the branch of an event, made if it begins one; None if the event is held already."""
        header = event.header
        if header.previous is None:
            return None if event.event_id in self._roots else self._new_tree(event)
        head = self._heads.pop(header.previous, None)
        if head is not None:
            self._heads[event.event_id] = (head[0], header.sequence)
            return head[0]
        if event.event_id in known or event.event_id in self._heads or self.graph.event(event.event_id):
            return None
        parent = known.get(header.previous) or self._held(header.previous)
        if parent is None or parent[1] != header.sequence - 1:
            raise IntegrityError(f"event {event.event_id.hex()} follows one that is not held")
        tree = self.graph.rows("SELECT tree FROM branches WHERE id = ?", (parent[0],))[0][0]
        return self._new_branch(tree, event, parent)

    def _held(self, event_id: bytes) -> tuple[int, int] | None:
        found = self.graph.rows("SELECT branch, sequence FROM events WHERE event_id = ?", (event_id,))
        return found[0] if found else None  # type: ignore[return-value]

    def _new_tree(self, event: Event) -> int:
        kind, id_ = event.header.about[0]
        key = id_ if kind == "key" and isinstance(id_, bytes) else b""  # what names no key proves nothing
        cursor = self._connection.execute(
            "INSERT INTO trees (log_id, root, key) VALUES (?, ?, ?)", (event.header.log_id, event.event_id, key)
        )
        self._roots.add(event.event_id)
        return self._new_branch(int(cursor.lastrowid or 0), event, None)

    def _new_branch(self, tree: int, event: Event, parent: tuple[int, int] | None) -> int:
        branch = self._next_branch
        self._next_branch += 1
        below, sequence = parent or (None, None)
        self._connection.execute(
            "INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?, ?)",
            (branch, tree, below, sequence, event.header.sequence, event.header.sequence, event.event_id),
        )
        self._heads[event.event_id] = (branch, event.header.sequence)
        self.graph.forget_chains()
        return branch

    # -- successions ---------------------------------------------------------------------------------------------------

    def _note_claim(self, root: Event, body: dict[str, Value]) -> None:
        succession = Succession.from_body(body.get("succeeds"))
        if succession is None or succession.signature is None:
            return
        self._claims += 1
        self._connection.execute(
            "UPDATE trees SET claim_event = ?, claim = ? WHERE root = ?",
            (succession.event_id, encode(succession.body()), root.event_id),
        )

    def _prove_successions(self) -> None:
        sql = (
            "SELECT t.id, t.log_id, t.key, t.claim, e.sequence, p.log_id, p.key, p.id "
            "FROM trees t JOIN events e ON e.event_id = t.claim_event JOIN branches b ON b.id = e.branch "
            "JOIN trees p ON p.id = b.tree WHERE t.predecessor IS NULL AND t.claim IS NOT NULL"
        )
        for tree, log_id, key, claim, sequence, before_log, before_key, before in self.graph.rows(sql):
            succession = Succession.from_body(decode(claim))
            self._claims -= 1
            fits = succession is not None and (succession.sequence, succession.log_id) == (sequence, before_log)
            if succession is not None and fits and succession.proven_by(before_key, log_id, key):
                self._connection.execute("UPDATE trees SET predecessor = ? WHERE id = ?", (before, tree))
                self.graph.forget_chains()
                self._refresh_tree(tree)
            else:  # the event that it names is there and does not fit: it never will
                self._connection.execute("UPDATE trees SET claim = NULL WHERE id = ?", (tree,))

    def _refresh_tree(self, tree: int) -> None:
        """Resolve again all nodes that a tree, or one that succeeds it, speaks of: what is later than what has changed."""
        followers = (
            "WITH RECURSIVE f(id) AS (SELECT ?1 UNION SELECT t.id FROM trees t JOIN f ON t.predecessor = f.id), "
            "said(id) AS (SELECT e.id FROM events e JOIN branches b ON b.id = e.branch WHERE b.tree IN f) "
        )
        nodes = self.graph.rows(
            followers
            + "SELECT node FROM about WHERE event IN said UNION SELECT execution FROM edges WHERE event IN said "
            "UNION SELECT artifact FROM edges WHERE event IN said",
            (tree,),
        )
        self._refresh([node for (node,) in nodes])

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _write(self, placed: Sequence[Placed]) -> None:
        self._connection.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (p.id, p.event.event_id, p.branch, p.event.header.sequence, p.event.header.type,
                 p.event.header_bytes, p.event.body, p.unfolded)
                for p in placed
            ],
        )  # fmt: skip
        folded = [p for p in placed if p.body is not None]
        new_nodes = self._number_nodes({node for p in folded for node in nodes_of(p.event.header.about)})
        ids = self._node_ids
        about: list[tuple[int, int]] = []
        edges: list[tuple[int, int, int, int]] = []
        executions, artifacts = ExecutionColumns(self.graph), ArtifactColumns(self.graph)
        refresh: set[int] = set()
        for id_, branch, event, body, _ in folded:
            header = event.header
            if header.type in (t.ARTIFACT_USED, t.ARTIFACT_PRODUCED):
                artifact, execution = ids[header.about[0]], ids[header.about[1]]
                edges.append((execution, artifact, int(header.type == t.ARTIFACT_PRODUCED), id_))
                artifacts.say(artifact, body)  # type: ignore[arg-type]
                continue
            about += [(ids[node], id_) for node in header.about]
            if header.type in ExecutionColumns.TYPES:
                executions.say(branch, header, body, ids)  # type: ignore[arg-type]
            elif header.type == t.ENVIRONMENT_RECORDED:
                artifacts.say(ids[header.about[0]], {**body, "facts": {"kind": "environment"}})  # type: ignore[dict-item]
            elif header.type in (t.RETRACTED, t.UNRETRACTED):
                refresh.update(ids[node] for node in header.about)
        self._connection.executemany("INSERT INTO about VALUES (?, ?)", about)
        self._connection.executemany(
            "INSERT INTO edges (execution, artifact, produced, event) VALUES (?, ?, ?, ?)", edges
        )
        for node, node_id in new_nodes:
            if node[0] == "execution":
                executions.add(node_id)
            elif node[0] == "artifact":
                artifacts.add(node_id)
        refresh |= executions.write() | artifacts.write()
        self._refresh(sorted(refresh))

    def _number_nodes(self, nodes: set[Node]) -> list[tuple[Node, int]]:
        """Give every node a number, and return those that are new."""
        if len(self._node_ids) > NODE_CACHE_MAX:
            self._node_ids.clear()
        missing: dict[tuple[int, object], Node] = {}
        for node in nodes:
            if node not in self._node_ids:
                missing[schema.node_key(node)] = node
        by_kind: dict[int, list[object]] = {}
        for kind, key in missing:
            by_kind.setdefault(kind, []).append(key)
        for kind, keys in by_kind.items():
            for start in range(0, len(keys), _LOOKUP_CHUNK):
                chunk = keys[start : start + _LOOKUP_CHUNK]
                marks = ",".join("?" * len(chunk))
                sql = f"SELECT key, id FROM nodes WHERE kind = ? AND key IN ({marks})"
                for key, id_ in self.graph.rows(sql, (kind, *chunk)):
                    self._node_ids[missing.pop((kind, key))] = id_
        new = [(node, self._next_node + at) for at, node in enumerate(missing.values())]
        self._next_node += len(new)
        self._node_ids.update(new)
        self._connection.executemany(
            "INSERT INTO nodes VALUES (?, ?, ?)",
            [(id_, kind, key) for (kind, key), (_, id_) in zip(missing, new, strict=True)],
        )
        return new

    # -- what has to be resolved -----------------------------------------------------------------------------------------

    def _refresh(self, node_ids: Sequence[int]) -> None:
        """Write the columns and the edges of these nodes as resolving says."""
        for node_id in node_ids:
            node = self.graph.node(node_id)
            if node[0] not in ("execution", "artifact"):
                continue
            statements = self.graph.statements(node_id)
            _, unsaid = retractions(statements, self.graph.chains())
            state = self.graph.state(node_id, node)
            if node[0] == "execution":
                self._connection.execute("UPDATE edges SET said = 1 WHERE execution = ? AND said = 0", (node_id,))
                self._connection.executemany(
                    "UPDATE edges SET said = 0 WHERE execution = ? AND event = (SELECT id FROM events WHERE event_id = ?)",
                    [(node_id, event_id) for event_id in unsaid],
                )
                ExecutionColumns.resolve(self.graph, node_id, state)
            else:
                ArtifactColumns.resolve(self.graph, node_id, state)
