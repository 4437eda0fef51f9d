"""What a forked child must not inherit: locks held by other threads, SQLite connections, buffered points.

Rules
- An object registers once, when it is made; it is held weakly.
- `after_fork` runs in the child, before anything else there, with one thread only.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that starts afresh in a forked child."""

    def after_fork(self) -> None:
        """Let go of what belongs to the parent, without closing it there."""


_alive: WeakSet[Forkable] = WeakSet()


def renew_after_fork(item: Forkable) -> None:
    """Have `item.after_fork()` called in every child that is forked while `item` lives."""
    _alive.add(item)


def _renew_all() -> None:
    for item in list(_alive):
        item.after_fork()


os.register_at_fork(after_in_child=_renew_all)
