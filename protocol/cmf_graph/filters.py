"""What lists are asked for: filters, order, pages. Pure but for looking up the numbers of names.

Theory of operation: a page ends at a row, and its cursor holds that row's sort value and number; the next page is what comes after these
(a keyset), whatever was added in between. Rows without the sort value come last, in either direction.

Rules
- Conditions speak of `x`, a row of `executions`, or of `a`, a row of `artifacts`; values are always bound, never part of the text.
- A cursor comes from outside: anything but what `Cursor.text` made is the caller's error.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cmf_graph.graph import Graph
from cmf_graph.reading import Reading, id_list
from cmf_graph.schema import KIND_CODES, node_of
from cmf_graph.times import parse_time
from cmf_protocol.encoding import INTEGER_MAX, INTEGER_MIN
from cmf_protocol.errors import CallerError

LIMIT_DEFAULT = 50
#: More rows than this are pages: each row is resolved in memory.
LIMIT_MAX = 10_000
#: How many executions or artifacts a list may sort by something that only resolving them tells; about a second's work.
SORT_ROWS_MAX = 5_000
EXECUTION_KIND_DEFAULT = "step"
#: What an artifact is shown as of which nobody stated a kind.
ARTIFACT_KIND_DEFAULT = "dataset"
#: Kinds that are in lists only when asked for: every execution has one.
KINDS_ON_DEMAND = ("environment", "label")


@dataclass(frozen=True)
class Filter:
    """What a list holds; times as `times.parse_time` reads them. `kind` is an artifact's for artifacts, else an execution's."""

    pipeline: str | None = None
    stage: str | None = None
    site: str | None = None
    team: str | None = None
    kind: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Page:
    """Order (`key`, or `-key` for descending), length, and where it begins (`next` of the page before)."""

    sort: str | None = None
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None

    def checked_limit(self) -> int:
        """Return the limit; raise `CallerError` if it is not one."""
        if not 1 <= self.limit <= LIMIT_MAX:
            raise CallerError(
                f"a page has 1 to {LIMIT_MAX:,} items, not {self.limit}", "ask for more pages with the cursor in `next`"
            )
        return self.limit


class SortKey(NamedTuple):
    """How a list is ordered: the name, SQL over a row (None: only resolving tells), and the direction."""

    name: str
    sql: str | None
    descending: bool

    @property
    def text(self) -> str:
        """The order as callers write it."""
        return f"-{self.name}" if self.descending else self.name


def sort_key(sort: str | None, columns: Mapping[str, str], resolved: Sequence[str], default: str) -> SortKey:
    """Return the order that `sort` names; `resolved` are names, or beginnings that end with a dot. Raises `CallerError`."""
    descending = (sort or default).startswith("-")
    name = (sort or default).removeprefix("-")
    if name in columns:
        return SortKey(name, columns[name], descending)
    if not name.endswith(".") and any(name == r or (r.endswith(".") and name.startswith(r)) for r in resolved):
        return SortKey(name, None, descending)
    known = ", ".join(
        name for name in [*columns, *(f"{r}NAME" if r.endswith(".") else r for r in resolved)] if name != "new"
    )
    raise CallerError(f"{sort!r} is nothing to sort by here", f"sort by one of: {known}; with - before it, descending")


class Cursor(NamedTuple):
    """The last row of a page: its sort value, its number, and where in it the page ended."""

    question: str
    sort: str
    value: Any
    node: int
    inside: str | None = None

    def text(self) -> str:
        """Return the cursor as callers hand it back."""
        packed = json.dumps([1, *self], separators=(",", ":"))
        return base64.urlsafe_b64encode(packed.encode()).decode().rstrip("=")


def read_cursor(text: str | None, question: str, key: SortKey) -> Cursor | None:
    """Return the cursor that a caller handed back; raise `CallerError` if it is none of this list in this order."""
    if text is None:
        return None
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        version, *fields = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        cursor = Cursor(*fields)
        holds = version == 1 and (cursor.question, cursor.sort) == (question, key.text)
        fits = _is_column(cursor.value) if key.sql else _is_order(cursor.value)
        if holds and fits and _is_number(cursor.node) and _is_text(cursor.inside):
            return cursor
    except (ValueError, TypeError, RecursionError):
        pass
    raise CallerError(
        f"this is no cursor of {question} in this order", "hand back `next` of the page before, with the same --sort"
    )


def _is_number(value: object) -> bool:
    return type(value) is int and INTEGER_MIN <= value <= INTEGER_MAX


def _is_text(value: object) -> bool:
    if type(value) is str:
        value.encode()  # unpaired surrogates: a ValueError
    return value is None or type(value) is str


def _is_column(value: object) -> bool:
    return _is_number(value) or _is_text(value)


def _is_order(value: object) -> bool:
    """Tell if `value` is what `order` returns."""
    if type(value) is not list or len(value) != 2:
        return value is None
    rank, inner = value
    return type(inner) in (int, float) and inner == inner if rank == 0 else rank in (1, 2) and type(inner) is str


# -- conditions --------------------------------------------------------------------------------------------------------


@dataclass
class Conditions:
    """SQL conditions with their values."""

    sql: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)

    def add(self, sql: str, *values: object) -> None:
        """Add a condition."""
        self.sql.append(sql)
        self.values += values

    def where(self) -> str:
        """Return what stands after WHERE."""
        return " AND ".join(self.sql) or "1"


def execution_conditions(asked: Filter, reading: Reading, now_us: int, *, kind: bool = True) -> Conditions:
    """Return the conditions on an execution `x`; without `kind`, whatever its kind. Raises `CallerError`."""
    conditions = Conditions()
    graph = reading.graph
    if asked.pipeline is not None:
        conditions.add("x.pipeline = ?", _node_id(graph, ("pipeline", normal_name(asked.pipeline))))
    if asked.stage is not None:
        conditions.add("x.stage IN (SELECT value FROM json_each(?))", id_list(stage_ids(graph, asked)))
    if asked.site is not None:
        conditions.add("x.branch IN (SELECT value FROM json_each(?))", id_list(site_branches(reading, asked.site)))
    if asked.team is not None:
        conditions.add("x.team = ?", checked_text(asked.team))
    if kind and asked.kind is not None:
        conditions.add("coalesce(x.kind, ?) = ?", EXECUTION_KIND_DEFAULT, checked_text(asked.kind))
    if asked.since is not None:
        conditions.add("x.started_us >= ?", parse_time(asked.since, now_us))
    if asked.until is not None:
        conditions.add("x.started_us < ?", parse_time(asked.until, now_us, until=True))
    return conditions


def checked_text(text: str) -> str:
    """Return text that SQLite can be asked about; raise `CallerError` for what no event can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CallerError(f"{text!r} is not valid Unicode text") from error
    return text


