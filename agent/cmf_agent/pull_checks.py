"""Whether what a hub answered is what was asked for, and holds (protocol/README.md, section 10). Pure.

Rules
- Everything wrong is an `IntegrityError` that names the hub and the event.
- A hub does not say something else of a tree than it did, nor of where branches stand than can be.
- As told: form, body, log and sequence are checked; the place in a piece is the hub's word. Proven: the signature of the
  key that the tree's own root names is checked too, and the chain within each segment.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cmf_protocol.errors import IntegrityError, PeerError
from cmf_protocol.events import Event, decode_event, decode_events
from cmf_protocol.filters import Filter
from cmf_protocol.pull import ToldBranch, ToldEvent, ToldTree
from cmf_protocol.ranges import Ranges, contains
from cmf_protocol.segments import Segment, decode_segment

_HINT = "keep what it sent from being used: pull from another hub, or ask its operator to run cmf-hub verify"


class Piece(NamedTuple):
    """A piece of a tree between forks, as told: its number here, its name, what it goes on from, and whose log it is of."""

    id: int
    name: bytes
    root: bytes
    parent: bytes | None
    parent_sequence: int | None
    first_sequence: int
    log_id: bytes
    key: bytes


def wrong(hub: str, what: str) -> IntegrityError:
    """Return the error for something wrong in what a hub answered."""
    return IntegrityError(f"the hub {hub} answers wrongly: {what}; nothing of this answer was kept", _HINT)


def check_filter(told: Filter, asked: Filter, hub: str) -> None:
    """Check that a hub answers what it was asked: only names of artifacts may have become content ids."""
    if told._replace(artifacts=()) != asked._replace(artifacts=()) or bool(told.artifacts) != bool(asked.artifacts):
        raise wrong(hub, "it lists what was not asked for")


def check_trees(told: Sequence[ToldTree], before: Mapping[bytes, ToldTree], hub: str) -> None:
    """Check that trees have the log and the key that they had: the events that are held were checked by these."""
    for tree in told:
        known = before.get(tree.root, tree)
        if (known.log_id, known.key) != (tree.log_id, tree.key):
            raise wrong(hub, f"the tree {tree.root.hex()[:12]} had another log or key")


def check_places(told: Sequence[ToldBranch], pieces: Mapping[bytes, Piece], hub: str) -> None:
    """Check that each branch stands in a tree that was told, after another one of it: so none goes on from itself."""
    for branch in told:
        name = f"branch {branch.branch.hex()[:12]}"
        parent = pieces.get(branch.parent or b"")
        if branch.branch not in pieces or (branch.parent is not None and parent is None):
            raise wrong(hub, f"nothing was told of the tree or the parent of {name}")
        if parent is None and branch.branch != branch.root:
            raise wrong(hub, f"{name} begins a tree that is called otherwise")
        if parent is not None and (parent.root != branch.root or parent.first_sequence > (branch.parent_sequence or 0)):
            raise wrong(hub, f"{name} goes on from where no event of its tree stands")


def checked_events(
    told: Sequence[ToldEvent], wanted: Mapping[bytes, Ranges], pieces: Mapping[bytes, Piece], hub: str
) -> list[tuple[Piece, Event]]:
    """Return the events of an answer with their pieces, each as its header says and asked for."""
    for row in told:
        if not contains(wanted.get(row.branch, ()), row.sequence):
            raise wrong(hub, f"event {row.sequence} of branch {row.branch.hex()[:12]} was not asked for")
    try:
        events = decode_events([(row.header_bytes, row.body) for row in told])
    except PeerError:
        raise _first_fault(told, pieces, hub) from None
    found = [(pieces[row.branch], event) for row, event in zip(told, events, strict=True)]
    for (piece, event), row in zip(found, told, strict=True):
        _check_place(piece, event, row.sequence, hub)
    return found


def _first_fault(told: Sequence[ToldEvent], pieces: Mapping[bytes, Piece], hub: str) -> IntegrityError:
    for row in told:
        try:
            decode_event(row.header_bytes, row.body)
        except PeerError as error:
            return wrong(hub, f"event {row.sequence} of log {pieces[row.branch].log_id.hex()}: {error}")
    return wrong(hub, "an event that breaks the format")


def _check_place(piece: Piece, event: Event, sequence: int, hub: str) -> None:
    header = event.header
    name = f"event {sequence} of log {piece.log_id.hex()}"
    if (header.log_id, header.sequence) != (piece.log_id, sequence):
        raise wrong(hub, f"{name} is event {header.sequence} of log {header.log_id.hex()}")
    if (sequence == piece.first_sequence) != (event.event_id == piece.name):
        raise wrong(hub, f"{name} is not the one that its branch is named by")
    if sequence == 1 and header.about[:1] != (("key", piece.key),):
        raise wrong(hub, f"{name} names another key than was told")


def checked_segments(
    segments: Sequence[bytes], piece: Piece, wanted: Ranges, hub: str
) -> tuple[list[Segment], dict[bytes, Event]]:
    """Return the segments of an answer about one piece, each signed by the key of its tree, and by id those events that were wanted.

    A segment may come several times, each time with other bodies.
    """
    found: list[Segment] = []
    events: dict[bytes, Event] = {}
    for data in segments:
        segment = _checked_segment(data, piece, hub)
        found.append(segment)
        asked = [event for event in segment.events if contains(wanted, event.header.sequence)]
        if not asked:
            statement = segment.statement
            raise wrong(hub, f"events {statement.first_sequence} to {statement.last_sequence} were not asked for")
        for event in asked:
            _check_place(piece, event, event.header.sequence, hub)
            if event.event_id not in events or event.body is not None:
                events[event.event_id] = event
    return found, events


def _checked_segment(data: bytes, piece: Piece, hub: str) -> Segment:
    name = f"a segment of log {piece.log_id.hex()}"
    try:
        segment = decode_segment(data)
    except PeerError as error:
        raise wrong(hub, f"{name}: {error}") from error
    if (segment.statement.log_id, segment.statement.key) != (piece.log_id, piece.key):
        raise wrong(hub, f"{name} is of another log or key")
    if not segment.signature_holds():
        raise wrong(hub, f"{name}: it is not signed by the key of that log")
    return segment
