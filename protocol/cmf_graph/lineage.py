"""The closure of some nodes over usage edges: what they came from, what came of them.

Theory of operation: breadth first, a level at a time, one query per level and kind of node, so that the nearest nodes are kept where a
limit cuts. Content identifies artifacts, so there can be cycles (an execution that produced what it used): each direction visits a node
once.

Rules
- Up and down are two walks from the same roots; what is downstream of something upstream is not in the answer.
- An edge is in the answer if a walk went along it. Edges whose events are retracted do not exist; disputed ones do.
- Artifacts that are one (`aliases`) are one node here.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from cmf_graph.items import Item
from cmf_graph.reading import Reading, id_list
from cmf_graph.summaries import artifact_summaries, execution_summaries

NODES_DEFAULT = 10_000
NODES_MAX = 1_000_000

_OF_EXECUTIONS = (
    "SELECT DISTINCT e.execution, e.artifact FROM json_each(?) j CROSS JOIN edges e ON e.execution = j.value "
    "WHERE e.produced = ? AND e.said = 1"
)
_OF_ARTIFACTS = (
    "SELECT DISTINCT e.execution, e.artifact FROM json_each(?) j CROSS JOIN edges e ON e.artifact = j.value AND e.produced = ? "
    "WHERE e.said = 1"
)


class Edge(NamedTuple):
    """A usage edge between two nodes' numbers."""

    execution: int
    artifact: int
    produced: bool


class _Walk:
    """One direction of the search."""

    def __init__(self, up: bool, executions: Iterable[int], artifacts: Iterable[int]) -> None:
        self.up = up
        self.executions = set(executions)
        self.artifacts = set(artifacts)
        self.seen = self.executions | self.artifacts  # numbers are unique over all kinds

    def __bool__(self) -> bool:
        return bool(self.executions or self.artifacts)

    def step(self, reading: Reading) -> set[Edge]:
        """Move to the next level, and return the edges that led there."""
        aliases = reading.aliases
        members = aliases.with_members(self.artifacts)
        edges = set()
        for sql, ids, produced in (
            (_OF_EXECUTIONS, self.executions, not self.up),
            (_OF_ARTIFACTS, members, self.up),
        ):
            if ids:
                rows = reading.graph.rows(sql, (id_list(ids), int(produced)))
                edges |= {Edge(execution, aliases.canonical(artifact), produced) for execution, artifact in rows}
        forward = not self.up  # along the flow of data, an artifact that was used leads to the execution
        self.executions = {e.execution for e in edges if e.produced != forward} - self.seen
        self.artifacts = {e.artifact for e in edges if e.produced == forward} - self.seen
        self.seen |= self.executions | self.artifacts
        return edges

    def forget(self, node_ids: set[int]) -> None:
        """Do not go on from these."""
        self.executions -= node_ids
        self.artifacts -= node_ids


class Closure(NamedTuple):
    """Numbers of the nodes, the edges between them, and how many nodes at least were left out."""

    executions: set[int]
    artifacts: set[int]
    edges: set[Edge]
    truncated: int


def closure(
    reading: Reading,
    executions: Iterable[int],
    artifacts: Iterable[int],
    *,
    up: bool,
    down: bool,
    depth: int | None,
    limit: int,
) -> Closure:
    """Return what is reached from these nodes over at most `depth` edges (None: all), `limit` nodes with the roots."""
    roots = sorted(set(executions))[:limit], sorted({reading.aliases.canonical(a) for a in artifacts})[:limit]
    kept_executions, kept_artifacts = set(roots[0]), set(roots[1])
    left_out: set[int] = set(executions) - kept_executions
    walks = [_Walk(is_up, *roots) for is_up, wanted in ((True, up), (False, down)) if wanted]
    edges: set[Edge] = set()
    level = 0
    while any(walks) and (depth is None or level < depth):
        level += 1
        for walk in walks:
            edges |= walk.step(reading)
            for new, kept in ((walk.executions, kept_executions), (walk.artifacts, kept_artifacts)):
                room = max(0, limit - len(kept_executions) - len(kept_artifacts))
                fresh = sorted(new - kept)
                kept.update(fresh[:room])
                left_out.update(fresh[room:])
            walk.forget(left_out)
    inside = {e for e in edges if e.execution in kept_executions and e.artifact in kept_artifacts}
    return Closure(kept_executions, kept_artifacts, inside, len(left_out))


def lineage_answer(found: Closure, reading: Reading) -> dict[str, Any]:
    """Return nodes and edges of a closure as items, sorted by id; edges lead the way the data flows."""
    nodes: dict[int, Item] = artifact_summaries(sorted(found.artifacts), reading)
    nodes |= execution_summaries(sorted(found.executions), reading)
    edges = []
    for edge in found.edges:
        ends = nodes[edge.artifact]["id"], nodes[edge.execution]["id"]
        source, target = reversed(ends) if edge.produced else ends
        edges.append({"source": source, "target": target, "type": "produced" if edge.produced else "used"})
    return {
        "nodes": sorted(nodes.values(), key=lambda node: (node["type"], node["id"])),
        "edges": sorted(edges, key=lambda e: (e["source"], e["target"], e["type"])),
        "truncated": found.truncated,
    }


def roots_of(node_id: int | None, event_id: bytes | None, reading: Reading) -> tuple[list[int], list[int]]:
    """Return the executions and the artifacts that a lineage of this node or event begins with."""
    if node_id is None:
        row = reading.graph.event(event_id or b"")
        about = () if row is None or reading.unfolded(row.id) is not None else row.header.about
        found = [(node, reading.graph.node_id(node)) for node in about if node[0] in ("execution", "artifact")]
    else:
        found = [(reading.nodes([node_id])[node_id], node_id)]
    executions = [id_ for (kind, _), id_ in found if kind == "execution" and id_ is not None]
    artifacts = [reading.aliases.canonical(id_) for (kind, _), id_ in found if kind == "artifact" and id_ is not None]
    for (kind, _), id_ in found:
        if kind in ("pipeline", "stage"):
            executions += [
                node for (node,) in reading.graph.rows(f"SELECT node FROM executions WHERE {kind} = ?", (id_,))
            ]
    return executions, artifacts
