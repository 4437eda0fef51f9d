"""An event: header, body, id; and how a chain of them is made (protocol/README.md, section 2). Pure.

Rules
- The bytes that were made are the event; nothing is ever encoded again to be stored or sent.
- Salts and times are arguments.
- A header that breaks the format is a `DecodeError`; what a body says is the fold's business, not this file's.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

from cmf_protocol.clock import next_clock
from cmf_protocol.encoding import INTEGER_MAX, Value, decode, is_canonical, normal, unpack
from cmf_protocol.errors import CallerError, DecodeError, IntegrityError

ENVELOPE_VERSION = 1
#: Header and body of one event together, bytes: so that any event fits a segment and a message (README, section 2).
EVENT_BYTES_MAX = 262_144
ABOUT_MAX = 1_000
TYPE_CHARS_MAX = 100
SALT_BYTES = 16
_HEADER_LENGTH = 10
_FIXSTR_MAX = 31

Node = tuple[str, Any]


class Header(NamedTuple):
    """The ten elements that version 1 knows, in their order."""

    version: int
    type: str
    type_version: int
    log_id: bytes
    sequence: int
    previous: bytes | None
    clock: int
    wall_us: int
    about: tuple[Node, ...]
    body_hash: bytes


class Event(NamedTuple):
    """An event as it is stored and sent; `body` is None where it is withheld."""

    event_id: bytes
    header: Header
    header_bytes: bytes
    body: bytes | None

    @property
    def size(self) -> int:
        """Bytes of header and body."""
        return len(self.header_bytes) + len(self.body or b"")


class Draft(NamedTuple):
    """What someone wants to record, before it has a place in a log; made by the functions of `types`."""

    type: str
    about: tuple[Node, ...]
    body: dict[str, Value]
    wall_us: int = 0


class Head(NamedTuple):
    """The newest event of a log, as far as the next one needs it; sequence 0 for a log without events."""

    log_id: bytes
    sequence: int
    event_id: bytes | None
    clock: int | None


def about_key(node: Node) -> bytes:
    """Return the canonical bytes of an `about` entry, by which entries are sorted."""
    packed: bytes = msgpack.packb(node)
    return packed


def sorted_about(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return the nodes as `about` holds them: sorted by their canonical bytes, none twice."""
    return tuple(sorted(set(nodes), key=about_key))


def make_events(head: Head, drafts: Sequence[Draft], salts: bytes, wall_us: int) -> list[Event]:
    """Chain `drafts` after `head`; `salts` holds 16 random bytes for each, `wall_us` is the time of those that name none.

    Raises `CallerError` for a draft that has no canonical form or is too large; then nothing was made.
    """
    if len(salts) != SALT_BYTES * len(drafts):
        raise CallerError(f"{len(drafts)} events need {SALT_BYTES} random bytes each, not {len(salts)} together")
    try:
        return _chained(head, drafts, salts, wall_us)
    except (UnicodeEncodeError, OverflowError) as error:
        raise CallerError(f"an event holds text or a number that can't be encoded: {error}") from error


def _chained(head: Head, drafts: Sequence[Draft], salts: bytes, wall_us: int) -> list[Event]:
    pack = msgpack.Packer().pack
    new = tuple.__new__  # a NamedTuple's own constructor costs three times as much
    log_id, sequence, previous, clock = head
    events: list[Event] = []
    for at, draft in enumerate(drafts):
        type_, about, values, wall = draft
        wall = wall or wall_us
        body = pack((salts[at * SALT_BYTES : (at + 1) * SALT_BYTES], normal(values, 1)))
        sequence += 1
        clock = next_clock(clock, wall)
        if clock > INTEGER_MAX:
            raise CallerError(f"the wall time {wall} µs does not fit into the clock", "set this machine's date")
        fields = (
            ENVELOPE_VERSION, type_, 1, log_id, sequence, previous, clock, wall, about, sha256(body).digest()
        )  # fmt: skip
        header = pack(fields)
        if len(header) + len(body) > EVENT_BYTES_MAX:
            raise _too_large(type_, len(header) + len(body))
        previous = sha256(header).digest()
        events.append(new(Event, (previous, new(Header, fields), header, body)))
    return events


def _too_large(type_: str, size: int) -> CallerError:
    return CallerError(
        f"the event {type_} has {size:,} bytes, {EVENT_BYTES_MAX:,} are allowed",
        "record large values as a file and log that as an artifact",
    )


def head_of(event: Event) -> Head:
    """Return the head of a log whose newest event is `event`."""
    return Head(event.header.log_id, event.header.sequence, event.event_id, event.header.clock)


def decode_event(header_bytes: bytes, body: bytes | None) -> Event:
    """Return the event of these bytes; raise `DecodeError` for a bad header, `IntegrityError` if the body is another's."""
    return decode_events([(header_bytes, body)])[0]


