"""Appends of what an import says only that which is not said here yet, so that importing again appends nothing.

Theory of operation: an event says what another one says if type, `about` and the body's map are equal; salt, clock and time don't count.
A stored body is its salt and the canonical bytes of its map, so events are compared without decoding bodies.

Rules
- What counts is what the local view holds: own, pulled and brought events, folded, and not retracted by their own log.
- Events are read of one node per draft only: its execution where it has one, which has few events where an artifact may have many.
- The end of an execution counts only beside a start in the same log: where the end is new and the start was only pulled, both are said.
- One import at a time, under `ingest.lock`. Drafts are appended in their order, chunk by chunk, each durable: what a crash cut off the
  next try appends, and nothing twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from cmf_agent.home import Home
from cmf_agent.log import shared_log
from cmf_agent.reading import LogReader
from cmf_agent.view import local_view
from cmf_graph.graph import Graph, no_collector
from cmf_graph.locks import waiting_lock
from cmf_graph.reading import id_list, type_is
from cmf_graph.schema import unpack_event
from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.events import SALT_BYTES, Draft, Node, trusted_body, trusted_header
from cmf_protocol.resolve import Chains, Said, retractions

#: Events appended at a time: few enough that a run that records meanwhile hardly waits.
CHUNK_EVENTS = 4_000
#: Nodes whose events are read at a time, so that the memory stays bounded.
_CHUNK_NODES = 2_000
#: What stands before the map in a body's bytes: an array of two, and the salt as bin 8.
_BEFORE_MAP = 1 + 2 + SALT_BYTES

_COLUMNS = "SELECT e.branch, e.header_size, e.data FROM json_each(?1) j"
_FOLDED = "NOT EXISTS (SELECT 1 FROM unfolded u WHERE u.event = e.id)"
_ABOUT = f"{_COLUMNS} CROSS JOIN about a ON a.node = j.value CROSS JOIN events e ON e.id = a.event WHERE {_FOLDED}"
_EDGES = f"{_COLUMNS} CROSS JOIN edges x ON x.execution = j.value CROSS JOIN events e ON e.id = x.event WHERE {_FOLDED}"
#: A stage is in the `about` of all its executions' starts, which are read with the executions.
_OTHERS = f"{_ABOUT} AND NOT {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED)}"
_RETRACTING = frozenset((t.RETRACTED, t.UNRETRACTED))

#: By what events are compared: a digest of type, `about` and the bytes of the body's map.
Saying = bytes


class Appended(NamedTuple):
    """How many drafts were recorded (in a dry run: would have been), and how many say what is known here already."""

    recorded: int
    known: int


def append_new(home: Home, drafts: Iterable[Draft], *, dry_run: bool = False) -> Appended:
    """Append those of `drafts` that say something new here, in their order; what stands twice among them counts as known.

    Raises `CallerError` for a draft that can't be an event, `StoreError` where the log refuses: what was appended before stays then,
    and the next try goes on from there.
    """
    given = list(drafts)
    with waiting_lock(home.path / "ingest.lock"):
        new = new_drafts(given, said_here(home, given))
        if new and not dry_run:
            with shared_log(home.log_path) as log:
                for start in range(0, len(new), CHUNK_EVENTS):
                    log.append(new[start : start + CHUNK_EVENTS])
    return Appended(len(new), len(given) - len(new))


def new_drafts(drafts: Sequence[Draft], known: Mapping[Saying, bool]) -> list[Draft]:
    """Return the drafts that say what is not `known`, each once; `known` tells of what is said if this site said it. Pure."""
    sayings = [saying(draft.type, draft.about, encode(draft.body)) for draft in drafts]
    ending = {
        draft.about[0]
        for draft, said in zip(drafts, sayings, strict=True)
        if draft.type == t.EXECUTION_FINISHED and said not in known
    }
    new: dict[Saying, Draft] = {}
    for draft, said in zip(drafts, sayings, strict=True):
        is_known = known.get(said)
        if is_known is False and draft.type == t.EXECUTION_STARTED and anchor(draft) in ending:
            is_known = None  # said elsewhere: an end that is said here needs a start that is said here
        if is_known is None:
            new.setdefault(said, draft)
    return list(new.values())


def saying(type_: str, about: Sequence[Node], values: bytes) -> Saying:
    """Return by what an event is compared, of its type, its `about`, and the canonical bytes of its body's map."""
    return blake2b(encode([type_, list(about)]) + values, digest_size=16).digest()


def anchor(draft: Draft) -> Node:
    """Return the node by which to look for events that say the same."""
    return next((node for node in draft.about if node[0] == "execution"), draft.about[0])


# -- what the local view holds -----------------------------------------------------------------------------------------


def said_here(home: Home, drafts: Iterable[Draft]) -> dict[Saying, bool]:
    """Return what is said of the nodes that these drafts are about, and of each if this site itself said it."""
    anchors = dict.fromkeys(anchor(draft) for draft in drafts)
    with LogReader(home.log_path) as reader:
        own = {log.log_id for log in reader.logs()}
    found: dict[Saying, bool] = {}
    with local_view(home) as graph, graph.snapshot(), no_collector():
        chains = graph.chains()
        own_trees = {tree.id for tree in graph.trees().values() if tree.log_id in own}
        own_branches = {branch for branch, tree in chains.trees.items() if tree in own_trees}
        for nodes, queries in _chunks(graph, anchors):
            for said, values in _said(graph, nodes, queries, chains):
                key = saying(said.type, said.about, values)
                found[key] = found.get(key, False) or said.branch in own_branches
    return found


def _chunks(graph: Graph, anchors: Iterable[Node]) -> Iterator[tuple[list[int], tuple[str, ...]]]:
    """Yield numbers of nodes that are known here, with the queries for the events about them."""
    executions: list[int] = []
    others: list[int] = []
    for node in anchors:
        node_id = graph.node_id(node)
        if node_id is not None:
            (executions if node[0] == "execution" else others).append(node_id)
    for ids, queries in ((executions, (_ABOUT, _EDGES)), (others, (_OTHERS,))):
        for start in range(0, len(ids), _CHUNK_NODES):
            yield ids[start : start + _CHUNK_NODES], queries


def _said(graph: Graph, nodes: Sequence[int], queries: Sequence[str], chains: Chains) -> list[tuple[Said, bytes]]:
    """Return the said events about these nodes, each with the bytes of its body's map."""
    held: dict[bytes, tuple[Said, bytes]] = {}
    for sql in queries:
        for branch, header_size, data in graph.rows(sql, (id_list(nodes),)):
            event_id, header_bytes, body = unpack_event(header_size, data)
            header = trusted_header(header_bytes)
            values = trusted_body(body or b"") if header.type in _RETRACTING else {}  # of others nobody asks
            said = Said(
                branch, header.sequence, header.clock, event_id, header.wall_us, header.type, header.about, values
            )
            held[event_id] = said, (body or b"")[_BEFORE_MAP:]
    if any(said.type in _RETRACTING for said, _ in held.values()):
        _, unsaid = retractions([said for said, _ in held.values()], chains)
        held = {event_id: found for event_id, found in held.items() if event_id not in unsaid}
    return list(held.values())
