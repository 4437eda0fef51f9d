"""Lists events, newest first, as `cmf-agent log` shows them."""

from collections.abc import Iterator
from typing import NamedTuple

from cmf_agent.home import Home
from cmf_agent.naming import describe_node, node_id_text
from cmf_agent.reading import LogReader, LogRow, StoredEvent
from cmf_graph.text import clean
from cmf_graph.times import rfc3339
from cmf_protocol.encoding import Value, to_json
from cmf_protocol.errors import CallerError, DecodeError
from cmf_protocol.events import Header, Node, decode_body
from cmf_protocol.types import EXECUTION_STARTED

_SUMMARY_CHARS_MAX = 100


class Page(NamedTuple):
    """Events as JSON has them, and the cursor of the next page, None if there is none."""

    items: list[dict[str, Value]]
    next: str | None


def history(home: Home, *, pipeline: str | None = None, limit: int = 50, cursor: str | None = None) -> Page:
    """Return up to `limit` events, newest first, from the one after `cursor`; of one pipeline if it is named."""
    with LogReader(home.log_path) as reader:
        logs = reader.logs()
        wanted = _nodes_of(reader, logs, pipeline) if pipeline is not None else None
        items: list[dict[str, Value]] = []
        last = ""
        for log, stored in _newest_first(reader, logs, cursor):
            header = stored.header
            if wanted is not None and not wanted.intersection(header.about):
                continue
            if len(items) == limit:
                return Page(items, last)
            items.append(_item(stored, header))
            last = f"{log.log_id.hex()}:{stored.sequence}"
    return Page(items, None)


def _newest_first(reader: LogReader, logs: list[LogRow], cursor: str | None) -> Iterator[tuple[LogRow, StoredEvent]]:
    number, before = _read_cursor(logs, cursor) if cursor is not None else (None, 0)
    for log in reversed(logs):
        if number is None or log.number < number:
            events = reader.newest(log.number)
        elif log.number == number:
            events = reader.newest(log.number, before=before)
        else:
            continue
        for stored in events:
            yield log, stored


def _read_cursor(logs: list[LogRow], cursor: str) -> tuple[int, int]:
    log_id, _, sequence = cursor.partition(":")
    for log in logs:
        if log.log_id.hex() == log_id and sequence.isdecimal():
            return log.number, int(sequence)
    raise CallerError(f"{cursor!r} is no cursor of this log", "take it from `next` of the page before")


def _nodes_of(reader: LogReader, logs: list[LogRow], pipeline: str) -> set[Node]:
    """Return a pipeline, its stages and its executions."""
    nodes: set[Node] = {("pipeline", pipeline)}
    for log in logs:
        for stored in reader.events(log.number):
            header = stored.header
            stages = [node for node in header.about if node[0] == "stage" and node[1][0] == pipeline]
            nodes.update(stages)
            if stages and header.type == EXECUTION_STARTED:
                nodes.update(node for node in header.about if node[0] == "execution")
    return nodes


def _item(stored: StoredEvent, header: Header) -> dict[str, Value]:
    return {
        "event_id": stored.event_id.hex(),
        "log_id": header.log_id.hex(),
        "sequence": stored.sequence,
        "type": header.type,
        "time": rfc3339(header.wall_us),
        "about": [{"kind": kind, "id": node_id_text((kind, id_))} for kind, id_ in header.about],
        "summary": _summary(stored, header),
    }


def _summary(stored: StoredEvent, header: Header) -> str:
    """Return one line: what the event is about, and the small values of its body."""
    about = ", ".join(describe_node(node) for node in header.about)
    try:
        body = decode_body(stored.body) if stored.body is not None else None
    except DecodeError:
        return f"{about}: (its body can't be read)"
    said = "(its body is withheld)" if body is None else ", ".join(_said(body))
    line = clean(f"{about}: {said}" if said else about)
    return line if len(line) <= _SUMMARY_CHARS_MAX + len(about) else line[: _SUMMARY_CHARS_MAX + len(about)] + "…"


def _said(values: dict[str, Value]) -> Iterator[str]:
    for key, value in values.items():
        if key == "lossy":
            continue
        if isinstance(value, dict):
            yield from _said(value)
        elif not isinstance(value, tuple | list):
            yield f"{key}={to_json(value)}"


def history_text(page: Page) -> str:
    """Return a page as people read it."""
    if not page.items:
        return "no events"
    lines = [f"{item['time']}  {item['event_id'][:10]}  {item['type']:<20} {item['summary']}" for item in page.items]
    return "\n".join([*lines, *(["…"] if page.next else [])])
