"""The messages of a pull: what is listed for a filter, and the events themselves (protocol/README.md, section 10). Pure.

Rules
- Each is a canonical map with `v` = 1; unknown keys are ignored; a missing, malformed or too large one is a `DecodeError`.
- What a request may ask is bounded here, so that a hub works on no more than it can answer.
- An answer that is an `error` is raised, as what it is.
"""

from hashlib import sha256
from typing import NamedTuple

import msgpack

from cmf_protocol.encoding import Value, encode
from cmf_protocol.errors import (
    AccessDenied,
    BackPressure,
    CallerError,
    CmfError,
    IntegrityError,
    LinkError,
    StoreError,
)
from cmf_protocol.filters import Filter, filter_of_parts
from cmf_protocol.forms import (
    MESSAGE_VERSION,
    array_of,
    bin_of,
    is_bytes,
    is_integer,
    is_map,
    is_natural,
    is_text,
    is_true,
    nil_or,
    part,
    parts_of,
    row_of,
)
from cmf_protocol.ranges import Ranges, clip, count, is_ranges, last_of
from cmf_protocol.segments import FRAME_BYTES_MAX, pack_frame, unpack_frame

#: What a message of NATS may have (1 MiB), less room for its headers.
ANSWER_BYTES_MAX = 900_000
#: Branches that one request names: half of what a message holds.
KNOWN_MAX = 8_000
#: Events that one request names: about as many as an answer holds.
WANTED_EVENTS_MAX = 4_000
#: What is left of a listing's hash: it tells lists apart, and proves nothing.
LISTING_DIGEST_BYTES = 16
_FRAME_VERSION = b"\x01"

#: branch → sequences in it
Wanted = tuple[tuple[bytes, Ranges], ...]


class Known(NamedTuple):
    """What the asker was told of a branch: listed up to `upto`, and the listing's digest up to there."""

    branch: bytes
    upto: int
    digest: bytes


class PullRequest(NamedTuple):
    """What is listed for `filter`, beyond what is known; with `listen` a notice follows when there is more."""

    filter: Filter
    known: tuple[Known, ...] = ()
    listen: bool = False


class ToldTree(NamedTuple):
    """A tree of events: its root's id, its log, the key that it belongs to, and that key's site."""

    root: bytes
    log_id: bytes
    key: bytes
    site: str


class ToldBranch(NamedTuple):
    """What is listed of a piece of a tree: `ranges` above `after`, up to `upto`; `digest` is of the whole list up to there.

    `parent` and `parent_sequence` are the piece and the sequence before its first event, None for a root's.
    """

    branch: bytes
    root: bytes
    parent: bytes | None
    parent_sequence: int | None
    first_sequence: int
    after: int
    ranges: Ranges
    upto: int
    digest: bytes


class PullAnswer(NamedTuple):
    """What the hub lists that was not known; `withheld` is another one whenever it has come to have a body that it had not."""

    hub_id: bytes
    incarnation: bytes
    time_us: int
    filter: Filter
    trees: tuple[ToldTree, ...]
    branches: tuple[ToldBranch, ...]
    gone: tuple[bytes, ...]
    complete: bool
    withheld: bytes = b""


class EventsRequest(NamedTuple):
    """Which events to bring, about how many bytes of them, and with `bodies` their signed segments with these bodies only."""

    wanted: Wanted
    bytes_wanted: int
    bodies: Wanted | None = None


class ToldEvent(NamedTuple):
    """An event as the hub tells it; `body` is None where it is withheld."""

    branch: bytes
    sequence: int
    header_bytes: bytes
    body: bytes | None


class EventsAnswer(NamedTuple):
    """Events as told by the hub, or the signed segments that hold them; one of the two is empty."""

    hub_id: bytes
    events: tuple[ToldEvent, ...] = ()
    segments: tuple[bytes, ...] = ()


def listing_digest(parent: bytes | None, parent_sequence: int | None, ranges: Ranges, upto: int) -> bytes:
    """Return the 16 bytes by which two sides compare what is listed of a branch up to a sequence, and where it goes on from."""
    packed: bytes = msgpack.packb([parent, parent_sequence, clip(ranges, 1, upto)])
    return sha256(packed).digest()[:LISTING_DIGEST_BYTES]


# -- pull --------------------------------------------------------------------------------------------------------------


def encode_pull(request: PullRequest) -> bytes:
    """Return the bytes of a pull; raise `CallerError` if it names too many branches."""
    if len(request.known) > KNOWN_MAX:
        raise CallerError(f"a pull names at most {KNOWN_MAX:,} branches", "name those that changed last")
    known = [list(row) for row in request.known]
    parts: dict[str, Value] = {"filter": request.filter.parts(), "known": known, "v": MESSAGE_VERSION}
    return encode({**parts, "listen": True} if request.listen else parts)


def decode_pull(data: bytes) -> PullRequest:
    """Return the pull of these bytes."""
    parts = parts_of(data)
    known = part(parts, "known", _is_known)
    listen = "listen" in parts and part(parts, "listen", is_true)
    return PullRequest(
        filter_of_parts(part(parts, "filter", is_map)), tuple(Known._make(row[:3]) for row in known), listen
    )


def encode_pull_answer(answer: PullAnswer) -> bytes:
    """Return the bytes of an answer to a pull."""
    return encode(
        {
            "branches": [list(branch) for branch in answer.branches], "complete": answer.complete,
            "filter": answer.filter.parts(), "gone": list(answer.gone), "hub": answer.hub_id,
            "incarnation": answer.incarnation, "time": answer.time_us, "trees": [list(tree) for tree in answer.trees],
            "v": MESSAGE_VERSION, "withheld": answer.withheld,
        }
    )  # fmt: skip


