"""Lists of executions, artifacts, pipelines and stages: what a filter selects, in order, a page at a time.

Rules
- Filters and order are SQL over columns; only the rows of one page are resolved. An order that columns don't know resolves all rows
  first, so it is refused beyond `filters.SORT_ROWS_MAX`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cmf_graph.filters import (
    ARTIFACT_KIND_DEFAULT,
    KINDS_ON_DEMAND,
    Conditions,
    Cursor,
    Filter,
    Page,
    Rows,
    SortKey,
    all_rows,
    checked_text,
    execution_conditions,
    normal_name,
    order,
    page_rows,
    read_cursor,
    sort_key,
    sorted_page,
    stage_ids,
)
from cmf_graph.groups import group_items
from cmf_graph.items import Item, artifact_items, execution_items, metrics_of, site_of
from cmf_graph.reading import Reading, id_list
from cmf_graph.schema import KIND_CODES, node_key, unpack_event
from cmf_protocol.encoding import Value
from cmf_protocol.events import trusted_header
from cmf_protocol.resolve import NodeState

EXECUTIONS = Rows("executions x", "x.node")
EXECUTION_COLUMNS = {
    "started_at": "x.started_us",
    "finished_at": "x.finished_us",
    "status": "x.status",
    "kind": "x.kind",
    "team": "x.team",
    "pipeline": "(SELECT key FROM nodes WHERE id = x.pipeline)",
    "stage": "(SELECT CAST(key AS TEXT) FROM nodes WHERE id = x.stage)",
}
_EXECUTION_FACTS = ("name", "actor", "user", "host", "git_commit")
_EXECUTION_SPACES = ("params", "metrics", "properties")
_ARTIFACT_COLUMNS = {
    "new": "a.node",
    "kind": "a.kind",
    "content_id": "(SELECT key FROM nodes WHERE id = a.node)",
    "name": "(SELECT min(name) FROM artifact_names WHERE node = a.node)",
}
_GROUP_COLUMNS = {"new": "n.id", "name": "CAST(n.key AS TEXT)"}
_AT_EXECUTIONS = "SELECT e.artifact FROM executions x JOIN edges e ON e.execution = x.node WHERE e.said = 1 AND "
#: An environment is linked to executions only by the events that name both.
_IN_ENVIRONMENTS = (
    "EXISTS (SELECT 1 FROM about ab JOIN events ev ON ev.id = ab.event JOIN nodes n ON n.kind = 3 "
    "AND n.key = execution_of(ev.header_size, ev.data) JOIN executions x ON x.node = n.id WHERE ab.node = a.node AND "
)


class List(NamedTuple):
    """One kind of list: its rows, how they become items, and what they are sorted by that only resolving tells."""

    question: str
    rows: Rows
    columns: Mapping[str, str]
    resolved: tuple[str, ...]
    default: str
    items: Callable[[Mapping[int, NodeState], Reading], list[Item]]
    value: Callable[[NodeState, str, Reading], Value]


def _answer(what: List, reading: Reading, conditions: Conditions, page: Page) -> dict[str, Any]:
    key = sort_key(page.sort, what.columns, what.resolved, what.default)
    after = read_cursor(page.cursor, what.question, key)
    limit = page.checked_limit()
    if key.sql is not None:
        found = page_rows(reading.graph, what.rows, conditions, key, after, limit + 1)
    else:
        found = _resolved_rows(what, reading, conditions, key, after, limit + 1)
    shown, more = found[:limit], len(found) > limit
    return {
        "items": what.items(reading.states([node for node, _ in shown], tables=False), reading),
        "next": Cursor(what.question, key.text, shown[-1][1], shown[-1][0]).text() if more else None,
    }


def _resolved_rows(
    what: List, reading: Reading, conditions: Conditions, key: SortKey, after: Cursor | None, limit: int
) -> list[tuple[int, Any]]:
    states = reading.states(all_rows(reading.graph, what.rows, conditions, key), tables=False)
    values = [(node, "", order(what.value(state, key.name, reading))) for node, state in states.items()]
    return [(node, value) for node, _, value in sorted_page(values, key, after, limit)]


# -- executions --------------------------------------------------------------------------------------------------------


def execution_list(reading: Reading, asked: Filter, page: Page, now_us: int) -> dict[str, Any]:
    """Return a page of executions."""
    return _answer(_EXECUTION_LIST, reading, execution_conditions(asked, reading, now_us), page)


def _execution_value(state: NodeState, key: str, reading: Reading) -> Value:
    space, _, name = key.partition(".")
    if space == "metrics":
        return metrics_of(state, reading).get(name, (None, None))[0]
    if name:
        return state.value(name, space)
    return site_of(state, reading) if key == "site" else state.value(key)


_EXECUTION_LIST = List(
    "executions",
    EXECUTIONS,
    EXECUTION_COLUMNS,
    (*_EXECUTION_FACTS, "site", *(f"{space}." for space in _EXECUTION_SPACES)),
    "-started_at",
    execution_items,
    _execution_value,
)


# -- artifacts ---------------------------------------------------------------------------------------------------------


def artifact_list(reading: Reading, asked: Filter, page: Page, now_us: int) -> dict[str, Any]:
    """Return a page of artifacts; those that are one with an md5 are that one."""
    return _answer(_ARTIFACT_LIST, reading, artifact_conditions(asked, reading, now_us), page)


def artifact_conditions(asked: Filter, reading: Reading, now_us: int) -> Conditions:
    """Return the conditions on an artifact `a`; raise `CallerError`."""
    conditions = Conditions()
    if asked.kind is None:
        marks = ", ".join("?" * len(KINDS_ON_DEMAND))
        conditions.add(f"(a.kind IS NULL OR a.kind NOT IN ({marks}))", *KINDS_ON_DEMAND)
    elif asked.kind == ARTIFACT_KIND_DEFAULT:
        conditions.add("(a.kind IS NULL OR a.kind = ?)", asked.kind)
    else:
        conditions.add("a.kind = ?", checked_text(asked.kind))
    merged = reading.aliases.merged
    if merged:
        conditions.add("a.node NOT IN (SELECT value FROM json_each(?))", id_list(merged))
    at = execution_conditions(asked, reading, now_us, kind=False)
    if at.sql:
        _add_use(conditions, at, asked, reading)
    return conditions


def _add_use(conditions: Conditions, at: Conditions, asked: Filter, reading: Reading) -> None:
    """Add that an execution which holds `at` used or produced the artifact, or ran in it."""
    ways, values = [f"a.node IN ({_AT_EXECUTIONS}{at.where()})"], [*at.values]
    members = reading.aliases.merged
    if members:
        used = {node for (node,) in reading.graph.rows(_AT_EXECUTIONS + at.where(), at.values)}
        ways.append("a.node IN (SELECT value FROM json_each(?))")
        values.append(id_list({members[node] for node in used if node in members}))
    if asked.kind == "environment":
        reading.graph.connection.create_function("execution_of", 2, _execution_of, deterministic=True)
        ways.append(f"{_IN_ENVIRONMENTS}{at.where()})")
        values += at.values
    conditions.add(f"({' OR '.join(ways)})", *values)


def _execution_of(header_size: int, data: bytes) -> bytes | None:
    """For SQL: the execution that an event is about."""
    about = trusted_header(unpack_event(header_size, data)[1]).about
    return next((id_ for kind, id_ in about if kind == "execution"), None)


def _artifact_value(state: NodeState, key: str, _reading: Reading) -> Value:
    space, _, name = key.partition(".")
    return state.value(name, space) if name else state.value(key)


_ARTIFACT_LIST = List(
    "artifacts",
    Rows("artifacts a", "a.node"),
    _ARTIFACT_COLUMNS,
    ("size", "properties."),
    "-new",
    artifact_items,
    _artifact_value,
)


# -- pipelines and stages ----------------------------------------------------------------------------------------------


def group_list(kind: str, reading: Reading, asked: Filter, page: Page, now_us: int) -> dict[str, Any]:
    """Return a page of pipelines or stages: of all, or those with an execution that the filter selects."""
    conditions = Conditions()
    conditions.add("n.kind = ?", KIND_CODES[kind])
    if asked.pipeline is not None and kind == "pipeline":
        conditions.add("n.key = ?", normal_name(asked.pipeline))
    elif asked.pipeline is not None:
        _, first = node_key(("stage", (normal_name(asked.pipeline), "")))
        conditions.add("n.key >= ? AND n.key < ?", first, bytes(first)[:-1] + b"\1")  # type: ignore[arg-type]
    if asked.stage is not None and kind == "stage":
        conditions.add("n.id IN (SELECT value FROM json_each(?))", id_list(stage_ids(reading.graph, asked)))
    inner = asked if kind == "pipeline" else Filter(None, None, *_of_executions(asked))
    if any(_of_executions(asked)) or (kind == "pipeline" and asked.stage is not None):
        at = execution_conditions(inner, reading, now_us)
        conditions.add(f"n.id IN (SELECT x.{kind} FROM executions x WHERE {at.where()})", *at.values)
    what = List(f"{kind}s", Rows("nodes n", "n.id"), _GROUP_COLUMNS, (), "-new", group_items, _no_value)
    return _answer(what, reading, conditions, page)


def _of_executions(asked: Filter) -> Iterable[str | None]:
    return asked.site, asked.team, asked.kind, asked.since, asked.until


def _no_value(_state: NodeState, _key: str, _reading: Reading) -> Value:
    return None
