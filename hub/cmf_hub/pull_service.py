"""Serves pulls, in a process of its own, so that a heavy one delays no confirmation and no hello.

Theory of operation: `serve` runs this file as a child, which logs in beside it and ends when its standard input closes. Listings are made
by one thread and events read by another, each with connections of its own.

Rules
- Of one site one request of a kind is worked on at a time, so that a site with many makes the others wait for one of them.
- A pull waits, for a bounded time, until what was in custody when it was asked is in the graph; then it answers with what is there.
- Looking for those who listen takes a bounded share of the time.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from cmf_hub.data import DataFolder
from cmf_hub.pulls import Pulls
from cmf_hub.registry import Registry
from cmf_link.link import Link, connect
from cmf_protocol.errors import BackPressure, CmfError, LinkError
from cmf_protocol.messages import encode_error
from cmf_protocol.pull import decode_events_request, decode_pull, encode_events_answer, encode_pull_answer

logger = logging.getLogger("cmf_hub")

#: How long a pull waits for the projection, s: during a drain it is better answered with what is there.
PROJECTED_WAIT_S = 2.0
PROJECTED_LOOK_S = 0.02
#: Requests of one kind that a site may have waiting; the others come again.
WAITING_MAX = 4
#: How often it is asked whether anything has arrived at all, s.
LOOK_EVERY_S = 0.25
#: Looking for those who listen may take one part of the time in so many.
NOTICE_SHARE = 6

#: How often it is logged that a request of a site is refused, at most, s: a site may ask as often as it likes.
REFUSED_EVERY_S = 10.0

T = TypeVar("T")


class _Worker:
    """One thread, and what reads the hub's data in it; requests of a site come one after the other."""

    def __init__(self, data: DataFolder, name: str) -> None:
        self._data = data
        self._thread = ThreadPoolExecutor(1, name)
        self._own = threading.local()
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._waiting: dict[str, int] = {}

    async def call(self, function: Callable[[Pulls], T]) -> T:
        """Return what the function returns in the worker's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, function)

    def _call(self, function: Callable[[Pulls], T]) -> T:
        if not hasattr(self._own, "pulls"):
            self._own.pulls = Pulls(self._data)
        return function(self._own.pulls)

    async def in_turn(self, site: str, work: Callable[[], Awaitable[T]]) -> T:
        """Return what the work returns, once no other of that site is running; raise `BackPressure` if too much waits."""
        waiting = self._waiting.get(site, 0)
        if waiting > WAITING_MAX:
            raise BackPressure(f"{site} has {waiting} requests waiting here", "wait for their answers")
        self._waiting[site] = waiting + 1
        try:
            async with self._turns.setdefault(site, asyncio.Semaphore(1)):
                return await work()
        finally:
            self._waiting[site] -= 1
            if not self._waiting[site]:
                del self._waiting[site], self._turns[site]

    def close(self) -> None:
        """Let what runs end, and take nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class PullService:
    """The handlers of `pull` and `events`, and the notices."""

    def __init__(self, data: DataFolder) -> None:
        self._listing = _Worker(data, "pulls")
        self._events = _Worker(data, "events")
        self._looking = asyncio.Lock()
        self._projected, self._looked = 0, 0.0
        self._refused: dict[str, float] = {}

    def close(self) -> None:
        """End the threads."""
        self._listing.close()
        self._events.close()

    async def pull(self, subject: str, data: bytes) -> bytes:
        """Answer a pull; the subject says who asks."""
        site = _carrier(subject)

        async def work() -> bytes:
            request = decode_pull(data)
            await self._wait_projected()
            return await self._listing.call(lambda pulls: encode_pull_answer(pulls.pull(site, request)))

        return await self._answered(site, self._listing.in_turn(site, work))

    async def events(self, subject: str, data: bytes) -> bytes:
        """Answer a request for events; the subject says who asks."""
        site = _carrier(subject)

        async def work() -> bytes:
            request = decode_events_request(data)
            return await self._events.call(lambda pulls: encode_events_answer(pulls.events(site, request)))

        return await self._answered(site, self._events.in_turn(site, work))

    async def _answered(self, site: str, answer: Awaitable[bytes]) -> bytes:
        try:
            return await answer
        except CmfError as error:
            now = time.monotonic()
            if now >= self._refused.get(site, -REFUSED_EVERY_S) + REFUSED_EVERY_S:
                self._refused[site] = now
                logger.warning("a request of %s is refused: %s", site, error)
            return encode_error(error)

    async def _wait_projected(self) -> None:
        """Wait until what is in custody now is in the graph, or the time is over."""
        deadline = time.monotonic() + PROJECTED_WAIT_S
        stored = await self._listing.call(Pulls.stored)
        while not await self._is_projected(stored):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(PROJECTED_LOOK_S)

    async def _is_projected(self, stored: int) -> bool:
        """Tell if a stored segment is in the graph; however many wait, the graph is asked once in a while."""
        async with self._looking:
            if self._projected < stored and time.monotonic() >= self._looked + PROJECTED_LOOK_S:
                self._projected = await self._listing.call(Pulls.projected)
                self._looked = time.monotonic()
        return self._projected >= stored

    async def notify(self, link: Link) -> None:
        """Tell those who listen that there is more, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for wanted in await self._look(Pulls.due) or ():
                began = time.monotonic()
                for site in await self._look(partial(Pulls.heard, wanted=wanted)) or ():
                    await self._tell(site, link)
                await asyncio.sleep((time.monotonic() - began) * (NOTICE_SHARE - 1))

    async def _look(self, function: Callable[[Pulls], T]) -> T | None:
        """Return what the function returns; None where it fails, which is logged and stops no other one's notices."""
        try:
            return await self._listing.call(function)
        except CmfError as error:
            logger.error("looking for those who listen failed: %s %s", error, error.hint)
            return None

    async def _tell(self, site: str, link: Link) -> None:
        try:
            await link.send(f"cmf.v1.notice.{site}", await self._listing.call(Pulls.notice))
        except LinkError as error:
            logger.info("a notice to %s was not sent, it pulls sooner or later: %s", site, error)


def _carrier(subject: str) -> str:
    return subject.split(".")[-2]


async def run(data: DataFolder, url: str, ca: str | None) -> None:
    """Serve pulls until cancelled; says so on standard output once it answers. Raises `HubUnreachable`, `StoreError`."""
    registry = Registry(data.registry)
    _, seed = registry.identity()
    registry.close()
    service = PullService(data)
    link = await connect(url, seed=seed, name="cmf-hub-pulls", ca=ca)
    try:
        await link.serve("cmf.v1.rpc.*.pull", "hub", service.pull)
        await link.serve("cmf.v1.rpc.*.events", "hub", service.events)
        os.write(1, b"ready\n")
        await service.notify(link)
    finally:
        await link.close()
        service.close()


def main() -> None:
    """Run as the hub's child: the first argument names the folder, the first line of standard input url and CA as JSON; ends with it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s pulls: %(message)s")
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        asyncio.run(run(DataFolder(Path(sys.argv[1])), told["url"], told["ca"]))
    except CmfError as error:
        logger.error("pulls can't be served: %s %s", error, error.hint)
        sys.exit(1)


def _end_with_input() -> None:
    """End this process, which only reads, once the hub has closed its standard input."""
    while sys.stdin.read(1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
