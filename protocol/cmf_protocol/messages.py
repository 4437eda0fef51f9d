"""The messages around segments: hello, its answer, confirm, notice (protocol/README.md, section 10). Pure.

Rules
- What is decoded has the forms of the specification (`forms.py`), else it is a `DecodeError`.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from cmf_protocol.encoding import Value, encode
from cmf_protocol.errors import AccessDenied, CmfError, LinkError, StoreError
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
from cmf_protocol.signing import HELLO_TAG, Signer, verifies

#: What one hello may ask: the hub looks each point up while others wait.
HELLO_LOGS_MAX = 256
HELLO_POINTS_MAX = 64
#: What a notice says: the hub has started, or something that was asked for has arrived.
NOTICE_HELLO = "hello"
NOTICE_NEW = "new"

#: (sequence, event id)
Point = tuple[int, bytes]
#: (log id, sequence, event id): this event and its ancestors are stored durably
Confirmation = tuple[bytes, int, bytes]


class Hello(NamedTuple):
    """What a carrier says when it connects; `logs` are (log id, points), the head first."""

    key: bytes
    token: str | None
    time_us: int
    agent: str
    leaving: bool
    logs: tuple[tuple[bytes, tuple[Point, ...]], ...]
    signature: bytes

    def signature_holds(self, site: str, hub_id: bytes) -> bool:
        """Tell if the key signed this hello for this site and hub."""
        statement = _hello_statement(site, hub_id, self.key, self.token, self.time_us, self.leaving, self.logs)
        return verifies(self.key, self.signature, HELLO_TAG, statement)


class StreamState(NamedTuple):
    """What of a carrier's segments the stream has come to: its life's id, up to which stream sequence they are decided, how many wait."""

    stream_id: str
    decided: int
    waiting: int


class HelloAnswer(NamedTuple):
    """What the hub answers: which hub and store it is, its time, what it holds of the chains that were named, what may be on the way."""

    hub_id: bytes
    incarnation: bytes
    site: str
    time_us: int
    confirmed: tuple[Confirmation, ...]
    stream: StreamState | None
    grant: int


class Refusal(NamedTuple):
    """A segment that the hub refused, by its log, first sequence and last event's id."""

    log_id: bytes
    first_sequence: int
    last_id: bytes
    code: str
    message: str


class Confirm(NamedTuple):
    """What a batch of segments came to, and how many events may be on the way from now on."""

    hub_id: bytes
    incarnation: bytes
    confirmed: tuple[Confirmation, ...]
    refused: tuple[Refusal, ...]
    parked: tuple[tuple[bytes, int], ...]
    grant: int


class Notice(NamedTuple):
    """Something that a site may want to act on; a `what` that it does not know it ignores."""

    hub_id: bytes
    incarnation: bytes
    what: str


_IS_CONFIRMATIONS = array_of(row_of(bin_of(16), is_integer, bin_of(32)))
_IS_POINTS = array_of(row_of(is_integer, bin_of(32)), HELLO_POINTS_MAX)
_IS_LOGS = array_of(row_of(bin_of(16), _IS_POINTS), HELLO_LOGS_MAX)
_IS_STREAM = nil_or(row_of(is_text, is_natural, is_natural))
#: A malformed segment has no log to name.
_IS_REFUSALS = array_of(row_of(is_bytes, is_integer, is_bytes, is_text, is_text))
_IS_PARKED = array_of(row_of(bin_of(16), is_integer))


# -- hello -----------------------------------------------------------------------------------------------------------


def _hello_statement(
    site: str, hub_id: bytes, key: bytes, token: str | None, time_us: int, leaving: bool, logs: Sequence[Value]
) -> list[Value]:
    return [site, hub_id, key, token, time_us, leaving, sha256(encode(list(logs))).digest()]


def sign_hello(
    signer: Signer,
    *,
    site: str,
    hub_id: bytes,
    token: str | None,
    time_us: int,
    agent: str,
    logs: Sequence[Value],
    leaving: bool = False,
) -> bytes:
    """Return the bytes of a hello; `logs` are `[log id, points]`, at most `HELLO_LOGS_MAX`."""
    key = signer.public_key
    signature = signer.sign(HELLO_TAG, _hello_statement(site, hub_id, key, token, time_us, leaving, logs))
    parts = {"agent": agent, "key": key, "logs": list(logs), "signature": signature, "time": time_us}
    if token is not None:
        parts["token"] = token
    if leaving:
        parts["leaving"] = True
    return encode(parts | {"v": MESSAGE_VERSION})


