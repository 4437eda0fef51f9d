"""The rows of folded events: events, nodes and their numbers, edges, and the columns that lists filter and sort by.

Theory of operation: columns of `executions` and `artifacts` are updated from what is new alone where one branch says everything, and by
resolving the node where not.

Rules
- It knows no chains: where an event stands is decided before (`branches.py`).
"""

from collections.abc import Iterable, Mapping, Sequence

from cmf_graph import schema
from cmf_graph.columns import ArtifactColumns, ExecutionColumns
from cmf_graph.graph import Graph
from cmf_graph.reading import id_list, type_is
from cmf_protocol import types as t
from cmf_protocol.encoding import Value
from cmf_protocol.events import Event, Node
from cmf_protocol.fold import WITHHELD, Unfolded, is_node, nodes_of, read_many
from cmf_protocol.resolve import retractions

#: Nodes whose numbers are remembered between batches.
NODE_CACHE_MAX = 200_000
_LOOKUP_CHUNK = 500
_USAGES = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED))
_RETRACTIONS = frozenset((t.RETRACTED, t.UNRETRACTED))
#: Types that can't be about a stage, which brings its pipeline.
_WITHOUT_STAGES = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED, t.METRICS_RECORDED, t.EXECUTION_FINISHED))

#: An event's number and branch.
Numbered = tuple[int, int, Event]
#: An event's number, branch, the event, and what its body says.
Folded = tuple[int, int, Event, dict[str, Value]]


class EventRows:
    """Writes the rows of one graph; `withheld` tells if there are events whose bodies may come later.

    `skipped` maps ids of events that are without effect to the reason.
    """

    def __init__(self, graph: Graph, skipped: Mapping[bytes, str]) -> None:
        self._graph = graph
        self._connection = graph.connection
        self._skipped = skipped
        self._node_ids: dict[Node, int] = {}
        self.next_event: int = graph.rows("SELECT coalesce(max(id), 0) + 1 FROM events")[0][0]
        self._next_node: int = graph.rows("SELECT coalesce(max(id), 0) + 1 FROM nodes")[0][0]
        self.withheld = bool(graph.rows("SELECT 1 FROM unfolded WHERE reason = ? LIMIT 1", (WITHHELD,)))

    def write_events(self, new: Sequence[Numbered]) -> None:
        """Write events, folded or not."""
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

    def read(self, new: Sequence[Numbered]) -> list[Folded]:
        """Return the events that this version folds with what they say, and note the others."""
        folded: list[Folded] = []
        unfolded: list[tuple[int, str, str]] = []
        for (number, branch, event), values in zip(new, read_many([(e[1], e[3]) for _, _, e in new]), strict=True):
            if event.event_id in self._skipped:
                unfolded.append((number, event.header.type, self._skipped[event.event_id]))
                continue
            if isinstance(values, Unfolded):
                unfolded.append((number, event.header.type, values.reason))
                self.withheld = self.withheld or values.reason == WITHHELD
                continue
            folded.append((number, branch, event, values))
        self._connection.executemany("INSERT INTO unfolded VALUES (?, ?, ?)", unfolded)
        return folded

    def write_folded(self, folded: Sequence[Folded]) -> None:
        """Write what folded events say."""
        new_nodes = self._number_nodes(_nodes(folded))
        ids = self._node_ids
        about: list[tuple[int, int]] = []
        edges: list[tuple[int, int, int, int]] = []
        executions, artifacts = ExecutionColumns(self._graph), ArtifactColumns(self._graph)
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
        self.refresh(sorted(refresh))

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
                for key, id_ in self._graph.rows(sql, (kind, *chunk)):
                    self._node_ids[missing.pop((kind, key))] = id_
        new = [(node, self._next_node + at) for at, node in enumerate(missing.values())]
        self._next_node += len(new)
        self._node_ids.update(new)
        self._connection.executemany(
            "INSERT INTO nodes VALUES (?, ?, ?)",
            [(id_, kind, key) for (kind, key), (_, id_) in zip(missing, new, strict=True)],
        )
        return new

    def take_body(self, number: int, event: Event) -> None:
        """Keep the body of an event that was written without it, and is folded next."""
        data = schema.pack_event(event.event_id, event.header_bytes, event.body)
        self._connection.execute("UPDATE events SET data = ? WHERE id = ?", (data, number))
        self._connection.execute("DELETE FROM unfolded WHERE event = ?", (number,))

    # -- what has to be resolved ---------------------------------------------------------------------------------------

    def refresh(self, node_ids: Sequence[int]) -> None:
        """Write the columns and the edges of these nodes as resolving says."""
        for node_id in node_ids:
            node = self._graph.node(node_id)
            if node[0] not in ("execution", "artifact"):
                continue
            statements = self._graph.statements(node_id)
            _, unsaid = retractions(statements, self._graph.chains())
            state = self._graph.state(node_id, node)
            if node[0] == "execution":
                self._connection.execute("UPDATE edges SET said = 1 WHERE execution = ? AND said = 0", (node_id,))
                self._connection.executemany(
                    "UPDATE edges SET said = 0 WHERE execution = ? AND event = ?",
                    [(node_id, row.id) for row in map(self._graph.event, unsaid) if row is not None],
                )
                ExecutionColumns.resolve(self._graph, node_id, state)
            else:
                ArtifactColumns.resolve(self._graph, node_id, state)

    def refresh_about(self, events: Iterable[Event]) -> None:
        """Resolve what these events are about, all of which is known."""
        nodes = {node for event in events for node in nodes_of(event.header.about) if is_node(node)}
        found = (self._graph.node_id(node) for node in nodes)
        self.refresh(sorted(node for node in found if node is not None))

    def refresh_late(self, folded: Sequence[Folded], late: Iterable[Event]) -> None:
        """Resolve what rows can't follow: events that came after later ones, and those of which a retraction came first."""
        ids = {self._node_ids[node] for node in _nodes(folded) if node[0] in ("execution", "artifact")}
        nodes = {node for event in late for node in nodes_of(event.header.about) if is_node(node)}
        refresh = {self._node_ids[node] for node in nodes if node in self._node_ids}
        sql = (
            "SELECT DISTINCT a.node FROM json_each(?) j CROSS JOIN about a ON a.node = j.value "
            f"CROSS JOIN events e ON e.id = a.event WHERE {type_is(*_RETRACTIONS)}"
        )
        refresh.update(node for (node,) in self._graph.rows(sql, (id_list(ids),)))
        self.refresh(sorted(refresh))


def _nodes(folded: Iterable[Folded]) -> set[Node]:
    nodes: set[Node] = set()
    for _, _, event, _ in folded:
        about = event.header.about
        nodes.update(about)
        if event.header.type not in _WITHOUT_STAGES:
            nodes.update(nodes_of(about))
    return nodes
