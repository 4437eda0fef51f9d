"""Importing and calling DVC without anybody noticing: no log lines, bars or spinners, and the process stays as it was.

Rules
- What importing DVC does to the process is undone: it replaces the standard streams, mutes other libraries' loggers, and writes to standard
  output at the end.
- During a call its loggers speak to us only: it tells by them, and by nothing else, that a file did not get into the cache.
"""

import atexit
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGERS = ("dvc", "dvc_data", "dvc_objects")
#: Its level decides whether DVC shows bars.
_PROGRESS_LOGGER = "dvc.progress"


def import_repo() -> Any:
    """Import DVC, undoing what that does to the rest of the process."""
    if "dvc.repo" in sys.modules:
        return sys.modules["dvc.repo"].Repo
    streams = sys.stdout, sys.stderr
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "aiohttp")}
    had_colorama = "colorama" in sys.modules
    try:
        from dvc.repo import Repo
    finally:
        sys.stdout, sys.stderr = (
            streams  # colorama, which DVC starts, strips colours from them where they are no terminal
        )
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not had_colorama and "colorama.initialise" in sys.modules:
            atexit.unregister(sys.modules["colorama.initialise"].reset_all)  # it writes to standard output
    return Repo


class Complaints(logging.Handler):
    """Keeps the errors that DVC logs during a call: exceptions where there are some, else texts."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[Exception] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(error if isinstance(error, Exception) else RuntimeError(record.getMessage()))


@contextmanager
def quiet() -> Iterator[Complaints]:
    """Keep DVC from writing log lines, bars and spinners during a call, and yield what it complains of."""
    with _lenient_warnings():
        import_repo()
        from dvc.ui import ui
    from rich.console import Console

    complaints = Complaints()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    progress = logging.getLogger(_PROGRESS_LOGGER)
    kept = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
    progress_level, console = progress.level, ui.__dict__.get("error_console")
    for logger in loggers:
        logger.handlers, logger.propagate = [complaints], False
        logger.setLevel(logging.ERROR)
    progress.setLevel(logging.CRITICAL)
    ui.__dict__["error_console"] = Console(stderr=True, quiet=True, force_terminal=False)
    try:
        with _lenient_warnings():
            yield complaints
    finally:
        for logger, level, handlers, propagate in kept:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        progress.setLevel(progress_level)
        if console is None:
            ui.__dict__.pop("error_console", None)
        else:
            ui.__dict__["error_console"] = console


@contextmanager
def _lenient_warnings() -> Iterator[None]:
    """Where the program makes errors of warnings, keep that from DVC; elsewhere leave the filters, which all threads share, alone."""
    if not any(action == "error" for action, *_ in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
