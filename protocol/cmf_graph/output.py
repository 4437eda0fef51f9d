"""Answers on standard output: JSON for programs, tables for people.

Rules
- `--json` prints one document and nothing else; it is ASCII, so that no terminal and no locale can spoil it.
- For people everything is `text.clean`; on a terminal a table whose wide cells fold, else one line per item, fields separated by tabs.
- rich is imported only when there is a terminal to draw on.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cmf_graph.text import clean, counted, short_content_id

Item = Mapping[str, Any]
#: From this width on a table shows every column that holds something.
WIDE_CHARS = 110
#: Longer texts are cut where many values share a cell.
_VALUE_CHARS_MAX = 60
_LIST_SHOWN = 5
#: The fields of who produced or used an artifact, and those of a note or a dispute.
_USERS = {"count", "executions"}
_TABLE = {"columns", "rows", "records"}
_REMARK = {"event_id", "event", "text", "site", "at"}


class Column(NamedTuple):
    """A column of a table: its heading, and what it shows of an item."""

    heading: str
    value: Callable[[Item], object]
    right: bool = False
    #: On a terminal: never folded, and cut to so many characters.
    chars: int | None = None
    #: On a terminal: left out where it has less than `WIDE_CHARS`.
    wide: bool = False


def field(name: str, heading: str = "", *, right: bool = False, chars: int | None = None) -> Column:
    """Return the column that shows a field as it is."""
    return Column(heading or name, lambda item: item.get(name), right, chars)


def print_json(document: object) -> None:
    """Print a document as JSON."""
    print_text(json.dumps(document, indent=2))


def print_text(text: str) -> None:
    """Print text that is fit to be shown; what the locale can't write becomes `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def cell(value: object) -> str:
    """Return a value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        shown = [f"{_part(key)}={_part(inner)}" for key, inner in list(value.items())[:_LIST_SHOWN]]
        return ", ".join(shown) + _more(len(value))
    if isinstance(value, list | tuple):
        return ", ".join(_part(inner) for inner in value[:_LIST_SHOWN]) + _more(len(value))
    return clean(value)


def _part(value: object) -> str:
    text = cell(value)
    return text if len(text) <= _VALUE_CHARS_MAX else text[: _VALUE_CHARS_MAX - 1] + "…"


def _more(count: int) -> str:
    return f", +{count - _LIST_SHOWN}" if count > _LIST_SHOWN else ""


def moment(time: object) -> str:
    """Return an RFC 3339 time without its microseconds."""
    return "" if time is None else str(time)[:19].replace("T", " ") + "Z"


def print_table(
    items: Sequence[Item], columns: Sequence[Column], *, following: str | None = None, empty: str = ""
) -> None:
    """Print items as a table; `following` is the cursor of the next page, `empty` what to say when there are none."""
    rows = [[cell(column.value(item)) for column in columns] for item in items]
    if not sys.stdout.isatty():
        for row in ([column.heading for column in columns], *rows):
            print_text("\t".join(row))
    elif rows:
        _draw(rows, columns)
    elif empty:
        print_text(empty)
    if following:
        sys.stderr.write(f"there are more: --cursor {following}\n")


def print_saved(total: Item) -> None:
    """Say on standard error what keeping each content once saves."""
    contents, copies, saved = total["contents"], total["copies"], total["bytes_saved"]
    sys.stderr.write(
        f"{counted(contents, 'content')}, {copies:,} copies: kept once each, they take {saved:,} bytes less\n"
    )


def print_marks(answer: Item) -> None:
    """Say on standard error, in one line, what is not whole in an answer of a local view (its `view`, the items' `incomplete`)."""
    if "view" not in answer:
        return
    shown = answer.get("items", answer.get("nodes", [answer]))
    count = sum(bool(item.get("incomplete")) for item in shown)
    found = []
    if count:
        found.append(
            f"{count} of these {'is' if count == 1 else 'are'} incomplete: no filter that was pulled selects them"
        )
    if not all(pulled["complete"] for pulled in answer["view"]["pulled"]):
        found.append("not everything that was asked for has been pulled: run `cmf-agent pull`")
    if found:
        sys.stderr.write(f"note: {'; '.join(found)}\n")


def _draw(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    console = Console(soft_wrap=False, emoji=False, highlight=False)
    filled = [at for at in range(len(columns)) if any(row[at] for row in rows)]  # no room for what is always empty
    shown = [at for at in filled if console.width >= WIDE_CHARS or not columns[at].wide]
    for column in (columns[at] for at in shown):
        justify: Literal["right", "left"] = "right" if column.right else "left"
        table.add_column(column.heading, overflow="fold", justify=justify, no_wrap=column.chars is not None)
    for row in rows:
        table.add_row(*(Text(row[at][: columns[at].chars]) for at in shown))  # Text: no markup in it is read
    console.print(table)


# -- one thing ---------------------------------------------------------------------------------------------------------


def print_thing(thing: Item) -> None:
    """Print everything of one thing: a line for each field, and one for each element of a field that holds many."""
    for key, value in thing.items():
        if value in (None, [], {}, "") or key in ("type", "view"):
            continue
        if key == "command" and isinstance(value, list):
            print_text(f"command: {' '.join(map(_whole, value))}")
        elif isinstance(value, Mapping) and value.keys() == _TABLE:
            _print_records(value)
        elif isinstance(value, Mapping) and value.keys() == _USERS:
            _print_users(key, value)
        elif isinstance(value, Mapping):
            _print_map(key, _unsaid(value, thing) if key == "facts" else value)
        elif isinstance(value, list) and any(isinstance(element, Mapping | list) for element in value):
            print_text(f"{clean(key)}:")
            for element in value:
                print_text(f"  {_element(element)}")
        else:
            print_text(f"{clean(key)}: {_whole(value)}")


def _unsaid(facts: Item, thing: Item) -> Item:
    """Return the facts that are not among the fields of the thing already."""
    return {key: value for key, value in facts.items() if key not in thing or thing[key] != value}


def _print_users(key: str, users: Item) -> None:
    """Print the executions that have to do with an artifact, and how many there are; none is not worth a line."""
    if users["count"]:
        print_text(f"{clean(key).replace('_', ' ')} ({users['count']}):")
        for execution in users["executions"]:
            print_text(f"  {_element(execution)}")


def _print_records(table: Item) -> None:
    """Print the first rows of a table, cells separated by tabs."""
    rows, records = table["rows"], table["records"]
    shown = f"{rows} row{'' if rows == 1 else 's'}" + (f", the first {len(records)}" if len(records) != rows else "")
    print_text(f"table ({shown}):")
    print_text("  " + "\t".join(clean(name) for name in table["columns"]))
    for record in records:
        print_text("  " + "\t".join(_part(record.get(name)) for name in table["columns"]))


def _print_map(key: str, value: Item) -> None:
    if not value:
        return
    print_text(f"{clean(key)}:")
    for inner, element in value.items():
        if isinstance(element, list) and any(isinstance(each, Mapping) for each in element):
            for each in element:
                print_text(f"  {_element(each)}")
        else:
            print_text(f"  {clean(inner)}: {_whole(element)}")


def _whole(value: object) -> str:
    """Return a value uncut."""
    if isinstance(value, list):
        return ", ".join(_whole(inner) for inner in value)
    if isinstance(value, Mapping):
        return clean(json.dumps(value, ensure_ascii=False))
    return repr(value) if isinstance(value, float) else cell(value)


def _element(element: object) -> str:
    if not isinstance(element, Mapping):
        return _whole(element)
    if "content_id" in element:
        parts = [element.get("name"), short_content_id(element["content_id"]), element.get("kind")]
    elif element.get("type") == "execution":
        parts = [element["label"], element["id"], element["status"], element["site"], moment(element["started_at"])]
    elif "points" in element:
        last = element["points"][-1]
        series = f" [{cell(element['series'])}]" if element["series"] else ""
        count = f"{element['count']} steps, at {last['step']}:"
        parts = [f"{cell(element['name'])}{series}", count, _whole(last["value"])]
    elif element.keys() == _REMARK:
        of_event = f" of event {element['event'][:10]}" if element["event"] else ""
        parts = [f'"{clean(element["text"])}"{of_event} ({cell(element["site"])}, {str(element["at"])[:10]})']
    else:
        parts = [f"{clean(key)}={_whole(value)}" for key, value in element.items() if value not in (None, [], {})]
    return "  ".join(cell(part) for part in parts if part not in (None, ""))
