"""From the stream to custody, and back to the sites: consume, decide, commit, confirm, acknowledge.

Rules
- Order: custody commits, then the confirmation is published, then the stream may forget. A crash between any two of these repeats the
  message, which is then a duplicate and confirmed again.
- Every message is acknowledged once its decision is committed, whatever the decision, so that none waits in the broker for another.
- All calls to custody go through one thread, so that a commit never stops the pings.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cmf_hub.custody import Answer, Custody
from cmf_hub.registry import Registry
from cmf_link.link import Link
from cmf_link.stream import LogStream, Message
from cmf_protocol.errors import AccessDenied, CmfError, LinkError, PeerError, StoreError
from cmf_protocol.messages import (
    Confirm,
    Confirmation,
    Hello,
    HelloAnswer,
    Refusal,
    decode_hello,
    encode_answer,
    encode_confirm,
    encode_error,
)

logger = logging.getLogger("cmf_hub")

#: Messages decided on in one commit: a commit costs less than a hundred segments' decoding.
BATCH_MESSAGES = 64
FETCH_WAIT_S = 5.0
#: How long messages are waited for while parked segments could be taken instead.
READY_WAIT_S = 0.05
RETRY_WAIT_S = 0.5
#: Clocks further apart than this are told to both sides, µs.
CLOCK_WARNING_US = 60_000_000
#: A site may tell any time: further ahead than this is stored as this, which fits a column and a float.
AHEAD_US_MAX = 2**62

T = TypeVar("T")


def now_us() -> int:
    """Return the wall time, µs UTC."""
    return time.time_ns() // 1000


class Consumer:
    """The hub's end of the link."""

    def __init__(self, custody: Custody, registry: Registry, hub_id: bytes, on_stored: Callable[[], None]) -> None:
        self._custody = custody
        self._registry = registry
        self._hub_id = hub_id
        self._incarnation = custody.incarnation
        self._on_stored = on_stored
        self._thread = ThreadPoolExecutor(1, "custody")

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Let the commit that runs end, and take no further one."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    # -- segments ------------------------------------------------------------------------------------------------------

    async def consume(self, link: Link, stream: LogStream) -> None:
        """Take segments until cancelled; a link or a disk that fails is tried again, since nothing is acknowledged before."""
        while True:
            try:
                ready = await self._call(self._custody.has_ready)
                messages = await stream.fetch(BATCH_MESSAGES, READY_WAIT_S if ready else FETCH_WAIT_S)
                if messages:
                    await self._take(link, messages)
                elif ready:
                    await self._take_together(link, [])
            except LinkError as error:
                logger.warning("no segments for now: %s", error)
                await asyncio.sleep(RETRY_WAIT_S)
            except CmfError as error:
                logger.error("segments could not be stored, they come again: %s %s", error, error.hint)
                await asyncio.sleep(RETRY_WAIT_S)

    async def _take(self, link: Link, messages: list[Message]) -> None:
        try:
            await self._take_together(link, messages)
        except PeerError as error:  # what is stored of one log is damaged: the others go on
            if len(messages) == 1:
                logger.error("a segment on %s could not be stored: %s %s", messages[0].subject, error, error.hint)
                return  # not acknowledged: it comes again
            for message in messages:
                await self._take(link, [message])

    async def _take_together(self, link: Link, messages: list[Message]) -> None:
        batch = [(_carrier(message.subject), message.data) for message in messages]
        answers = await self._call(self._custody.receive, batch, now_us())
        self._on_stored()
        by_carrier: dict[str, list[Answer]] = {}
        for answer in answers:
            if answer.carrier is not None:  # the operator, who parked something by hand, hears nothing
                by_carrier.setdefault(answer.carrier, []).append(answer)
        for carrier, found in by_carrier.items():
            self._say_refused(carrier, found)
            await link.send(f"cmf.v1.confirm.{carrier}", encode_confirm(self._confirm(found)))
        for message in messages:
            await message.ack()

    def _confirm(self, answers: list[Answer]) -> Confirm:
        confirmed = {key: value for answer in answers for key, value in answer.confirmed.items()}
        refused = tuple(Refusal._make(row) for answer in answers for row in answer.refused)
        parked = tuple(row for answer in answers for row in answer.parked)
        return Confirm(self._hub_id, self._incarnation, tuple(confirmed.values()), refused, parked)

    def _say_refused(self, carrier: str, answers: list[Answer]) -> None:
        for answer in answers:
            for *_, code, message in answer.refused:
                logger.warning("a segment from %s is refused (%s): %s", carrier, code, message)

    # -- hello ---------------------------------------------------------------------------------------------------------

    async def hello(self, subject: str, data: bytes) -> bytes:
        """Answer a hello; the subject says who asks."""
        try:
            return encode_answer(await self._call(self._hello, _carrier(subject, 1), decode_hello(data)))
        except CmfError as error:
            logger.warning("hello on %s is refused: %s", subject, error)
            return encode_error(error)

    def _hello(self, site: str, hello: Hello) -> HelloAnswer:
        now = now_us()
        if not hello.signature_holds(site, self._hub_id):
            raise AccessDenied(
                "the hello's signature does not verify", "join again with a file that this hub made: cmf-hub site add"
            )
        if hello.token is not None:
            self._registry.bind(site, hello.key, hello.token, now)
        bound = self._registry.site_of(hello.key)
        if bound is None or bound.site != site:
            raise AccessDenied(
                f"the signing key {hello.key.hex()[:12]}… is not bound to {site}", "join with a new file from this hub"
            )
        ahead_us = max(-AHEAD_US_MAX, min(hello.time_us - now, AHEAD_US_MAX))
        if abs(ahead_us) > CLOCK_WARNING_US:
            logger.warning("the clock of %s is %.0f s ahead of this hub's", site, ahead_us / 1e6)
        heads = [(log_id, *points[0]) for log_id, points in hello.logs if points]
        try:
            self._custody.contact(site, hello.key, now, ahead_us, heads)
        except StoreError as error:  # a full disk is no reason to send the site away: what is held is still true
            logger.error("that %s said hello could not be noted: %s %s", site, error, error.hint)
        confirmed: list[Confirmation] = []
        for log_id, points in hello.logs:
            confirmed += self._custody.confirmations(log_id, points, hello.key)
        return HelloAnswer(self._hub_id, self._incarnation, site, now, tuple(confirmed))


def _carrier(subject: str, from_end: int = 0) -> str:
    return subject.split(".")[-1 - from_end]
