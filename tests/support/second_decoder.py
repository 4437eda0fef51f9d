"""A second decoder and verifier of the format, written from protocol/README.md alone.

It shares nothing with `cmf_protocol`: what both read alike is what the page says. Plain and slow on purpose.

Rules
- Any bytes give a value or `Broken`, nothing else.
- Only the primitives come from elsewhere: SHA-256 (hashlib), zstd (zstandard), Ed25519 (PyNaCl).
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import zstandard
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey


class Broken(Exception):
    """Bytes that break the specification; the message names the rule."""


# -- section 1: canonical encoding -------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Broken("cut short")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def value(self, room: int) -> Any:
        """Read one value in which arrays and maps may still nest `room` deep."""
        first = self.number(1)
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 256
        if first <= 0x8F:
            return self.map(first & 0x0F, room)
        if first <= 0x9F:
            return self.array(first & 0x0F, room)
        if first <= 0xBF:
            return self.text(first & 0x1F)
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first == 0xCB:
            return self.float64()
        if 0xCC <= first <= 0xCF:
            return self.unsigned(first - 0xCC)
        if 0xD0 <= first <= 0xD3:
            return self.negative(first - 0xD0)
        return self.sized(first, room)

    def sized(self, first: int, room: int) -> Any:
        if first in (0xC4, 0xC5, 0xC6):
            return self.take(self.length(1 << (first - 0xC4), -1))
        if first in (0xD9, 0xDA, 0xDB):
            return self.text(self.length(1 << (first - 0xD9), 31))
        if first in (0xDC, 0xDD):
            return self.array(self.length(2 << (first - 0xDC), 15), room)
        if first in (0xDE, 0xDF):
            return self.map(self.length(2 << (first - 0xDE), 15), room)
        raise Broken(f"the byte {first:#x}: an ext type, a float 32 or nothing")

    def length(self, count: int, fixed_max: int) -> int:
        """Read a length of `count` bytes; a shorter form must not hold it (`fixed_max`: what needs no length byte at all)."""
        length = self.number(count)
        shorter = {1: fixed_max, 2: max(fixed_max, 0xFF) if fixed_max != 15 else 15, 4: 0xFFFF}[count]
        if length <= shorter:
            raise Broken("not the shortest form of a length")
        return length

    def unsigned(self, power: int) -> int:
        number = self.number(1 << power)
        if number <= (0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF)[power]:
            raise Broken("not the shortest form of an integer")
        if number > 2**63 - 1:
            raise Broken("an integer above 2^63 - 1")
        return number

    def negative(self, power: int) -> int:
        number = int.from_bytes(self.take(1 << power), "big", signed=True)
        if number >= (-32, -(2**7), -(2**15), -(2**31))[power]:
            raise Broken("not the shortest form of an integer")
        return number

    def float64(self) -> float:
        raw = self.take(8)
        number: float = struct.unpack(">d", raw)[0]
        if math.isnan(number) and raw != bytes.fromhex("7ff8000000000000"):
            raise Broken("another NaN")
        if raw == bytes.fromhex("8000000000000000"):
            raise Broken("-0.0")
        return number

    def text(self, length: int) -> str:
        raw = self.take(length)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Broken("text that is not UTF-8") from error
        if 0 in raw:
            raise Broken("text with U+0000")
        return text

    def array(self, length: int, room: int) -> list[Any]:
        if room == 0:
            raise Broken("nested too deep")
        return [self.value(room - 1) for _ in range(length)]

    def map(self, length: int, room: int) -> dict[str, Any]:
        if room == 0:
            raise Broken("nested too deep")
        out: dict[str, Any] = {}
        before: bytes | None = None
        for _ in range(length):
            key = self.value(0)
            if not isinstance(key, str):
                raise Broken("a key that is no text")
            raw = key.encode()
            if before is not None and raw <= before:
                raise Broken("keys out of order, or one twice")
            before = raw
            out[key] = self.value(room - 1)
        return out


def read_value(data: bytes) -> Any:
    """Return the one value in these canonical bytes; arrays are lists."""
    reader = _Reader(data)
    value = reader.value(16)
    if reader.at != len(data):
        raise Broken("something follows the value")
    return value


def write_value(value: Any) -> bytes:
    """Return the canonical bytes of a value; the other direction of section 1, as plainly as possible."""
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _write_integer(value)
    if isinstance(value, float):
        return b"\xcb" + (bytes.fromhex("7ff8000000000000") if math.isnan(value) else struct.pack(">d", value + 0.0))
    if isinstance(value, bytes):
        return _write_length(len(value), None, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, str):
        raw = value.encode()
        return _write_length(len(raw), (0xA0, 31), (0xD9, 0xDA, 0xDB)) + raw
    if isinstance(value, list | tuple):
        return _write_length(len(value), (0x90, 15), (None, 0xDC, 0xDD)) + b"".join(map(write_value, value))
    keys = sorted(value, key=lambda key: key.encode())
    parts = [write_value(key) + write_value(value[key]) for key in keys]
    return _write_length(len(value), (0x80, 15), (None, 0xDE, 0xDF)) + b"".join(parts)


def _write_integer(value: int) -> bytes:
    if -32 <= value <= 127:
        return value.to_bytes(1, "big", signed=value < 0)
    first = 0xCC if value > 0 else 0xD0
    for power in range(4):
        bits = 8 << power
        if -(1 << bits - 1) <= value < (1 << bits):
            return bytes([first + power]) + value.to_bytes(1 << power, "big", signed=value < 0)
    raise Broken("an integer of more than 64 bits")


def _write_length(length: int, fixed: tuple[int, int] | None, forms: tuple[int | None, int, int]) -> bytes:
    if fixed is not None and length <= fixed[1]:
        return bytes([fixed[0] | length])
    for power, form in enumerate(forms):
        if form is not None and length < 1 << (8 << power):
            return bytes([form]) + length.to_bytes(1 << power, "big")
    raise Broken("too long")


# -- section 2: events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecondEvent:
    """An event as this decoder reads it; `body` is the map, or None where it is withheld."""

    event_id: bytes
    version: int
    type: str
    type_version: int
    log_id: bytes
    sequence: int
    previous: bytes | None
    clock: int
    wall_us: int
    about: list[list[Any]]
    body_hash: bytes
    extra: list[Any]
    body_bytes: bytes | None


def read_event(header: bytes, body: bytes | None) -> SecondEvent:
    """Return the event of these bytes; what the body says is read by `read_body`."""
    fields = read_value(header)
    need(isinstance(fields, list) and len(fields) >= 10, "a header is an array of at least 10")
    version, type_, type_version, log_id, sequence, previous, clock, wall_us, about, body_hash = fields[:10]
    need(is_integer(version) and version >= 1, "envelope version")
    need(isinstance(type_, str) and 1 <= len(type_) <= 100, "type")
    need(is_integer(type_version) and type_version >= 1, "type version")
    need(is_bin(log_id, 16), "log id")
    need(is_integer(sequence) and sequence >= 1, "sequence")
    need((previous is None) if sequence == 1 else is_bin(previous, 32), "previous")
    need(is_integer(clock) and clock >= 0, "clock")
    need(is_integer(wall_us), "wall time")
    need(is_bin(body_hash, 32), "body hash")
    need(isinstance(about, list) and 1 <= len(about) <= 1000, "about")
    for entry in about:
        need(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str), "an entry of about")
    written = [write_value(entry) for entry in about]
    need(written == sorted(set(written)), "about is not sorted, or holds one twice")
    need(body is None or sha256(body).digest() == body_hash, "body hash")
    need(len(header) + len(body or b"") <= 262_144, "too large")
    return SecondEvent(
        sha256(header).digest(), version, type_, type_version, log_id, sequence, previous, clock, wall_us, about,
        body_hash, fields[10:], body,
    )  # fmt: skip


def read_body(data: bytes) -> dict[str, Any]:
    """Return the map of a body."""
    body = read_value(data)
    need(isinstance(body, list) and len(body) == 2, "a body is a salt and a map")
    need(is_bin(body[0], 16) and isinstance(body[1], dict), "a body is a salt and a map")
    values: dict[str, Any] = body[1]
    return values


def need(holds: bool, rule: str) -> None:
    if not holds:
        raise Broken(rule)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return is_integer(value) or isinstance(value, float)


def is_bin(value: object, length: int) -> bool:
    return isinstance(value, bytes) and len(value) == length


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_map(value: object) -> bool:
    return isinstance(value, dict)


# -- section 3: types --------------------------------------------------------------------------------------------------


def is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 500


def is_content_id(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 500 or ":" not in value:
        return False
    before, after = value.split(":", 1)
    return before != "" and after != ""


def is_node(entry: list[Any]) -> bool:
    kind, id_ = entry
    if kind == "key":
        return is_bin(id_, 32)
    if kind == "execution":
        return is_bin(id_, 16)
    if kind == "pipeline":
        return is_name(id_)
    if kind == "stage":
        return isinstance(id_, list) and len(id_) == 2 and is_name(id_[0]) and is_name(id_[1])
    return kind == "artifact" and is_content_id(id_)


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_block(block: Any) -> bool:
    if not isinstance(block, list) or len(block) != 5 or not (is_text(block[0]) and is_text(block[1])):
        return False
    if not all(isinstance(column, list) for column in block[2:]):
        return False
    steps, values, offsets = block[2:]
    if not len(steps) == len(values) == len(offsets) or not steps:
        return False
    return all(map(is_integer, steps)) and all(map(is_number, values)) and all(map(is_integer, offsets))


def _is_succession(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return (
        is_bin(value.get("log"), 16)
        and is_integer(value.get("sequence"))
        and value["sequence"] >= 1
        and is_bin(value.get("event"), 32)
        and is_text(value.get("reason"))
        and ("signature" not in value or is_bin(value["signature"], 64))
    )


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(is_text(item) for item in value.values())


def _is_natural(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _is_columns(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for column in value:
        if (
            not isinstance(column, list)
            or len(column) != 2
            or not is_text(column[0])
            or not isinstance(column[1], list)
        ):
            return False
    names, lengths = [column[0] for column in value], [len(column[1]) for column in value]
    return len(set(names)) == len(names) and len(set(lengths)) <= 1


def _is_number_map(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(item) for item in value.values())


#: type -> (kinds in about with their least and greatest count, body keys; a key with "?" is optional)
_Keys = dict[str, Callable[[Any], bool]]
_VALUES: _Keys = {"facts?": is_map, "params?": is_map, "properties?": is_map}
_USAGE: _Keys = {"name?": is_text, "digests?": _all(is_content_id), "facts?": is_map, "properties?": is_map}
_ONE_EXECUTION = {"execution": (1, 1)}
_SHAPES: dict[str, tuple[dict[str, tuple[int, int]] | str, _Keys]] = {
    "log.opened": ({"key": (1, 1)}, {"agent?": is_text, "succeeds?": _is_succession}),
    "pipeline.described": ({"pipeline": (1, 1)}, _VALUES),
    "stage.described": ({"stage": (1, 1)}, _VALUES),
    "execution.started": (
        {"execution": (1, 1), "stage": (1, 1), "artifact": (0, 1)},
        {**_VALUES, "at?": is_integer},
    ),
    "execution.updated": ({"execution": (1, 1), "artifact": (0, 1)}, _VALUES),
    "execution.finished": (
        _ONE_EXECUTION,
        {
            "status": lambda value: value in ("finished", "interrupted", "failed"),
            "exit_code?": is_integer,
            "error?": _is_text_map,
            "at?": is_integer,
        },
    ),
    "artifact.used": ({"artifact": (1, 1), "execution": (1, 1)}, _USAGE),
    "artifact.produced": ({"artifact": (1, 1), "execution": (1, 1)}, _USAGE),
    "metrics.recorded": (_ONE_EXECUTION, {"metrics?": _is_number_map, "steps?": _all(_is_block)}),
    "environment.recorded": ({"artifact": (1, 1)}, {"environment": is_map, "digests?": _all(is_content_id)}),
    "tag.added": ("one", {"tag": is_name}),
    "tag.removed": ("one", {"tag": is_name, "adds": _all(lambda value: is_bin(value, 32))}),
    "note.added": ("one", {"text": is_text}),
    "record.retracted": ("target's", {"event?": lambda value: is_bin(value, 32), "reason": is_text}),
    "record.unretracted": ("target's", {"retraction": lambda value: is_bin(value, 32), "reason?": is_text}),
    "gap.accepted": (
        {"key": (1, 1)},
        {
            "log": lambda value: is_bin(value, 16),
            "before": lambda value: is_bin(value, 32),
            "after": lambda value: is_bin(value, 32),
            "reason?": is_text,
        },
    ),
    "artifact.stored": ({"artifact": (1, 1)}, {"location": lambda value: _is_text_map(value) and "kind" in value}),
    "table.recorded": ({"artifact": (1, 1)}, {"columns": _is_columns, "first?": _is_natural, "rows": _is_natural}),
    "label.attached": ({"artifact": (2, 2)}, {"label": is_content_id}),
    "slice.recorded": ({"artifact": (2, 2)}, {"slice": is_content_id}),
}
TYPES = tuple(_SHAPES)


def folded_body(event: SecondEvent) -> dict[str, Any] | None:
    """Return what an event's body says, or None if the event is unfolded (the end of section 3)."""
    if event.version != 1 or event.type_version != 1 or event.type not in _SHAPES or event.body_bytes is None:
        return None
    if not clock_holds(event.clock, event.wall_us):
        return None
    kinds, keys = _SHAPES[event.type]
    try:
        body = read_body(event.body_bytes)
        need(all(is_node(entry) for entry in event.about), "a node of another form")
        need(_kinds_hold(kinds, event.about, body), "about the wrong nodes")
        for name, check in keys.items():
            key = name.rstrip("?")
            need(check(body[key]) if key in body else name.endswith("?"), key)
        if event.type in ("label.attached", "slice.recorded"):
            need(body[event.type.split(".")[0]] in [id_ for _, id_ in event.about], "a part that it is not about")
    except Broken:
        return None
    return body


