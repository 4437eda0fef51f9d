"""Everything about one thing: the answer of `show`."""

from typing import Any

from cmf_graph.graph import EventRow
from cmf_graph.groups import group_items
from cmf_graph.items import Item, artifact_items, execution_items, metric_steps, remarks
from cmf_graph.parts import bytes_and_parts
from cmf_graph.reading import Reading, id_list, type_is
from cmf_graph.refs import node_text
from cmf_graph.schema import KIND_CODES, unpack_event
from cmf_graph.summaries import execution_summaries, in_order
from cmf_graph.times import rfc3339
from cmf_protocol import types as t
from cmf_protocol.encoding import to_json
from cmf_protocol.errors import DecodeError
from cmf_protocol.events import Node, decode_body, trusted_header
from cmf_protocol.resolve import NodeState, retractions

#: Executions that an artifact is shown with; the count says how many there are.
USERS_MAX = 100


def show_node(node_id: int, reading: Reading) -> Item:
    """Return everything about a node."""
    states = reading.states([node_id])
    state = states[node_id]
    kind = state.node[0]
    shown: Item = {"type": kind}
    if kind == "execution":
        shown |= execution_items(states, reading)[0]
        shown["metric_steps"] = metric_steps(state, reading)
    elif kind == "artifact":
        shown |= artifact_items(states, reading)[0] | _users(node_id, state, reading)
        shown |= bytes_and_parts(state, reading)
    elif kind in ("pipeline", "stage"):
        shown |= group_items(states, reading)[0]
        shown["params"] = to_json(state.space("params"))
    else:
        shown["id"] = node_text(state.node)
    shown["facts"] = _facts(state)
    shown["notes"] = remarks(state.notes, reading)
    shown["events"] = len(reading.graph.rows(_EVENTS_OF, (node_id,)))
    return shown


_EVENTS_OF = (
    "SELECT event FROM about WHERE node = ?1 UNION ALL SELECT event FROM edges WHERE execution = ?1 "
    "UNION ALL SELECT event FROM edges WHERE artifact = ?1"
)


def _facts(state: NodeState) -> dict[str, Any]:
    """Return the facts as they are stated, those of other releases among them."""
    facts: dict[str, Any] = to_json(state.space("facts"))
    return facts


def _users(node_id: int, state: NodeState, reading: Reading) -> Item:
    """Return who produced and used an artifact; for an environment, what ran in it too."""
    members = id_list(reading.aliases.with_members([node_id]))
    sql = (
        "SELECT DISTINCT e.execution FROM json_each(?) j CROSS JOIN edges e ON e.artifact = j.value AND e.produced = ? "
        "WHERE e.said = 1"
    )
    found = {
        name: _bounded([execution for (execution,) in reading.graph.rows(sql, (members, produced))], reading)
        for name, produced in (("produced_by", 1), ("used_by", 0))
    }
    if state.value("kind") == "environment":
        found["environment_of"] = _bounded(_ran_in(node_id, reading), reading)
    return found


def _bounded(executions: list[int], reading: Reading) -> Item:
    """Return how many executions there are, and the newest of them."""
    sql = "SELECT x.node FROM json_each(?) j JOIN executions x ON x.node = j.value ORDER BY x.started_us DESC, x.node DESC LIMIT ?"
    newest = [node for (node,) in reading.graph.rows(sql, (id_list(executions), USERS_MAX))]
    return {"count": len(executions), "executions": in_order(execution_summaries(newest, reading).values())}


def _ran_in(node_id: int, reading: Reading) -> list[int]:
    sql = (
        "SELECT e.header_size, e.data FROM about a JOIN events e ON e.id = a.event "
        f"WHERE a.node = ? AND {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED)}"
    )
    found = set()
    for header_size, data in reading.graph.rows(sql, (node_id,)):
        _, header, _ = unpack_event(header_size, data)
        found |= {node for node in trusted_header(header).about if node[0] == "execution"}
    numbers = (reading.graph.node_id(node) for node in found)
    return [number for number in numbers if number is not None]


# -- events ------------------------------------------------------------------------------------------------------------


def show_event(event_id: bytes, reading: Reading) -> Item:
    """Return an event, decoded; a body that can't be read is hex."""
    row = reading.graph.event(event_id)
    assert row is not None, "found a moment ago, and events are never removed"
    header = row.header
    return {
        "type": "event",
        "id": event_id.hex(),
        "event_type": header.type,
        "type_version": header.type_version,
        "site": reading.site(row.branch),
        "log_id": header.log_id.hex(),
        "sequence": header.sequence,
        "previous": None if header.previous is None else header.previous.hex(),
        "clock": header.clock,
        "at": rfc3339(header.wall_us),
        "about": [[kind, _about_text((kind, id_))] for kind, id_ in header.about],
        "body": _body(row),
        "retracted": _is_retracted(row, reading),
        "unfolded": reading.unfolded(row.id),
    }


def _about_text(node: Node) -> Any:
    kind, id_ = node
    if kind == "execution" and (not isinstance(id_, bytes) or len(id_) != t.EXECUTION_BYTES):
        return to_json(id_)
    return node_text(node) if kind in ("execution", "artifact", "pipeline") else to_json(id_)


def _body(row: EventRow) -> Any:
    if row.body is None:
        return None
    try:
        return to_json(decode_body(row.body))
    except DecodeError:
        return row.body.hex()


def _is_retracted(row: EventRow, reading: Reading) -> bool:
    """Tell if its own chain took it back: then it counts as not said."""
    kind = row.header.about[0][0]
    node_id = (
        reading.graph.node_id(row.header.about[0]) if kind in KIND_CODES and not reading.unfolded(row.id) else None
    )
    if node_id is None:
        return False
    _, unsaid = retractions(reading.graph.statements(node_id), reading.chains)
    return row.event_id in unsaid