def decode_events(pairs: Sequence[tuple[bytes, bytes | None]]) -> list[Event]:
    """Return the events of (header bytes, body bytes or None); raises like `decode_event`. Chaining is not checked."""
    new = tuple.__new__  # a NamedTuple's own constructor costs three times as much
    events = []
    for header, (header_bytes, body) in zip(decode_headers([pair[0] for pair in pairs]), pairs, strict=True):
        size = len(header_bytes)
        if body is not None:
            size += len(body)
            if sha256(body).digest() != header[9]:
                raise IntegrityError(f"the body of event {header.sequence} is not the one that its header names")
        if size > EVENT_BYTES_MAX:
            raise DecodeError(f"event {header.sequence} is larger than {EVENT_BYTES_MAX:,} bytes")
        events.append(new(Event, (sha256(header_bytes).digest(), header, header_bytes, body)))
    return events


def decode_header(data: bytes) -> Header:
    """Return the header of these bytes; raise `DecodeError` if they break section 2."""
    return decode_headers([data])[0]


def decode_headers(datas: Sequence[bytes]) -> list[Header]:
    """Return the headers of these bytes; raise `DecodeError` if any breaks section 2.

    They are packed again together, which costs half of packing each: what is not canonical shows as a difference.
    """
    found = [unpack(data) for data in datas]
    pack = msgpack.Packer(autoreset=False)
    new = tuple.__new__
    headers = []
    for fields in found:
        if type(fields) is not tuple or len(fields) < _HEADER_LENGTH:
            raise DecodeError("a header is an array of ten or more elements")
        pack.pack(fields)
        header: Header = new(Header, fields[:_HEADER_LENGTH])
        if not (_fields_hold(header) and _about_holds(header[8])):
            raise DecodeError("a header breaks the format")
        if len(fields) > _HEADER_LENGTH and not is_canonical(fields):
            raise DecodeError("the further elements of a header are not canonical")
        headers.append(header)
    if pack.bytes() != b"".join(datas):
        raise DecodeError("a header is not canonical")
    return headers


def _fields_hold(header: Header) -> bool:
    version, kind, type_version, log_id, sequence, previous, clock, wall_us, _, body_hash = header
    if not (
        type(version) is type(type_version) is int and type(kind) is str and _type_holds(version, kind, type_version)
    ):
        return False
    if not (type(sequence) is type(clock) is type(wall_us) is int and wall_us <= INTEGER_MAX):
        return False
    if not (1 <= sequence <= INTEGER_MAX and 0 <= clock <= INTEGER_MAX):
        return False
    if not (type(log_id) is type(body_hash) is bytes and len(log_id) == 16 and len(body_hash) == 32):
        return False
    if sequence == 1:
        return previous is None
    return type(previous) is bytes and len(previous) == 32


@lru_cache(maxsize=1024)
def _type_holds(version: int, kind: str, type_version: int) -> bool:
    """Tell if these may stand in a header; remembered, since a log has few types."""
    return 1 <= version <= INTEGER_MAX >= type_version >= 1 and 1 <= len(kind) <= TYPE_CHARS_MAX and "\0" not in kind


def _is_bin(value: object, length: int) -> bool:
    return type(value) is bytes and len(value) == length


def _about_holds(about: object) -> bool:
    if type(about) is not tuple or not 1 <= len(about) <= ABOUT_MAX:
        return False
    for entry in about:
        if type(entry) is not tuple or len(entry) != 2:
            return False
        kind, id_ = entry
        if type(kind) is not str or "\0" in kind:
            return False
        # an id sits in the header's array, about's, and its own entry's
        if type(id_) is not bytes and not is_canonical(id_, 3):
            return False
    return len(about) == 1 or _is_sorted(about)


def _is_sorted(about: tuple[Node, ...]) -> bool:
    if len(about) == 2:
        first, second = about[0][0], about[1][0]
        if first != second and first.isascii() and second.isascii() and len(first) <= _FIXSTR_MAX >= len(second):
            return (len(first), first) < (len(second), second)  # a short text's first byte is its length
    keys = [about_key(entry) for entry in about]
    return all(low < high for low, high in zip(keys, keys[1:], strict=False))


def decode_body(data: bytes) -> dict[str, Value]:
    """Return the map of a body; raise `DecodeError` if it breaks section 2."""
    body = decode(data)
    if type(body) is not tuple or len(body) != 2 or not _is_bin(body[0], SALT_BYTES) or type(body[1]) is not dict:
        raise DecodeError("a body is a salt and a map")
    values: dict[str, Value] = body[1]
    return values


# -- reading back what was checked when it was stored ------------------------------------------------------------------


def trusted_header(data: bytes) -> Header:
    """Return the header of bytes that `decode_header` or `make_events` has seen before; checks nothing."""
    return Header._make(unpack(data)[:_HEADER_LENGTH])


def trusted_body(data: bytes) -> dict[str, Value]:
    """Return the map of a body that `fold.read` has read before; checks nothing."""
    values: dict[str, Value] = unpack(data)[1]
    return values


def trusted_events(pairs: Sequence[tuple[bytes, bytes | None]], last_id: bytes) -> list[Event]:
    """Return chained events that `decode_segment` has checked before: each one's id is read from the header after it."""
    headers = [trusted_header(header) for header, _ in pairs]
    ids = [header.previous or b"" for header in headers[1:]]
    ids.append(last_id)
    return [
        Event(id_, header, header_bytes, body)
        for id_, header, (header_bytes, body) in zip(ids, headers, pairs, strict=True)
    ]
