"""The lock file on which all writers of one log queue, before they ask SQLite for its write lock.

Rules
- SQLite's own lock is not fair: of 16 processes one got 1 append while another got 34,755. `flock` queues.
- Nobody waits longer than `LOCK_WAIT_S`, or what the lock was made with: whoever holds the lock may have been stopped.
  `flock` knows no limit, so a thread waits in it; it is started only if the lock is taken, and left behind when the time
  is over.
- The file is opened for reading only: who may read it may queue, whoever made it.
- A forked child shares its parent's open file, and with it the lock: it opens its own (`after_fork`).
"""

import os
import threading
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from types import TracebackType

from cmf_agent.forking import Forkable, renew_after_fork
from cmf_graph.database import store_errors
from cmf_protocol.errors import StoreError

#: Longest time that a writer waits for the others, s.
LOCK_WAIT_S = 10.0

_NOWAIT = LOCK_EX | LOCK_NB


class QueueLock(Forkable):
    """An exclusive lock between processes, and between two objects of one process; a context manager.

    Not for two threads on one object at a time. Entering raises `StoreError` if the file can't be opened, or if the
    lock stays taken.
    """

    def __init__(self, path: Path, wait_s: float = LOCK_WAIT_S) -> None:
        self._path = path
        self._wait_s = wait_s
        self._descriptor = -1
        self._left_behind: set[int] = set()
        renew_after_fork(self)

    def __enter__(self) -> None:
        if self._descriptor < 0:
            with store_errors(self._path):
                self._descriptor = _open(str(self._path))
        try:
            flock(self._descriptor, _NOWAIT)
        except BlockingIOError:
            self._wait()

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
        """Close the child's copies: else it would hold on to a lock whose holder was killed."""
        self.close()
        for descriptor in self._left_behind:
            with suppress(OSError):
                os.close(descriptor)
        self._left_behind = set()

    def _wait(self) -> None:
        line = _Line(self._descriptor, self._left_behind)
        # Until the lock is ours the file is the waiting thread's: should Ctrl-C end this call, it closes it.
        self._descriptor = -1
        try:
            line.start()
            got = line.arrived.wait(self._wait_s)
        except RuntimeError as error:  # no thread can be started
            os.close(line.descriptor)
            raise StoreError(f"another process holds {self._path}: {error}", "try again") from error
        except BaseException:
            if not line.leave():
                os.close(line.descriptor)
            raise
        if not got and line.leave():
            raise StoreError(
                f"another process holds {self._path} for {self._wait_s:.0f} s",
                f"see who holds it (`fuser {self._path}`): a process that was stopped goes on with `kill -CONT`",
            )
        self._descriptor = line.descriptor


class _Line(threading.Thread):
    """Waits for the lock on an open file; who no longer wants it `leave`s, and the thread closes the file."""

    def __init__(self, descriptor: int, left_behind: set[int]) -> None:
        super().__init__(daemon=True, name="cmf-lock")
        self.descriptor = descriptor
        self.arrived = threading.Event()
        self._left_behind = left_behind
        self._decision = threading.Lock()
        self._left = False

    def run(self) -> None:
        """Wait for the lock."""
        flock(self.descriptor, LOCK_EX)
        with self._decision:
            if self._left:
                self._left_behind.discard(self.descriptor)
                os.close(self.descriptor)  # and so give the lock back
            self.arrived.set()

    def leave(self) -> bool:
        """Give up waiting; return False, the lock being held, if it has just come."""
        with self._decision:
            if self.arrived.is_set():
                return False
            self._left = True
            self._left_behind.add(self.descriptor)
            return True


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
