"""The hub's side of the JetStream stream in which sites leave segments: a buffer, not the store of record.

Rules
- Work queue: a message goes when it is acknowledged, so a stream of acknowledged messages refuses nobody.
- Full means refused (`discard: new`), never that something older is dropped; a limit per subject keeps one
  site from filling it for all.
- Every message is acknowledged as soon as its decision is committed; an acknowledgement that gets lost means
  that the message comes again.
- The stream and its consumer are made again when the server's store was wiped.
- Speaks JetStream's published API (docs.nats.io, "JetStream wire API") rather than nats-py's subscriptions,
  which are bound to one connection.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmf_link.connection import Received
from cmf_link.failures import NO_ROOM_CODE, no_room, stream_refusal
from cmf_link.link import Link
from cmf_protocol.errors import HubUnreachable, LinkError

logger = logging.getLogger("cmf_link")

STREAM = "CMF_LOG"
SUBJECTS = "cmf.v1.log.*"
CONSUMER = "hub"
#: Default size of the buffer, reserved on the server's disk up front, bytes: 2,000 of the largest segments.
STREAM_BYTES = 1 << 30
#: Segments of one site that may wait; its agent then waits, and its log keeps the rest.
SITE_MESSAGES_MAX = 512
#: After this an unacknowledged message comes again, s: far more than one commit takes.
ACK_WAIT_S = 30.0
#: Unacknowledged messages in all; JetStream's default of 1,000 lets one site's block every other's.
UNACKNOWLEDGED_MAX = 20_000
#: How much one fetch may bring, bytes: what is held in memory at a time.
FETCH_BYTES_MAX = 16 << 20
#: How long one request to JetStream's API may take, s.
API_TIMEOUT_S = 5.0
#: How much later than the server a fetch gives up, s, so that no message is on its way when it does.
GRACE_S = 2.0
STREAM_MISSING_CODE = 10059
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Message:
    """One segment as the stream holds it. `deliveries` is 1 the first time."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    stream_sequence: int
    deliveries: int
    _link: Link
    _reply: str

    async def ack(self) -> None:
        """Have the stream forget the message. Raises `HubUnreachable` if disconnected (it comes again)."""
        await self._link.send(self._reply, b"+ACK")


@dataclass(frozen=True)
class StreamState:
    """What the stream holds; `created` changes when it was wiped and made again."""

    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    created: str


@dataclass(frozen=True)
class StreamLook:
    """What of the stream is decided: `created` is its life's id, `waiting` how many messages of each subject it held.

    Every message of a subject that does not wait, up to `last_sequence`, has been acknowledged; of any subject, up to `floor`.
    """

    created: str
    last_sequence: int
    floor: int
    waiting: Mapping[str, int]

    def decided(self, subject: str) -> int:
        """Return up to which stream sequence every message of `subject` has been acknowledged."""
        return self.floor if self.waiting.get(subject) else self.last_sequence


