"""The one way to open a SQLite file, for the log, the hub's stores and every projection.

Rules
- One SQLite build for all: `pysqlite3`, whose wheel carries a release without the WAL-reset bug
  (sqlite.org/wal.html#walresetbug), where that wheel exists; Python's own elsewhere. Never both on one file.
- WAL, synchronous=FULL, autocommit: transactions are begun by `transaction`, with BEGIN IMMEDIATE.
- Every error of sqlite3 leaves this package as a `StoreError` that names the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmf_protocol.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import pysqlite3 as sqlite3
    except ImportError:  # no wheel for this platform: Python's own
        import sqlite3

Connection = sqlite3.Connection

#: How long SQLite waits for another process's lock, ms. Our writers queue on lock files first, so only a
#: checkpoint or a foreign tool ever makes one wait.
BUSY_TIMEOUT_MS = 10_000
#: First release without the WAL-reset bug (sqlite.org/wal.html#walresetbug).
WAL_SAFE_VERSION = (3, 51, 3)

_HINTS = (
    ("readonly", "give this user the right to write there, or set CMF_HOME to a folder that it can write"),
    ("read-only", "give this user the right to write there, or set CMF_HOME to a folder that it can write"),
    ("full", "free some space on that disk; nothing was recorded by this call"),
    ("disk i/o", "check the disk (space, quota, file size limit); nothing was recorded by this call"),
    ("locked", "another program holds the database: stop it, or try again"),
    ("permission denied", "give this user the right to read and write there, or work as the user who owns it"),
    ("not permitted", "give this user the right to read and write there, or work as the user who owns it"),
    ("unable to open", "check that the folder exists and that this user may read and write in it"),
)


def sqlite_version() -> str:
    """Return the version of the SQLite library in use."""
    return str(sqlite3.sqlite_version)


def sqlite_warning(version: str) -> str | None:
    """Return what there is to say about this release of SQLite, None if it is a good one."""
    if tuple(map(int, version.split("."))) >= WAL_SAFE_VERSION:
        return None
    safe = ".".join(map(str, WAL_SAFE_VERSION))
    return f"SQLite {version} can damage a WAL database: install pysqlite3, or a Python with SQLite {safe} or later"


def connect(path: Path | str, *, read_only: bool = False) -> Connection:
    """Open the database file at `path` (`":memory:"` too), made if missing unless `read_only`.

    Raises `StoreError` if the file can't be opened, `IntegrityError` if it is not a database.
    """
    target = str(path)
    with store_errors(target):
        if read_only:
            connection = sqlite3.connect(
                f"file:{_quoted(target)}?mode=ro",
                uri=True,
                timeout=BUSY_TIMEOUT_MS / 1000,
                isolation_level=None,
            )
        else:
            connection = sqlite3.connect(
                target, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def transaction(connection: Connection, name: str) -> Iterator[None]:
    """Run the block in one write transaction of the database called `name`: all of it, or nothing."""
    with store_errors(name):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextmanager
def store_errors(name: Path | str) -> Iterator[None]:
    """Turn what sqlite3 and the operating system raise about the file `name` into our errors."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if "malformed" in text or "not a database" in text:
            raise IntegrityError(
                f"{name} is damaged: {text}",
                "put it aside and bring back a copy; run verify to see what is left",
            ) from error
        raise StoreError(f"{name}: {text}", hint_for(text)) from error
    except OSError as error:
        text = error.strerror or str(error)
        raise StoreError(f"{error.filename or name}: {text}", hint_for(text)) from error


def hint_for(text: str) -> str:
    """Return the way out of what SQLite or the system says, empty if none is known."""
    low = text.lower()
    return next((hint for word, hint in _HINTS if word in low), "")


def sync_folder(folder: Path) -> None:
    """Make durable which files are in a folder, under which names; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_is_on_network(path: Path) -> str | None:
    """Return the name of the network file system that holds `path`, or None for a local one (Linux only)."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    network = kind in {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"}
    network = network or kind in {"fuse.sshfs", "fuse.glusterfs", "beegfs", "gpfs"}
    return kind if network else None
