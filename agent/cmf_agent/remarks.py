"""What people say about what is recorded: tags, notes, retractions, accepted gaps. Each appends one event and returns it.

Rules
- Nothing is taken away: a removal or a retraction is an event too.
- These raise when nothing could be recorded: whoever calls them waits for the answer.
"""

from collections.abc import Mapping

from cmf_agent.describing import checked_text, description
from cmf_agent.home import Home
from cmf_agent.log import Log
from cmf_agent.naming import describe_node
from cmf_agent.reading import LogReader
from cmf_agent.refs import events_about
from cmf_graph.graph import EventRow
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft, Event, Node, decode_body
from cmf_protocol.fold import ALWAYS_SAID
from cmf_protocol.gaps import Gap
from cmf_protocol.types import (
    RETRACTED,
    TAG_ADDED,
    TAG_REMOVED,
    UNRETRACTED,
    checked_name,
    gap_accepted,
    note_added,
    retracted,
    tag_added,
    tag_removed,
    unretracted,
)

_NO_STATEMENTS = (
    "only statements can be retracted, not the opening of a log, an accepted gap, or a retraction (unretract that)"
)


def describe_here(home: Home, pipeline: str, stage: str | None, properties: Mapping[str, object]) -> Event:
    """Record properties of a pipeline, or of a stage if one is named."""
    if not properties:
        raise CallerError("nothing was said of it", "give properties as KEY=VALUE")
    return _append(home, description(pipeline, stage, properties))


def tag(home: Home, node: Node, name: str) -> Event:
    """Put a tag on a node."""
    return _append(home, tag_added(node, name))


def untag(home: Home, node: Node, name: str) -> Event:
    """Take a tag off a node, as far as this site has seen it put there; raise `CallerError` if it has not."""
    name = checked_name(name, "tag")
    said = [(row, decode_body(row.body or b"")) for row in events_about(home, node, (TAG_ADDED, TAG_REMOVED))]
    removed = {add for row, body in said if row.header.type == TAG_REMOVED for add in body.get("adds", ())}
    adds = [
        row.event_id
        for row, body in said
        if row.header.type == TAG_ADDED and body.get("tag") == name and row.event_id not in removed
    ]
    if not adds:
        raise CallerError(f"{describe_node(node)} has no tag {name!r} here", "see `cmf-agent log` for what was tagged")
    return _append(home, tag_removed(node, name, adds))


def note(home: Home, node: Node, text: str) -> Event:
    """Put a note on a node."""
    return _append(home, note_added(node, checked_text(text, "note")))


def retract(home: Home, target: Node | EventRow, reason: str) -> Event:
    """Say that an event does not hold; of a node, dispute it."""
    reason = checked_text(reason, "reason")
    if not isinstance(target, EventRow):
        return _append(home, retracted((target,), reason))
    if target.header.type in ALWAYS_SAID:
        raise CallerError(f"a {target.header.type} event can't be retracted", _NO_STATEMENTS)
    return _append(home, retracted(target.header.about, reason, event=target.event_id))


def unretract(home: Home, target: Node | EventRow, reason: str | None = None) -> list[Event]:
    """Withdraw a retraction, or all of this site's that still stand against an event or a node."""
    said = None if reason is None else checked_text(reason, "reason")
    standing = _standing_retractions(home, target)
    if not standing:
        raise CallerError("no retraction of it stands here", "see `cmf-agent log` for what was retracted")
    drafts = [unretracted(event.header.about, event.event_id, reason=said) for event in standing]
    with Log(home.log_path) as log:
        return log.append(drafts)


def accept_gap(home: Home, key: bytes, gap: Gap, reason: str) -> Event:
    """Say that what is missing in a log of `key` is lost for ever; a hub heeds it if it lets this site operate."""
    if gap.before == gap.after:
        raise CallerError("the events before and after the gap are one", "take both from: cmf-hub query sites")
    return _append(home, gap_accepted(key, gap.log_id, gap.before, gap.after, reason=checked_text(reason, "reason")))


def _standing_retractions(home: Home, target: Node | EventRow) -> list[EventRow]:
    node = target.header.about[0] if isinstance(target, EventRow) else target
    found = events_about(home, node, (RETRACTED, UNRETRACTED))
    withdrawn = {decode_body(row.body or b"").get("retraction") for row in found if row.header.type == UNRETRACTED}
    with LogReader(home.log_path) as reader:
        own = {log.log_id for log in reader.logs()}
    return [
        row
        for row in found
        if row.header.type == RETRACTED
        and row.header.log_id in own  # another site's retraction is withdrawn by its own chain alone
        and row.event_id not in withdrawn
        and _is_against(row, target)
    ]


def _is_against(retraction: EventRow, target: Node | EventRow) -> bool:
    event = decode_body(retraction.body or b"").get("event")
    if isinstance(target, EventRow):
        return target.event_id in (retraction.event_id, event)
    return event is None and retraction.header.about == (target,)


def _append(home: Home, draft: Draft) -> Event:
    with Log(home.log_path) as log:
        return log.append([draft])[0]