def decode_pull_answer(data: bytes) -> PullAnswer:
    """Return the answer of these bytes; raise the error that it may be."""
    parts = _answer(data)
    trees = part(parts, "trees", _is_trees)
    branches = part(parts, "branches", _is_branches)
    return PullAnswer(
        part(parts, "hub", bin_of(16)), part(parts, "incarnation", bin_of(16)), part(parts, "time", is_integer),
        filter_of_parts(part(parts, "filter", is_map)), tuple(ToldTree._make(row[:4]) for row in trees),
        tuple(ToldBranch._make(row[:9]) for row in branches), part(parts, "gone", array_of(_is_id)),
        part(parts, "complete", _is_boolean), part(parts, "withheld", is_bytes),
    )  # fmt: skip


# -- events ------------------------------------------------------------------------------------------------------------


def encode_events_request(request: EventsRequest) -> bytes:
    """Return the bytes of a request for events; raise `CallerError` if it names too many."""
    if wanted_count(request.wanted) > WANTED_EVENTS_MAX or wanted_count(request.bodies or ()) > WANTED_EVENTS_MAX:
        raise CallerError(f"a request names at most {WANTED_EVENTS_MAX:,} events", "ask for the others after these")
    parts: dict[str, Value] = {
        "bytes": request.bytes_wanted, "v": MESSAGE_VERSION, "wanted": [list(row) for row in request.wanted]
    }  # fmt: skip
    return encode(parts if request.bodies is None else {**parts, "bodies": [list(row) for row in request.bodies]})


def decode_events_request(data: bytes) -> EventsRequest:
    """Return the request of these bytes."""
    parts = parts_of(data)
    bodies = _wanted(part(parts, "bodies", _is_wanted)) if "bodies" in parts else None
    return EventsRequest(_wanted(part(parts, "wanted", _is_wanted)), part(parts, "bytes", is_natural), bodies)


def encode_events_answer(answer: EventsAnswer) -> bytes:
    """Return the bytes of an answer to a request for events; raise `CallerError` if it does not fit a frame."""
    parts: dict[str, Value] = {"hub": answer.hub_id, "v": MESSAGE_VERSION}
    parts |= {"segments": answer.segments} if answer.segments else {"events": answer.events}
    packed: bytes = msgpack.packb(dict(sorted(parts.items())))  # bins, integers and text: nothing to make canonical
    if len(packed) > FRAME_BYTES_MAX:
        raise CallerError(f"an answer of {len(packed):,} bytes does not fit a frame", "answer with fewer events")
    return _FRAME_VERSION + pack_frame(packed)


def decode_events_answer(data: bytes) -> EventsAnswer:
    """Return the answer of these bytes; raise the error that it may be."""
    parts = _answer(unpack_frame(data[1:], "an answer")) if data[:1] == _FRAME_VERSION else _answer(data)
    hub_id = part(parts, "hub", bin_of(16))
    if "segments" in parts:
        return EventsAnswer(hub_id, segments=part(parts, "segments", array_of(is_bytes)))
    events = tuple(ToldEvent._make(row[:4]) for row in part(parts, "events", _is_events))
    return EventsAnswer(hub_id, events)


def wanted_count(wanted: Wanted) -> int:
    """Return how many events these are."""
    return sum(count(ranges) for _, ranges in wanted)


def _wanted(rows: Value) -> Wanted:
    return tuple((row[0], row[1]) for row in rows)


# -- forms -------------------------------------------------------------------------------------------------------------

#: An error that is answered is raised as what it is where the asker's side can act on it, else as one of the link.
_ERRORS: dict[str, type[CmfError]] = {
    kind.__name__: kind for kind in (AccessDenied, BackPressure, CallerError, IntegrityError, StoreError)
}


def _answer(data: bytes) -> dict[str, Value]:
    parts = parts_of(data)
    if "error" in parts:
        error = part(parts, "error", is_map)
        kind = _ERRORS.get(str(error.get("code")), LinkError)
        raise kind(f"the hub answers: {error.get('message')}", str(error.get("hint", "")))
    return parts


def _is_boolean(value: Value) -> bool:
    return type(value) is bool


def _is_sequence(value: Value) -> bool:
    return type(value) is int and value >= 1


_is_id = bin_of(32)
_is_known = array_of(row_of(_is_id, is_natural, bin_of(LISTING_DIGEST_BYTES)), KNOWN_MAX)
_is_trees = array_of(row_of(_is_id, bin_of(16), _is_id, is_text))
_is_branch = row_of(
    _is_id, _is_id, nil_or(_is_id), nil_or(_is_sequence), _is_sequence, is_natural, is_ranges, is_natural,
    bin_of(LISTING_DIGEST_BYTES),
)  # fmt: skip
_is_pieces = array_of(row_of(_is_id, is_ranges))
_is_events = array_of(row_of(_is_id, _is_sequence, is_bytes, nil_or(is_bytes)))


def _is_branches(value: Value) -> bool:
    return type(value) is tuple and all(_is_branch(row) and _branch_holds(row) for row in value)


def _branch_holds(row: Value) -> bool:
    """Tell if a branch begins after its parent (further after a gap), and its ranges lie where the row says."""
    _, _, parent, before, first, after, ranges, upto, _ = row[:9]
    if (parent is None) != (before is None) or (before is None) != (first == 1) or (before or 0) >= first:
        return False
    low = ranges[0][0] if ranges else first
    return bool(after <= upto and low >= first and (not ranges or (low > after and last_of(ranges) <= upto)))


def _is_wanted(value: Value) -> bool:
    return _is_pieces(value) and all(row[1] for row in value) and wanted_count(_wanted(value)) <= WANTED_EVENTS_MAX