def _kinds_hold(kinds: dict[str, tuple[int, int]] | str, about: list[list[Any]], body: dict[str, Any]) -> bool:
    if kinds == "one" or (kinds == "target's" and "event" not in body and "retraction" not in body):
        return len(about) == 1
    if isinstance(kinds, str):
        return True
    found = [kind for kind, _ in about]
    return set(found) <= set(kinds) and all(low <= found.count(kind) <= high for kind, (low, high) in kinds.items())


# -- section 4: clock --------------------------------------------------------------------------------------------------


def clock_holds(clock: int, wall_us: int) -> bool:
    base = max(wall_us // 1000, 0) * 2**16
    return base <= clock <= base + 3_600_000 * 2**16 + 1


# -- sections 5 and 6: successions, segments ---------------------------------------------------------------------------


def signature_holds(key: bytes, signature: bytes, message: bytes) -> bool:
    try:  # PyNaCl has its own ValueError and TypeError
        VerifyKey(key).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


def succession_holds(new_log_id: bytes, new_key: bytes, succeeds: dict[str, Any], predecessor_key: bytes) -> bool:
    """Tell if the predecessor's key signed this `succeeds` of a new log."""
    if "signature" not in succeeds:
        return False
    statement = [new_log_id, new_key, *(succeeds[key] for key in ("log", "sequence", "event", "reason"))]
    message = b"cmf-sync succession v1\0" + write_value(statement)
    return signature_holds(predecessor_key, succeeds["signature"], message)


@dataclass(frozen=True)
class SecondSegment:
    """A segment whose form and chain hold; whether it is signed is `signed`."""

    statement: list[Any]
    signature: bytes
    events: list[SecondEvent]
    signed: bool


def read_segment(data: bytes) -> SecondSegment:
    """Return the segment of these bytes."""
    need(data[:1] == b"\x01", "version byte")
    value = read_value(_frame(data[1:]))
    need(isinstance(value, list) and len(value) == 3, "a segment is statement, signature, events")
    statement, signature, pairs = value
    need(isinstance(statement, list) and len(statement) == 8, "statement")
    log_id, first, previous, last, last_id, head, head_id, key = statement
    need(is_bin(log_id, 16) and is_bin(last_id, 32) and is_bin(head_id, 32) and is_bin(key, 32), "statement")
    need(all(is_integer(number) for number in (first, last, head)) and 1 <= first <= last <= head, "statement")
    need(last < head or last_id == head_id, "statement")
    need((previous is None) if first == 1 else is_bin(previous, 32), "statement")
    need(is_bin(signature, 64), "signature")
    need(isinstance(pairs, list) and 1 <= len(pairs) <= 1000, "1 to 1,000 events")
    events: list[SecondEvent] = []
    total = 0
    for pair in pairs:
        need(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], bytes), "an event of a segment")
        need(pair[1] is None or isinstance(pair[1], bytes), "an event of a segment")
        event = read_event(pair[0], pair[1])
        need((event.log_id, event.sequence, event.previous) == (log_id, first + len(events), previous), "chain")
        events.append(event)
        previous = event.event_id
        total += len(pair[0]) + len(pair[1] or b"")
    need(total <= 524_288, "too large")
    need((events[-1].sequence, events[-1].event_id) == (last, last_id), "the segment's end")
    signed = signature_holds(key, signature, b"cmf-sync segment v1\0" + write_value(statement))
    return SecondSegment(statement, signature, events, signed)


