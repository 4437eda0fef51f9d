"""The lock file on which all writers of one log queue, before they ask SQLite for its write lock.

Rules
- SQLite's own lock is not fair: of 16 processes one got 1 append while another got 34,755. `flock` queues.
- The file is opened for reading only: who may read it may queue, whoever made it.
- A forked child shares its parent's open file, and with it the lock: it opens its own (`after_fork`).
"""

import os
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from types import TracebackType

from cmf_agent.forking import renew_after_fork
from cmf_graph.database import store_errors


class QueueLock:
    """An exclusive lock between processes, and between two objects of one process; a context manager.

    Not for two threads on one object at a time. Entering raises `StoreError` if the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        renew_after_fork(self)

    def __enter__(self) -> None:
        if self._descriptor < 0:
            with store_errors(self._path):
                self._descriptor = _open(str(self._path))
        flock(self._descriptor, LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flock(self._descriptor, LOCK_UN)

    def close(self) -> None:
        """Close the file; entering the lock again opens it anew."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def after_fork(self) -> None:
        """Close the child's copy: else it would hold on to a lock whose holder was killed."""
        self.close()


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
