"""From the stream to custody, and back to the sites: consume, decide, commit, confirm, acknowledge.

Rules
- Order: custody commits, then the confirmation is published, then the stream may forget. A crash between any two of these repeats the
  message, which is then a duplicate and confirmed again.
- Every message is acknowledged once its decision is committed, whatever the decision, so that none waits in the broker for another.
- All calls to custody go through one thread, so that a commit never stops the pings.
- An answer to hello looks at the stream first and at custody then: what the stream had decided is in custody, or was lost or refused.
- Many hellos at once share one look at the stream, and one commit that notes them.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cmf_hub.custody import Answer, Contact, Custody
from cmf_hub.granting import GRANT_MIN, Granting
from cmf_hub.registry import Registry
from cmf_link.link import Link
from cmf_link.stream import LogStream, Message, StreamLook
from cmf_protocol.errors import AccessDenied, CmfError, LinkError, PeerError, StoreError
from cmf_protocol.messages import (
    NOTICE_HELLO,
    Confirm,
    Confirmation,
    Hello,
    HelloAnswer,
    Notice,
    Refusal,
    StreamState,
    decode_hello,
    encode_answer,
    encode_confirm,
    encode_error,
    encode_notice,
)

logger = logging.getLogger("cmf_hub")

#: Messages decided on in one commit: a commit costs less than a hundred segments' decoding.
BATCH_MESSAGES = 64
FETCH_WAIT_S = 5.0
#: How long messages are waited for while parked segments could be taken instead.
READY_WAIT_S = 0.05
RETRY_WAIT_S = 0.5
#: One look at the stream serves all hellos of that time, s, and may itself take that long.
LOOK_S = 0.2
LOOK_WAIT_S = 2.0
#: Contacts are noted at once, but no more often than this, s: then several in one commit.
CONTACTS_EVERY_S = 0.2
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
        self._granting = Granting()
        self._busy_since_s = 0.0
        self._stream: LogStream | None = None
        self._look: asyncio.Task[StreamLook] | None = None
        self._looked_s = 0.0
        self._contacts: dict[str, Contact] = {}
        self._noted_s = 0.0
        self._noting: asyncio.Task[None] | None = None

    async def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Let the commit that runs end, and take no further one."""
        if self._noting is not None:
            self._noting.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # -- segments ------------------------------------------------------------------------------------------------------

    async def consume(self, link: Link, stream: LogStream) -> None:
        """Take segments until cancelled; a link or a disk that fails is tried again, since nothing is acknowledged before."""
        self._stream = stream
        await self._greet(link)
        broken = False
        while True:
            try:
                if broken:
                    await stream.restart()
                    broken = False
                ready = await self._call(self._custody.has_ready)
                asked_s = time.monotonic()
                messages = await stream.fetch(BATCH_MESSAGES, READY_WAIT_S if ready else FETCH_WAIT_S)
                # A full batch was there already: fetching it is part of what deciding takes.
                self._busy_since_s = asked_s if len(messages) == BATCH_MESSAGES else time.monotonic()
                if messages:
                    await self._take(link, messages)
                elif ready:
                    await self._take_together(link, [])
            except LinkError as error:
                logger.warning("no segments for now: %s", error)
                broken = True
                await asyncio.sleep(RETRY_WAIT_S)
            except CmfError as error:
                logger.error("segments could not be stored, they come again: %s %s", error, error.hint)
                broken = True  # so that they come at once, and not after the stream's own wait
                await asyncio.sleep(RETRY_WAIT_S)

    async def _greet(self, link: Link) -> None:
        """Have every site say hello: this store may be an older one than they know."""
        notice = encode_notice(Notice(self._hub_id, self._incarnation, NOTICE_HELLO))
        try:
            for site in await self._call(self._registry.logins):
                await link.send(f"cmf.v1.notice.{site}", notice)
        except CmfError as error:  # they say it when they connect, and every few minutes
            logger.warning("the sites could not be told that the hub has started: %s", error)

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
        for carrier, _ in batch:
            self._granting.heard(carrier, time.monotonic())
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
        decided = sum(answer.admitted_events + answer.duplicates for answer in answers)
        self._granting.measured(decided, time.monotonic() - self._busy_since_s)

    def _confirm(self, answers: list[Answer]) -> Confirm:
        confirmed = {key: value for answer in answers for key, value in answer.confirmed.items()}
        refused = tuple(Refusal._make(row) for answer in answers for row in answer.refused)
        parked = tuple(row for answer in answers for row in answer.parked)
        grant = self._granting.grant(time.monotonic())
        return Confirm(self._hub_id, self._incarnation, tuple(confirmed.values()), refused, parked, grant)

    def _say_refused(self, carrier: str, answers: list[Answer]) -> None:
        for answer in answers:
            for *_, code, message in answer.refused:
                logger.warning("a segment from %s is refused (%s): %s", carrier, code, message)

    # -- hello ---------------------------------------------------------------------------------------------------------

    async def hello(self, subject: str, data: bytes) -> bytes:
        """Answer a hello; the subject says who asks."""
        carrier = _carrier(subject, 1)
        try:
            stream = await self._stream_state(carrier)
            answer = await self._call(self._hello, carrier, decode_hello(data), stream)
            self._granting.heard(carrier, time.monotonic())
        except CmfError as error:
            logger.warning("hello on %s is refused: %s", subject, error)
            return encode_error(error)
        self._note_contacts_soon()
        return encode_answer(answer._replace(grant=self._granting.grant(time.monotonic())))

    async def _stream_state(self, carrier: str) -> StreamState | None:
        """Return what the stream has come to of a carrier's segments; None if it does not say."""
        if self._stream is None:
            return None
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_s >= LOOK_S):
            self._looked_s = time.monotonic()
            self._look = asyncio.get_running_loop().create_task(self._look_at(self._stream))
        try:
            look = await asyncio.shield(self._look)
        except (LinkError, TimeoutError) as error:
            logger.warning("what the stream holds is not known: %s", error)
            return None
        subject = f"cmf.v1.log.{carrier}"
        return StreamState(look.created, look.decided(subject), look.waiting.get(subject, 0))

    async def _look_at(self, stream: LogStream) -> StreamLook:
        async with asyncio.timeout(LOOK_WAIT_S):
            return await stream.look()

    def _hello(self, site: str, hello: Hello, stream: StreamState | None) -> HelloAnswer:
        now = now_us()
        self._authenticate(site, hello, now)
        ahead_us = max(-AHEAD_US_MAX, min(hello.time_us - now, AHEAD_US_MAX))
        if abs(ahead_us) > CLOCK_WARNING_US:
            logger.warning("the clock of %s is %.0f s ahead of this hub's", site, ahead_us / 1e6)
        heads = tuple((log_id, *points[0]) for log_id, points in hello.logs if points)
        before = self._contacts.pop(site, None)
        heads = heads if before is None else (*before.heads, *heads)
        self._contacts[site] = Contact(site, hello.key, now, ahead_us, heads, hello.leaving)
        if time.monotonic() - self._noted_s >= CONTACTS_EVERY_S:
            self._note_contacts()
        carries = self._registry.may_carry(site, "")  # any site's logs, so also those of nobody
        keys: list[bytes | None] = [None] if carries else [*self._registry.keys_of(site)]
        confirmed: list[Confirmation] = []
        for log_id, points in hello.logs:
            for key in keys:
                confirmed += self._custody.confirmations(log_id, points, key)
        return HelloAnswer(self._hub_id, self._incarnation, site, now, tuple(confirmed), stream, GRANT_MIN)

    def _authenticate(self, site: str, hello: Hello, now: int) -> None:
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

    # -- contacts ------------------------------------------------------------------------------------------------------

    def _note_contacts(self) -> None:
        """Note who spoke, in one commit; in custody's thread."""
        contacts, self._contacts = self._contacts, {}
        self._noted_s = time.monotonic()
        if not contacts:
            return
        try:
            self._custody.contacts(list(contacts.values()))
        except StoreError as error:  # a full disk is no reason to send sites away: what is held is still true
            logger.error("that %d sites said hello could not be noted: %s %s", len(contacts), error, error.hint)

    def _note_contacts_soon(self) -> None:
        if self._contacts and (self._noting is None or self._noting.done()):
            self._noting = asyncio.get_running_loop().create_task(self._note_contacts_later())

    async def _note_contacts_later(self) -> None:
        await asyncio.sleep(CONTACTS_EVERY_S)
        await self._call(self._note_contacts)


def _carrier(subject: str, from_end: int = 0) -> str:
    return subject.split(".")[-1 - from_end]
