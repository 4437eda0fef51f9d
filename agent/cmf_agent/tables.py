"""Tables that are artifacts by themselves: metrics tables and slices (protocol/README.md, section 3, *table*).

Rules
- A table's bytes are the canonical encoding of `[[name, values], …]`; its content id is the md5 of these. So the same table is the
  same artifact wherever it is made.
- It travels in blocks of rows, one event each. How it is cut depends on its content only: halves, until each is small enough.
- Values are bent and secrets masked as parameters are; the caller's rows are never changed.
- What would take more than `TABLE_BYTES_MAX` is refused with the way out: a file.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from typing import TYPE_CHECKING, Any, NamedTuple

from cmf_agent.finding import PathLike, home_at_hand
from cmf_agent.shape import TEXT_CHARS_MAX, without_secrets
from cmf_agent.sources.host import mask_mapping
from cmf_agent.sources.masking import is_password_text, looks_secret, mask_text
from cmf_graph.content.files import Content
from cmf_protocol.encoding import DEPTH_MAX, Value, bend, encode
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import Column, table_recorded

if TYPE_CHECKING:
    from cmf_agent.home import Home
    from cmf_protocol.resolve import NodeState

#: What a table may take in all, bytes: it is metadata, kept at every site that pulls it.
TABLE_BYTES_MAX = 4 * 1024 * 1024
#: What one block may take, bytes: half of what an event may have.
BLOCK_BYTES_MAX = 131_072
#: A single row can't be cut: what it may take, bytes, so that an event holds it.
ROW_BYTES_MAX = 229_376
#: How deep the list of a column's cells may be nested: an event and a digest put arrays and maps around it.
_CELLS_DEPTH = DEPTH_MAX - 6
#: What was bent is noted for so many columns, else for all together.
_LOSSY_COLUMNS_MAX = 100

#: What a table can be made of: a list of dicts, a dict of columns, or a pandas DataFrame.
Rows = Iterable[Mapping[str, object]] | Mapping[str, Iterable[object]]
#: The names of `machine_metrics.py` begin so.
MACHINE = "machine/"
_PLAIN = (int, float, bool, type(None))


@dataclass(frozen=True)
class Table:
    """A table as it was recorded: `columns` maps names to lists of equal length, `size` is that of its bytes."""

    content_id: str
    kind: str
    name: str
    columns: Mapping[str, Sequence[Value]]
    size: int

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def content(self) -> Content:
        """The table as content, as files have it."""
        return Content(self.content_id, None, self.size, 1)

    def records(self) -> list[dict[str, Value]]:
        """Return its rows, one dict each."""
        return [dict(zip(self.columns, cells, strict=True)) for cells in zip(*self.columns.values(), strict=True)]


class Made(NamedTuple):
    """A table and what was bent to make it: key path → kind."""

    table: Table
    lossy: dict[str, str]


def make_table(kind: str, name: str, rows: Rows, *, own: Collection[str] = ()) -> Made:
    """Return the table of these rows; raise `CallerError` for what is no table, or too large.

    `own` are columns that this package fills, in which no secret is looked for.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= TEXT_CHARS_MAX:
        raise CallerError(f"{name!r} can't be the name of a table", f"use a text of 1 to {TEXT_CHARS_MAX:,} characters")
    given = _columns(rows, name)
    if sum(len(cells) for cells in given.values()) > TABLE_BYTES_MAX:  # a cell takes at least one byte
        raise _too_large(kind, name, f"more than {TABLE_BYTES_MAX:,} values")
    columns: dict[str, list[Value]] = {}
    lossy: dict[str, str] = {}
    for given_name, cells in given.items():
        column, bent_name = _column_name(given_name)
        if column in columns:
            raise _same_name(name, column)
        columns[column], kinds = _bent(cells if column in own else _without_secrets(column, cells))
        if kinds or bent_name:
            lossy[f"columns.{column}"] = bent_name or kinds[0]
    if len(lossy) > _LOSSY_COLUMNS_MAX:
        lossy = {"columns": next(iter(lossy.values()))}
    content = _packed(columns)
    if len(content) > TABLE_BYTES_MAX:
        raise _too_large(kind, name, f"{len(content):,} bytes")
    return Made(Table(_content_id(content), kind, bend(name)[0], columns, len(content)), lossy)


def table_drafts(table: Table) -> list[Draft]:
    """Draft the blocks of a table; raise `CallerError` if a single row is more than an event can hold."""
    columns = list(table.columns.items())
    return [
        table_recorded(
            table.content_id, [(name, cells[first:end]) for name, cells in columns], rows=table.rows, first=first
        )
        for first, end in _cuts(table, columns, 0, table.rows)
    ]


def _cuts(table: Table, columns: Sequence[Column], first: int, end: int) -> Iterator[tuple[int, int]]:
    size = len(encode([[column, cells[first:end]] for column, cells in columns]))
    if size <= BLOCK_BYTES_MAX or (end - first <= 1 and size <= ROW_BYTES_MAX):
        yield first, end
    elif end - first <= 1:
        raise _too_large(table.kind, table.name, f"{size:,} bytes in one row")
    else:
        middle = (first + end) // 2
        yield from _cuts(table, columns, first, middle)
        yield from _cuts(table, columns, middle, end)


def _too_large(kind: str, name: str, what: str) -> CallerError:
    return CallerError(
        f"the table {name[:80]!r} is too large: {what}",
        f'write it to a file and record that: run.output(file, kind="{kind}")',
    )


def _packed(columns: Mapping[str, Sequence[Value]]) -> bytes:
    return encode([[name, cells] for name, cells in columns.items()])


