"""The daemon: brings over what is recorded as it is recorded, and fetches what is subscribed, for ever.

Theory of operation: one event loop. A replay (`cmf_link.replay`) holds the connection and sends; a watcher asks the log's database
whether somebody has committed, and pokes it; pulls use the same connection, when the hub says that there is something and from
time to time. It ends at SIGTERM or SIGINT. What it does is in `.cmf/daemon.json` (`activity.py`), which `cmf-agent status` shows.

Rules
- One per site (`.cmf/daemon.lock`); while it works it holds `push.lock`, so that nobody else replays the same log.
- Whatever the hub or the link does, it goes on trying; it ends only for what a person has to mend here: no log, no key, an address that
  can't be one.
- On a good link events leave at once; while something is on its way the next ones gather, so that a bad link gets batches.
- A site that has not joined a hub yet, or has left it, is waited for.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from cmf_agent.activity import Activity, lock_path, read_activity, write_activity
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile, hub_in_force, load_hub
from cmf_agent.listings import Listings
from cmf_agent.log import now_us
from cmf_agent.outbox import Outbox
from cmf_agent.pull import pull_all
from cmf_agent.pulled import Pulled
from cmf_agent.push import PUSH_LOCK
from cmf_agent.replaying import LogSource, target_of
from cmf_agent.service_manager import sign_of_life_every_s, tell
from cmf_graph.locks import try_lock
from cmf_link.replay import Replay, ReplayState
from cmf_protocol.errors import CmfError, LinkError, StoreError
from cmf_protocol.messages import NOTICE_HELLO

logger = logging.getLogger("cmf_agent")

#: How often the log's files are looked at, s: half of it passes before an event leaves.
LOOK_EVERY_S = 0.15
#: How long after they changed its database is asked whether somebody has committed, s: the files change a moment before that.
CHANGING_S = 1.0
#: How often the joined hub is looked for and compared, s.
HUB_EVERY_S = 2.0
#: How often what is subscribed is asked for without a notice, s, jittered by a quarter: a notice may get lost.
PULL_EVERY_S = 900.0
#: When a hub starts, its sites pull within that time, not all at once, s.
PULL_SPREAD_S = 10.0
#: How long a failed pull waits until it is tried again, s.
PULL_RETRY_S = 30.0
#: How long one pull may take, s; what it has fetched is kept, and the next goes on.
PULL_LIMIT_S = 3_600.0
#: How often what is done is written down, at most, s.
TOLD_EVERY_S = 0.5


def run_daemon(home: Home, *, hub_url: str | None = None, bytes_per_s: float | None = None) -> None:
    """Serve the site of `home` until SIGTERM or SIGINT, sending at most `bytes_per_s` bytes a second.

    Raises `StoreError` if another daemon serves it, `CallerError` and `StoreError` for what only a person can mend.
    """
    lock = try_lock(lock_path(home))
    if lock is None:
        other = read_activity(home)
        raise StoreError(
            f"a daemon serves {home.path} already" + (f" (process {other.pid})" if other and other.pid else ""),
            "it does what this one would; end it first if it shall be replaced",
        )
    with lock:
        asyncio.run(_Daemon(home, hub_url, bytes_per_s).run())


class _Daemon:
    def __init__(self, home: Home, hub_url: str | None, bytes_per_s: float | None) -> None:
        self._home = home
        self._hub_url = hub_url
        self._bytes_per_s = bytes_per_s
        self._pull_now = asyncio.Event()
        self._pulling = ""
        self._activity = Activity(os.getpid(), "starting", "", 0, now_us())
        #: What was told last, and why it could not be told since.
        self._told: tuple[object, ...] = ()
        self._news = asyncio.Event()
        self._untold = ""

    async def run(self) -> None:
        """Serve until a signal comes."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._write()
        logger.info("serving %s", self._home.path)
        try:
            async with _together(self._serve(), self._tell_for_ever(), _signs_of_life()) as works:
                tell("READY=1")
                stopping = asyncio.create_task(_until(stop))
                await asyncio.wait({stopping, *works}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
        finally:
            tell("STOPPING=1")
            self._say("stopped", "")
            self._write()

    # -- what it does, told --------------------------------------------------------------------------------------------

    def _say(self, state: str, detail: str, pending: int = 0) -> None:
        before = self._activity
        since_us = before.since_us if before.state == state else now_us()
        self._activity = Activity(before.pid, state, detail, pending, since_us)
        self._news.set()
        if (before.state, before.detail) != (state, detail) and state not in ("sending", "idle", "stopped"):
            logger.info("%s%s", state, f": {detail}" if detail else "")

    def _on_state(self, state: ReplayState) -> None:
        if self._activity.state == "connecting" and state.word != "connecting":
            self._pull_now.set()  # on a new connection the hub may not know any more that this site listens
        self._say(state.word, state.detail, state.pending)

    def _on_notice(self, what: str) -> None:
        """Pull, for there is something new, or the hub has started and may not know any more that this site listens."""
        wait_s = random.uniform(0, PULL_SPREAD_S) if what == NOTICE_HELLO else 0.0
        asyncio.get_running_loop().call_later(wait_s, self._pull_now.set)

    async def _tell_for_ever(self) -> None:
        while True:
            self._news.clear()
            self._write()
            await asyncio.sleep(TOLD_EVERY_S)
            if not self._untold:  # else it is tried again
                await self._news.wait()

    def _write(self) -> None:
        found = self._activity
        if self._pulling and found.state == "idle":
            found = found._replace(state="pulling", detail=self._pulling)
        if found == self._told:
            return
        try:
            write_activity(self._home, found)
        except StoreError as error:  # a full disk hides what is done, and stops nothing
            if str(error) != self._untold:
                logger.warning("%s", error)
            self._untold = str(error)
            return
        self._told, self._untold = found, ""
        tell(
            f"STATUS={found.state}{f': {found.detail}' if found.detail else ''}, {found.pending} events to be confirmed"
        )

    # -- one hub after the other ---------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            hub = await self._joined()
            with ExitStack() as held:
                held.enter_context(await self._push_lock())
                file = _inode(self._home.log_path)
                outbox = held.enter_context(Outbox(self._home.log_path))
                await self._serve_hub(hub, outbox, file)

    async def _joined(self) -> HubFile:
        """Return the hub that the site has joined, once it has."""
        while True:
            found = load_hub(self._home)
            if found is not None and found.address is not None:
                return hub_in_force(self._home, url=self._hub_url)
            self._say("waiting", "this site has joined no hub that it could reach: cmf-agent join FILE")
            await asyncio.sleep(HUB_EVERY_S)

    async def _push_lock(self) -> IO[str]:
        while (lock := try_lock(self._home.path / PUSH_LOCK)) is None:
            self._say("waiting", "a push of this site is running")
            await asyncio.sleep(LOOK_EVERY_S)
        return lock

    async def _serve_hub(self, hub: HubFile, outbox: Outbox, file: int | None) -> None:
        """Replay and pull until another hub is joined, or this one left, or the log is no more in that file."""
        source = LogSource(self._home, hub, outbox, follow=True)
        target = target_of(hub, self._bytes_per_s)
        replay = Replay(target, source, on_state=self._on_state, on_notice=self._on_notice)
        joined, told = None, 0  # what was joined may have changed while a push was waited for
        works = (
            replay.for_ever(), self._watch_log(replay, outbox), self._watch_subscriptions(), self._pull_for_ever(replay, hub)
        )  # fmt: skip
        async with _together(*works) as tasks:
            while _stamp(self._home.hub_path) == joined or not self._is_another(hub):
                joined = _stamp(self._home.hub_path)
                await asyncio.wait(tasks, timeout=HUB_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                _raise_failure(tasks)
                for warning in source.warnings[told:]:
                    logger.warning("%s", warning)
                told = len(source.warnings)
                if _inode(self._home.log_path) not in (file, None):  # None: what replaces it is on its way
                    logger.info("another copy of the log was put in its place")
                    return
        logger.info("another hub was joined, or this one left")

    def _is_another(self, hub: HubFile) -> bool:
        """Tell if what is joined now is not what is served: a token that was used up makes no difference."""
        found = load_hub(self._home)
        if found is None or found.address is None:
            return True
        now = hub_in_force(self._home, url=self._hub_url)
        return (now.hub_id, now.site, now.url, now.login, now.ca) != (hub.hub_id, hub.site, hub.url, hub.login, hub.ca)

    async def _watch_log(self, replay: Replay, outbox: Outbox) -> None:
        """Have what is new sent as soon as it can be read: the files change before that, and then no more."""
        wal = self._home.log_path.with_name(self._home.log_path.name + "-wal")
        loop = asyncio.get_running_loop()
        stamp: tuple[int, int, int] | None = None
        version: int | None = None
        asked_until_s = loop.time() + CHANGING_S
        while True:
            now = _stamp(wal)
            if now != stamp:
                stamp, asked_until_s = now, loop.time() + CHANGING_S
            if loop.time() <= asked_until_s:
                found = _version(outbox)
                if found != version:
                    version = found
                    replay.poke()
            await asyncio.sleep(LOOK_EVERY_S)

    # -- pulling -------------------------------------------------------------------------------------------------------

    async def _watch_subscriptions(self) -> None:
        """Have what is subscribed meanwhile pulled, and listened to."""
        file = self._home.pulled_path
        before, subscribed = None, _subscribed(self._home)
        while True:
            now = _stamp(file), _stamp(file.with_name(file.name + "-wal"))
            if now != before:
                before, found = now, _subscribed(self._home)
                if found - subscribed:
                    self._pull_now.set()
                subscribed = found
            await asyncio.sleep(HUB_EVERY_S)

    async def _pull_for_ever(self, replay: Replay, hub: HubFile) -> None:
        while True:
            self._pull_now.clear()
            wait_s = PULL_RETRY_S
            if replay.reached and replay.link is not None:
                wait_s = await self._pull(replay, hub)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s if replay.reached else LOOK_EVERY_S * 10):
                    await self._pull_now.wait()

    async def _pull(self, replay: Replay, hub: HubFile) -> float:
        """Fetch what is subscribed; return how long to wait until the next time, s."""
        assert replay.link is not None
        self._pulling = "fetching what is subscribed"
        self._news.set()
        try:
            async with asyncio.timeout(PULL_LIMIT_S):
                report = await pull_all(replay.link, self._home, hub, listen=True)
        except (LinkError, StoreError, TimeoutError) as error:  # StoreError: another pull, or a disk that is full now
            logger.info("pull: %s", error)
            return PULL_RETRY_S * random.uniform(0.75, 1.25)
        except CmfError as error:
            logger.warning("pull: %s %s", error, error.hint)
            return PULL_EVERY_S
        finally:
            self._pulling = ""
            self._news.set()
        for warning in report.warnings:
            logger.warning("pull: %s", warning)
        is_done = report.complete or report.warnings
        return (PULL_EVERY_S if is_done else PULL_RETRY_S) * random.uniform(0.75, 1.25)


def _version(outbox: Outbox) -> int | None:
    try:
        return outbox.version()
    except CmfError:  # the replay meets it too, and says so
        return None


def _subscribed(home: Home) -> set[tuple[int, bool]]:
    """Return number and proof of what is subscribed; nothing while that can't be read, which the pull says."""
    if not home.pulled_path.exists():
        return set()
    try:
        with Pulled(home.pulled_path) as pulled:
            return {(each.id, each.prove) for each in Listings(pulled).filters() if each.subscribed}
    except CmfError:
        return set()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _signs_of_life() -> None:
    every_s = sign_of_life_every_s()
    while every_s is not None:
        tell("WATCHDOG=1")
        await asyncio.sleep(every_s)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _together(*works: Coroutine[object, object, None]) -> AsyncIterator[set["asyncio.Task[None]"]]:
    """Run these beside each other while the block runs; the first that fails ends the block's work with its error."""
    tasks = {asyncio.create_task(work) for work in works}
    try:
        yield tasks
        _raise_failure(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_failure(tasks: set["asyncio.Task[None]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _inode(file: Path) -> int | None:
    stamp = _stamp(file)
    return stamp[0] if stamp else None


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written to or replaced; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
