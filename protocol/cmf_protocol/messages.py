"""The messages other than segments: hello, its answer, confirm (protocol/README.md, section 10). Pure.

Rules
- Each is a canonical map with `v` = 1; unknown keys are ignored, a missing or malformed one is a `DecodeError`.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import AccessDenied, CmfError, DecodeError
from cmf_protocol.signing import HELLO_TAG, Signer, verifies

MESSAGE_VERSION = 1
#: What one hello may ask: the hub looks each point up while others wait.
HELLO_LOGS_MAX = 256
HELLO_POINTS_MAX = 64

#: (sequence, event id)
Point = tuple[int, bytes]
#: (log id, sequence, event id): this event and its ancestors are stored durably
Confirmation = tuple[bytes, int, bytes]


class Hello(NamedTuple):
    """What a site says when it connects; `logs` are (log id, points), the head first."""

    key: bytes
    token: str | None
    time_us: int
    agent: str
    logs: tuple[tuple[bytes, tuple[Point, ...]], ...]
    signature: bytes

    def signature_holds(self, site: str, hub_id: bytes) -> bool:
        """Tell if the key signed this hello for this site and hub."""
        statement = _hello_statement(site, hub_id, self.key, self.token, self.time_us, self.logs)
        return verifies(self.key, self.signature, HELLO_TAG, statement)


class HelloAnswer(NamedTuple):
    """What the hub answers: which hub and store it is, its time, and what it holds of the logs that were named."""

    hub_id: bytes
    incarnation: bytes
    site: str
    time_us: int
    confirmed: tuple[Confirmation, ...]


class Refusal(NamedTuple):
    """A segment that the hub refused, by its log, first sequence and last event's id."""

    log_id: bytes
    first_sequence: int
    last_id: bytes
    code: str
    message: str


class Confirm(NamedTuple):
    """What a batch of segments came to."""

    hub_id: bytes
    incarnation: bytes
    confirmed: tuple[Confirmation, ...]
    refused: tuple[Refusal, ...]
    parked: tuple[tuple[bytes, int], ...]


def _hello_statement(
    site: str, hub_id: bytes, key: bytes, token: str | None, time_us: int, logs: Sequence[Value]
) -> list[Value]:
    return [site, hub_id, key, token, time_us, sha256(encode(list(logs))).digest()]


def sign_hello(
    signer: Signer, *, site: str, hub_id: bytes, token: str | None, time_us: int, agent: str, logs: Sequence[Value]
) -> bytes:
    """Return the bytes of a hello."""
    key = signer.public_key
    signature = signer.sign(HELLO_TAG, _hello_statement(site, hub_id, key, token, time_us, logs))
    parts = {
        "agent": agent,
        "key": key,
        "logs": list(logs),
        "signature": signature,
        "time": time_us,
        "v": MESSAGE_VERSION,
    }
    if token is not None:
        parts["token"] = token
    return encode(parts)


def points_of(head_sequence: int) -> list[int]:
    """Return the sequences of which a hello names the event ids: the head, and 1, 2, 4 … before it, down to 1."""
    points, distance = [head_sequence], 1
    while head_sequence - distance >= 1 and len(points) < HELLO_POINTS_MAX - 1:
        points.append(head_sequence - distance)
        distance *= 2
    if points[-1] != 1:
        points.append(1)
    return points


def decode_hello(data: bytes) -> Hello:
    """Return the hello of these bytes."""
    parts = _parts(data)
    token = _get(parts, "token", _is_text) if "token" in parts else None
    logs = _get(parts, "logs", _is_logs)
    return Hello(
        _get(parts, "key", _bin(32)), token, _get(parts, "time", _is_integer), _get(parts, "agent", _is_text), logs,
        _get(parts, "signature", _bin(64)),
    )  # fmt: skip


def encode_answer(answer: HelloAnswer) -> bytes:
    """Return the bytes of an answer to hello."""
    return encode(
        {
            "confirmed": [list(c) for c in answer.confirmed], "hub": answer.hub_id, "incarnation": answer.incarnation,
            "site": answer.site, "time": answer.time_us, "v": MESSAGE_VERSION,
        }
    )  # fmt: skip


