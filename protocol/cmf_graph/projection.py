"""Folding events into a graph database: one transaction for a batch and its checkpoint.

Theory of operation: events come in an order in which each follows its previous one. A batch is gone through in steps:
each event gets its place (branch), bodies are read, nodes get numbers, rows are collected and written with `executemany`.
Columns of `executions` and `artifacts` are updated from the batch alone where one branch says everything, and by
resolving the node where not.

Rules
- One writer per graph (the caller holds a lock); applying an event again changes nothing.
- Whatever the order, the tables that digests and queries read are the same function of the set of events.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from cmf_graph import schema
from cmf_graph.columns import ArtifactColumns, ExecutionColumns
from cmf_graph.database import connect, transaction
from cmf_graph.graph import Graph, Tree, no_collector
from cmf_protocol import types as t
from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event, Node
from cmf_protocol.fold import WITHHELD, Unfolded, is_node, nodes_of, read_many
from cmf_protocol.resolve import retractions
from cmf_protocol.signing import Succession

#: Events folded at a time: large enough that statements cost little per event, small enough to stay under 50 MB.
BATCH_EVENTS = 5_000
#: Nodes whose numbers are remembered between batches.
NODE_CACHE_MAX = 200_000
_LOOKUP_CHUNK = 500
_USAGES = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED))
_RETRACTIONS = frozenset((t.RETRACTED, t.UNRETRACTED))
#: Types that can't be about a stage, which brings its pipeline.
_WITHOUT_STAGES = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED, t.METRICS_RECORDED, t.EXECUTION_FINISHED))


#: An event's number, branch, the event, and what its body says.
Folded = tuple[int, int, Event, dict[str, Value]]


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
        self._skipped: dict[bytes, str] = {}
        self._load_positions()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def skip(self, event_id: bytes, reason: str) -> None:
        """Let an event be applied without effect: folding it failed, which is a fault of this program."""
        self._skipped[event_id] = reason

    def _load_positions(self) -> None:
        rows = self.graph.rows
        self._heads: dict[bytes, tuple[int, int]] = {
            head: (branch, sequence)
            for branch, sequence, head in rows("SELECT id, head_sequence, head_id FROM branches")
        }
        self._roots = {root for (root,) in rows("SELECT root FROM trees")}
        self._next_event = rows("SELECT coalesce(max(id), 0) + 1 FROM events")[0][0]
        self._next_node = rows("SELECT coalesce(max(id), 0) + 1 FROM nodes")[0][0]
        self._next_branch: int = rows("SELECT coalesce(max(id), 0) + 1 FROM branches")[0][0]
        self._trees: dict[int, int] = dict(rows("SELECT id, tree FROM branches"))
        self._withheld = bool(rows("SELECT 1 FROM unfolded WHERE reason = ? LIMIT 1", (WITHHELD,)))
        self._claims: dict[bytes, list[int]] = {}
        for claimed, tree in rows("SELECT claim_event, id FROM trees WHERE claim IS NOT NULL AND predecessor IS NULL"):
            self._claims.setdefault(claimed, []).append(tree)
        self._due: set[int] = set()

    def apply(self, events: Iterable[Event], checkpoints: Mapping[str, int | bytes] | None = None) -> int:
        """Fold `events`, each after its previous one, and save `checkpoints` with them; return how many were new.

        Raises `IntegrityError` if an event's previous one is not held; then nothing of this call was written.
        """
        applied = 0
        try:
            with transaction(self._connection, self.graph.name), no_collector():
                stream = iter(events)
                while batch := list(islice(stream, BATCH_EVENTS)):
                    applied += self._apply_batch(batch)
                if self._due:
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
        touched: dict[int, tuple[int, bytes]] = {}
        new: list[tuple[int, int, Event]] = []
        again: list[Event] = []
        number = self._next_event
        heads = self._heads
        for event in events:
            event_id, header, _, _ = event
            head = heads.pop(header[5] or b"", None)
            if head is None:
                branch = self._place(event, known)
                if branch is None:
                    again.append(event)
                    continue
            else:  # it follows the newest event of a branch, as nearly all do
                branch = head[0]
                heads[event_id] = (branch, header[4])
            known[event_id] = (branch, header[4])
            touched[branch] = (header[4], event_id)
            new.append((number, branch, event))
            number += 1
        self._next_event = number
        if new:
            self._connection.executemany(
                "UPDATE branches SET head_sequence = ?, head_id = ? WHERE id = ?",
                [(sequence, head, branch) for branch, (sequence, head) in touched.items()],
            )
            self._write_events(new)
            self._write_folded(self._read(new))
        if self._withheld:
            self._take_bodies(again)
        for claimed in self._claims.keys() & known.keys():
            self._due.update(self._claims[claimed])
        return len(new)

    def _take_bodies(self, events: Iterable[Event]) -> None:
        """Fold held events whose bodies were withheld, and are there now."""
        for event in events:
            row = None if event.body is None else self.graph.event(event.event_id)
            if row is None or row.body is not None:
                continue
            data = schema.pack_event(event.event_id, event.header_bytes, event.body)
            self._connection.execute("UPDATE events SET data = ? WHERE id = ?", (data, row.id))
            self._connection.execute("DELETE FROM unfolded WHERE event = ?", (row.id,))
            self._write_folded(self._read([(row.id, row.branch, event)]))
            nodes = [self.graph.node_id(node) for node in nodes_of(event.header.about) if is_node(node)]
            self._refresh([node for node in nodes if node is not None])  # it is not the latest of its branch

    def _read(self, new: Sequence[tuple[int, int, Event]]) -> list[Folded]:
        """Return the events that this version folds with what they say, and note the others."""
        folded: list[Folded] = []
        unfolded: list[tuple[int, str, str]] = []
        for (number, branch, event), values in zip(new, read_many([(e[1], e[3]) for _, _, e in new]), strict=True):
            if event.event_id in self._skipped:
                unfolded.append((number, event.header.type, self._skipped[event.event_id]))
                continue
            if isinstance(values, Unfolded):
                unfolded.append((number, event.header.type, values.reason))
                self._withheld = self._withheld or values.reason == WITHHELD
                continue
            folded.append((number, branch, event, values))
            if event.header.type == t.LOG_OPENED:
                self._note_root(event, values)
        self._connection.executemany("INSERT INTO unfolded VALUES (?, ?, ?)", unfolded)
        return folded

    def _place(self, event: Event, known: dict[bytes, tuple[int, int]]) -> int | None:
        """Return the branch that an event begins; None if it is held already."""
        header = event.header
        if header.previous is None:
            return None if event.event_id in self._roots else self._new_tree(event)
        if event.event_id in known or event.event_id in self._heads or self.graph.event(event.event_id):
            return None
        parent = known.get(header.previous) or self.graph.place(header.previous)
        if parent is None or parent[1] != header.sequence - 1:
            raise IntegrityError(f"event {event.event_id.hex()} follows one that is not held")
        return self._new_branch(self._trees[parent[0]], event, parent)

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
        self._trees[branch] = tree
        self.graph.forget_chains()
        return branch

    # -- successions ---------------------------------------------------------------------------------------------------

    def _note_root(self, root: Event, body: dict[str, Value]) -> None:
        self._connection.execute("UPDATE trees SET folded = 1 WHERE root = ?", (root.event_id,))
        succession = Succession.from_body(body.get("succeeds"))
        if succession is None or succession.signature is None:
            return
        self._connection.execute(
            "UPDATE trees SET claim_event = ?, claim = ? WHERE root = ?",
            (succession.event_id, encode(succession.body()), root.event_id),
        )
        tree = self.graph.rows("SELECT id FROM trees WHERE root = ?", (root.event_id,))[0][0]
        self._claims.setdefault(succession.event_id, []).append(tree)
        self._due.add(tree)

    def _prove_successions(self) -> None:
        """Decide on the claims that are new, or name an event that is new."""
        trees = self.graph.trees()
        for tree in (trees[number] for number in sorted(self._due)):
            place = None if tree.claim_event is None else self.graph.place(tree.claim_event)
            if place is not None and tree.claim is not None:
                self._decide_claim(tree, trees[self._trees[place[0]]], place[1])
        self._due.clear()

    def _decide_claim(self, tree: Tree, before: Tree, sequence: int) -> None:
        claimed = self._claims[tree.claim_event or b""]
        claimed.remove(tree.id)
        if not claimed:
            del self._claims[tree.claim_event or b""]
        succession = Succession.from_body(decode(tree.claim or b""))
        fits = succession is not None and (succession.sequence, succession.log_id) == (sequence, before.log_id)
        if succession is not None and fits and succession.proven_by(before.key, tree.log_id, tree.key):
            self._connection.execute("UPDATE trees SET predecessor = ? WHERE id = ?", (before.id, tree.id))
            self.graph.forget_chains()
            self._refresh_tree(tree.id)
        else:  # the event that it names is there and does not fit: it never will
            self._connection.execute("UPDATE trees SET claim = NULL WHERE id = ?", (tree.id,))

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

    def _write_events(self, new: Sequence[tuple[int, int, Event]]) -> None:
        pack = schema.pack_event
        self._connection.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            [
                (number, branch, header[4], len(header_bytes), pack(event_id, header_bytes, body))
                for number, branch, (event_id, header, header_bytes, body) in new
            ],
        )
        prefixes = [(int.from_bytes(e[0][:7], "big"), number) for number, _, e in new]  # schema.id_prefix, in line
        self._connection.executemany("INSERT INTO event_ids VALUES (?, ?)", prefixes)

    def _write_folded(self, folded: Sequence[Folded]) -> None:
        new_nodes = self._number_nodes(_nodes(folded))
        ids = self._node_ids
        about: list[tuple[int, int]] = []
        edges: list[tuple[int, int, int, int]] = []
        executions, artifacts = ExecutionColumns(self.graph), ArtifactColumns(self.graph)
        refresh: set[int] = set()
        for id_, branch, event, body in folded:
            header = event[1]
            type_, nodes = header[1], header[8]
            if type_ in _USAGES:
                artifact = ids[nodes[0]]
                edges.append((ids[nodes[1]], artifact, int(type_ == t.ARTIFACT_PRODUCED), id_))
                artifacts.say(artifact, nodes[0][1], body)
                continue
            for node in nodes:
                about.append((ids[node], id_))
            if type_ in ExecutionColumns.TYPES:
                executions.say(branch, header, body, ids)
            elif type_ == t.ENVIRONMENT_RECORDED:
                stated = {"facts": {"kind": "environment"}, "digests": body.get("digests", ())}
                artifacts.say(ids[nodes[0]], nodes[0][1], stated)
            elif type_ in _RETRACTIONS:
                refresh.update(ids[node] for node in nodes)
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
                    "UPDATE edges SET said = 0 WHERE execution = ? AND event = ?",
                    [(node_id, row.id) for row in map(self.graph.event, unsaid) if row is not None],
                )
                ExecutionColumns.resolve(self.graph, node_id, state)
            else:
                ArtifactColumns.resolve(self.graph, node_id, state)


def _nodes(folded: Iterable[Folded]) -> set[Node]:
    nodes: set[Node] = set()
    for _, _, event, _ in folded:
        about = event.header.about
        nodes.update(about)
        if event.header.type not in _WITHOUT_STAGES:
            nodes.update(nodes_of(about))
    return nodes
