"""Resolving a set of events with `cmf_protocol.resolve`: numbers its branches as a store could, and takes the digest.

Any numbering must give the same graph; `pick` decides where a store is free: which child goes on with a branch, whether any does, and in
which order a node's statements come.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from tests.support.strategies import gaps_of, may_stand_before

from cmf_protocol import types as t
from cmf_protocol.events import Event, Node
from cmf_protocol.fold import Unfolded, nodes_of, read
from cmf_protocol.resolve import Chains, NodeState, Said, digest_row, resolve
from cmf_protocol.signing import Succession

#: Returns a number below its argument.
Pick = Callable[[int], int]


def first(_choices: int) -> int:
    """Pick the first of all choices: what a store does that meets events in order."""
    return 0


@dataclass
class Graph:
    """What `cmf_protocol` makes of a set of events."""

    chains: Chains = field(default_factory=Chains)
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    said: dict[Node, list[Said]] = field(default_factory=dict)
    logs: dict[bytes, list[tuple[bytes, bytes, bytes | None]]] = field(default_factory=dict)
    unfolded: int = 0
    pick: Pick = first

    def state(self, node: Node) -> NodeState:
        waiting = list(self.said[node])
        return resolve(node, [waiting.pop(self.pick(len(waiting))) for _ in self.said[node]], self.chains)

    def row(self, node: Node) -> bytes:
        return digest_row(self.state(node), self.chains, self.logs.get(node[1], ()) if node[0] == "key" else ())

    def rows(self) -> list[bytes]:
        return sorted(map(self.row, self.said))

    def digest(self) -> bytes:
        return sha256(b"".join(self.rows())).digest()


def graph_of(events: Iterable[Event], pick: Pick = first, held: Collection[bytes] | None = None) -> Graph:
    """Return the graph of a set of events, in any order, repetitions allowed.

    With `held` (ids) it is the graph of these alone; the others only say which event is later than which.
    """
    by_id = {event.event_id: event for event in events}
    graph = Graph(pick=pick)
    ordered = sorted(by_id.values(), key=lambda event: event.header.sequence)
    _number(graph, ordered, pick)
    trees = {graph.places[e.event_id][0]: e for e in ordered if e.header.previous is None}
    for event in ordered:
        if held is not None and event.event_id not in held:
            continue
        body = read(event.header, event.body)
        if isinstance(body, Unfolded):
            graph.unfolded += 1
            continue
        branch, sequence = graph.places[event.event_id]
        header = event.header
        said = Said(branch, sequence, header.clock, event.event_id, header.wall_us, header.type, header.about, body)
        for node in header.about:
            graph.said.setdefault(node, []).append(said)
        for node in nodes_of(header.about):
            graph.said.setdefault(node, [])
        if header.type == t.LOG_OPENED and header.previous is None:
            succession = Succession.from_body(body.get("succeeds"))
            if held is not None and succession is not None and succession.event_id not in held:
                succession = None
            _succeed(graph, event, branch, trees, succession)
    return graph


def _number(graph: Graph, ordered: Sequence[Event], pick: Pick) -> None:
    """Give every event a branch: a child goes on with its previous event's branch unless another does, or a new one is picked.

    What begins beyond a gap always begins a branch.
    """
    chains, taken = graph.chains, set[tuple[int, int]]()
    before = _before(ordered)
    groups: dict[int, list[Event]] = {}
    for event in ordered:
        groups.setdefault(event.header.sequence, []).append(event)
    for group in groups.values():
        waiting = list(group)
        while waiting:
            event = waiting.pop(pick(len(waiting)))
            sequence, previous = event.header.sequence, before[event.event_id]
            parent = None if previous is None else graph.places[previous]
            follows = parent is not None and parent[1] == sequence - 1
            if parent is not None and follows and parent not in taken and pick(4) != 3:
                branch = parent[0]
                taken.add(parent)
            else:
                branch = len(chains.trees) + 1
                chains.trees[branch] = branch if parent is None else chains.trees[parent[0]]
                if parent is not None:
                    chains.parents[branch] = parent
            graph.places[event.event_id] = branch, sequence


def _before(ordered: Sequence[Event]) -> dict[bytes, bytes | None]:
    """Return the id of the event before each one: the previous one, or the nearest that an accepted gap names instead."""
    by_id = {event.event_id: event for event in ordered}
    named: dict[bytes, list[tuple[int, bytes]]] = {}
    for log_id, before, after in [gap for event in ordered for gap in gaps_of(event)]:
        event, goes_on = by_id.get(before), by_id.get(after)
        if event and goes_on and log_id == goes_on.header.log_id and may_stand_before(goes_on, event):
            named.setdefault(after, []).append((event.header.sequence, before))
    found: dict[bytes, bytes | None] = {}
    for event in ordered:
        previous = event.header.previous
        found[event.event_id] = previous if previous in by_id else max(named.get(event.event_id, [(0, None)]))[1]
    return found


def _succeed(graph: Graph, root: Event, tree: int, trees: dict[int, Event], succession: Succession | None) -> None:
    key, log_id = root.header.about[0][1], root.header.log_id
    place = None if succession is None else graph.places.get(succession.event_id)
    proven = None
    if succession is not None and place is not None:
        before = trees[graph.chains.trees[place[0]]].header
        fits = (before.log_id, place[1]) == (succession.log_id, succession.sequence)
        if fits and succession.proven_by(before.about[0][1], log_id, key):
            proven = succession.event_id
            graph.chains.parents[tree] = place
            graph.chains.successions[tree] = graph.chains.trees[place[0]]
    graph.logs.setdefault(key, []).append((log_id, root.event_id, proven))
