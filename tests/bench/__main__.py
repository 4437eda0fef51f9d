"""`make bench`: speed, each figure beside a floor measured in the same run.

    python -m tests.bench              all of it, as a Markdown table
    python -m tests.bench append wire  those whose name contains one of the words

Figures are medians of several rounds in which floor and subject take turns, so that a slow moment of the machine hits both;
compare ratios, not seconds.
"""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import agent, capture, hub, link, store
from tests.bench.measure import Row

from cmf_graph.database import sqlite_version

BENCHMARKS: tuple[Callable[[Path], Iterator[Row]], ...] = (
    agent.one_append,
    agent.bulk_append,
    agent.one_run,
    agent.one_metric,
    agent.small_file,
    agent.large_file,
    capture.dvc_small_file,
    capture.dvc_small_file_among_many,
    capture.dvc_folder,
    capture.dvc_unchanged_folder,
    agent.imports,
    agent.status,
    store.custody,
    store.projection,
    store.wire,
    hub.drain,
    hub.one_more_run,
    hub.query_start,
    link.far_drain,
    link.pull,
    link.visible,
    link.idle_daemon,
)


def main(words: list[str]) -> None:
    """Run the chosen benchmarks and print a table."""
    chosen = [one for one in BENCHMARKS if not words or any(word in one.__name__ for word in words)]
    print(f"Machine: {machine()}. Commit: {commit()}.\n")
    print("| what | measured | floor | ratio | aim |\n|---|---|---|---|---|")
    for benchmark in chosen:
        with tempfile.TemporaryDirectory(prefix="cmf-bench-") as folder:
            for row in benchmark(Path(folder)):
                print(f"| {row.what} | {row.measured} | {row.floor} | {row.ratio} | {row.aim} |", flush=True)


def machine() -> str:
    """Return what the figures were measured on."""
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, SQLite {sqlite_version()}"


def commit() -> str:
    """Return the commit that was measured, with a mark if the tree has changes."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return run.stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
