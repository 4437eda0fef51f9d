"""Locks between processes, on files of their own."""

import fcntl
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
