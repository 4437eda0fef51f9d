"""Replays chains of cuts to a hub until they are confirmed: the NATS shell around the push machine (`cmf_protocol.sync`).

    replay = Replay(target, source, on_state=print)
    done = await replay.until_confirmed(timeout_s=60)   # a push: True once all that was offered is confirmed or refused
    await replay.for_ever()                             # a daemon, until cancelled; `poke()` when there is something new

`source` (`source.py`) knows what the pieces are; here they are opaque bytes with a name and a size. Sending them is `sending.py`'s. Others
may use `replay.link` (None until the first connection) for requests of their own; it renews itself.

Rules
- Says hello at connect, after each reconnect, when a confirmation is overdue, when the hub says that it has started, and every few
  minutes; nothing is sent before the first answer of a connection.
- What there is to send is looked for when something is said to be new, but never for more than a part of the time.
- May be cancelled at any `await`: marks are passed on, the link is closed, nothing is half known.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice
from typing import NamedTuple

from cmf_link.link import Link, connect
from cmf_link.pace import Backoff
from cmf_link.sending import Sender
from cmf_link.source import Source
from cmf_protocol.errors import (
    AccessDenied,
    CallerError,
    CmfError,
    HubUnreachable,
    IntegrityError,
    LinkError,
)
from cmf_protocol.messages import (
    HELLO_LOGS_MAX,
    NOTICE_HELLO,
    HelloAnswer,
    decode_answer,
    decode_confirm,
    decode_notice,
)
from cmf_protocol.sync import Moves

logger = logging.getLogger("cmf_link")

#: How long one attempt at a first connection may take, s: at a round trip of 2 s a login by TLS needs 7.
CONNECT_WAIT_S = 15.0
#: How long a push tries where nobody answers at all, s: a person who waits gets an answer, and a line that falls silent in the first
#: attempt (`CONNECT_WAIT_S`) gets another.
REACH_S = 20.0
#: First and longest wait between two of them, s.
RETRY_WAIT_S = 0.5
RETRY_WAIT_MAX_S = 10.0
#: How often a quiet connection says hello, so that a restored hub is noticed, s; jittered by a quarter.
HELLO_EVERY_S = 180.0
#: When a hub starts, its sites say hello within that time, not all at once, s.
NOTICE_SPREAD_S = 1.0
#: First and longest wait after a hello that was not answered, s.
DEAF_WAIT_S = 0.25
DEAF_WAIT_MAX_S = 5.0
#: How often time alone may change what is to be done, while something is on the way, s.
TICK_S = 0.25
#: That many times as long as looking for what is new has taken, the next look waits.
LOOK_PAUSE = 4
#: First and longest wait until a daemon tries again what failed for good, s.
FAILED_WAIT_S = 5.0
FAILED_WAIT_MAX_S = 60.0


class Target(NamedTuple):
    """A hub: its address, login, CA and id, who carries there, and how many bytes/s may be sent (None: no limit)."""

    url: str
    seed: str
    name: str
    carrier: str
    hub_id: bytes
    ca: str | None = None
    bytes_per_s: float | None = None


class ReplayState(NamedTuple):
    """What a replay is doing: `word` is connecting, asking, sending, waiting, refused or idle; `detail` is for people."""

    word: str
    detail: str = ""
    pending: int = 0


class Replay:
    """One carrier's replay to one hub."""

    def __init__(
        self,
        target: Target,
        source: Source,
        *,
        on_state: Callable[[ReplayState], None] = lambda _state: None,
        on_notice: Callable[[str], None] = lambda _what: None,
    ) -> None:
        self.link: Link | None = None
        #: Whether the hub has ever answered a hello.
        self.reached = False
        self._target = target
        self._source = source
        self._on_state = on_state
        self._on_notice = on_notice
        self._state = ReplayState("")
        self._patient = False
        self._news = asyncio.Event()
        self._sender = Sender(source, target.carrier, target.bytes_per_s, self._take, self._news.set)
        self.machine = self._sender.machine
        self._poked = self._fresh = True
        #: What ends the work, and why no hub has answered yet.
        self._error: CmfError | None = None
        self._unreached: LinkError | None = None
        self._deaf = Backoff(DEAF_WAIT_S, DEAF_WAIT_MAX_S)
        self._why_not_asked = ""
        self._ask_at_s = self._hello_at_s = self._look_at_s = 0.0

    # -- life ----------------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Tell that there may be something new to send: the source is asked. From the event loop only."""
        self._poked = True
        self._news.set()

    async def until_confirmed(self, timeout_s: float) -> bool:
        """Replay until all is confirmed or refused; False if `timeout_s` seconds were not enough.

        Raises `LinkError` if no hub answered within that time, `AccessDenied` as soon as one refuses, `IntegrityError` if it is another
        hub, and what the source raises.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with self._connected():
                    await self._work(lambda: self.reached and self.machine.done)
            return True
        except TimeoutError:
            if self.reached:
                return self.machine.done
            raise self._unreached or HubUnreachable(
                f"the hub at {self._target.url} did not answer within {timeout_s:g} s",
                "try again with a longer --timeout; nothing is lost",
            ) from None

    async def for_ever(self) -> None:
        """Replay what there is and what comes, until cancelled; raises `CallerError` for a target that can't be one."""
        self._patient = True
        waits = Backoff(FAILED_WAIT_S, FAILED_WAIT_MAX_S)
        while True:
            began_s = self._now_s()
            try:
                async with self._connected():
                    await self._work(lambda: False)
            except CallerError:
                raise
            except CmfError as error:
                logger.warning("%s: %s %s", self._target.url, error, error.hint)
                self._say("refused" if isinstance(error, AccessDenied | IntegrityError) else "waiting", str(error))
            if self._now_s() - began_s > FAILED_WAIT_MAX_S:
                waits.reset()  # it went well for a while
            await asyncio.sleep(waits.next_s())

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Connect, and have everything put away in the end, whatever happens."""
        self._error = self._sender.error = self._unreached = None
        self._poked = True
        try:
            self.link = await self._first_connection()
            yield
        finally:
            link, self.link = self.link, None
            try:
                self._sender.pass_marks_on()
            finally:
                try:
                    await self._sender.end()
                finally:
                    if link is not None:
                        await link.close()

    async def _first_connection(self) -> Link:
        waits, began_s = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S), self._now_s()
        while True:
            self._say("connecting", "" if self._unreached is None else str(self._unreached))
            try:
                return await self._connect()
            except AccessDenied:
                raise
            except LinkError as error:
                self._unreached = error
                if not self._patient and self._now_s() - began_s >= REACH_S:
                    raise
            await asyncio.sleep(waits.next_s())

    async def _connect(self) -> Link:
        target = self._target
        link = await connect(
            target.url, seed=target.seed, name=target.name, ca=target.ca, timeout_s=CONNECT_WAIT_S, on_state=self._on_link
        )  # fmt: skip
        try:
            await link.subscribe(f"cmf.v1.confirm.{target.carrier}", self._on_confirm)
            await link.subscribe(f"cmf.v1.notice.{target.carrier}", self._on_notice_message)
        except BaseException:
            await link.close()
            raise
        return link

    def _on_link(self, state: str) -> None:
        if state == "connected":
            self._fresh = True
        self._news.set()

    def _say(self, word: str, detail: str = "") -> None:
        state = ReplayState(word, detail, self.machine.pending)
        if state != self._state:
            self._state = state
            self._on_state(state)

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def _work(self, finished: Callable[[], bool]) -> None:
        while True:
            self._news.clear()
            if error := self._error or self._sender.error:
                raise error
            self._look()
            if finished():
                return
            if self._link.connected:
                await self._do_what_is_due(self._now_s())
            else:
                await self._say_not_connected()
            marks_in_s = self._sender.marks_due_in_s()
            if marks_in_s is not None and marks_in_s <= 0:
                self._sender.pass_marks_on()
            await self._wait()

    def _look(self) -> None:
        """Take what is new, if anything is said to be."""
        began_s = self._now_s()
        if self._poked and began_s >= self._look_at_s:
            self._poked = False
            for offer in self._source.offers():
                self.machine.offer(offer)
            now_s = self._now_s()
            self._look_at_s = now_s + LOOK_PAUSE * (now_s - began_s)

    async def _do_what_is_due(self, now_s: float) -> None:
        if self._fresh:
            await self._begin()
        if now_s >= self._hello_at_s:
            self._hello_at_s = now_s + HELLO_EVERY_S * random.uniform(0.75, 1.25)
            self._ask_at_s = min(self._ask_at_s, now_s)
            self.machine.ask_all()
            await self._ask(self.machine.to_ask(now_s))
        elif now_s >= self._ask_at_s and (asked := self.machine.to_ask(now_s)):
            await self._ask(asked)
        self._sender.send_due(self._link)
        self._say_what_is_done()

    async def _begin(self) -> None:
        """Start over on a new connection."""
        self._fresh = False
        await self._sender.end()
        self._sender.go_on()
        self.machine.on_connected()
        self._hello_at_s = self._ask_at_s = 0.0

    async def _say_not_connected(self) -> None:
        try:
            await self._link.wait_connected(0)
        except AccessDenied as error:
            if not self._patient:
                raise
            self._say("refused", str(error))
        except LinkError as error:
            self._say("connecting", str(error))

    def _say_what_is_done(self) -> None:
        now_s, refused = self._now_s(), self.machine.refused
        if self._ask_at_s > now_s:
            self._say("waiting", self._why_not_asked)
        elif self._sender.held_up_until_s > now_s:
            self._say("waiting", self._sender.why_not)
        elif self.machine.busy:
            self._say("sending")
        elif refused is not None:
            self._say("refused", f"{refused.code}: {refused.message}")
        else:
            self._say("idle")

    async def _wait(self) -> None:
        """Return when something happened, or when time may have changed what is to be done."""
        now_s = self._now_s()
        if self._link.connected and not self._fresh:
            waits = [TICK_S if self.machine.busy or self._ask_at_s > now_s else self._hello_at_s - now_s]
        else:
            waits = [HELLO_EVERY_S]
        marks_in_s = self._sender.marks_due_in_s()
        if marks_in_s is not None:
            waits.append(marks_in_s)
        if self._poked:
            waits.append(self._look_at_s - now_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(min(waits), 0)):
                await self._news.wait()

    @property
    def _link(self) -> Link:
        assert self.link is not None
        return self.link

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    # -- asking --------------------------------------------------------------------------------------------------------

    async def _ask(self, asked: Mapping[bytes, int]) -> None:
        """Say hello about these chains, as many as one may name; the others are asked about next."""
        chunk = dict(islice(asked.items(), HELLO_LOGS_MAX))
        if not self.reached:
            self._say("asking")
        hello = self._source.hello(chunk)
        began_s = self._now_s()
        try:
            answer = await self._answer_to(hello)
        except AccessDenied:
            raise
        except LinkError as error:
            if not self.reached:
                self._unreached = error
            if not self._fresh:
                self._why_not_asked = str(error)
                self._ask_at_s = self._now_s() + self._deaf.next_s()
                self._hello_at_s = min(self._hello_at_s, self._ask_at_s)
            return
        now_s = self._now_s()
        self._deaf.reset()
        self.reached = True
        self.machine.line.on_round_trip(now_s - began_s)
        self._source.on_answer(answer)
        self._take(self.machine.on_answer(chunk, answer.confirmed, answer.stream, answer.grant, now_s))
        if len(asked) > len(chunk):
            self._news.set()

    async def _answer_to(self, hello: bytes) -> HelloAnswer:
        subject = f"cmf.v1.rpc.{self._target.carrier}.hello"
        # The answer is about as long as the question, and has to come back.
        timeout_s = self._sender.patience_s(2 * len(hello))
        answer = decode_answer(await self._link.request(subject, hello, timeout_s=timeout_s))
        if answer.hub_id != self._target.hub_id:
            raise IntegrityError(
                f"another hub ({answer.hub_id.hex()}) answers at {self._target.url}",
                "join the hub that is meant: cmf-agent join FILE",
            )
        return answer

    # -- what the hub says ---------------------------------------------------------------------------------------------

    async def _on_confirm(self, _subject: str, data: bytes) -> None:
        confirm = decode_confirm(data)
        if confirm.hub_id != self._target.hub_id:
            return
        try:
            self._source.on_confirm(confirm)
        except CmfError as error:
            self._error = error
        found = (confirm.confirmed, confirm.refused, confirm.parked, confirm.grant)
        self._take(self.machine.on_confirm(*found, self._now_s()))

    def _take(self, moves: Moves) -> None:
        """Pass on what changed; if it can't be kept, that ends the work."""
        self._sender.on_moves(moves)
        try:
            self._source.on_moves(moves)
        except CmfError as error:
            self._error = error
        self._news.set()

    async def _on_notice_message(self, _subject: str, data: bytes) -> None:
        notice = decode_notice(data)
        if notice.hub_id != self._target.hub_id:
            return
        if notice.what == NOTICE_HELLO:
            self._hello_at_s = min(self._hello_at_s, self._now_s() + random.uniform(0, NOTICE_SPREAD_S))
            self._sender.go_on()
            self._deaf.reset()
            self._news.set()
        self._on_notice(notice.what)
