"""Push: replays what the hub has not confirmed, and returns when it has, or when time is up.

Theory of operation: a hello tells what the hub holds of this site's logs. What lies beyond is cut into segments, each
signed once and for ever (a cut that was signed before is sent as it was), and handed to JetStream, a few at a time.
Confirmations come on a subject of their own; `cmf_protocol.sync` says what to send next and when to ask again. Nothing
here decides that an event is delivered but the hub's word about that event's id.

Rules
- One push per site at a time (a lock file); the log may grow meanwhile, what comes after the start waits for the next push.
- A signature is stored before its segment is sent.
- Memory follows the window, not the backlog: a segment's bytes are made when it is sent.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.keys import read_signer
from cmf_agent.log import now_us
from cmf_agent.outbox import Cut as SignedCut
from cmf_agent.outbox import Outbox
from cmf_agent.version import AGENT
from cmf_graph.locks import try_lock
from cmf_link.link import Link, connect
from cmf_protocol.encoding import Value
from cmf_protocol.errors import AccessDenied, BackPressure, CallerError, IntegrityError, LinkError, StoreError
from cmf_protocol.messages import (
    HELLO_LOGS_MAX,
    HelloAnswer,
    Refusal,
    decode_answer,
    decode_confirm,
    points_of,
    sign_hello,
)
from cmf_protocol.segments import SEGMENT_EVENTS_MAX, Statement, cut, encode_segment, sign_segment
from cmf_protocol.signing import Signer
from cmf_protocol.sync import CONFIRM_WAIT_S, WINDOW, Cut, PushMachine

#: How long one hello or one publish may take before it counts as failed, s.
ANSWER_WAIT_S = 5.0
#: Cuts made ahead of what is being sent.
CUTS_AHEAD = 2 * WINDOW
BACK_PRESSURE_WAIT_S = 0.5
TICK_S = 0.25
#: The code of a refusal that is the hub's own fault.
HUB_ERROR = "hub-error"
#: Clocks further apart than this are told, µs.
CLOCK_WARNING_US = 60_000_000


@dataclass
class PushReport:
    """What a push did: events handed to the hub, newly confirmed, still unconfirmed; segments and bytes that were sent."""

    sent: int = 0
    confirmed: int = 0
    pending: int = 0
    segments: int = 0
    bytes: int = 0
    hub: str = ""
    refused: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def push(home: Home, hub: HubFile, *, timeout_s: float, dry_run: bool = False) -> PushReport:
    """Replay what is not confirmed, for at most `timeout_s` seconds.

    Raises `HubUnreachable` or `AccessDenied` if no hub was reached, `StoreError` while another push runs; events that are unconfirmed
    at the end are `pending` in the report.
    """
    with contextlib.ExitStack() as stack:
        lock = try_lock(home.path / "push.lock")
        if lock is None:
            raise StoreError("another push of this site is running", "wait until it is done; it pushes your events too")
        stack.callback(lock.close)
        outbox = stack.enter_context(Outbox(home.log_path))
        pushing = _Push(home, hub, outbox)
        if dry_run:
            return pushing.estimate()
        return asyncio.run(pushing.run(timeout_s))


class _Push:
    def __init__(self, home: Home, hub: HubFile, outbox: Outbox) -> None:
        self._home = home
        self._hub = hub
        self._outbox = outbox
        self._signer: Signer = read_signer(home.key_path)
        self._heads = {log_id: outbox.head(log_id) for log_id in outbox.logs()}
        self._machine = PushMachine(outbox.event_id)
        self._signed: dict[Cut, SignedCut] = {}
        self._published: dict[bytes, int] = {}
        self._news = asyncio.Event()
        self._asked: list[bytes] = []
        self.report = PushReport(hub=hub.url)

    # -- without a hub -------------------------------------------------------------------------------------------------

    def estimate(self) -> PushReport:
        """Return what a push would send, by what this site knows of the hub."""
        for log_id in self._heads:
            known = self._outbox.confirmed(self._hub.hub_id, log_id)
            for signed in self._cuts_after(log_id, known[0] if known else 0, keep=False):
                self.report.segments += 1
                self.report.bytes += len(self._encode(signed))
                self.report.pending += signed.statement.last_sequence - signed.statement.first_sequence + 1
        return self.report

    # -- with a hub ----------------------------------------------------------------------------------------------------

    async def run(self, timeout_s: float) -> PushReport:
        """Push for at most `timeout_s` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        link = await connect(
            self._hub.url,
            seed=self._hub.login,
            name=f"cmf-agent {self._hub.site}",
            timeout_s=min(ANSWER_WAIT_S, timeout_s),
        )
        try:
            await link.subscribe(f"cmf.v1.confirm.{self._hub.site}", self._on_confirm)
            await self._say_hello(link, deadline, first=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._send_all(link)
        finally:
            await link.close()
            self._record_published()
        for code, message in dict.fromkeys((r.code, r.message) for r in self.report.refused):
            self.report.warnings.append(f"the hub refuses what was sent ({code}): {message}")
        total = sum(sequence for sequence, _ in self._heads.values())
        self.report.pending = total - sum(self._machine.confirmed.values())
        return self.report

    async def _say_hello(self, link: Link, deadline: float, *, first: bool = False) -> None:
        """Ask what the hub holds, until it answers or time is up."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                wait_s = min(ANSWER_WAIT_S, max(deadline - loop.time(), TICK_S))
                data = await link.request(f"cmf.v1.rpc.{self._hub.site}.hello", self._hello(), timeout_s=wait_s)
                break
            except AccessDenied:
                raise
            except LinkError:
                if loop.time() + TICK_S >= deadline:
                    raise
                await asyncio.sleep(TICK_S * (0.5 + random.random()))
        answer = decode_answer(data)
        if answer.hub_id != self._hub.hub_id:
            raise IntegrityError(
                "another hub answers at this address", "join the hub that is meant: cmf-agent join FILE"
            )
        self._take_answer(answer, first=first)

    def _hello(self) -> bytes:
        logs: list[Value] = []
        self._asked = self._to_ask()
        for log_id in self._asked:
            sequence = self._heads[log_id][0]
            points = [[s, self._outbox.event_id(log_id, s)] for s in points_of(sequence)]
            logs.append([log_id, points])
        return sign_hello(
            self._signer, site=self._hub.site, hub_id=self._hub.hub_id, token=self._hub.token, time_us=now_us(), agent=AGENT, logs=logs
        )  # fmt: skip

    def _to_ask(self) -> list[bytes]:
        """Return the logs that a hello names, as many as it may: those not fully confirmed first, of either kind the newest."""
        newest = list(reversed(self._heads))  # the order is stable
        return sorted(newest, key=lambda log_id: self._known(log_id) >= self._heads[log_id][0])[:HELLO_LOGS_MAX]

    def _known(self, log_id: bytes) -> int:
        """Return up to which sequence the hub confirmed a log, at any time."""
        known = self._outbox.confirmed(self._hub.hub_id, log_id)
        return known[0] if known else 0

    def _take_answer(self, answer: HelloAnswer, *, first: bool) -> None:
        self._outbox.record_contact(self._hub.hub_id, answer.incarnation)
        self._hub.forget_token()
        ahead = now_us() - answer.time_us
        if first and abs(ahead) > CLOCK_WARNING_US:
            self.report.warnings.append(f"this site's clock is {ahead / 1e6:+.0f} s from the hub's: check both")
        known = {log_id: self._outbox.confirmed(self._hub.hub_id, log_id) for log_id in self._asked}
        for log_id in self._heads.keys() - known.keys():  # not asked about: what was confirmed earlier counts
            self._machine.confirmed.setdefault(log_id, self._known(log_id))
        moved = self._confirm(answer.confirmed)
        if not first:
            self.report.confirmed += moved
        else:
            for log_id, before in known.items():
                held = self._machine.confirmed.get(log_id, 0)
                if before is not None and before[0] > held:  # the hub holds less than it said: it was restored
                    self._restart_from(log_id, held)
                self.report.confirmed += max(held - (before[0] if before else 0), 0)

    def _restart_from(self, log_id: bytes, held: int) -> None:
        self.report.warnings.append("the hub holds less than it confirmed earlier (was it restored?): sending it again")
        if held == 0:
            self._outbox.forget_confirmed(self._hub.hub_id, log_id)
            return
        event_id = self._outbox.event_id(log_id, held)
        self._outbox.record_confirmed(self._hub.hub_id, log_id, held, event_id or b"", reset=True)

    def _confirm(self, confirmations: tuple[tuple[bytes, int, bytes], ...]) -> int:
        before = sum(self._machine.confirmed.values())
        own = [c for c in confirmations if c[0] in self._heads]
        for log_id, sequence, event_id in self._machine.on_confirmed(own):
            self._outbox.record_confirmed(self._hub.hub_id, log_id, sequence, event_id)
        return sum(self._machine.confirmed.values()) - before

    async def _on_confirm(self, _subject: str, data: bytes) -> None:
        confirm = decode_confirm(data)
        if confirm.hub_id != self._hub.hub_id:
            return
        self.report.confirmed += self._confirm(confirm.confirmed)
        self.report.refused += [r for r in confirm.refused if self._is_final(r)]
        self._news.set()

    def _is_final(self, refusal: Refusal) -> bool:
        """Tell if sending again is of no use; a fault of the hub's program says nothing about what was sent."""
        return refusal.code != HUB_ERROR and (refusal.log_id in self._heads or not refusal.log_id)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _send_all(self, link: Link) -> None:
        """Send and wait until everything is confirmed or something is refused."""
        loop = asyncio.get_running_loop()
        source = self._all_cuts()
        more = True
        sending: set[asyncio.Task[None]] = set()
        try:
            while more or not self._machine.done:
                while more and len(self._signed) < CUTS_AHEAD:
                    more = self._offer_next(source)
                while (due := self._machine.next_to_send()) is not None:
                    task = asyncio.create_task(self._send(link, due))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                await self._wait_for_news(sending)
                for done in [c for c in self._signed if c.last_sequence <= self._machine.confirmed.get(c.log_id, 0)]:
                    del self._signed[done]
                if self.report.refused:
                    return
                if self._machine.is_silent(loop.time()):
                    await self._ask_again(link)
        finally:
            for task in sending:
                task.cancel()

    async def _ask_again(self, link: Link) -> None:
        """Ask what the hub holds, and send what is overdue again; if it does not answer now, it is asked again until time is up."""
        loop = asyncio.get_running_loop()
        try:
            await self._say_hello(link, loop.time() + CONFIRM_WAIT_S)
        except AccessDenied:
            raise
        except LinkError:
            return
        self._machine.resend(loop.time())

    async def _wait_for_news(self, sending: set[asyncio.Task[None]]) -> None:
        news = asyncio.ensure_future(self._news.wait())
        done, _ = await asyncio.wait({news, *sending}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        self._news.clear()
        for task in done - {news}:
            task.result()  # what can't be tried again ends the push

    def _offer_next(self, source: Iterator[SignedCut]) -> bool:
        signed = next(source, None)
        if signed is None:
            return False
        statement = signed.statement
        offered = Cut(statement.log_id, statement.first_sequence, statement.last_sequence, statement.last_id)
        self._signed[offered] = signed
        self._machine.offer([offered])
        return True

    async def _send(self, link: Link, due: Cut) -> None:
        signed = self._signed.get(due)
        if signed is None:  # confirmed while it waited
            self._machine.on_published(due, asyncio.get_running_loop().time())
            return
        data = self._encode(signed)
        try:
            await link.publish(
                f"cmf.v1.log.{self._hub.site}", data, message_id=secrets.token_hex(16), timeout_s=ANSWER_WAIT_S
            )
        except BackPressure:
            await asyncio.sleep(BACK_PRESSURE_WAIT_S * (0.5 + random.random()))
            self._machine.on_failed(due)
            return
        except (AccessDenied, CallerError):
            raise
        except LinkError:
            await asyncio.sleep(TICK_S)
            self._machine.on_failed(due)
            return
        self._machine.on_published(due, asyncio.get_running_loop().time())
        self._published[due.log_id] = max(due.last_sequence, self._published.get(due.log_id, 0))
        self.report.segments += 1
        self.report.bytes += len(data)
        self.report.sent += due.last_sequence - due.first_sequence + 1

    def _record_published(self) -> None:
        """Note how far the hub's server was given each log; seldom, since nothing rests on it."""
        for log_id, sequence in self._published.items():
            self._outbox.record_published(self._hub.hub_id, log_id, sequence)
        self._published.clear()

    # -- cuts ----------------------------------------------------------------------------------------------------------

    def _all_cuts(self) -> Iterator[SignedCut]:
        for log_id in self._heads:
            yield from self._cuts_after(log_id, self._machine.confirmed.get(log_id, 0), keep=True)

    def _cuts_after(self, log_id: bytes, confirmed: int, *, keep: bool) -> Iterator[SignedCut]:
        """Yield the cuts of a log beyond `confirmed`: those signed before, then new ones up to the head."""
        reached = confirmed
        for signed in self._outbox.cuts(log_id, confirmed):
            reached = signed.statement.last_sequence
            yield signed
        head = self._heads[log_id][0]
        while reached < head:
            sizes = self._outbox.sizes_after(log_id, reached, min(CUTS_AHEAD * SEGMENT_EVENTS_MAX, head - reached))
            ranges = list(cut(sizes))
            if len(ranges) > 1 and reached + len(sizes) < head:
                ranges.pop()  # what was read ends there, the segment need not
            made = [self._sign(log_id, reached + start + 1, reached + stop) for start, stop in ranges]
            if keep:
                self._outbox.record_cuts(made)
            reached += ranges[-1][1]
            yield from made

    def _sign(self, log_id: bytes, first: int, last: int) -> SignedCut:
        previous, last_id = self._outbox.event_id(log_id, first - 1), self._outbox.event_id(log_id, last)
        statement = Statement(
            log_id, first, previous, last, last_id or b"", *self._heads[log_id], self._signer.public_key
        )
        return SignedCut(statement, sign_segment(statement, self._signer))

    def _encode(self, signed: SignedCut) -> bytes:
        statement = signed.statement
        pairs = self._outbox.pairs(statement.log_id, statement.first_sequence, statement.last_sequence)
        return encode_segment(statement, signed.signature, pairs)
