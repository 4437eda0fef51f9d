"""Runs a command as a child process that has our terminal, our standard streams and our signals.

Rules
- What asks us to end (SIGINT, SIGTERM, SIGHUP) is passed on to the child, and we wait for what it does. An interrupt
  typed at the terminal has reached the child already: it went to every process in the foreground.
- The child gets the signal handling that we were started with, not Python's.
- Once the child has ended, such a signal ends whatever we still do for it (`KeyboardInterrupt`).
"""

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType, TracebackType

from cmf_agent.outcome import ENDING_SIGNALS

NOT_FOUND_CODE = 127
NOT_EXECUTABLE_CODE = 126

#: Python ignores these; a child that inherits that never notices that its reader is gone.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class SignalsToChild:
    """While entered, the signals that ask to end go to the child started by `run`."""

    def __init__(self) -> None:
        self._child: int | None = None
        self._is_over = False
        self._early: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> "SignalsToChild":
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it: the child ignores it too
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """Run `command` and return its exit code, 128 + n if signal n ended it.

        127 if there is no such command, 126 if it can't be executed; both are said on standard error.
        """
        try:
            self._child = os.posix_spawnp(command[0], command, environment, setsigdef=_IGNORED_BY_PYTHON)
        except (FileNotFoundError, NotADirectoryError):
            sys.stderr.write(f"cmf-agent: {command[0]}: command not found\n")
            return NOT_FOUND_CODE
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            sys.stderr.write(f"cmf-agent: {command[0]}: {reason}\n")
            return NOT_EXECUTABLE_CODE
        finally:
            self._is_over = self._child is None
        for number in self._early:
            self._pass_on(number)
        _, status = os.waitpid(self._child, 0)
        self._child, self._is_over = None, True
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._is_over:
            raise KeyboardInterrupt
        if self._child is None:
            self._early.append(number)
        elif not (number == signal.SIGINT and _is_in_foreground()):
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._child is not None:
            try:
                os.kill(self._child, number)
            except ProcessLookupError:
                return


def _is_in_foreground() -> bool:
    """Tell if we are among those whom the terminal sends what is typed at it."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
