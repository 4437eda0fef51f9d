"""Which nodes a filter selects, and which events are listed for it (protocol/README.md, section 10).

Theory of operation: the nodes are picked first (`picking.py`), then the events about them. A membership that depends on what a start says
(pipeline, site, time) looks at the started events themselves, retracted or not: what was selected stays selected, whatever is said later.
So what is new can be added to what stood before (`stand`), at a cost that follows what is new.

Rules
- Hub and site ask this same function, each over its own graph: over the listed events alone it lists all of them.
- Nothing depends on the order in which events came.
- Only `Filter.artifacts` looks at what is said now: its closure is that of `lineage`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cmf_graph.graph import Graph, no_collector
from cmf_graph.lineage import NODES_MAX, closure
from cmf_graph.picking import (
    EXECUTIONS,
    HEADER,
    OTHERS,
    STARTED,
    clear,
    pick,
    pick_artifacts,
    pick_described,
    pick_events,
    pick_executions,
    picked,
    ranges_of_picked,
    subjects,
    unpick,
)
from cmf_graph.reading import Reading, site_name
from cmf_graph.schema import KIND_CODES, unpack_event
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Header, Node, trusted_body, trusted_header
from cmf_protocol.filters import Filter
from cmf_protocol.fold import nodes_of
from cmf_protocol.ranges import Ranges, merged

#: Nodes up to which a lineage closure is followed: more is nearly everything, and asked for without artifacts.
CLOSURE_NODES_MAX = NODES_MAX
#: New events that are looked at one by one; after more of them everything is listed anew.
NEW_EVENTS_MAX = 20_000
#: Events that bring nodes to their execution.
_BRINGING = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED, t.EXECUTION_STARTED, t.EXECUTION_UPDATED))


@dataclass(frozen=True)
class Standing:
    """What is listed, by the graph's branch, and what is needed to bring it up to date: picked nodes, how far the graph was read."""

    ranges: dict[int, Ranges]
    executions: set[int]
    others: set[int]
    last_event: int
    unfolded: int

    @property
    def size(self) -> int:
        """About how many numbers are kept."""
        return sum(2 * len(ranges) for ranges in self.ranges.values()) + len(self.executions) + len(self.others)


def select(graph: Graph, wanted: Filter, sites: Mapping[bytes, str]) -> set[int]:
    """Return the numbers of the nodes that a filter selects; `sites` names the site of each signing key.

    Raises `CallerError` if the lineage of its artifacts has more than `CLOSURE_NODES_MAX` nodes.
    """
    with graph.snapshot(), no_collector():
        _pick_nodes(graph, wanted, sites)
        return picked(graph, EXECUTIONS) | picked(graph, OTHERS)


def listed_events(
    graph: Graph, wanted: Filter, sites: Mapping[bytes, str], own_keys: Collection[bytes] = ()
) -> dict[int, Ranges]:
    """Return the sequences that are listed for a filter, by the graph's branch; `own_keys` are those of a filter by `own`.

    Raises like `select`.
    """
    with graph.snapshot():
        if wanted.own:
            return own_events(graph, own_keys)
        return with_roots(graph, stand(graph, wanted, sites).ranges)


def stand(graph: Graph, wanted: Filter, sites: Mapping[bytes, str], before: Standing | None = None) -> Standing:
    """Return what is listed now, without the roots; with `before`, of the same graph, filter and sites, the cost follows what is new.

    Raises like `select`.
    """
    with graph.snapshot(), no_collector():
        last = int(graph.rows("SELECT coalesce(max(id), 0) FROM events")[0][0])
        if before is not None and not _goes_on_from(graph, wanted, before, last):
            before = None
        if before is None:
            _pick_nodes(graph, wanted, sites)
        else:
            _pick_new_nodes(graph, wanted, sites, before)
        pick_events(graph)
        if before is not None:
            _pick_new_events(graph, before)
        unfolded = graph.rows("SELECT count(*) FROM unfolded")[0][0]
        executions, others = (picked(graph, table) for table in (EXECUTIONS, OTHERS))
        ranges = ranges_of_picked(graph)
        if before is not None:
            executions, others = executions | before.executions, others | before.others
            ranges = {**before.ranges, **{b: merged([*before.ranges.get(b, ()), *r]) for b, r in ranges.items()}}
        return Standing(ranges, executions, others, last, unfolded)


