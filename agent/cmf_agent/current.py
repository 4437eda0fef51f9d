"""The run in whose body this thread or task is: what is started inside it names it as its parent.

Rules
- A task is in the body that started it. A thread is in none: what runs there is nested, and found by `current_run`, only if the
  thread was started with a copy of the context (`Thread(target=copy_context().run, args=(work,))`, `asyncio.to_thread`). The run
  itself may be used from any thread.
"""

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmf_agent.runs import Run

_current: ContextVar["Run | None"] = ContextVar("cmf_current_run", default=None)


def current_run() -> "Run | None":
    """Return the innermost run that has begun here and not ended."""
    return nearest_open(_current.get())


def enter(run: "Run") -> None:
    """Make `run` the current one."""
    _current.set(run)


def leave(run: "Run") -> None:
    """Make the run around `run` the current one, if that was `run`."""
    if _current.get() is run:
        _current.set(nearest_open(run.outer))


def nearest_open(run: "Run | None") -> "Run | None":
    """Return `run`, or the nearest around it that has not ended."""
    passed = set()
    while run is not None and run.is_ended:
        if id(run) in passed:  # of two runs, each was started again inside the other
            return None
        passed.add(id(run))
        run = run.outer
    return run
