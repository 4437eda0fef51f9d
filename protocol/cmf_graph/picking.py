"""Sets of nodes and events of a graph, by number, as questions about many of them need them.

Theory of operation: the sets are temporary tables of the reading connection, so that one as wide as the graph costs no memory of ours.
There is one of each for a connection: `clear` begins anew.

Rules
- Called within a snapshot: what is picked is of one moment.
- An event about an execution and a stage counts as about the execution alone: a start says nothing of its stage, nor what retracts it.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from cmf_graph.graph import Graph
from cmf_graph.reading import type_is
from cmf_graph.schema import KIND_CODES, node_key
from cmf_protocol import types as t
from cmf_protocol.events import Node, trusted_header
from cmf_protocol.fold import is_node, nodes_of
from cmf_protocol.ranges import Ranges, merged

EXECUTIONS = "picked_executions"
OTHERS = "picked_others"
#: SQL for the header of the event `e`.
HEADER = "substr(e.data, 33, e.header_size)"
_BATCH = 10_000

_TABLES = """
CREATE TEMP TABLE IF NOT EXISTS picked_executions (node INTEGER PRIMARY KEY);
CREATE TEMP TABLE IF NOT EXISTS picked_others (node INTEGER PRIMARY KEY);
CREATE TEMP TABLE IF NOT EXISTS picked_events (event INTEGER PRIMARY KEY);
DELETE FROM picked_executions;
DELETE FROM picked_others;
DELETE FROM picked_events
"""

STARTED = type_is(t.EXECUTION_STARTED)
DESCRIBING = type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED)
_RETRACTING = type_is(t.RETRACTED, t.UNRETRACTED)

#: Events about the picked nodes; those about an execution and a stage count as about the execution alone.
_LISTED = (
    "SELECT a.event FROM picked_executions p CROSS JOIN about a ON a.node = p.node",
    "SELECT x.event FROM picked_executions p CROSS JOIN edges x ON x.execution = p.node",
    "SELECT x.event FROM picked_others p CROSS JOIN edges x ON x.artifact = p.node",
    "SELECT a.event FROM picked_others p CROSS JOIN about a ON a.node = p.node CROSS JOIN events e ON e.id = a.event "
    f"WHERE a.event NOT IN (SELECT event FROM picked_events) AND NOT {STARTED} AND NOT {_RETRACTING}",
)
_RETRACTIONS = (
    f"SELECT a.event, {HEADER} FROM picked_others p CROSS JOIN about a ON a.node = p.node CROSS JOIN events e ON e.id = a.event "
    f"WHERE a.event NOT IN (SELECT event FROM picked_events) AND {_RETRACTING}"
)


def clear(graph: Graph) -> None:
    """Pick nothing."""
    for statement in _TABLES.split(";\n"):
        graph.rows(statement)


def pick(graph: Graph, table: str, numbers: Iterable[int]) -> None:
    """Pick nodes by their numbers."""
    graph.connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?)", ((number,) for number in numbers))


def unpick(graph: Graph, table: str, known: Collection[int]) -> None:
    """Leave out what is known already."""
    again = [(number,) for number in picked(graph, table) if number in known]
    graph.connection.executemany(f"DELETE FROM {table} WHERE node = ?", again)


def picked(graph: Graph, table: str) -> set[int]:
    """Return the numbers of the nodes that are picked."""
    return {node for (node,) in graph.rows(f"SELECT node FROM {table}")}


def pick_executions(graph: Graph, ids: Iterable[bytes]) -> None:
    """Pick executions by their ids."""
    sql = "INSERT OR IGNORE INTO picked_executions SELECT id FROM nodes WHERE kind = ? AND key = ?"
    while batch := [(KIND_CODES["execution"], id_) for id_ in islice(ids, _BATCH)]:
        graph.connection.executemany(sql, batch)


def pick_artifacts(graph: Graph) -> None:
    """Pick the artifacts that the picked executions used or produced, said or not."""
    graph.rows(
        "INSERT OR IGNORE INTO picked_others "
        "SELECT x.artifact FROM picked_executions p CROSS JOIN edges x ON x.execution = p.node"
    )


def pick_described(graph: Graph) -> None:
    """Pick the environments, stages and pipelines of the picked executions."""
    sql = (
        f"SELECT {HEADER} FROM picked_executions p CROSS JOIN about a ON a.node = p.node "
        f"CROSS JOIN events e ON e.id = a.event WHERE {DESCRIBING}"
    )
    found: set[Node] = set()
    for (header,) in graph.connection.execute(sql):
        found.update(nodes_of(trusted_header(header).about))
    numbers = [graph.node_id(node) for node in found if node[0] != "execution"]
    pick(graph, "picked_others", [number for number in numbers if number is not None])


def pick_events(graph: Graph) -> None:
    """Pick the events about the picked nodes, unfolded ones too."""
    if not graph.rows("SELECT 1 FROM picked_executions UNION ALL SELECT 1 FROM picked_others LIMIT 1"):
        return
    for sql in _LISTED:
        graph.rows(f"INSERT OR IGNORE INTO picked_events {sql}")
    _pick_headers(graph, _RETRACTIONS)
    _pick_headers(graph, f"SELECT u.event, {HEADER} FROM unfolded u JOIN events e ON e.id = u.event")


def _pick_headers(graph: Graph, sql: str) -> None:
    """Pick those of these events (number, header) whose `about` has a picked node."""
    rows = graph.connection.execute(sql)
    lookup = (
        "INSERT OR IGNORE INTO picked_events SELECT ?1 FROM nodes n WHERE n.kind = ?2 AND n.key = ?3 "
        "AND (n.id IN (SELECT node FROM picked_executions) OR n.id IN (SELECT node FROM picked_others))"
    )
    while batch := rows.fetchmany(_BATCH):
        entries = [
            (event, *node_key(node)) for event, header in batch for node in subjects(trusted_header(header).about)
        ]
        graph.connection.executemany(lookup, entries)


def subjects(about: Sequence[Node]) -> list[Node]:
    """Return the nodes that an event counts as being about: a start says nothing of its stage, nor what retracts it."""
    nodes = [node for node in about if is_node(node)]
    if {"execution", "stage"} <= {kind for kind, _ in nodes}:
        return [node for node in nodes if node[0] == "execution"]
    return nodes


def ranges_of_picked(graph: Graph) -> dict[int, Ranges]:
    """Return the sequences of the picked events, by branch."""
    found: dict[int, list[list[int]]] = {}
    sql = "SELECT e.branch, e.sequence FROM picked_events p CROSS JOIN events e ON e.id = p.event ORDER BY p.event"
    for branch, sequence in graph.connection.execute(sql):
        ranges = found.setdefault(branch, [])
        if ranges and ranges[-1][1] == sequence - 1:
            ranges[-1][1] = sequence
        else:
            ranges.append([sequence, sequence])
    return {branch: merged((first, last) for first, last in ranges) for branch, ranges in found.items()}