def points_of(head_sequence: int, confirmed: int = 0) -> list[int]:
    """Return the sequences of which a hello names the event ids, highest first.

    They are the head, those 1, 2, 4 … before it, the first, and the one that was confirmed last: a hub whose branch goes on differently
    after it (a copy's) would else seem to hold less than it does.
    """
    points, distance = {head_sequence, 1}, 1
    while head_sequence - distance >= 1 and len(points) < HELLO_POINTS_MAX - 1:
        points.add(head_sequence - distance)
        distance *= 2
    if 1 <= confirmed <= head_sequence:
        points.add(confirmed)
    return sorted(points, reverse=True)


def decode_hello(data: bytes) -> Hello:
    """Return the hello of these bytes."""
    parts = parts_of(data)
    return Hello(
        part(parts, "key", bin_of(32)),
        part(parts, "token", is_text) if "token" in parts else None,
        part(parts, "time", is_integer),
        part(parts, "agent", is_text),
        part(parts, "leaving", is_true) if "leaving" in parts else False,
        part(parts, "logs", _IS_LOGS),
        part(parts, "signature", bin_of(64)),
    )


# -- answers ---------------------------------------------------------------------------------------------------------


def encode_answer(answer: HelloAnswer) -> bytes:
    """Return the bytes of an answer to hello."""
    return _encode(
        answer.hub_id, answer.incarnation,
        confirmed=[list(row) for row in answer.confirmed], grant=answer.grant, site=answer.site,
        stream=None if answer.stream is None else list(answer.stream), time=answer.time_us,
    )  # fmt: skip


def encode_error(error: CmfError) -> bytes:
    """Return the bytes of an answer that says why there is none."""
    parts = {"code": type(error).__name__, "hint": error.hint, "message": str(error)}
    return encode({"error": parts, "v": MESSAGE_VERSION})


def _raise_error(parts: dict[str, Value]) -> None:
    """If these are the parts of an error, raise it with the hub's words."""
    if "error" in parts:
        error = part(parts, "error", is_map)
        if error.get("code") == StoreError.__name__:
            raise LinkError(f"the hub can't answer now: {error.get('message')}", "it is tried again; see the hub's log")
        raise AccessDenied(f"the hub refuses: {error.get('message')}", str(error.get("hint", "")))


def decode_answer(data: bytes) -> HelloAnswer:
    """Return the answer of these bytes.

    Raises with the hub's words what it says instead: `AccessDenied`, or plain `LinkError` if only its disk or database fails just now.
    """
    parts = parts_of(data)
    _raise_error(parts)
    stream = part(parts, "stream", _IS_STREAM)
    return HelloAnswer(
        *_who(parts),
        part(parts, "site", is_text),
        part(parts, "time", is_integer),
        part(parts, "confirmed", _IS_CONFIRMATIONS),
        None if stream is None else StreamState(*stream[:3]),
        part(parts, "grant", is_natural),
    )


def encode_confirm(confirm: Confirm) -> bytes:
    """Return the bytes of a confirmation."""
    return _encode(
        confirm.hub_id, confirm.incarnation,
        confirmed=[list(row) for row in confirm.confirmed], grant=confirm.grant,
        parked=[list(row) for row in confirm.parked], refused=[list(row) for row in confirm.refused],
    )  # fmt: skip


def decode_confirm(data: bytes) -> Confirm:
    """Return the confirmation of these bytes."""
    parts = parts_of(data)
    return Confirm(
        *_who(parts),
        part(parts, "confirmed", _IS_CONFIRMATIONS),
        tuple(Refusal._make(row[:5]) for row in part(parts, "refused", _IS_REFUSALS)),
        tuple((row[0], row[1]) for row in part(parts, "parked", _IS_PARKED)),
        part(parts, "grant", is_natural),
    )


def encode_notice(notice: Notice) -> bytes:
    """Return the bytes of a notice."""
    return _encode(notice.hub_id, notice.incarnation, what=notice.what)


def decode_notice(data: bytes) -> Notice:
    """Return the notice of these bytes."""
    parts = parts_of(data)
    return Notice(*_who(parts), part(parts, "what", is_text))


def _encode(hub_id: bytes, incarnation: bytes, **parts: Value) -> bytes:
    return encode({"hub": hub_id, "incarnation": incarnation, "v": MESSAGE_VERSION} | parts)


def _who(parts: dict[str, Value]) -> tuple[bytes, bytes]:
    return part(parts, "hub", bin_of(16)), part(parts, "incarnation", bin_of(16))
