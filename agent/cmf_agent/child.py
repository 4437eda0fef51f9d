"""Runs a command as a child process that has our terminal, our standard streams and our signals.

Rules
- What asks us to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT), and what schedulers warn with (SIGUSR1, SIGUSR2), is passed
  on to the child, and we wait for what it does. What is typed at the terminal (an interrupt, a quit) has reached the child
  already: it went to every process in the foreground.
- The child gets the signal handling that we were started with, not Python's.
- Before the child is started, what asks us to end does that (`KeyboardInterrupt`): there will be no child. Once it has
  ended, that ends whatever we still do for it. A warning is kept for the child, or comes too late.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType, TracebackType

from cmf_agent.outcome import ENDING_SIGNALS

NOT_FOUND_CODE = 127
NOT_EXECUTABLE_CODE = 126

#: A scheduler's word that it will end us later: nothing that ends us.
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_TYPED = (signal.SIGINT, signal.SIGQUIT)

#: Python ignores these; a child that inherits that never notices that its reader is gone.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class SignalsToChild:
    """While entered, the signals that ask to end go to the child started by `run`; `code` is the exit code of that one."""

    def __init__(self) -> None:
        self.code: int | None = None
        #: The signal that kept the child from being started, if one did.
        self.stopped_by: int = signal.SIGINT
        self._child: int | None = None
        self._is_starting = False
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

    def run(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Run `command`; then `code` is its exit code, 128 + n if signal n ended it.

        127 if there is no such command, 126 if it can't be executed; both are said on standard error.
        """
        self._is_starting = True  # from here on no signal can keep us from waiting for a child that there is
        try:
            self._child = os.posix_spawnp(command[0], command, environment, setsigdef=_IGNORED_BY_PYTHON)
        except (FileNotFoundError, NotADirectoryError):
            self.code = NOT_FOUND_CODE
            _complain(command[0], "command not found")
        except (OSError, ValueError) as error:
            self.code = NOT_EXECUTABLE_CODE
            _complain(command[0], error.strerror if isinstance(error, OSError) else error)
        else:
            for number in self._early:
                self._pass_on(number)
            self.code = self._wait(self._child)

    def _wait(self, child: int) -> int:
        _, status = os.waitpid(child, 0)
        self._child = None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            if not (number in _TYPED and _is_in_foreground()):
                self._pass_on(number)
        elif number in _WARNINGS or (self._is_starting and self.code is None):
            self._early.append(number)
        else:
            self.stopped_by = number
            raise KeyboardInterrupt

    def _pass_on(self, number: int) -> None:
        if self._child is not None:
            try:
                os.kill(self._child, number)
            except ProcessLookupError:
                return


def _complain(program: str, reason: object) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no standard error, a closed one
        sys.stderr.write(f"cmf-agent: {program}: {reason}\n")


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
