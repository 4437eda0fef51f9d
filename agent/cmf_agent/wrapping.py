"""Records a command that runs as a child process: `cmf-agent run`.

Rules
- The exit code is the child's, whatever happens to the record of it. What can't be recorded is said on standard error.
- Inputs are hashed before it starts, outputs after it has ended. What is missing is recorded as the property
  `missing_inputs` or `missing_outputs`.
- Nothing is written to standard output: it is the child's.
"""

import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cmf_agent.child import NOT_EXECUTABLE_CODE, NOT_FOUND_CODE, SignalsToChild
from cmf_agent.outcome import outcome_of_code
from cmf_agent.progress import hashing_progress
from cmf_agent.reading import LogReader
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_graph.content.files import Content
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.types import EXECUTION_FINISHED

Recording = Callable[..., Content]

_NOT_STARTED = "the command was not started"
#: As many digits of an id serve as a REF: those of its millisecond.
_ID_CHARS = 13
#: How far back the end of a run is looked for, which has been recorded just now.
_NEWEST_MAX = 1_000


class Wanted(NamedTuple):
    """A command and what is known of it beforehand."""

    pipeline: str
    stage: str
    command: Sequence[str]
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    models: Sequence[Path]
    params: dict[str, object]
    kind: str
    name: str | None


def record_command(wanted: Wanted) -> int:
    """Run the command, record it, and return its exit code; 128 + n if signal n came before it was started.

    Raises `CallerError` before anything is run, for a name or a kind that can't be one.
    """
    command = list(wanted.command)
    run = _new_run(wanted, command)
    counts = {"in": 0, "out": 0}
    with SignalsToChild() as signals:
        is_started = False
        try:
            is_started = _attempt("its start", run.start) if run else False
            counts["in"] = _record_files(run, "missing_inputs", [(path, Run.input) for path in wanted.inputs])
            signals.run(command, _environment(run))
            counts["out"] = _record_files(run, "missing_outputs", _results(wanted))
        except KeyboardInterrupt:
            say("interrupted: " + (_NOT_STARTED if signals.code is None else "the outputs were not all recorded"))
        code = 128 + signals.stopped_by if signals.code is None else signals.code
        if run is not None and (is_started or signals.code is not None):
            _end(run, code, command[0], counts)
    return code


def _new_run(wanted: Wanted, command: list[str]) -> Run | None:
    """Return the run that records the command; None, having said so, if it can't even be made."""
    try:
        return Run(wanted.pipeline, wanted.stage, wanted.params, kind=wanted.kind, name=wanted.name, command=command)
    except CallerError:
        raise
    except Exception as error:  # noqa: BLE001 - recording never keeps the command from running
        say(f"WARNING: NOTHING of this run is recorded: {_told(error)}")
        return None


def _environment(run: Run | None) -> dict[str, str]:
    environment = dict(os.environ)
    if run is not None:
        environment |= {"CMF_EXECUTION": run.id, "CMF_PIPELINE": run.pipeline, "CMF_STAGE": run.stage}
        if run.home is not None:
            environment["CMF_HOME"] = str(run.home.path)
    return environment


def _results(wanted: Wanted) -> list[tuple[Path, Recording]]:
    return [(path, Run.output) for path in wanted.outputs] + [(path, Run.log_model) for path in wanted.models]


def _record_files(run: Run | None, property_: str, files: list[tuple[Path, Recording]]) -> int:
    """Record files and return how many were; those that are missing become a property."""
    if run is None:
        return 0
    missing = []
    count = 0
    for path, record in files:
        try:
            with hashing_progress(path) as progress:
                record(run, path, progress=progress)
            count += 1
        except CallerError as error:
            say(f"not recorded: {error}")
            missing.append(str(path))
        except Exception as error:  # noqa: BLE001 - recording never hurts the command
            say(f"not recorded: {path}: {_told(error)}")
    if missing:
        _attempt(property_, lambda: run.property(property_, missing))
    return count


def _end(run: Run, code: int, program: str, counts: dict[str, int]) -> None:
    """Record the end; on a terminal, say what was recorded."""
    try:
        is_ended = _attempt("its end", lambda: _finish(run, code, program))
        if is_ended and sys.stderr is not None and sys.stderr.isatty() and _is_held(run):
            said = ", ".join(f"{count} {way}" for way, count in counts.items())
            say(f"recorded {run.pipeline}/{run.stage} {run.id[:_ID_CHARS]} ({said})")
    except KeyboardInterrupt:
        say("interrupted: its end may not be recorded")
    except Exception as error:  # noqa: BLE001 - the exit code is the command's
        say(f"can't say what was recorded: {_told(error)}")


def _is_held(run: Run) -> bool:
    """Tell if the log holds the end of a run, and so all that was said before."""
    if run.home is None:
        return False
    with LogReader(run.home.log_path) as reader:
        logs = reader.logs()
        newest = islice(reader.newest(logs[-1].number), _NEWEST_MAX) if logs else ()
        headers = (stored.header for stored in newest)
        return any(h.type == EXECUTION_FINISHED and h.about[0] == ("execution", run.execution) for h in headers)


def _finish(run: Run, code: int, program: str) -> None:
    status, exit_code, _ = outcome_of_code(code)
    reasons = {NOT_FOUND_CODE: "FileNotFoundError", NOT_EXECUTABLE_CODE: "PermissionError"}
    error = {"type": reasons[code], "message": program} if code in reasons else None
    run.finish(status, exit_code=exit_code, error=error)


def _attempt(what: str, action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - recording never keeps the command from running
        say(f"WARNING: {what} was NOT recorded: {_told(error)}")
        return False
    return True


def _told(error: Exception) -> str:
    """Return an error as people read it: ours by its text, any other by its type too."""
    if isinstance(error, CmfError):
        return f"{error} ({error.hint})" if error.hint else str(error)
    return f"{type(error).__name__}: {error}"
