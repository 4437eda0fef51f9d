"""Benchmarks of the way between sites and a hub: a long line, a pull, the daemon at work and at rest."""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
from tests.bench.data import some_drafts
from tests.bench.hub import BACKLOG, BIN, call, new_site, serving
from tests.bench.measure import Row, micro, rate
from tests.support.faults import fault_proxy
from tests.support.nats import HOST

from cmf_agent.activity import read_activity
from cmf_agent.home import Home
from cmf_agent.hub_file import hub_in_force
from cmf_agent.log import Log
from cmf_graph.database import Connection, connect
from cmf_hub.data import DataFolder
from cmf_protocol.types import execution_started

FAR_S = 0.1
#: Single events whose way is timed, and how far apart they are: not in step with the daemon's looks, s.
SINGLE_EVENTS = 100
SINGLE_EVERY_S = (0.11, 0.17)
IDLE_S = 120.0
LIMIT_S = 120.0
LOOK_EVERY_S = 0.001


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {LIMIT_S:.0f} s for {what}")
        time.sleep(LOOK_EVERY_S)


# -- a long line and a pull --------------------------------------------------------------------------------------------


def far_drain(folder: Path) -> Iterator[Row]:
    """A backlog pushed until confirmed at 100 ms round trip; floor: its bytes as one plain TCP stream over the same line."""
    with serving(folder) as data:
        home = _filled(folder, data)
        with fault_proxy(int(hub_in_force(home).url.rpartition(":")[2])) as proxy:
            proxy.shape(round_trip_s=FAR_S)
            began = time.perf_counter()
            pushed = call(home.root, "cmf-agent", "push", "--timeout", "600", "--hub", proxy.url)
            took = time.perf_counter() - began
    floor = _streamed(pushed["bytes"])
    yield Row(f"backlog of {BACKLOG:,} drained at {FAR_S * 1000:.0f} ms round trip", f"{rate(BACKLOG, took)}, {took:.1f} s",
              f"{floor:.1f} s for its bytes as one TCP stream", f"{took / floor:.1f}", "—")  # fmt: skip


def pull(folder: Path) -> Iterator[Row]:
    """Everything of one site pulled by another; floor: the drain of the same events."""
    with serving(folder) as data:
        home, other = _filled(folder, data), new_site(folder, data, "office")
        began = time.perf_counter()
        call(home.root, "cmf-agent", "push", "--timeout", "600")
        drained = time.perf_counter() - began
        _until(lambda: not call(folder, "cmf-hub", "status", "--data", data)["projection_behind_segments"], "the graph")
        began = time.perf_counter()
        pulled = call(other.root, "cmf-agent", "pull", "-p", "screening", "--timeout", "600")
        took = time.perf_counter() - began
    yield Row(f"pull of {pulled['events']:,} events by another site", f"{rate(pulled['events'], took)}, {took:.1f} s",
              f"drained in {drained:.1f} s", f"{took / drained:.1f}", "—")  # fmt: skip