# -- nodes -------------------------------------------------------------------------------------------------------------


def _pick_nodes(graph: Graph, wanted: Filter, sites: Mapping[bytes, str]) -> None:
    clear(graph)
    if wanted.selects_executions:
        pick_executions(graph, _started(graph, wanted, sites, after=0))
        pick_artifacts(graph)
    if wanted.artifacts:
        _pick_closure(graph, wanted.artifacts, sites)
    pick_described(graph)


def _started(graph: Graph, wanted: Filter, sites: Mapping[bytes, str], *, after: int) -> Iterator[bytes]:
    """Yield the executions that events after the number `after` start as the filter says; each start is about one stage."""
    branches = branches_at(graph, wanted.sites, sites) if wanted.sites else None
    for low, high in _stage_keys(wanted.pipelines):
        sql = (
            "SELECT e.branch, e.header_size, e.data FROM nodes n CROSS JOIN about a ON a.node = n.id "
            "CROSS JOIN events e ON e.id = a.event "
            f"WHERE n.kind = ? AND n.key >= ? AND n.key < ? AND a.event > ? AND {STARTED}"
        )
        for branch, header_size, data in graph.connection.execute(sql, (KIND_CODES["stage"], low, high, after)):
            header = start_fits(wanted, branches, branch, header_size, data)
            if header is not None:
                yield from (id_ for kind, id_ in header.about if kind == "execution")


def start_fits(
    wanted: Filter, branches: Collection[int] | None, branch: int, header_size: int, data: bytes
) -> Header | None:
    """Return the header of a start if it is at the sites and in the time of a filter; `branches` are those of the sites."""
    if branches is not None and branch not in branches:
        return None
    _, header_bytes, body = unpack_event(header_size, data)
    header = trusted_header(header_bytes)
    if wanted.since_us is not None and trusted_body(body or b"").get("at", header.wall_us) < wanted.since_us:
        return None
    return header