def normal_name(name: str) -> str:
    """Return a pipeline's or stage's name as events hold it."""
    from unicodedata import normalize

    return normalize("NFC", checked_text(name))


def _node_id(graph: Graph, node: tuple[str, Any]) -> int:
    found = graph.node_id(node)
    return 0 if found is None else found  # numbers begin with 1


def stage_ids(graph: Graph, asked: Filter) -> list[int]:
    """Return the stages of that name: of the pipeline asked for, or of any."""
    stage = normal_name(asked.stage or "")
    if asked.pipeline is not None:
        return [_node_id(graph, ("stage", (normal_name(asked.pipeline), stage)))]
    rows = graph.rows("SELECT id, key FROM nodes WHERE kind = ?", (KIND_CODES["stage"],))
    return [id_ for id_, key in rows if node_of(KIND_CODES["stage"], key)[1][1] == stage]


def site_branches(reading: Reading, site: str) -> list[int]:
    """Return the branches of a site; raise `CallerError` if there is no such site."""
    known = reading.site_names()
    if site not in known:
        names = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise CallerError(
            f"no site is called {site!r} here", f"known are: {names}" if known else "no site is known yet"
        )
    return reading.branches(site)


# -- pages -------------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What a list reads: the FROM clause and the column that holds a node's number."""

    source: str
    node: str


def page_rows(
    graph: Graph,
    rows: Rows,
    conditions: Conditions,
    key: SortKey,
    after: Cursor | None,
    limit: int,
    *,
    inclusive: bool = False,
) -> list[tuple[int, Any]]:
    """Return (node, sort value) of at most `limit` rows after the cursor, in order; `inclusive`: from its row on."""
    found: list[tuple[int, Any]] = []
    direction, comparison = ("DESC", "<") if key.descending else ("ASC", ">")
    comparison += "=" if inclusive else ""
    for present in (True, False):
        if len(found) == limit or (present and after is not None and after.value is None):
            continue
        asked = Conditions([*conditions.sql], [*conditions.values])
        asked.add(f"{key.sql} IS {'NOT ' if present else ''}NULL")
        if after is not None and present:
            asked.add(f"({key.sql}, {rows.node}) {comparison} (?, ?)", after.value, after.node)
        elif after is not None and after.value is None:
            asked.add(f"{rows.node} {comparison} ?", after.node)
        order = f"{key.sql} {direction}, {rows.node} {direction}" if present else f"{rows.node} {direction}"
        sql = f"SELECT {rows.node}, {key.sql} FROM {rows.source} WHERE {asked.where()} ORDER BY {order} LIMIT ?"
        found += graph.rows(sql, (*asked.values, limit - len(found)))
    return found


def all_rows(graph: Graph, rows: Rows, conditions: Conditions, key: SortKey) -> list[int]:
    """Return the numbers of all rows, for an order that only resolving tells; raise `CallerError` if they are too many."""
    sql = f"SELECT {rows.node} FROM {rows.source} WHERE {conditions.where()} ORDER BY {rows.node} LIMIT ?"
    found = [node for (node,) in graph.rows(sql, (*conditions.values, SORT_ROWS_MAX + 1))]
    if len(found) > SORT_ROWS_MAX:
        raise CallerError(
            f"more than {SORT_ROWS_MAX:,} are too many to sort by {key.name}",
            "narrow the list: --pipeline, --stage, --site, --since",
        )
    return found


def order(value: object) -> list[Any] | None:
    """Return what a resolved value is sorted by: numbers before text before the rest; None, which comes last, for none and NaN."""
    if value is None or value != value:
        return None
    if isinstance(value, int | float):
        return [0, int(value) if isinstance(value, bool) else value]
    return [1, value] if isinstance(value, str) else [2, repr(value)]


def sorted_page(
    found: Sequence[tuple[int, str, Any]], key: SortKey, after: Cursor | None, limit: int
) -> list[tuple[int, str, Any]]:
    """Return at most `limit` of the rows (node, place inside, `order` of its value) after the cursor, in order."""
    present = sorted((row for row in found if row[2] is not None), key=_place, reverse=key.descending)
    absent = sorted((row for row in found if row[2] is None), key=lambda row: row[:2], reverse=key.descending)
    if after is None:
        return [*present, *absent][:limit]
    place = (after.node, after.inside or "", after.value)
    if after.value is None:
        rest = [row for row in absent if (row[:2] < place[:2] if key.descending else row[:2] > place[:2])]
    else:
        beyond = [
            row for row in present if (_place(row) < _place(place) if key.descending else _place(row) > _place(place))
        ]
        rest = [*beyond, *absent]
    return rest[:limit]


def _place(row: tuple[int, str, Any]) -> tuple[Any, ...]:
    return (*row[2], row[0], row[1])
