"""Benchmarks of what a pipeline pays for being recorded."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.bench.data import new_file, some_drafts
from tests.bench.measure import Row, alternate, micro, rate

import cmf_agent as cmf
from cmf_agent.home import Home, init_home
from cmf_agent.log import Log
from cmf_graph.content.files import hash_path
from cmf_graph.database import Connection, connect

APPENDS = 500
BULK = 20_000
LARGE_BYTES = 256 * 2**20
_CREATE = "CREATE TABLE events (position INTEGER PRIMARY KEY, event_id BLOB NOT NULL, header BLOB NOT NULL, body BLOB)"
_INSERT = "INSERT INTO events (event_id, header, body) VALUES (?, ?, ?)"


def _home(folder: Path) -> Home:
    home = Home(folder / ".cmf", folder)
    init_home(home)
    return home


def _bare(folder: Path) -> Connection:
    connection = connect(new_file(folder, "bare.db"))
    connection.execute(_CREATE)
    return connection


def one_append(folder: Path) -> Iterator[Row]:
    """One durable append; floor: a raw SQLite commit of the same bytes."""
    drafts = some_drafts(APPENDS)
    log = Log(_home(folder).log_path)
    rows = [(e.event_id, e.header_bytes, e.body) for e in log.append(drafts)]
    bare = _bare(folder)

    def subject() -> None:
        for draft in drafts:
            log.append([draft])

    def floor() -> None:
        for row in rows:
            bare.execute(_INSERT, row)

    ours, raw = alternate(subject, floor)
    yield Row("one durable append", micro(ours / APPENDS), micro(raw / APPENDS), f"{ours / raw:.2f}", "≤ 1.3")


def bulk_append(folder: Path) -> Iterator[Row]:
    """Many appends in one commit, from drafts to disk; floor: an executemany of the same rows."""
    drafts = some_drafts(BULK)
    log = Log(_home(folder).log_path)
    rows = [(e.event_id, e.header_bytes, e.body) for e in log.append(drafts)]
    bare = _bare(folder)

    def floor() -> None:
        bare.execute("BEGIN")
        bare.executemany(_INSERT, rows)
        bare.execute("COMMIT")

    ours, raw = alternate(lambda: log.append(drafts), floor)
    yield Row("bulk append", rate(BULK, ours), rate(BULK, raw), f"{raw / ours:.2f}", "≥ 0.4")


def one_run(folder: Path) -> Iterator[Row]:
    """Open and close an execution (git and environment captured); floor: two raw commits."""
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    home = _home(folder)
    bare = _bare(folder)
    times = 20

    def subject() -> None:
        for _ in range(times):
            with cmf.run("bench", "open", home=home.path):
                pass

    def floor() -> None:
        for _ in range(2 * times):
            bare.execute(_INSERT, (b"i" * 32, b"h" * 200, b"b" * 100))

    ours, raw = alternate(subject, floor)
    yield Row("open and close an execution", micro(ours / times), micro(raw / times), f"{ours / raw:.1f}", "≤ 5 ms")


def one_metric(folder: Path) -> Iterator[Row]:
    """One step metric, flushes included; floor: appending to a list."""
    home = _home(folder)
    times = 20_000

    def subject() -> None:
        with cmf.run("bench", "metric", home=home.path) as run:
            for step in range(times):
                run.metric("loss", 0.5, step=step)

    def floor() -> None:
        points: list[tuple[str, float, int]] = []
        for step in range(times):
            points.append(("loss", 0.5, step))

    ours, raw = alternate(subject, floor)
    yield Row("one step metric", micro(ours / times), micro(raw / times), f"{ours / raw:.0f}", "≤ 20 µs")


def small_file(folder: Path) -> Iterator[Row]:
    """A new 1 KB file logged as an input; floor: hashing it."""
    home = _home(folder)
    names = count()
    times = 50

    def files() -> list[Path]:
        made = [folder / f"small-{next(names)}" for _ in range(times)]
        for path in made:
            path.write_bytes(os.urandom(1024))
        return made

    with cmf.run("bench", "files", home=home.path) as run:

        def subject() -> None:
            for path in files():
                run.input(path)

        def floor() -> None:
            for path in files():
                hash_path(path)

        ours, raw = alternate(subject, floor)
    beyond = (ours - raw) / times
    yield Row("1 KB file logged, beyond hashing", micro(beyond), micro(raw / times), f"{ours / raw:.1f}", "≤ 2 ms")


def large_file(folder: Path) -> Iterator[Row]:
    """Both digests of a large file; floor: md5 alone."""
    path = folder / "large"
    with path.open("wb") as out:
        for _ in range(LARGE_BYTES // 2**20):
            out.write(os.urandom(2**20))

    def floor() -> None:
        with path.open("rb") as file:
            hashlib.file_digest(file, "md5")

    ours, raw = alternate(lambda: hash_path(path), floor, rounds=3)
    speed = LARGE_BYTES / 1e6
    yield Row(
        "large file, md5 and sha256",
        f"{speed / ours:.0f} MB/s",
        f"md5 {speed / raw:.0f} MB/s",
        f"{raw / ours:.2f}",
        "≥ 0.8",
    )


def imports(_folder: Path) -> Iterator[Row]:
    """`import cmf_agent`, beyond bare Python."""
    ours, bare = alternate(lambda: _python("import cmf_agent"), lambda: _python("pass"), rounds=11)
    yield Row("import cmf_agent, beyond bare Python", micro(ours - bare), micro(bare), f"{ours / bare:.1f}", "≤ 60 ms")


def status(folder: Path) -> Iterator[Row]:
    """`cmf-agent status`; floor: bare Python's start."""
    _home(folder)
    program = Path(sys.executable).parent / "cmf-agent"
    ours, bare = alternate(
        lambda: subprocess.run([program, "status"], cwd=folder, check=True, stdout=subprocess.DEVNULL),
        lambda: _python("pass"),
        rounds=11,
    )
    yield Row("cmf-agent status", micro(ours), micro(bare), f"{ours / bare:.1f}", "≤ 6")


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
