"""One login on one TCP connection: it is used until it is lost, then thrown away.

Rules
- Never reconnects, never buffers: what can't be sent now is an error now.
- `lost` is done as soon as the connection can't be used any more; whoever awaits an answer awaits it too.
- Touches nats-py's private parts in one line (`_transport`), so that a transport can be watched and aborted.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from cmf_link.address import Address
from cmf_link.failures import broken_off, connect_failure, link_errors, refused_subject
from cmf_link.login import Login
from cmf_link.transport import WatchedTransport
from cmf_link.watchdog import Shown
from cmf_protocol.errors import CallerError, LinkError

logger = logging.getLogger("cmf_link")

#: An answer that takes longer than this makes the watchdog ask whether the connection still lives, s.
DOUBT_AFTER_S = 2.0
#: How long a good-bye may take before the connection is thrown away, s.
CLOSE_TIMEOUT_S = 2.0
#: nats-py's own pings: never, since the watchdog asks (watchdog.py), s.
NEVER_S = 10**9
#: Room for our headers within the server's limit of a message, bytes.
HEADER_BYTES_MAX = 512
#: The status with which a server says that nobody has subscribed to a subject.
NO_RESPONDERS = "503"


@dataclass(frozen=True)
class Received:
    """A message as it came."""

    subject: str
    data: bytes
    reply: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The server's status code, as "503", or "" for an ordinary message."""
        return self.headers.get("Status", "")


Receiver = Callable[[Received], Awaitable[None]]


