"""Benchmarks of a whole hub: agent, nats-server, custody and projection as their users run them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.data import some_drafts
from tests.bench.measure import Row, alternate, micro, rate
from tests.support.nats import HOST, free_port

from cmf_agent.home import Home, init_home
from cmf_agent.log import Log

BIN = Path(sys.executable).parent
BACKLOG = 100_000
RUN_EVENTS = 7
#: Executions that are there before one more is pushed.
BEFORE = (100, 1_000, 10_000)


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Serve a hub in `folder`; yields its data folder."""
    data, ready = folder / "hub", folder / "hub.ready"
    log = (folder / "hub.log").open("ab")
    command: list[str | Path] = [
        BIN / "cmf-hub",
        "serve",
        "--data",
        data,
        "--nats",
        f"{HOST}:{free_port()}",
        "--ready-file",
        ready,
    ]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError((folder / "hub.log").read_text())
            time.sleep(0.01)
        yield data
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        log.close()


def new_site(folder: Path, data: Path, name: str) -> Home:
    """Make a site, enrol it at the hub of `data`, and let it join."""
    home = Home(folder / name / ".cmf", folder / name)
    init_home(home)
    join = folder / f"{name}.join"
    call(folder, "cmf-hub", "site", "add", name, "-o", join, "--data", data)
    call(home.root, "cmf-agent", "join", join)
    return home


def call(folder: Path, *words: object) -> Any:
    """Run a command, which must succeed, and return its JSON."""
    command = [str(BIN / str(words[0])), *map(str, words[1:]), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def drain(folder: Path) -> Iterator[Row]:
    """A backlog pushed until confirmed, then until a query sees all of it; floor: the same bytes written and synced to a file."""
    with serving(folder) as data:
        home = new_site(folder, data, "edge")
        log = Log(home.log_path)
        for _ in range(BACKLOG // 10_000):
            log.append(some_drafts(10_000))
        began = time.perf_counter()
        pushed = call(home.root, "cmf-agent", "push", "--timeout", "300")
        drained = time.perf_counter() - began
        while call(folder, "cmf-hub", "status", "--data", data)["projection_behind_segments"]:
            time.sleep(0.01)
        visible = time.perf_counter() - began
    floor = _written(folder, pushed["bytes"])
    yield Row(f"backlog of {BACKLOG:,} drained until confirmed", rate(BACKLOG, drained), f"{micro(floor)} to write its bytes",
              f"{drained:.1f} s", "≥ 100,000/s")  # fmt: skip
    yield Row(
        "visible after the drain's start",
        f"{visible:.1f} s",
        f"drain {drained:.1f} s",
        f"{visible / drained:.1f}",
        "≤ 2",
    )


def _written(folder: Path, size: int) -> float:
    began = time.perf_counter()
    with (folder / "floor").open("wb") as out:
        out.write(os.urandom(size))
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - began


def one_more_run(folder: Path) -> Iterator[Row]:
    """One more execution pushed after 100, 1,000 and 10,000; floor: the same with 100."""
    with serving(folder) as data:
        first: tuple[float, int] | None = None
        for before in BEFORE:
            home = new_site(folder, data, f"edge-{before}")
            log = Log(home.log_path)
            log.append(some_drafts(before * RUN_EVENTS))
            call(home.root, "cmf-agent", "push", "--timeout", "300")
            times, sizes = [], []
            for _ in range(9):
                log.append(some_drafts(RUN_EVENTS))
                began = time.perf_counter()
                sizes.append(call(home.root, "cmf-agent", "push")["bytes"])
                times.append(time.perf_counter() - began)
            median, size = sorted(times)[len(times) // 2], sorted(sizes)[len(sizes) // 2]
            first = first or (median, size)
            yield Row(f"one more run pushed after {before:,}", f"{micro(median)}, {size:,} bytes",
                      f"after {BEFORE[0]}: {micro(first[0])}, {first[1]:,} bytes",
                      f"{median / first[0]:.2f}, {size / first[1]:.2f}", "≤ 1.2")  # fmt: skip


def query_start(folder: Path) -> Iterator[Row]:
    """`cmf-hub query pipelines` on a small graph, beyond bare Python."""
    with serving(folder) as data:
        home = new_site(folder, data, "edge")
        Log(home.log_path).append(some_drafts(700))
        call(home.root, "cmf-agent", "push")
        ours, bare = alternate(
            lambda: call(folder, "cmf-hub", "query", "pipelines", "--data", data),
            lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
            rounds=7,
        )
    yield Row(
        "cmf-hub query, beyond bare Python", micro(ours - bare), micro(bare), f"{ours / bare:.1f}", "≤ 300 ms (issue 5)"
    )