def _stage_keys(pipelines: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (first, beyond the last) of the stages' keys of these pipelines, of all where none is named."""
    for pipeline in pipelines:
        yield f"{pipeline}\0".encode(), f"{pipeline}\1".encode()
    if not pipelines:
        yield b"", b"\xff"


def branches_at(graph: Graph, names: Collection[str], sites: Mapping[bytes, str]) -> set[int]:
    """Return the branches of the trees of some sites."""
    found = graph.rows("SELECT b.id, t.key FROM branches b JOIN trees t ON t.id = b.tree")
    return {branch for branch, key in found if site_name(key, sites) in names}


def _pick_closure(graph: Graph, artifacts: Iterable[str], sites: Mapping[bytes, str]) -> None:
    """Pick what these artifacts came from and what came of them."""
    reading = Reading(graph, sites)
    roots = [graph.node_id(("artifact", content_id)) for content_id in artifacts]
    known = [root for root in roots if root is not None]
    found = closure(reading, (), known, up=True, down=True, depth=None, limit=CLOSURE_NODES_MAX)
    if found.truncated:
        raise CallerError(
            f"the lineage of these artifacts has more than {CLOSURE_NODES_MAX:,} nodes",
            "ask for pipelines or sites instead",
        )
    pick(graph, EXECUTIONS, found.executions)
    pick(graph, OTHERS, [*known, *reading.aliases.with_members(found.artifacts)])


# -- events ------------------------------------------------------------------------------------------------------------


def own_events(graph: Graph, own_keys: Collection[bytes]) -> dict[int, Ranges]:
    """Return all events of the trees of these keys."""
    sql = "SELECT b.id, b.first_sequence, b.head_sequence, t.key FROM branches b JOIN trees t ON t.id = b.tree"
    return {branch: ((first, head),) for branch, first, head, key in graph.rows(sql) if key in own_keys}


def with_roots(graph: Graph, ranges: Mapping[int, Ranges]) -> dict[int, Ranges]:
    """Return what is listed with the root of each tree of it, and the events that proven successions name, with what these bring."""
    listed = dict(ranges)
    trees = graph.trees()
    tree_of, roots = {}, {}
    for branch, tree, parent in graph.rows("SELECT id, tree, parent FROM branches"):
        tree_of[branch] = tree
        if parent is None:
            roots[tree] = branch
    added: dict[int, list[tuple[int, int]]] = {}
    due = list({tree_of[branch] for branch in listed})
    seen = set(due)
    while due:
        tree = trees[due.pop()]
        added.setdefault(roots[tree.id], []).append((1, 1))
        place = graph.place(tree.claim_event) if tree.predecessor is not None and tree.claim_event else None
        if place is None:
            continue
        added.setdefault(place[0], []).append((place[1], place[1]))
        if tree_of[place[0]] not in seen:
            seen.add(tree_of[place[0]])
            due.append(tree_of[place[0]])
    for branch, pairs in added.items():
        listed[branch] = merged([*listed.get(branch, ()), *pairs])
    return listed


# -- what is new -------------------------------------------------------------------------------------------------------


def _goes_on_from(graph: Graph, wanted: Filter, before: Standing, last: int) -> bool:
    """Tell if what is new can be added to what stood: no closure is asked for, and no body came for an event that was looked at."""
    if wanted.artifacts or last - before.last_event > NEW_EVENTS_MAX:
        return False
    counted = graph.rows("SELECT count(*) FROM unfolded WHERE event <= ?", (before.last_event,))
    return bool(counted[0][0] == before.unfolded)


def _new_headers(graph: Graph, before: Standing) -> Iterator[tuple[int, bool, Header]]:
    """Yield (number, whether it is folded, header) of the events that came since."""
    sql = (
        f"SELECT e.id, u.event IS NULL, {HEADER} FROM events e LEFT JOIN unfolded u ON u.event = e.id "
        "WHERE e.id > ? ORDER BY e.id"
    )
    for number, is_folded, header in graph.connection.execute(sql, (before.last_event,)):
        yield number, bool(is_folded), trusted_header(header)


def _pick_new_nodes(graph: Graph, wanted: Filter, sites: Mapping[bytes, str], before: Standing) -> None:
    """Pick the nodes that are selected now and were not."""
    clear(graph)
    pick_executions(graph, _started(graph, wanted, sites, after=before.last_event))
    unpick(graph, EXECUTIONS, before.executions)
    pick_artifacts(graph)
    pick_described(graph)
    found: set[Node] = set()
    for _, is_folded, header in _new_headers(graph, before):
        if is_folded and header.type in _BRINGING:
            executions = (graph.node_id(node) for node in header.about if node[0] == "execution")
            if not before.executions.isdisjoint(executions):
                found.update(node for node in nodes_of(header.about) if node[0] != "execution")
    numbers = (graph.node_id(node) for node in found)
    pick(graph, OTHERS, [number for number in numbers if number is not None])
    unpick(graph, OTHERS, before.others)


def _pick_new_events(graph: Graph, before: Standing) -> None:
    """Pick the new events about nodes that were selected before."""
    found = []
    for number, _, header in _new_headers(graph, before):
        nodes = (graph.node_id(node) for node in subjects(header.about))
        if any(node in before.executions or node in before.others for node in nodes):
            found.append((number,))
    graph.connection.executemany("INSERT OR IGNORE INTO picked_events VALUES (?)", found)
