"""Locks between processes, on files of their own."""

import fcntl
import os
from pathlib import Path
from typing import IO

from cmf_graph.database import store_errors


def try_lock(path: Path) -> IO[str] | None:
    """Lock a file, made if missing, and return it open, or None if someone else holds it; closing it lets go.

    The kernel lets go when the holder dies, however it dies.
    """
    with store_errors(path):
        file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_locked(path: Path) -> bool:
    """Tell if someone holds the lock on a file; shared, so that those who look do not see each other."""
    with store_errors(path):
        try:
            file = path.open(encoding="utf-8")
        except FileNotFoundError:
            return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def waiting_lock(path: Path) -> IO[str]:
    """Lock a file, made if missing, once nobody else holds it, and return it open; closing it lets go."""
    with store_errors(path):
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