def _content_id(content: bytes) -> str:
    return f"md5:{md5(content, usedforsecurity=False).hexdigest()}"


# -- what the caller gives ---------------------------------------------------------------------------------------------


def _columns(rows: Any, name: str) -> dict[Any, list[object]]:
    """Return what was given as columns of equal length; what a row lacks is None."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a DataFrame, without importing pandas
        twice = [str(column) for column, count in Counter(rows.columns).items() if count > 1]
        if twice:
            raise _same_name(name, twice[0])
        rows = rows.to_dict(orient="list")
    if isinstance(rows, Mapping):
        columns = {column: _cells(cells, name, column) for column, cells in rows.items()}
        lengths = {column: len(cells) for column, cells in columns.items()}
        if len(set(lengths.values())) > 1:
            raise CallerError(
                f"the columns of the table {name!r} differ in length: {lengths}", "give each as many values"
            )
        return columns
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise _no_rows(name, rows)
    records = list(rows)
    for record in records:
        if not isinstance(record, Mapping):
            raise _no_rows(name, record)
    names = dict.fromkeys(column for record in records for column in record)
    return {column: [record.get(column) for record in records] for column in names}


def _cells(cells: Any, name: str, column: object) -> list[object]:
    if hasattr(cells, "tolist"):  # numpy's, pandas'
        cells = cells.tolist()
    if isinstance(cells, str | bytes | Mapping) or not isinstance(cells, Iterable):
        raise CallerError(f"the column {column!r} of the table {name!r} is {cells!r:.80}", "give it a list of values")
    return list(cells)


def _same_name(name: str, column: str) -> CallerError:
    return CallerError(f"two columns of the table {name!r} are called {column!r}", "rename one of them")


def _no_rows(name: str, found: object) -> CallerError:
    return CallerError(
        f"{found!r:.80} is no row of the table {name!r}", "give a list of dictionaries, or a dictionary of columns"
    )


def _column_name(given: object) -> tuple[str, str]:
    """Return a column's name as text and, where it had to be bent, how."""
    bent, lossy = bend(given if isinstance(given, str) else str(given))
    return str(bent), "key" if not isinstance(given, str) else next(iter(lossy.values()), "")


def _bent(cells: list[object]) -> tuple[list[Value], list[str]]:
    """Return cells that can be encoded, and the kinds of what was bent."""
    values, lossy = bend(cells, "cells", _CELLS_DEPTH)
    if "repr" in lossy.values():
        values = without_secrets(values, "cells", lossy)
    return values, list(lossy.values())


def _without_secrets(column: str, cells: list[object]) -> list[object]:
    if looks_secret(column) or is_password_text(column, ""):
        return [mask_mapping({column: cell})[column] for cell in cells]
    return [cell if type(cell) in _PLAIN else _masked(column, cell) for cell in cells]


def _masked(column: str, cell: object) -> object:
    return mask_text(cell) if type(cell) is str else mask_mapping({column: cell})[column]


# -- back from the local view ------------------------------------------------------------------------------------------


def read_table(home: "Home | PathLike | None", content_id: str) -> Table:
    """Return the table with this content id from the local view; raise `CallerError` if it is not (wholly) known here.

    `home` is what a run has as `home`, or names the folder `.cmf`; None is the one found as `home.find_home` does.
    """
    from cmf_agent.home import Home
    from cmf_agent.view import local_view

    with local_view(home if isinstance(home, Home) else home_at_hand(home)) as graph:
        node_id = graph.node_id(("artifact", content_id))
        state = None if node_id is None else graph.state(node_id)
    if state is None or not state.space("table"):
        raise CallerError(
            f"no table {content_id} is known here", "pull what it was recorded with: cmf-agent pull -p PIPELINE"
        )
    columns = _assembled(state)
    content = _packed(columns)
    if _content_id(content) != content_id:
        raise CallerError(
            f"the table {content_id} is not known completely here",
            "pull what it was recorded with: cmf-agent pull -p PIPELINE",
        )
    name = state.names[0] if state.names else content_id
    return Table(content_id, str(state.value("kind") or "other"), name, columns, len(content))


def _assembled(state: "NodeState") -> dict[str, list[Value]]:
    """Return the columns that a table's blocks make up, as far as they follow one another."""
    blocks = {int(first): columns for first, columns in state.space("table").items()}
    found: dict[str, list[Value]] = {name: [] for name, _ in blocks.get(0, ())}
    at, rows = 0, state.value("rows") or 0
    while block := blocks.get(at):
        for name, cells in block:
            found.setdefault(name, []).extend(cells)
        at += len(block[0][1])
        if at >= rows or not block[0][1]:
            break
    return found


def steps_so_far(home: "Home", execution: bytes) -> dict[str, list[Value]]:
    """Return the step metrics that are recorded of an execution: a column `step`, and one for each series, None where it has no value.

    Those of the machine are left out: their steps count samples.
    """
    from cmf_agent.view import local_view

    with local_view(home) as graph:
        node_id = graph.node_id(("execution", execution))
        series = {} if node_id is None else graph.state(node_id).steps(graph.chains())
    own = [(key, points) for key, points in sorted(series.items()) if not key[0].startswith(MACHINE)]
    steps = sorted({step for _, points in own for step in points})
    columns: dict[str, list[Value]] = {"step": list(steps)}
    for (name, part), points in own:
        column = f"{name}[{part}]" if part else name
        while column in columns:  # a metric called as the steps are, or as another's series
            column = f"{column}[]"
        columns[column] = [points[step].shown.value if step in points else None for step in steps]
    return columns
