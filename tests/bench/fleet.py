"""`make bench-fleet`: many sites that were offline come back at once to one hub.

    python -m tests.bench.fleet [SITES [EVENTS]]      500 sites with 2,000 events each, unless told

Each site is a real folder with a log, keys and a login of its own, and replays through the agent's own code; they share a few processes,
since 500 Python interpreters would measure the machine's memory. The hub is `cmf-hub serve` as its users run it. Meanwhile another site
pushes one event at a time through `cmf-agent push`. All on one machine; since the sites' own work would be done elsewhere, the
processes that play them give way (`nice`) to the hub and to the site that is watched.
"""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import psutil
from tests.bench.__main__ import commit, machine
from tests.bench.data import some_drafts
from tests.bench.hub import BIN, serving

from cmf_agent.home import Home, init_home
from cmf_agent.hub_file import join as join_hub
from cmf_agent.hub_file import load_hub
from cmf_agent.keys import read_signer
from cmf_agent.log import Log
from cmf_agent.outbox import Outbox
from cmf_agent.replaying import LogSource, target_of
from cmf_hub.broker_files import reload_running
from cmf_hub.data import DataFolder
from cmf_hub.registry import Registry
from cmf_link.login import new_login
from cmf_link.replay import Replay
from cmf_protocol.sync import Moves

SITES = 500
EVENTS = 2_000
#: Processes that play the sites.
PLAYERS = 4
#: How much they give way to the hub; at 19 another load on the machine starves them.
GIVING_WAY = 10
#: How long the whole drain may take, s.
LIMIT_S = 900.0
LOOK_EVERY_S = 0.2


class Drained(NamedTuple):
    """What one site saw, s after the start: its first confirmation, and its last; events that are not confirmed."""

    first_s: float
    last_s: float
    pending: int


