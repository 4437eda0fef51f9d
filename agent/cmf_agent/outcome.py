"""What became of a run, told by the exception that ended it. Pure.

none                          finished
SystemExit(None or 0)         finished, exit code 0
SystemExit(128 + a signal
  that asks to end)           interrupted
SystemExit(other)             failed
any other Exception           failed
KeyboardInterrupt, other
  BaseException (cancelled)   interrupted
"""

import signal
from typing import NamedTuple

#: Signals by which people and schedulers ask a process to end.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_INTERRUPTED_CODES = frozenset(128 + number for number in ENDING_SIGNALS)


class Outcome(NamedTuple):
    """Status, exit code where there is one, and the error's type and message where it failed or was interrupted."""

    status: str
    exit_code: int | None
    error: dict[str, str] | None


def outcome_of(error: BaseException | None) -> Outcome:
    """Return what became of a run that `error` ended, None for an ordinary end."""
    if error is None:
        return Outcome("finished", None, None)
    if isinstance(error, SystemExit):
        return _of_exit(error.code)
    texts = {"type": type(error).__qualname__, "message": _message(error)}
    return Outcome("failed" if isinstance(error, Exception) else "interrupted", None, texts)


def outcome_of_code(code: int) -> Outcome:
    """Return what became of a process with this exit code, 128 + n for one that signal n ended."""
    if code == 0:
        return Outcome("finished", 0, None)
    return Outcome("interrupted" if code in _INTERRUPTED_CODES else "failed", code, None)


def _of_exit(code: object) -> Outcome:
    if code is None or isinstance(code, int):
        return outcome_of_code(code or 0)
    return Outcome("failed", 1, {"type": "SystemExit", "message": str(code)})  # sys.exit("text") exits with 1


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - a foreign __str__ may raise anything; the run must go on
        return f"<its text failed with {type(failure).__name__}>"