def _frame(frame: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(frame)
        need(0 < size <= 1_048_576, "a frame states its size, at most 1 MiB")
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        content = unpacker.decompress(frame)
        need(unpacker.eof and not unpacker.unused_data, "one whole frame")
    except zstandard.ZstdError as error:
        raise Broken("zstd") from error
    need(len(content) == size, "the frame's size")
    return content


# -- section 11: bundles, receipts -------------------------------------------------------------------------------------


def read_bundle(data: bytes) -> list[bytes]:
    """Return the segments of a bundle."""
    need(data[:8] == b"CMFBNDL1" and len(data) >= 48, "magic")
    need(sha256(data[:-32]).digest() == data[-32:], "the end's digest")
    reader = _Reader(data[:-32])
    reader.take(8)
    segments = []
    while length := reader.number(4):
        need(length <= 2_097_152, "a segment's length")
        segments.append(reader.take(length))
    need(reader.number(4) == len(segments) and reader.at == len(reader.data), "the number of segments")
    return segments


def read_receipt(data: bytes) -> dict[str, Any]:
    """Return the statement of a receipt, with `signed`: whether the key that it names signed it."""
    need(data[:8] == b"CMFRCPT1", "magic")
    parts = read_value(data[8:])
    need(isinstance(parts, list) and len(parts) == 2 and is_bin(parts[1], 64), "a statement and a signature")
    statement, signature = parts
    need(is_map(statement) and is_integer(statement.get("v")) and statement["v"] == 1, "a map of version 1")
    need(
        all(is_bin(statement.get(name), size) for name, size in (("hub", 16), ("incarnation", 16), ("key", 32))), "ids"
    )
    need(is_integer(statement.get("time")), "time")
    for name, forms in (
        ("confirmed", (_is_bin(16), is_integer, _is_bin(32))),
        ("refused", (_is_bin(None), is_integer, _is_bin(None), is_text, is_text)),
    ):
        rows = statement.get(name)
        need(isinstance(rows, list), name)
        for row in rows:
            need(isinstance(row, list) and len(row) >= len(forms), name)
            need(all(holds(value) for holds, value in zip(forms, row, strict=False)), name)
    message = b"cmf-sync receipt v1\0" + write_value(statement)
    return {**statement, "signed": signature_holds(statement["key"], signature, message)}


def _is_bin(length: int | None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, bytes) and length in (None, len(value))


# -- section 9: the digest of the ids ----------------------------------------------------------------------------------


def events_digest(ids: list[bytes]) -> bytes:
    return sha256(b"".join(sorted(ids))).digest()