def _filled(folder: Path, data: Path) -> Home:
    home = new_site(folder, data, "edge")
    with Log(home.log_path) as log:
        for _ in range(BACKLOG // 10_000):
            log.append(some_drafts(10_000))
    return home


def _streamed(size: int) -> float:
    """Return how long so many bytes take, s, from connecting to the other side's word that all have arrived."""
    content = b"\0" + os.urandom(size)  # no NATS: passed on as it comes
    with socket.create_server((HOST, 0)) as listening:
        sink = threading.Thread(target=_swallow, args=(listening,))
        sink.start()
        with fault_proxy(listening.getsockname()[1]) as proxy:
            proxy.shape(round_trip_s=FAR_S)
            began = time.perf_counter()
            with socket.create_connection((HOST, proxy.port)) as line:
                line.sendall(content)
                line.shutdown(socket.SHUT_WR)
                line.recv(1)
            took = time.perf_counter() - began
        sink.join()
    return took


def _swallow(listening: socket.socket) -> None:
    line, _ = listening.accept()
    with line:
        while line.recv(1 << 16):
            pass
        line.sendall(b"\0")


# -- the daemon --------------------------------------------------------------------------------------------------------


@contextmanager
def _daemon(home: Home) -> Iterator[psutil.Process]:
    """Serve a site until it has nothing to do, and for the length of the block."""
    with (home.root / "daemon.log").open("ab") as out:
        process = subprocess.Popen([BIN / "cmf-agent", "daemon"], cwd=home.root, stdout=out, stderr=out)

    def is_idle() -> bool:
        found = read_activity(home)
        return found is not None and found.state == "idle"

    try:
        _until(is_idle, "the daemon to have nothing to do")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def visible(folder: Path) -> Iterator[Row]:
    """From the call that records one event to its place in the hub's graph; floor: to its place in the site's own log."""
    with serving(folder) as data:
        home = new_site(folder, data, "edge")
        with Log(home.log_path) as log:
            log.append(some_drafts(7_000))
            with _daemon(home), closing(connect(home.log_path, read_only=True)) as own:
                _until(lambda: _is_in(DataFolder(data)), "the graph")
                with closing(connect(DataFolder(data).graph_file(), read_only=True)) as graph:
                    times = [_seen(log, own, graph, number) for number in range(SINGLE_EVENTS)]
    floor, ours = sorted(one for one, _ in times), sorted(both for _, both in times)
    p95 = ours[int(len(ours) * 0.95)]
    yield Row("recorded → visible at the hub with a daemon, p50 · p95",
              f"{micro(statistics.median(ours))} · {micro(p95)}",
              f"in its own log {micro(statistics.median(floor))}",
              f"{statistics.median(ours) / statistics.median(floor):.0f}", "p95 ≤ 250 ms")  # fmt: skip


def _is_in(data: DataFolder) -> bool:
    return data.graph_file().exists()


def _seen(log: Log, own: Connection, graph: Connection, number: int) -> tuple[float, float]:
    """Record an execution's start; return when the site's log, and when the hub's graph has it, s after the call."""
    low, high = SINGLE_EVERY_S
    time.sleep(low + (high - low) * number / SINGLE_EVENTS)
    execution = os.urandom(16)
    began = time.perf_counter()
    event = log.append([execution_started(execution, "screening", "single")])[0]
    newest = "SELECT event_id FROM events ORDER BY position DESC LIMIT 1"
    _until(lambda: own.execute(newest).fetchone()[0] == event.event_id, "the log")
    recorded = time.perf_counter() - began
    sql = "SELECT 1 FROM nodes JOIN executions ON node = id WHERE key = ? AND started_us IS NOT NULL"
    _until(lambda: graph.execute(sql, (execution,)).fetchone(), "the graph")
    return recorded, time.perf_counter() - began


def idle_daemon(folder: Path) -> Iterator[Row]:
    """A daemon that has nothing to do, for two minutes; floor: a Python process that sleeps."""
    with serving(folder) as data:
        home = new_site(folder, data, "edge")
        with Log(home.log_path) as log:
            log.append(some_drafts(7_000))
        bare = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10_000)"])
        try:
            with _daemon(home) as daemon:
                asleep = psutil.Process(bare.pid)
                before, floor_before = _cpu_s(daemon), _cpu_s(asleep)
                time.sleep(IDLE_S)
                share, floor = ((_cpu_s(daemon) - before) / IDLE_S, (_cpu_s(asleep) - floor_before) / IDLE_S)
                size, bare_size = daemon.memory_info().rss, asleep.memory_info().rss
        finally:
            bare.kill()
            bare.wait()
    yield Row(f"idle daemon, CPU over {IDLE_S:.0f} s", f"{share:.2%}", f"{floor:.2%} asleep", "—", "≤ 0.2 %")
    yield Row("idle daemon, memory", f"{size / 1e6:.0f} MB", f"bare Python {bare_size / 1e6:.0f} MB",
              f"{size / bare_size:.1f}", "≤ 80 MB")  # fmt: skip


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
