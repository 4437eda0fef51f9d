"""What a daemon does for a site's log, in a thread of the test: a replay that goes on by itself.

replaying = Replaying(site, proxy.url)
replaying.poke(); until(lambda: replaying.idle, …); replaying.end()
"""

import asyncio
import threading

from tests.support.sites import SiteFolder

from cmf_agent.hub_file import hub_in_force
from cmf_agent.outbox import Outbox
from cmf_agent.replaying import LogSource, target_of
from cmf_link.replay import Replay, ReplayState

#: How long it may take to start or to end, s.
LIMIT_S = 90.0


class Replaying:
    """Begun at once, ended by `end`; `url` is where the hub is reached, if not where the site's join file says."""

    def __init__(self, site: SiteFolder, url: str | None = None) -> None:
        self.states: list[ReplayState] = []
        #: Known once it has ended.
        self.sent = 0
        self.warnings: list[str] = []
        self._site = site
        self._url = url
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=f"replay of {site.name}")
        self._thread.start()
        assert self._started.wait(LIMIT_S)

    async def _run(self) -> None:
        hub = hub_in_force(self._site.home, url=self._url)
        with Outbox(self._site.home.log_path) as outbox:
            source = LogSource(self._site.home, hub, outbox, follow=True)
            self._replay = Replay(target_of(hub), source, on_state=self.states.append)
            self._loop, self._task = asyncio.get_running_loop(), asyncio.create_task(self._replay.for_ever())
            self._started.set()
            await asyncio.wait({self._task})
            self.sent, self.warnings = source.sent.events, source.warnings

    @property
    def idle(self) -> bool:
        """Whether all is confirmed, as far as it knows."""
        return bool(self.states) and self.states[-1] == ReplayState("idle")

    def says(self, word: str, text: str) -> bool:
        """Whether it ever was in such a state, for such a reason."""
        return any(state.word == word and text in state.detail for state in self.states)

    def poke(self) -> None:
        """Tell it that there is something new, as the daemon's watcher does."""
        self._loop.call_soon_threadsafe(self._replay.poke)

    def end(self) -> None:
        """Have it end as a daemon does when it is told to, and wait until it has."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(LIMIT_S)