def enrol(folder: Path, data: DataFolder, names: list[str]) -> None:
    """Enrol sites and write their join files; the server is told once, not once for each."""
    with closing(Registry(data.registry)) as registry:
        template = json.loads((folder / "probe.join").read_text())
        for name in names:
            login = new_login()
            token = registry.add(name, login=login.public, key=None, now_us=time.time_ns() // 1000)
            content = template | {"site": name, "login": login.seed, "token": token}
            (folder / f"{name}.join").write_text(json.dumps(content))
        asyncio.run(reload_running(data.nats, registry.logins))


def make_site(folder: Path, name: str, events: int, data: DataFolder) -> Home:
    """Make a site that has recorded so many events, and that its hub knows from before."""
    home = Home(folder / name / ".cmf", folder / name)
    init_home(home)
    hub = join_hub(home, folder / f"{name}.join")
    with closing(Registry(data.registry)) as registry:
        registry.bind(name, read_signer(home.key_path).public_key, hub.token or "", time.time_ns() // 1000)
    hub.forget_token()
    with Log(home.log_path) as log:
        for start in range(0, events - 1, 10_000):  # its first event is there
            log.append(some_drafts(min(10_000, events - 1 - start)))
    return home


class _Source(LogSource):
    """Notes when something is confirmed."""

    first_s: float | None = None

    def on_moves(self, moves: Moves) -> None:
        if moves.confirmed and self.first_s is None:
            self.first_s = time.monotonic()
        super().on_moves(moves)


async def _drain(home: Home, began_s: float) -> Drained:
    hub = load_hub(home)
    assert hub is not None
    with Outbox(home.log_path) as outbox:
        source = _Source(home, hub, outbox)
        replay = Replay(target_of(hub), source)
        await replay.until_confirmed(LIMIT_S)
        end_s = time.monotonic()
        return Drained((source.first_s or end_s) - began_s, end_s - began_s, replay.machine.pending)


def play(
    folder: Path, names: list[str], events: int, ready: Barrier, out: "multiprocessing.Queue[list[Drained]]"
) -> None:
    """Be these sites."""
    homes = [make_site(folder, name, events, DataFolder(folder / "hub")) for name in names]
    os.nice(GIVING_WAY)
    ready.wait(LIMIT_S)
    began_s = time.monotonic()

    async def all_at_once() -> list[Drained]:
        return list(await asyncio.gather(*(_drain(home, began_s) for home in homes)))

    out.put(asyncio.run(all_at_once()))


class _Watching(threading.Thread):
    """Looks at the memory of the hub's processes until told to stop: `peak` in bytes, all together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.stopping = threading.Event()
        self._hub = psutil.Process(pid)

    def run(self) -> None:
        while not self.stopping.wait(LOOK_EVERY_S):
            total = 0
            for process in (self._hub, *self._hub.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


@contextmanager
def watching(pid: int) -> Iterator[_Watching]:
    """Watch the memory of a hub while the block runs."""
    found = _Watching(pid)
    found.start()
    try:
        yield found
    finally:
        found.stopping.set()
        found.join()


def push_one_event(home: Home) -> float:
    """Record one event and push it with `cmf-agent push`; return how long the push took, s."""
    with Log(home.log_path) as log:
        log.append(some_drafts(1))
    began = time.perf_counter()
    done = subprocess.run(
        [BIN / "cmf-agent", "push", "--timeout", "120", "--json"], cwd=home.root, capture_output=True, text=True, check=True
    )  # fmt: skip
    took = time.perf_counter() - began
    assert json.loads(done.stdout)["pending"] == 0
    return took


def probe_until(home: Home, done: threading.Event, took: list[float]) -> None:
    """Push one event after the other until `done`."""
    while not done.is_set():
        took.append(push_one_event(home))


def main(sites: int = SITES, events: int = EVENTS) -> None:
    """Run the benchmark and print a table."""
    print(f"Machine: {machine()}. Commit: {commit()}.\n")
    with tempfile.TemporaryDirectory(prefix="cmf-fleet-") as where, serving(Path(where)) as hub:
        folder, data = Path(where), DataFolder(hub)
        words: list[str | Path] = [BIN / "cmf-hub", "site", "add", "probe", "-o", folder / "probe.join", "--data", hub]
        subprocess.run(words, check=True, capture_output=True)
        probe = make_site(folder, "probe", 2, data)
        alone = sorted(push_one_event(probe) for _ in range(5))[2]
        names = [f"site-{number:04}" for number in range(sites)]
        enrol(folder, data, names)
        running = data.running() or {}
        with watching(int(str(running["pid"]))) as memory:
            drained, took, drain_s = _drain_all(folder, names, events, probe)
        _print(drained, took, alone, drain_s, memory.peak, sites * events)


def _drain_all(folder: Path, names: list[str], events: int, probe: Home) -> tuple[list[Drained], list[float], float]:
    context = multiprocessing.get_context("spawn")
    ready, done, out = context.Barrier(PLAYERS + 1), threading.Event(), context.Queue()
    players = [
        context.Process(target=play, args=(folder, names[at::PLAYERS], events, ready, out)) for at in range(PLAYERS)
    ]
    for player in players:
        player.start()
    ready.wait(LIMIT_S)
    began, took = time.monotonic(), []  # type: float, list[float]
    pusher = threading.Thread(target=probe_until, args=(probe, done, took))
    pusher.start()
    drained = [one for _ in players for one in out.get(timeout=2 * LIMIT_S)]
    drain_s = time.monotonic() - began
    done.set()
    pusher.join()
    for player in players:
        player.join()
    return drained, took, drain_s


def _print(drained: list[Drained], took: list[float], alone: float, drain_s: float, peak: int, total: int) -> None:
    first, pending = max(one.first_s for one in drained), sum(one.pending for one in drained)
    print("| what | measured | aim |\n|---|---|---|")
    print(
        f"| {len(drained)} sites, {total:,} events drained | {drain_s:.1f} s, {total / drain_s:,.0f}/s | everything confirmed |"
    )
    print(f"| events not confirmed | {pending} | 0 |")
    print(f"| last of the sites' first confirmations | {first:.1f} s, {first / drain_s:.2f} of the drain | ≤ 0.1 |")
    print(
        f"| one-event push of another site meanwhile, slowest of {len(took)} | {max(took):.1f} s (alone {alone:.1f} s) | ≤ 5 s |"
    )
    print(f"| hub, its nats-server, projector and pulls, most memory | {peak / 2**20:.0f} MiB | ≤ 600 MB |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
