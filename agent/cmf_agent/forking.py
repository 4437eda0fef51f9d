"""What a fork must not copy: locks held by other threads, open SQLite connections, buffered points.

Rules
- An object registers once, when it is made; it is held weakly. None can register while the process forks.
- `before_fork` and `after_fork_in_parent` run in the forking thread, always both; `before_fork` waits for a lock of
  its own no longer than `FORK_WAIT_S`.
- `after_fork` runs in the child, before anything else there, with one thread only.
"""

import os
import threading
from weakref import WeakSet

#: How long a fork waits for an append of another thread, s: longer than any that has a limit of its own.
FORK_WAIT_S = 30.0


class Forkable:
    """Something that gets ready for a fork, and starts afresh in a forked child."""

    def before_fork(self) -> None:
        """Close what may not be open while the process is copied, and keep it closed."""

    def after_fork_in_parent(self) -> None:
        """Let the other threads go on."""

    def after_fork(self) -> None:
        """Let go, in the child, of what belongs to the parent, without closing it there."""


class _Registry:
    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may register, or fork, in the midst of either
        self.alive: WeakSet[Forkable] = WeakSet()

    def before(self) -> None:
        self.lock.acquire()
        for item in list(self.alive):
            item.before_fork()

    def in_parent(self) -> None:
        for item in list(self.alive):
            item.after_fork_in_parent()
        self.lock.release()

    def in_child(self) -> None:
        self.lock = threading.RLock()
        for item in list(self.alive):
            item.after_fork()


_registry = _Registry()


def renew_after_fork(item: Forkable) -> None:
    """Have `item` told of every fork while it lives."""
    with _registry.lock:
        _registry.alive.add(item)


os.register_at_fork(before=_registry.before, after_in_parent=_registry.in_parent, after_in_child=_registry.in_child)
