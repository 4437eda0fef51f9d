"""Remembers files' digests in a SQLite file, so that what did not change is not read again.

Rules
- A digest is believed only while size, times and inode are those it was taken with, and is kept only if the
  file had been left alone for 2 s before hashing began (`facts.is_settled`).
- It is a cache: if its database is damaged, read-only, full or locked, hashing goes on without it. A warning says
  so through `logging`, and the database is tried again after a while.
- Any number of processes and threads may use one file. A fork waits for what is going on and closes the connection:
  SQLite forbids using, and even closing, a copy (sqlite.org/howtocorrupt.html).
- A signal handler in the midst of a call of its own thread finds no memory, instead of waiting for itself.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from weakref import WeakSet

from cmf_graph.content.digests import Digests, Hashed
from cmf_graph.content.facts import FileFacts, is_settled
from cmf_graph.database import Connection, connect, store_errors, transaction
from cmf_protocol.errors import CmfError

_log = logging.getLogger(__name__)

#: How long to wait for another process's lock, ms: hashing anew is better than waiting longer.
BUSY_TIMEOUT_MS = 2_000
#: How long a database that failed is left alone, s.
REST_S = 60.0
#: How often opening is tried: while another process makes the file, SQLite refuses instead of waiting.
OPEN_TRIES_MAX = 20
OPEN_WAIT_S = 0.02
#: How long a fork waits for a call of another thread, s.
FORK_WAIT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS digest (
    path BLOB PRIMARY KEY, facts TEXT NOT NULL, md5 TEXT NOT NULL, sha256 TEXT
) WITHOUT ROWID
"""
_RECALL = "SELECT md5, sha256 FROM digest WHERE path = ? AND facts = ?"
_REMEMBER = "INSERT OR REPLACE INTO digest (path, facts, md5, sha256) VALUES (?, ?, ?, ?)"


class DigestMemory:
    """The digests remembered in the SQLite file at `path`, opened when first needed, made if missing.

    `clock_ns` gives the time, ns since 1970, by which a file is judged to have been left alone.
    """

    def __init__(self, path: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.clock_ns = clock_ns
        self._path = path
        self._lock = threading.RLock()
        self._busy = False
        self._connection: Connection | None = None
        self._locked_for_forks: list[bool] = []
        self._stranded: Connection | None = None
        self._rest_until = 0.0
        with _forks.lock:
            _forks.alive.add(self)

    def recall(self, wanted: Mapping[str, FileFacts]) -> dict[str, Digests]:
        """Return the digests that are known of the files at the absolute paths `wanted`, with these facts."""
        found: dict[str, Digests] = {}

        def read(connection: Connection) -> None:
            with store_errors(self._path), _reading(connection):
                for path, facts in wanted.items():
                    row = connection.execute(_RECALL, (os.fsencode(path), _text(facts))).fetchone()
                    if row:
                        found[path] = Digests(row[0], row[1])

        self._attempt(read)
        return found

    def remember(self, hashed: Mapping[str, Hashed], began_ns: int) -> None:
        """Keep the digests of the files at these absolute paths, hashed from `began_ns` (ns since 1970) on."""
        rows = [
            (os.fsencode(path), _text(item.facts), item.digests.md5, item.digests.sha256)
            for path, item in hashed.items()
            if is_settled(item.facts, began_ns)
        ]

        def write(connection: Connection) -> None:
            with transaction(connection, str(self._path)):
                connection.executemany(_REMEMBER, rows)

        if rows:
            self._attempt(write)

    def close(self) -> None:
        """Close the database; using the memory again opens it anew."""
        with self._lock:
            if not self._busy:
                self._drop_connection()

    def before_fork(self) -> None:
        """Wait for what is going on, and close the connection."""
        got = self._lock.acquire(timeout=FORK_WAIT_S)
        self._locked_for_forks.append(got)
        if got and not self._busy:
            self._drop_connection()

    def after_fork_in_parent(self) -> None:
        """Let the other threads go on."""
        if self._locked_for_forks and self._locked_for_forks.pop():
            self._lock.release()

    def after_fork(self) -> None:
        """Start afresh in a forked child; one that inherits an open connection after all has no memory."""
        self._lock, self._busy, self._locked_for_forks = threading.RLock(), False, []
        self._stranded = self._stranded or self._connection
        self._connection = None

    def __enter__(self) -> "DigestMemory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, work: Callable[[Connection], None]) -> None:
        """Do `work` on the database, unless it rests; if it refuses, warn and let it rest."""
        with self._lock:
            if self._busy or self._stranded is not None or time.monotonic() < self._rest_until:
                return
            self._busy = True
            try:
                work(self._opened())
            except CmfError as error:
                self._rest_until = time.monotonic() + REST_S
                _log.warning("digests are not remembered for now: %s", error)
            finally:
                self._busy = False

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = _open_patiently(self._path)
        return self._connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Forks:
    """Tells every memory of every fork; none is made meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.alive: WeakSet[DigestMemory] = WeakSet()

    def before(self) -> None:
        self.lock.acquire()
        for memory in list(self.alive):
            memory.before_fork()

    def in_parent(self) -> None:
        for memory in list(self.alive):
            memory.after_fork_in_parent()
        self.lock.release()

    def in_child(self) -> None:
        self.lock = threading.RLock()
        for memory in list(self.alive):
            memory.after_fork()


_forks = _Forks()
os.register_at_fork(before=_forks.before, after_in_parent=_forks.in_parent, after_in_child=_forks.in_child)


def _open_patiently(path: Path) -> Connection:
    for _ in range(OPEN_TRIES_MAX - 1):
        try:
            return _open(path)
        except CmfError as error:
            if "locked" not in str(error):
                raise
        time.sleep(OPEN_WAIT_S)
    return _open(path)


def _open(path: Path) -> Connection:
    connection = connect(path)
    try:
        with store_errors(path):
            connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA synchronous=NORMAL")  # losing the latest digests in a power cut costs nothing
            connection.execute(_SCHEMA)
    except CmfError:
        connection.close()
        raise
    return connection


@contextmanager
def _reading(connection: Connection) -> Iterator[None]:
    """Read many rows under one lock, not one each."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _text(facts: FileFacts) -> str:
    """Return the facts as text: an inode may be larger than SQLite's integers."""
    return ":".join(map(str, facts))
