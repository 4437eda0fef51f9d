"""Fetches what a hub lists for a filter: its lists first, then the events that are lacking, in pages.

Theory of operation: some pages are asked for at a time, and a page's size follows the line. Each is kept in one transaction, so that a cut
loses at most the pages on the way.

Rules
- Nothing is kept that was not checked (`pull_checks.py`); something wrong ends the pull (`IntegrityError`).
- What the link or the hub can't do now is asked for again, without end: the caller says when time is up.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cmf_agent.hub_file import HubFile
from cmf_agent.listings import Asked, Lacking, Listings
from cmf_agent.outbox import Outbox
from cmf_agent.pull_checks import Piece, checked_events, checked_segments, wrong
from cmf_agent.pulled import Pulled
from cmf_protocol.errors import AccessDenied, BackPressure, CallerError, LinkError
from cmf_protocol.filters import Filter
from cmf_protocol.pull import (
    KNOWN_MAX,
    WANTED_EVENTS_MAX,
    EventsAnswer,
    EventsRequest,
    PullAnswer,
    PullRequest,
    Wanted,
    decode_events_answer,
    decode_pull_answer,
    encode_events_request,
    encode_pull,
)
from cmf_protocol.ranges import Ranges, count, intersect, of_sequences, split, subtract, union

#: Requests on the way: enough for a long round trip, and as many as a hub lets one site have waiting.
IN_FLIGHT = 4
#: Bytes of events that a page is asked to have: at first, at least and at most (what fits a message even uncompressed).
PAGE_BYTES = 262_144
PAGE_BYTES_MIN = 16_384
PAGE_BYTES_MAX = 800_000
#: An answer within so many seconds lets pages grow, one that took longer than the other lets them shrink.
QUICK_S = 1.0
SLOW_S = 10.0
#: How long one answer may take before it counts as lost, s.
ANSWER_WAIT_S = 60.0
RETRY_WAIT_S = 0.5
#: How often the lists are asked for again because the hub has not what it listed (a fork was found meanwhile).
ROUNDS_MAX = 4
#: Bytes of an event, before any has been seen.
_EVENT_BYTES = 500


@dataclass
class PullReport:
    """What a pull did: events that are new here, bytes that came, whether all that is listed is here and proven.

    `as_of_us` is the hub's time of the lists, µs UTC; `warnings` are about subscriptions that the hub can't take, and events that were
    dropped; `empty` are the filters of which the hub lists nothing.
    """

    events: int = 0
    bytes: int = 0
    complete: bool = False
    as_of_us: int | None = None
    hub: str = ""
    proven: bool = False
    warnings: list[str] = field(default_factory=list)
    empty: list[Filter] = field(default_factory=list)


class Asks(Protocol):
    """What is asked over: a `Link`, which says hello elsewhere."""

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:
        """Return the answer to a request; raises as `Link.request` does."""


#: Takes (events fetched, events to be fetched).
Progress = Callable[[int, int], None]


class OwnLogs:
    """What of this site's own logs the hub holds: that is not fetched."""

    def __init__(self, outbox: Outbox, confirmed: Mapping[bytes, int], keys: Mapping[bytes, bytes], hub: str) -> None:
        self._outbox = outbox
        self._confirmed = confirmed
        self._keys = keys
        self._hub = hub

    def upto(self, piece: Piece) -> int:
        """Return up to which sequence a piece is this site's own, 0 if it is not; raise `IntegrityError` if it is told of another key."""
        held = self._confirmed.get(piece.log_id, 0)
        if held < piece.first_sequence or self._outbox.event_id(piece.log_id, piece.first_sequence) != piece.name:
            return 0
        if piece.key != self._keys[piece.log_id]:
            raise wrong(self._hub, f"it tells another key of this site's own log {piece.log_id.hex()}")
        return held


class _Gone(Exception):
    """The hub has not what it listed: the lists are to be asked for again."""


