"""Ends what a program began with `Cmf` and did not `finalize`.

Rules
- When the process ends, so does every execution that it began and left open: as failed, or interrupted, if an exception
  ended the program, and as finished if the program ran to its end.
- If the program was left before its end by `sys.exit`, nobody can tell by then with which code. That is no reason to say that all went
  well: no end is recorded (the execution stays `running`), and a line on standard error says so. `finalize` before `sys.exit` says
  what became of it, or `cmf.run`, which sees the code.
- A process of `multiprocessing` ends by its target's end, where exceptions and exit codes are seen. One that was forked by
  other means, and one that is killed, may end without a word.
- The user's hooks and `sys.exit` stay what they are: that a program ran to its end is read off the frame of its main module.
"""

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from cmf_agent.cmflib.session import Session, code_at
from cmf_agent.outcome import outcome_of
from cmf_agent.recorder import say
from cmf_agent.recording import Recording
from cmf_agent.runs import Run
from cmf_protocol.errors import CmfError

#: Every execution that was begun and not ended, with its session and the process that began it.
_open: dict[int, tuple[Run, Session, int]] = {}
#: What an interactive session has shown before is no end of this program.
_shown_before: Any = None
#: The frame of the program's main module, and the process of `multiprocessing` that will say when its target has ended.
_main_frame: FrameType | None = None
_target_of = 0


def begun(session: Session, run: Run) -> None:
    """Note that an execution was begun here."""
    global _shown_before, _main_frame  # noqa: PLW0603 - the interpreter has one last exception, and one main module, too
    if not _open:
        _shown_before = getattr(sys, "last_value", None)
        _main_frame = _frame_of_main()
        _await_target()
    _open[id(run)] = run, session, os.getpid()


def is_begun_here(run: Run) -> bool:
    """Tell if this is the open execution of some `Cmf`."""
    return id(run) in _open


def open_runs(session: Session) -> list[Run]:
    """Return what was begun here, by this process, and not ended."""
    return [run for run, owner, process_id in list(_open.values()) if owner is session and process_id == os.getpid()]


def end(
    session: Session, run: Run, error: BaseException | None = None, code: Mapping[str, object] | None = None
) -> None:
    """Record the end of an execution that was begun here, with the commit that it ended at, which `code` names if it is known."""
    if _open.pop(id(run), None) is None:
        return  # another thread does it
    note_end_commit(run, code_at(session.home) if code is None else code)
    status, exit_code, texts = outcome_of(error)
    run.finish(status, exit_code=exit_code, error=texts)


def note_end_commit(run: Recording, code: Mapping[str, object]) -> None:
    """Record the commit that the code is at, if there is one."""
    commit = code.get("commit")
    if commit:
        run.property("Git_End_Commit", commit)


def is_child_process() -> bool:
    """Tell if this process is one of `multiprocessing`, which may be ended from outside at any time."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _await_target() -> None:
    """Have the executions of a process of `multiprocessing` end with its target: a forked one runs no `atexit`."""
    global _target_of  # noqa: PLW0603 - a process has one target
    if is_child_process() and _target_of != os.getpid():
        from multiprocessing.util import Finalize

        _target_of = os.getpid()
        Finalize(None, _end_with_target, exitpriority=-100)  # after all others


def _end_with_target() -> None:
    _end_all(sys.exc_info()[1])


def _end_with_program() -> None:
    error = getattr(sys, "last_value", None)
    if isinstance(error, BaseException) and error is not _shown_before and not hasattr(sys, "ps1"):
        _end_all(error)
    elif _was_left(_main_frame):
        _leave_all_open()
    else:
        _end_all(None)


def _end_all(error: BaseException | None) -> None:
    for run, session in _all_open():
        try:
            end(session, run, error)
        except CmfError as failure:  # nobody is left who could be told
            say(f"the end of run {run.id} was NOT recorded: {failure}")


def _leave_all_open() -> None:
    for run, _ in _all_open():
        say(
            f"the program left with sys.exit and did not finalize: no end of run {run.id} ({run.stage}) is recorded, it stays running"
        )


def _all_open() -> list[tuple[Run, Session]]:
    """Return what this process began; a forked child has copies of its parent's."""
    return [(run, session) for run, session, process_id in list(_open.values()) if process_id == os.getpid()]


def _frame_of_main() -> FrameType | None:
    """Return the frame in which the main module runs, if one does."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # of this thread, or of another
    main = getattr(sys.modules.get("__main__"), "__dict__", None)
    found = None
    while frame is not None:
        if frame.f_globals is main:
            found = frame
        frame = frame.f_back
    return found


def _was_left(frame: FrameType | None) -> bool:
    """Tell if a frame that has ended did not come to its end: its last instruction does not return."""
    if frame is None or hasattr(sys, "ps1"):
        return False
    from opcode import opname

    return not opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN_")


atexit.register(_end_with_program)
