"""The way to a hub's NATS server, for agent and hub: connect once, and it keeps itself connected.

Rules
- Connects once with an answer (`connect` raises), then keeps reconnecting for ever with jittered back-off; a
  login that is refused meanwhile is tried again rarely, and says so with every call.
- What can't be sent now raises now: nothing is buffered here, the log is the buffer.
- Subscriptions and services survive a reconnect; messages published while disconnected do not reach them.
- States told to `on_state`: "connected", "disconnected", "refused", "closed".
"""

import asyncio
import json
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cmf_link.address import Address, read_address
from cmf_link.connection import Connection, Received, Receiver
from cmf_link.failures import OFFLINE_HINT, UNKNOWN_HINT, no_ca, stream_refusal
from cmf_link.login import Login, login_from_seed
from cmf_link.service import Handler, Service
from cmf_link.transport import trust_in
from cmf_link.watchdog import until_silent
from cmf_protocol.errors import AccessDenied, HubUnreachable, LinkError

logger = logging.getLogger("cmf_link")

#: First and longest wait between two attempts to reconnect, s; each wait is a random part of its bound, so
#: that a restarted hub is not met by all its sites at once.
RETRY_WAIT_S = 0.25
RETRY_WAIT_MAX_S = 10.0
#: Wait after a refused login, s: only the hub's operator can change that.
REFUSED_WAIT_S = 15.0
#: How long one attempt to reconnect may take, s: at a round trip of 2 s a login by TLS and a ping need 9. With the longest wait before it
#: that is less than the 30 s within which a link has to be back.
ATTEMPT_TIMEOUT_S = 15.0
#: What of that is left for renewing the subscriptions at least, s.
RENEW_TIMEOUT_MIN_S = 1.0
#: How long a new subscription may take to be known to the server, s.
SUBSCRIBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class StreamAck:
    """JetStream's word that it has a message: not the hub's confirmation."""

    stream_sequence: int
    duplicate: bool


@dataclass(frozen=True)
class _Interest:
    subject: str
    queue: str
    receive: Receiver


async def connect(
    url: str,
    *,
    seed: str,
    name: str,
    ca: str | None = None,
    timeout_s: float = 5.0,
    on_state: Callable[[str], None] | None = None,
) -> "Link":
    """Log in at `url` (`nats://host:port`) within `timeout_s` seconds and return a link that stays connected.

    `seed` is the NATS login's, `name` shows up in the server's log. With `ca` (PEM) TLS is a must, whatever `url`
    begins with, and only a certificate of that CA for that host is trusted. Raises `HubUnreachable`, `AccessDenied`,
    and `CallerError` for an address, a seed or a CA that can't be one.
    """
    address, login = read_address(url), login_from_seed(seed)
    trust = None if ca is None else trust_in(ca)
    if address.tls and trust is None:
        raise no_ca(address)
    connection = await Connection.open(address, login, name, timeout_s, trust)
    return Link(address, login, name, connection, on_state or (lambda _state: None), trust)


