"""A segment: consecutive events of one log, signed, as they travel and are stored (protocol/README.md, section 6). Pure.

Rules
- `decode_segment` returns a segment whose chain and body hashes hold, or raises `DecodeError` or `IntegrityError`; only the signature
  and the place of its first event are left for `admit` to check.
- Sizes are bounded before anything is unpacked.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgpack
import zstandard

from cmf_protocol.encoding import unpack
from cmf_protocol.errors import DecodeError, IntegrityError
from cmf_protocol.events import Event, decode_events
from cmf_protocol.signing import KEY_BYTES, SEGMENT_TAG, SIGNATURE_BYTES, Signer, verifies

SEGMENT_VERSION = 1
#: Large enough that signature and message cost little per event, small enough for any link (README, section 6).
SEGMENT_EVENTS_MAX = 1_000
SEGMENT_BYTES_MAX = 524_288
FRAME_BYTES_MAX = 1_048_576
#: Level 3 made 122 of 300 bytes per event at full speed; higher levels won little (nats-facts, Throughput).
_ZSTD_LEVEL = 3


class Statement(NamedTuple):
    """What a segment's signature covers."""

    log_id: bytes
    first_sequence: int
    previous: bytes | None
    last_sequence: int
    last_id: bytes
    head_sequence: int
    head_id: bytes
    key: bytes


class Segment(NamedTuple):
    """A segment whose chain holds; `data` is what was sent."""

    statement: Statement
    signature: bytes
    events: tuple[Event, ...]
    data: bytes

    def signature_holds(self) -> bool:
        """Tell if the key that the statement names signed it."""
        return verifies(self.statement.key, self.signature, SEGMENT_TAG, list(self.statement))


def statement_of(events: Sequence[Event], head: Event, key: bytes) -> Statement:
    """Return the statement about consecutive `events` of a log whose newest event is `head`."""
    first, last = events[0], events[-1]
    return Statement(
        first.header.log_id,
        first.header.sequence,
        first.header.previous,
        last.header.sequence,
        last.event_id,
        head.header.sequence,
        head.event_id,
        key,
    )


def sign_segment(statement: Statement, signer: Signer) -> bytes:
    """Return the signature of a statement."""
    return signer.sign(SEGMENT_TAG, list(statement))


def encode_segment(statement: Statement, signature: bytes, events: Sequence[tuple[bytes, bytes | None]]) -> bytes:
    """Return the bytes that travel; `events` are (header bytes, body bytes or None)."""
    packed = msgpack.packb([statement, signature, events])
    return bytes([SEGMENT_VERSION]) + pack_frame(packed)


def cut(
    sizes: Sequence[int], events_max: int = SEGMENT_EVENTS_MAX, bytes_max: int = SEGMENT_BYTES_MAX
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the segments that events of these sizes (bytes) are cut into: one event at least is in each."""
    start, total = 0, 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == events_max or total + size > bytes_max):
            yield start, at
            start, total = at, 0
        total += size
    if sizes:
        yield start, len(sizes)


def unpack_segment(data: bytes) -> tuple[Statement, bytes, tuple[tuple[bytes, bytes | None], ...]]:
    """Return statement, signature and (header bytes, body bytes or None) of a segment, without checking its chain.

    For a reader of its own store; what comes from outside goes through `decode_segment`.
    """
    packed = _decompress(data)
    parts = unpack(packed)
    if type(parts) is not tuple or len(parts) != 3:
        raise DecodeError("a segment is a statement, a signature and events")
    statement, signature, events = parts
    if not _statement_holds(statement) or type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise DecodeError("a segment's statement or signature breaks the format")
    if type(events) is not tuple or not 1 <= len(events) <= SEGMENT_EVENTS_MAX:
        raise DecodeError(f"a segment holds 1 to {SEGMENT_EVENTS_MAX:,} events")
    if msgpack.packb(parts) != packed:
        raise DecodeError("a segment's bytes are not canonical")
    return Statement._make(statement), signature, events


def decode_segment(data: bytes) -> Segment:
    """Return the segment of these bytes; raise `DecodeError` or `IntegrityError` for any others."""
    statement, signature, pairs = unpack_segment(data)
    total = 0
    for pair in pairs:
        if type(pair) is not tuple or len(pair) != 2 or type(pair[0]) is not bytes:
            raise DecodeError("a segment's event is header bytes and body bytes")
        if pair[1] is not None and type(pair[1]) is not bytes:
            raise DecodeError("a segment's event is header bytes and body bytes")
        total += len(pair[0]) + len(pair[1] or b"")
    if total > SEGMENT_BYTES_MAX:
        raise DecodeError(f"a segment holds at most {SEGMENT_BYTES_MAX:,} bytes of events")
    events = decode_events(pairs)
    _check_chain(statement, events)
    return Segment(statement, signature, tuple(events), data)


def _decompress(data: bytes) -> bytes:
    if not data or data[0] != SEGMENT_VERSION:
        raise DecodeError(f"a segment begins with the version byte {SEGMENT_VERSION}")
    return unpack_frame(data[1:], "a segment")


def pack_frame(packed: bytes) -> bytes:
    """Return these bytes as a zstd frame."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(packed)


def unpack_frame(frame: bytes, what: str) -> bytes:
    """Return what a zstd frame holds, at most `FRAME_BYTES_MAX` bytes; raise `DecodeError`, which names it as `what`, for any other."""
    try:
        if not 0 < zstandard.frame_content_size(frame) <= FRAME_BYTES_MAX:
            raise DecodeError(f"{what} states its size, at most {FRAME_BYTES_MAX:,} bytes")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=FRAME_BYTES_MAX, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DecodeError(f"{what} that zstd can't read: {error}") from error


def _statement_holds(fields: object) -> bool:
    if type(fields) is not tuple or len(fields) != 8:
        return False
    log_id, first, previous, last, last_id, head, head_id, key = fields
    numbers = all(type(n) is int and 1 <= n < 2**63 for n in (first, last, head))
    bins = ((log_id, 16), (last_id, 32), (head_id, 32), (key, KEY_BYTES))
    if not numbers or not all(type(value) is bytes and len(value) == size for value, size in bins):
        return False
    if not first <= last <= head or (last == head and last_id != head_id):
        return False
    return previous is None if first == 1 else type(previous) is bytes and len(previous) == 32


def _check_chain(statement: Statement, events: Sequence[Event]) -> None:
    previous, sequence, log_id = statement.previous, statement.first_sequence, statement.log_id
    for event in events:
        header = event.header
        if header.previous != previous or header.sequence != sequence or header.log_id != log_id:
            raise IntegrityError(f"event {sequence} of log {log_id.hex()} is not chained to the one before it")
        previous, sequence = event.event_id, sequence + 1
    if (sequence - 1, previous) != (statement.last_sequence, statement.last_id):
        raise IntegrityError(f"a segment of log {log_id.hex()} does not end where its statement says")