class Connection:
    """A NATS client that is logged in, until `lost`."""

    def __init__(self, address: Address, trust: ssl.SSLContext | None) -> None:
        self.address = address
        self._trust = trust
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Set when somebody should ask whether the connection still lives, and when it is lost.
        self.doubt = asyncio.Event()
        self.shown = Shown()
        self._client = Client()
        self._transport = WatchedTransport(tls=trust is not None)
        self._client._transport = self._transport
        self._logged_in = False
        self._refused: list[str] = []
        self._pings: set[asyncio.Future[float]] = set()

    @classmethod
    async def open(
        cls, address: Address, login: Login, name: str, timeout_s: float, trust: ssl.SSLContext | None
    ) -> "Connection":
        """Connect, by TLS if there is a `trust`, and log in, within `timeout_s`. Raises `HubUnreachable`, `AccessDenied`."""
        connection = cls(address, trust)
        try:
            async with asyncio.timeout(timeout_s):
                await connection._login(login, name, timeout_s)
        except BaseException as error:
            transport = connection._transport
            connection.abort()
            if not isinstance(error, Exception):
                raise
            raise connect_failure(error, address, reached=transport.reached, greeted=transport.greeted) from error
        return connection

    async def _login(self, login: Login, name: str, timeout_s: float) -> None:
        await self._client.connect(
            self.address.url,
            name=name,
            nkeys_seed_str=login.seed,
            tls=self._trust,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            no_echo=True,
            # With a buffer, what is published while disconnected fails and is sent later all the same.
            pending_size=-1,
            ping_interval=NEVER_S,
            connect_timeout=timeout_s,  # type: ignore[arg-type]
        )
        self._logged_in = True
        if not self._client.is_connected:  # the server hung up in the middle: nats-py reports success
            raise nats.errors.UnexpectedEOF

    async def _on_error(self, error: Exception) -> None:
        if not self._logged_in:
            # nats-py tries a refused TCP connection for ever, unless this raises.
            raise error
        if "permissions violation" in str(error).lower():
            self._refused.append(str(error))
        logger.debug("%s: %r", self.address, error)
        if isinstance(error, nats.errors.StaleConnectionError | OSError):
            self.abort()  # nats-py may take its time to close what is gone

    async def _on_closed(self) -> None:
        self._mark_lost()

    def _mark_lost(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        for asked in list(self._pings):
            asked.cancel()
        self.doubt.set()

    def check_size(self, subject: str, data: bytes) -> None:
        """Raise `CallerError` if `data` is more than the server takes (it would cut the connection)."""
        limit = self._client.max_payload - HEADER_BYTES_MAX
        if len(data) > limit:
            raise CallerError(
                f"a message of {len(data)} bytes for {subject} exceeds the {limit} that {self.address} takes",
                "send less at once, or raise the server's max_payload",
            )

    async def send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Hand a message to the server, unacknowledged. Raises `HubUnreachable` if the connection is lost."""
        self.check_size(subject, data)
        with link_errors(subject, self.address):
            await self._client.publish(subject, data, reply=reply)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Received:
        """Send a message and return the first answer.

        Raises `HubUnreachable` if nobody takes the subject, `LinkError` if no answer came (it may have arrived).
        """
        self.check_size(subject, data)
        clock = asyncio.get_running_loop().time
        began_s, before = clock(), self.bytes_left() + self.unsent_bytes()
        asked = asyncio.ensure_future(
            self._client.request(subject, data, timeout=timeout_s, headers=dict(headers) if headers else None)
        )
        try:
            await self._wait_for(asked)
            if not asked.done():
                raise broken_off(subject, self.address)
            with link_errors(subject, self.address):
                answer = asked.result()
            self.shown.on_answer(before + len(data), len(data), clock() - began_s)
            return _received(answer)
        except LinkError as error:
            if any(subject.lower() in text for text in self._refused):
                raise refused_subject(subject, self.address) from error
            raise
        finally:
            asked.cancel()

    async def _wait_for(self, answer: "asyncio.Future[Any]") -> None:
        """Wait until `answer` is done (it bounds itself) or the connection is lost."""
        waited = {answer, self.lost}
        await asyncio.wait(waited, timeout=DOUBT_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and not self.lost.done():
            self.doubt.set()
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)

    async def collect(
        self, subject: str, data: bytes, *, timeout_s: float, finished: Callable[[Received], bool]
    ) -> None:
        """Send a message and pass every answer to `finished`, until it returns True.

        Raises like `request`; what was passed before that stays passed.
        """
        answers: asyncio.Queue[Received] = asyncio.Queue()
        inbox = self._client.new_inbox()

        async def put(answer: Received) -> None:
            answers.put_nowait(answer)

        stop = await self.subscribe(inbox, "", put)
        try:
            await self.send(subject, data, reply=inbox)
            reading = asyncio.ensure_future(_read_until(answers, finished, timeout_s))
            try:
                await self._wait_for(reading)
                if not reading.done():
                    raise broken_off(subject, self.address)
                with link_errors(subject, self.address):
                    reading.result()
            finally:
                reading.cancel()
        finally:
            await stop()

    async def subscribe(self, subject: str, queue: str, receive: Receiver) -> Callable[[], Awaitable[None]]:
        """Have `receive` called with each message on `subject`, one at a time; returns the way to stop it."""

        async def passed_on(message: Msg) -> None:
            try:
                await receive(_received(message))
            except Exception:
                logger.exception("what came on %s could not be handled", message.subject)

        with link_errors(subject, self.address):
            subscription = await self._client.subscribe(subject, queue, cb=passed_on)

        async def stop() -> None:
            with contextlib.suppress(nats.errors.Error, OSError):  # the connection is gone, and so is the interest
                await subscription.unsubscribe()

        return stop

    async def ping(self, timeout_s: float) -> None:
        """Return once the server has seen everything sent before. Raises `LinkError`."""
        # nats-py writes a ping at once, past what its flusher has yet to write, a subscription above all: the flusher first.
        await asyncio.sleep(0)
        # Not `flush`: that returns without asking when nats-py's reading task has died. Nor may the question be cancelled: its late
        # answer would kill that task. So it is left to end by itself, or with the connection.
        asked = asyncio.ensure_future(self._client.rtt(NEVER_S))
        self._pings.add(asked)
        asked.add_done_callback(self._forget_ping)
        with link_errors("ping", self.address):
            waited: set[asyncio.Future[Any]] = {asked, self.lost}
            async with asyncio.timeout(timeout_s):
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise broken_off("ping", self.address)
            asked.result()

    def _forget_ping(self, asked: "asyncio.Future[float]") -> None:
        self._pings.discard(asked)
        if not asked.cancelled():
            asked.exception()  # whoever waited has seen it

    def bytes_read(self) -> int:
        """Return how many bytes ever arrived."""
        return self._transport.bytes_read

    def bytes_left(self) -> int:
        """Return how many bytes ever left, as far as is known."""
        return self._transport.bytes_left()

    def unsent_bytes(self) -> int:
        """Return how many bytes have not reached the other side yet."""
        return self._transport.unsent_bytes()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()
        self._mark_lost()

    async def close(self) -> None:
        """Say good-bye, or throw the connection away if that takes too long."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()
        except Exception as error:  # noqa: BLE001 - whatever nats-py says now, the connection goes
            logger.debug("closing %s: %r", self.address, error)
        finally:
            self.abort()


async def _read_until(answers: asyncio.Queue[Received], finished: Callable[[Received], bool], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            answer = await answers.get()
            if answer.status == NO_RESPONDERS:
                raise nats.errors.NoRespondersError
            if finished(answer):
                return


def _received(message: Msg) -> Received:
    return Received(message.subject, message.data, message.reply, message.headers or {})