class Link:
    """A connection to one hub that renews itself; made by `connect`."""

    def __init__(
        self,
        address: Address,
        login: Login,
        name: str,
        connection: Connection,
        on_state: Callable[[str], None],
        trust: ssl.SSLContext | None,
    ) -> None:
        self.address = address
        self._trust = trust
        self._login = login
        self._name = name
        self._on_state = on_state
        self._connection = connection
        self._interests: list[_Interest] = []
        self._down: LinkError | None = None
        self._up = asyncio.Event()
        self._say("connected")
        self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    # --- sending

    async def publish(self, subject: str, data: bytes, *, message_id: str, timeout_s: float) -> StreamAck:
        """Store `data` in the JetStream stream that listens on `subject`, and wait for its word.

        `message_id` must be unguessable and new for each replay: the server drops a second one silently.
        Raises `BackPressure` (full: wait), `HubUnreachable` (not sent, or nobody took it), `AccessDenied`,
        `LinkError` (unknown: send the same bytes again), `CallerError` (too large).
        """
        answer = await self._live().request(subject, data, timeout_s=timeout_s, headers={"Nats-Msg-Id": message_id})
        return _stream_ack(subject, answer.data)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Ask and return the first answer's bytes; raises like `publish`."""
        return (await self._live().request(subject, data, timeout_s=timeout_s, headers=headers)).data

    async def collect(
        self, subject: str, data: bytes, *, timeout_s: float, finished: Callable[[Received], bool]
    ) -> None:
        """Ask and pass each of several answers to `finished` until it returns True; raises like `request`."""
        await self._live().collect(subject, data, timeout_s=timeout_s, finished=finished)

    async def send(self, subject: str, data: bytes) -> None:
        """Publish to whoever listens just now, unacknowledged. Raises `HubUnreachable` if disconnected."""
        await self._live().send(subject, data)

    # --- receiving

    async def subscribe(self, subject: str, handler: Callable[[str, bytes], Awaitable[None]]) -> None:
        """Call `handler(subject, data)` for each message, one at a time; the server knows it on return.

        What the handler raises is logged and stops nothing.
        """

        async def receive(message: Received) -> None:
            await handler(message.subject, message.data)

        await self._listen(_Interest(subject, "", receive))

    async def serve(self, subject: str, queue: str, handler: Handler, *, in_account_too: bool = False) -> None:
        """Answer requests on `subject` with what `handler(subject, data)` returns.

        One member of the group `queue` gets each request. Only those that came from another account are
        answered (service.py says why), unless `in_account_too`.
        """
        service = Service(handler, self._answer, in_account_too=in_account_too)
        await self._listen(_Interest(subject, queue, service.receive))

    async def _answer(self, reply: str, data: bytes) -> None:
        await self._live().send(reply, data)

    async def _listen(self, interest: _Interest) -> None:
        connection = self._live()
        await connection.subscribe(interest.subject, interest.queue, interest.receive)
        self._interests.append(interest)
        await connection.ping(SUBSCRIBE_TIMEOUT_S)

    # --- life

    @property
    def connected(self) -> bool:
        """Whether there is a connection now, as far as is known."""
        return self._up.is_set()

    async def wait_connected(self, timeout_s: float) -> None:
        """Wait until connected. Raises the error of the last attempt after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            self._live()

    def abort(self) -> None:
        """Drop the TCP connection at once, unsent bytes with it; a new one is made right away."""
        self._connection.abort()

    async def close(self) -> None:
        """End the link; bounded, whatever the server does."""
        self._keeper.cancel()
        try:
            await asyncio.wait({self._keeper})
            await self._connection.close()
        finally:  # whoever closes it may be cancelled meanwhile
            self._connection.abort()
        self._down = HubUnreachable(f"the link to {self.address} is closed")
        self._say("closed")

    def _live(self) -> Connection:
        if self._down is not None:
            raise type(self._down)(str(self._down), self._down.hint)
        return self._connection

    def _say(self, state: str) -> None:
        if state == "connected":
            self._down = None
            self._up.set()
        else:
            self._up.clear()
        try:
            self._on_state(state)
        except Exception:
            logger.exception("the state %r of the link could not be passed on", state)

    async def _keep_connected(self) -> None:
        """Replace the connection whenever it is lost or silent, for ever."""
        while True:
            await until_silent(self._connection)
            self._down = HubUnreachable(f"the connection to {self.address} is lost", OFFLINE_HINT)
            self._connection.abort()
            self._say("disconnected")
            await self._connection.close()
            self._connection = await self._reconnected()
            logger.info("connected again to %s", self.address)
            self._say("connected")

    async def _reconnected(self) -> Connection:
        bound_s = RETRY_WAIT_S
        while True:
            await asyncio.sleep(bound_s * random.uniform(0.5, 1.0))  # jitter, no secret
            try:
                return await self._new_connection()
            except LinkError as error:
                refused = isinstance(error, AccessDenied)
                bound_s = REFUSED_WAIT_S if refused else min(bound_s * 2, RETRY_WAIT_MAX_S)
                if refused and not isinstance(self._down, AccessDenied):
                    self._say("refused")
                self._down = error
                logger.debug("not connected: %s", error)

    async def _new_connection(self) -> Connection:
        """Log in again and renew every subscription."""
        clock = asyncio.get_running_loop().time
        ends_s = clock() + ATTEMPT_TIMEOUT_S
        connection = await Connection.open(self.address, self._login, self._name, ATTEMPT_TIMEOUT_S, self._trust)
        try:
            for interest in self._interests:
                await connection.subscribe(interest.subject, interest.queue, interest.receive)
            await connection.ping(max(ends_s - clock(), RENEW_TIMEOUT_MIN_S))
        except BaseException:
            connection.abort()
            raise
        return connection


def _stream_ack(subject: str, answer: bytes) -> StreamAck:
    try:
        said: dict[str, Any] = json.loads(answer)
        if error := said.get("error"):
            raise stream_refusal(subject, int(error.get("err_code", 0)), str(error.get("description", "")))
        return StreamAck(int(said["seq"]), bool(said.get("duplicate", False)))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise LinkError(f"what answered {subject} is not JetStream", UNKNOWN_HINT) from problem