class LogStream:
    """The stream and its consumer, seen over one link; made by `ensure_stream`."""

    def __init__(self, link: Link, stream: dict[str, Any], consumer: dict[str, Any]) -> None:
        self._link = link
        self._stream = stream
        self._consumer = consumer

    async def ensure(self) -> None:
        """Make the stream and the consumer, or bring them to this configuration.

        Raises `StoreError` if the disk has no room, `LinkError` if JetStream does not answer.
        """
        answer = await self._ask(f"STREAM.UPDATE.{STREAM}", self._stream)
        if _error_code(answer) == STREAM_MISSING_CODE:
            answer = await self._ask(f"STREAM.CREATE.{STREAM}", self._stream)
        if _error_code(answer) == NO_ROOM_CODE:
            raise no_room(STREAM, int(self._stream["max_bytes"]))
        _check(STREAM, answer)
        request = {"stream_name": STREAM, "config": self._consumer, "action": ""}
        _check(CONSUMER, await self._ask(f"CONSUMER.CREATE.{STREAM}.{CONSUMER}", request))

    async def restart(self) -> None:
        """Let what was fetched and not acknowledged come again at once, not after `ack_wait_s`: whoever fetched it is gone.

        Raises like `ensure`.
        """
        await self._ask(f"CONSUMER.DELETE.{STREAM}.{CONSUMER}", {})  # that there is none is as good
        await self.ensure()

    async def state(self) -> StreamState:
        """Return what the stream holds now. Raises `LinkError`."""
        answer = await self._ask(f"STREAM.INFO.{STREAM}", {})
        _check(STREAM, answer)
        held = answer["state"]
        return StreamState(held["messages"], held["bytes"], held["first_seq"], held["last_seq"], str(answer["created"]))

    async def look(self) -> StreamLook:
        """Return what of the stream is decided now. Raises `LinkError`."""
        consumer = await self._ask(f"CONSUMER.INFO.{STREAM}.{CONSUMER}", {})
        _check(CONSUMER, consumer)
        # The server reads the state first and counts each subject's messages then: what it does not count was acknowledged.
        answer = await self._ask(f"STREAM.INFO.{STREAM}", {"subjects_filter": SUBJECTS})
        _check(STREAM, answer)
        held = answer["state"]
        # A work queue forgets what is acknowledged; the floor of a consumer that was just made is 0.
        floor = min(max(int(consumer["ack_floor"]["stream_seq"]), held["first_seq"] - 1), held["last_seq"])
        return StreamLook(str(answer["created"]), held["last_seq"], floor, held.get("subjects") or {})

    async def fetch(self, batch: int, timeout_s: float) -> list[Message]:
        """Return up to `batch` messages, waiting at most `timeout_s` seconds for the first one.

        Returns [] if none came; raises `LinkError` while there is no link. Works again after either.
        """
        try:
            found = await self._pull(batch, {"no_wait": True}, API_TIMEOUT_S)
            if not found:
                wait = {"expires": int(timeout_s * NANOSECONDS)}
                found = await self._pull(1, wait, timeout_s + GRACE_S)
                if found and batch > 1:
                    found += await self._pull(batch - 1, {"no_wait": True}, API_TIMEOUT_S)
        except HubUnreachable:
            if not self._link.connected:
                raise
            # Nobody answers for the consumer: the server's store was wiped, or it is starting.
            logger.warning("the consumer of %s is gone: made again", STREAM)
            await self.ensure()
            return []
        return found

    async def _pull(self, batch: int, how: dict[str, Any], timeout_s: float) -> list[Message]:
        found: list[Message] = []

        def finished(answer: Received) -> bool:
            if answer.status:
                return answer.status != "100"  # 100 is a sign of life, the others end the request
            found.append(self._message(answer))
            return len(found) == batch

        request = json.dumps({"batch": batch, "max_bytes": FETCH_BYTES_MAX} | how).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
        try:
            await self._link.collect(subject, request, timeout_s=timeout_s, finished=finished)
        except LinkError:
            if not found:
                raise
        return found

    def _message(self, got: Received) -> Message:
        sequence, deliveries = _position(got.reply)
        return Message(got.subject, got.data, got.headers, sequence, deliveries, self._link, got.reply)

    async def _ask(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        subject = f"$JS.API.{verb}"
        answer = await self._link.request(subject, json.dumps(body).encode(), timeout_s=API_TIMEOUT_S)
        try:
            return dict(json.loads(answer))
        except ValueError as error:
            raise LinkError(f"what answered {subject} is not JetStream") from error


async def ensure_stream(
    link: Link,
    *,
    bytes_max: int = STREAM_BYTES,
    site_messages_max: int = SITE_MESSAGES_MAX,
    ack_wait_s: float = ACK_WAIT_S,
) -> LogStream:
    """Make the stream `CMF_LOG` and its durable consumer `hub`, or bring them to these limits; what is unacknowledged comes again.

    Raises `StoreError` if the disk has no room for `bytes_max`, `LinkError` if JetStream does not answer.
    """
    stream = {
        "name": STREAM,
        "subjects": [SUBJECTS],
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "max_bytes": bytes_max,
        "max_msgs_per_subject": site_messages_max,
        "discard_new_per_subject": True,
        "num_replicas": 1,
    }
    consumer = {
        "durable_name": CONSUMER,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * NANOSECONDS),
        "max_ack_pending": UNACKNOWLEDGED_MAX,
    }
    held = LogStream(link, stream, consumer)
    await held.restart()
    return held


def _error_code(answer: dict[str, Any]) -> int:
    return int(answer.get("error", {}).get("err_code", 0))


def _check(name: str, answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise stream_refusal(name, _error_code(answer), str(answer["error"].get("description", "")))


def _position(reply: str) -> tuple[int, int]:
    """Return (stream sequence, deliveries) as an acknowledgement subject tells them.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.…`, or with `<domain>.<account>` before the
    stream (nats-io architecture decision 15).
    """
    words = reply.split(".")
    at = 4 if len(words) < 11 else 6
    return int(words[at + 1]), int(words[at])