class Fetch:
    """Fetches what filters list over one link, one filter after the other; `report` is filled meanwhile."""

    def __init__(
        self, link: Asks, hub: HubFile, pulled: Pulled, own: OwnLogs, progress: Progress, report: PullReport
    ) -> None:
        self._link = link
        self._hub = hub
        self._pulled = pulled
        self._listings = Listings(pulled)
        self._own = own
        self._progress = progress
        self._report = report
        self._page_bytes = PAGE_BYTES
        self._seen = (0, 0)
        self._fetched = self._total = 0

    async def pull(self, asked: Asked, prove: bool, listen: bool) -> bool:
        """Pull one filter; tell whether all that is listed is here."""
        for _ in range(ROUNDS_MAX):
            answer = await self._list(asked, listen)
            lacking = self._listings.lacking(asked, self._own.upto, answer.withheld, prove=prove)
            if lacking:
                self._listings.begin(asked.id, answer.time_us)
            self._total += sum(count(each.ranges) for each in lacking)
            try:
                await self._drain(asked, deque(each for each in lacking if each.is_root), prove)
                await self._drain(asked, deque(each for each in lacking if not each.is_root), prove)
            except _Gone:
                continue
            self._listings.finish(asked.id, answer, self._own.upto, proven=prove)
            self._report.as_of_us = min(answer.time_us, self._report.as_of_us or answer.time_us)
            if not self._listings.known(asked.id):
                self._report.empty.append(asked.asked)
            return True
        return False

    # -- lists ---------------------------------------------------------------------------------------------------------

    async def _list(self, asked: Asked, listen: bool) -> PullAnswer:
        """Ask for what is new in the lists of a filter, and return the last answer."""
        while True:
            request = PullRequest(self._listings.told(asked.id), self._listings.known(asked.id), listen)
            data = await self._ask("pull", encode_pull(request))
            try:
                answer = decode_pull_answer(data)
            except BackPressure:
                await _pause()
                continue
            self._check_hub(answer.hub_id)
            dropped = self._pulled.count_of_another(answer.hub_id, answer.incarnation)
            is_all = self._listings.take(asked, request, answer, self._hub.url)
            if dropped:
                self._report.warnings.append(
                    f"the hub's store is another one than before (restored, or made anew): {dropped:,} events that had been pulled from "
                    "that are dropped, and come again as far as it has them"
                )
            if is_all:
                return answer
            if self._listings.known(asked.id) != request.known:
                continue
            if len(request.known) == KNOWN_MAX:
                raise CallerError(
                    f"more than {KNOWN_MAX:,} branches of logs are listed for this",
                    "ask for less: fewer pipelines, a site, a time",
                )
            raise wrong(self._hub.url, "it says that there is more to list, and tells nothing")

    def _check_hub(self, hub_id: bytes) -> None:
        if hub_id != self._hub.hub_id:
            raise wrong(self._hub.url, f"the hub {hub_id.hex()} answers there")

    async def _ask(self, verb: str, data: bytes) -> bytes:
        """Return the answer to a request, asked again while the link fails."""
        while True:
            try:
                subject = f"cmf.v1.rpc.{self._hub.site}.{verb}"
                answer = await self._link.request(subject, data, timeout_s=ANSWER_WAIT_S)
            except AccessDenied:
                raise
            except LinkError:
                await _pause()
                continue
            self._report.bytes += len(answer)
            return answer

    # -- pages ---------------------------------------------------------------------------------------------------------

    async def _drain(self, asked: Asked, queue: "deque[Lacking]", prove: bool) -> None:
        """Fetch everything in the queue, some pages at a time."""
        running: set[asyncio.Task[list[Lacking]]] = set()
        try:
            while queue or running:
                while queue and len(running) < IN_FLIGHT:
                    running.add(asyncio.create_task(self._fetch(asked, self._next_page(queue, prove), prove)))
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    queue.extendleft(reversed(task.result()))  # what did not fit
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _next_page(self, queue: "deque[Lacking]", prove: bool) -> list[Lacking]:
        """Take from the queue about as much as a page holds; what is to be proven is asked for piece by piece."""
        events, size = self._seen
        room = max(1, min(WANTED_EVENTS_MAX, self._page_bytes * max(events, 1) // max(size, _EVENT_BYTES)))
        page: list[Lacking] = []
        while queue and room and not (prove and page):
            piece, ranges, bodies = queue.popleft()
            now, later = split(ranges, room)
            if later:
                queue.appendleft(Lacking(piece, later, bodies))
            page.append(Lacking(piece, now, intersect(bodies, now)))
            room -= count(now)
        return page

    async def _fetch(self, asked: Asked, page: list[Lacking], prove: bool) -> list[Lacking]:
        """Fetch a page and keep it; return what of it did not come."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        wanted: Wanted = tuple((each.piece.name, each.ranges) for each in page)
        bodies: Wanted = tuple((each.piece.name, each.bodies) for each in page if each.bodies)
        request = EventsRequest(wanted, self._page_bytes, bodies if prove else None)
        data = await self._ask("events", encode_events_request(request))
        self._adapt(loop.time() - began)
        try:
            answer = decode_events_answer(data)
        except BackPressure:
            await _pause()
            return page
        except CallerError as error:
            raise _Gone(str(error)) from error
        self._check_hub(answer.hub_id)
        got = self._keep_proven(asked, page[0], answer) if prove else self._keep(asked, page, answer)
        if not any(got.values()):
            raise _Gone("nothing of what it listed came")
        left = [each._replace(ranges=subtract(each.ranges, of_sequences(got[each.piece.id]))) for each in page]
        return [each for each in left if each.ranges]

    def _adapt(self, took_s: float) -> None:
        if took_s < QUICK_S:
            self._page_bytes = min(PAGE_BYTES_MAX, self._page_bytes * 2)
        elif took_s > SLOW_S:
            self._page_bytes = max(PAGE_BYTES_MIN, self._page_bytes // 2)

    def _keep(self, asked: Asked, page: list[Lacking], answer: EventsAnswer) -> dict[int, list[int]]:
        """Keep the events of an answer as told, and return the sequences that came of each piece."""
        if answer.segments:
            raise wrong(self._hub.url, "it sends segments where events were asked for")
        pieces = {each.piece.name: each.piece for each in page}
        wanted: dict[bytes, Ranges] = {}
        for each in page:  # of one piece it may have several parts: what did not fit earlier, and what follows it
            wanted[each.piece.name] = union(wanted.get(each.piece.name, ()), each.ranges)
        found = checked_events(answer.events, wanted, pieces, self._hub.url)
        with self._pulled.writing():
            self._listings.check_asked(asked.id)
            self._report.events += self._pulled.put(found)
        got: dict[int, list[int]] = {piece.id: [] for piece in pieces.values()}
        for piece, event in found:
            got[piece.id].append(event.header.sequence)
        self._count(len(found), sum(event.size for _, event in found))
        return got

    def _keep_proven(self, asked: Asked, lacking: Lacking, answer: EventsAnswer) -> dict[int, list[int]]:
        """Keep the events of segments whose signatures hold, with their proofs."""
        if answer.events:
            raise wrong(self._hub.url, "it sends events without the signatures that were asked for")
        piece = lacking.piece
        segments, found = checked_segments(answer.segments, piece, lacking.ranges, self._hub.url)
        with self._pulled.writing():
            self._listings.check_asked(asked.id)
            self._report.events += self._pulled.put([(piece, event) for event in found.values()], proven=True)
            for segment in segments:
                self._pulled.put_proof(segment)
        self._count(len(found), sum(event.size for event in found.values()))
        return {piece.id: [event.header.sequence for event in found.values()]}

    def _count(self, events: int, size: int) -> None:
        self._seen = self._seen[0] + events, self._seen[1] + size
        self._fetched += events
        self._progress(self._fetched, self._total)


async def _pause() -> None:
    await asyncio.sleep(RETRY_WAIT_S * (0.5 + random.random()))