def encode_error(error: CmfError) -> bytes:
    """Return the bytes of an answer that says why there is none."""
    parts = {"code": type(error).__name__, "hint": error.hint, "message": str(error)}
    return encode({"error": parts, "v": MESSAGE_VERSION})


def decode_answer(data: bytes) -> HelloAnswer:
    """Return the answer of these bytes; raise `AccessDenied` with the hub's words if it is an error."""
    parts = _parts(data)
    if "error" in parts:
        error = _get(parts, "error", _is_map)
        raise AccessDenied(f"the hub refuses: {error.get('message')}", str(error.get("hint", "")))
    return HelloAnswer(
        _get(parts, "hub", _bin(16)), _get(parts, "incarnation", _bin(16)), _get(parts, "site", _is_text),
        _get(parts, "time", _is_integer), _get(parts, "confirmed", _is_confirmations),
    )  # fmt: skip


def encode_confirm(confirm: Confirm) -> bytes:
    """Return the bytes of a confirmation."""
    return encode(
        {
            "confirmed": [list(c) for c in confirm.confirmed], "hub": confirm.hub_id, "incarnation": confirm.incarnation,
            "parked": [list(p) for p in confirm.parked], "refused": [list(r) for r in confirm.refused], "v": MESSAGE_VERSION,
        }
    )  # fmt: skip


def decode_confirm(data: bytes) -> Confirm:
    """Return the confirmation of these bytes."""
    parts = _parts(data)
    refused = tuple(Refusal._make(row[:5]) for row in _get(parts, "refused", _is_refusals))
    parked = tuple((row[0], row[1]) for row in _get(parts, "parked", _is_parked))
    return Confirm(
        _get(parts, "hub", _bin(16)), _get(parts, "incarnation", _bin(16)), _get(parts, "confirmed", _is_confirmations),
        refused, parked,
    )  # fmt: skip


# -- forms -----------------------------------------------------------------------------------------------------------


def _parts(data: bytes) -> dict[str, Value]:
    parts = decode(data)
    if type(parts) is not dict or parts.get("v") != MESSAGE_VERSION:
        raise DecodeError(f"a message is a map of version {MESSAGE_VERSION}")
    return parts


def _get(parts: dict[str, Value], key: str, check: Callable[[Value], bool]) -> Value:
    if key not in parts or not check(parts[key]):
        raise DecodeError(f"a message's {key} is missing or malformed")
    return parts[key]


def _is_text(value: Value) -> bool:
    return type(value) is str


def _is_integer(value: Value) -> bool:
    return type(value) is int


def _is_map(value: Value) -> bool:
    return type(value) is dict


def _bin(length: int) -> Callable[[Value], bool]:
    return lambda value: type(value) is bytes and len(value) == length


def _rows(value: Value, *checks: Callable[[Value], bool]) -> bool:
    return type(value) is tuple and all(
        type(row) is tuple and len(row) >= len(checks) and all(c(v) for c, v in zip(checks, row, strict=False))
        for row in value
    )


def _is_confirmations(value: Value) -> bool:
    return _rows(value, _bin(16), _is_integer, _bin(32))


def _is_points(value: Value) -> bool:
    return _rows(value, _is_integer, _bin(32)) and len(value) <= HELLO_POINTS_MAX


def _is_logs(value: Value) -> bool:
    return type(value) is tuple and len(value) <= HELLO_LOGS_MAX and _rows(value, _bin(16), _is_points)


def _is_refusals(value: Value) -> bool:  # a malformed segment has no log to name
    return _rows(value, _is_bytes, _is_integer, _is_bytes, _is_text, _is_text)


def _is_parked(value: Value) -> bool:
    return _rows(value, _bin(16), _is_integer)


def _is_bytes(value: Value) -> bool:
    return type(value) is bytes
