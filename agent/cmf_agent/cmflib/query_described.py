"""What describes executions, read for many at a time.

Theory of operation: lists show what an execution is, not what it used, produced or measured, which may be much more; so only the
events that describe it are read. Where one branch alone speaks of it, which is nearly always so, the latest statement of each value
holds, and all need not be resolved (`cmf_protocol.resolve`), which would take most of the time. In every other case it is resolved.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cmf_graph.graph import no_collector
from cmf_graph.reading import Reading, id_list, type_is
from cmf_graph.schema import unpack_event
from cmf_protocol import types as t
from cmf_protocol.encoding import Value
from cmf_protocol.events import Node, trusted_body, trusted_header
from cmf_protocol.fold import stated
from cmf_protocol.resolve import Chains, Said, resolve

_SPACES = ("facts", "params", "properties")
_RETRACTING = (t.RETRACTED, t.UNRETRACTED)
_DESCRIBING = type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED, t.EXECUTION_FINISHED, *_RETRACTING)
_DESCRIBED = (
    "SELECT j.value, e.branch, e.header_size, e.data FROM json_each(?) j CROSS JOIN about a ON a.node = j.value "
    f"CROSS JOIN events e ON e.id = a.event WHERE {_DESCRIBING}"
)


class Described(NamedTuple):
    """What describes an execution; `started` and `ended` are µs UTC, None where it was not said, or goes on."""

    id: bytes
    facts: Mapping[str, Value]
    params: Mapping[str, Value]
    properties: Mapping[str, Value]
    started: int | None
    ended: int | None


def described(reading: Reading, numbers: Sequence[int]) -> dict[int, Described]:
    """Return what describes these executions, in their order."""
    nodes = reading.nodes(numbers)
    said: dict[int, list[Said]] = {number: [] for number in numbers}
    with no_collector():
        for number, branch, header_size, data in reading.graph.rows(_DESCRIBED, (id_list(said),)):
            said[number].append(_said(branch, header_size, data))
        return {number: describe(nodes[number], found, reading.chains) for number, found in said.items()}


def _said(branch: int, header_size: int, data: bytes) -> Said:
    event_id, header_bytes, body = unpack_event(header_size, data)
    header = trusted_header(header_bytes)
    values = trusted_body(body or b"")
    return Said(branch, header.sequence, header.clock, event_id, header.wall_us, header.type, header.about, values)


def describe(node: Node, said: Sequence[Said], chains: Chains) -> Described:
    """Return an execution as the events that describe it say. Pure."""
    if len({s.branch for s in said}) > 1 or any(s.type in _RETRACTING for s in said):
        return _resolved(node, said, chains)
    return _as_one_branch_says(node, said)


def _as_one_branch_says(node: Node, said: Sequence[Said]) -> Described:
    spaces: dict[str, dict[str, Value]] = {space: {} for space in _SPACES}
    started: int | None = None
    ended: int | None = None
    for s in sorted(said, key=lambda s: s.sequence):
        for space, key, value in stated(node, s.type, s.about, s.body):  # type: ignore[arg-type]  # only read
            spaces[space][key] = value
        if s.type == t.EXECUTION_STARTED:
            started, ended = s.body.get("at", s.wall_us), None
        elif s.type == t.EXECUTION_FINISHED and started is not None:
            ended = s.body.get("at", s.wall_us)
    return Described(node[1], spaces["facts"], spaces["params"], spaces["properties"], started, ended)


def _resolved(node: Node, said: Sequence[Said], chains: Chains) -> Described:
    state = resolve(node, said, chains)
    status = state.statuses[0] if state.statuses else None
    ended = status.at if status is not None and status.status != "running" else None
    facts, params, properties = (state.space(space) for space in _SPACES)
    return Described(node[1], facts, params, properties, state.started, ended)
