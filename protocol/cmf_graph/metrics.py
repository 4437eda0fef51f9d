"""The list of metrics: one item for each execution and metric name.

Theory of operation: executions are paged through in their order, and each gives its metrics sorted by name; a cursor names the execution
and the last of its metrics that was given. Sorted by a metric's own fields, all of them are read first, which is bounded.
"""

from collections.abc import Callable, Iterator
from typing import Any

from cmf_graph.filters import (
    SORT_ROWS_MAX,
    Conditions,
    Cursor,
    Filter,
    Page,
    SortKey,
    all_rows,
    execution_conditions,
    order,
    page_rows,
    read_cursor,
    sort_key,
    sorted_page,
)
from cmf_graph.items import Item, metric_steps, metrics_of, site_of, stage_of
from cmf_graph.lists import EXECUTION_COLUMNS, EXECUTIONS
from cmf_graph.reading import Reading, type_is
from cmf_graph.text import execution_text
from cmf_protocol import types as t
from cmf_protocol.encoding import to_json
from cmf_protocol.errors import CallerError
from cmf_protocol.resolve import NodeState

_QUESTION = "metrics"
_FIELDS = ("name", "value", "step")
#: Executions that are resolved at a time while a page is filled.
_BATCH = 100
_HAS_METRICS = (
    "EXISTS (SELECT 1 FROM about ab JOIN events e ON e.id = ab.event "
    f"WHERE ab.node = x.node AND {type_is(t.METRICS_RECORDED)})"
)
MetricItems = Callable[[NodeState], list[Item]]


def metric_list(
    reading: Reading, asked: Filter, page: Page, now_us: int, *, name: str | None = None, steps: bool = False
) -> dict[str, Any]:
    """Return a page of metrics; `name` selects one metric, `steps` adds each item's series with their points."""
    key = sort_key(page.sort, EXECUTION_COLUMNS, _FIELDS, "-started_at")
    after = read_cursor(page.cursor, _QUESTION, key)
    conditions = execution_conditions(asked, reading, now_us)
    conditions.add(_HAS_METRICS)
    limit = page.checked_limit()

    def items_of(state: NodeState) -> list[Item]:
        return _items(state, reading, name, steps)

    if key.sql is None:
        found = _by_field(reading, conditions, key, after, limit + 1, items_of)
    else:
        found = _by_execution(reading, conditions, key, after, limit + 1, items_of)
    more = len(found) > limit
    last = found[limit - 1][0] if more else None
    return {"items": [item for _, item in found[:limit]], "next": last.text() if last else None}


def _items(state: NodeState, reading: Reading, name: str | None, steps: bool) -> list[Item]:
    pipeline, stage = stage_of(state)
    series = metric_steps(state, reading) if steps else []
    found = []
    for metric, (value, step) in metrics_of(state, reading).items():
        if name is not None and metric != name:
            continue
        item = {
            "execution": execution_text(state.node[1]),
            "pipeline": pipeline,
            "stage": stage,
            "name": metric,
            "value": to_json(value),
            "step": step,
            "site": site_of(state, reading),
        }
        if steps:
            item["series"] = [each for each in series if each["name"] == metric]
        found.append(item)
    return found


def _by_execution(
    reading: Reading, conditions: Conditions, key: SortKey, after: Cursor | None, limit: int, items_of: MetricItems
) -> list[tuple[Cursor, Item]]:
    found: list[tuple[Cursor, Item]] = []
    for node, value, state in _executions(reading, conditions, key, after):
        given = after.inside if after is not None and after.node == node else None
        for item in items_of(state):
            if given is None or item["name"] > given:
                found.append((Cursor(_QUESTION, key.text, value, node, item["name"]), item))
        if len(found) >= limit:
            break
    return found[:limit]


def _executions(
    reading: Reading, conditions: Conditions, key: SortKey, after: Cursor | None
) -> Iterator[tuple[int, Any, NodeState]]:
    """Yield (number, sort value, state), from the cursor's execution on."""
    inclusive = True
    while rows := page_rows(reading.graph, EXECUTIONS, conditions, key, after, _BATCH, inclusive=inclusive):
        states = reading.states([node for node, _ in rows])
        for node, value in rows:
            yield node, value, states[node]
        after, inclusive = Cursor(_QUESTION, key.text, rows[-1][1], rows[-1][0]), False


def _by_field(
    reading: Reading, conditions: Conditions, key: SortKey, after: Cursor | None, limit: int, items_of: MetricItems
) -> list[tuple[Cursor, Item]]:
    items: dict[tuple[int, str], Item] = {}
    for node, state in reading.states(all_rows(reading.graph, EXECUTIONS, conditions, key)).items():
        items.update(((node, item["name"]), item) for item in items_of(state))
        if len(items) > SORT_ROWS_MAX:
            raise CallerError(
                f"more than {SORT_ROWS_MAX:,} metrics are too many to sort by {key.name}",
                "narrow the list: --name, --stage, --since",
            )
    values = [(node, name, order(item[key.name])) for (node, name), item in items.items()]
    page = sorted_page(values, key, after, limit)
    return [(Cursor(_QUESTION, key.text, value, node, name), items[node, name]) for node, name, value in page]
