"""Records a command that runs as a child process: `cmf-agent run`.

Rules
- The exit code is the child's, whatever happens to the record of it. What can't be recorded is said on standard error.
- Inputs are hashed before it starts, outputs after it has ended. What is missing is recorded as the property
  `missing_inputs` or `missing_outputs`.
- Nothing is written to standard output: it is the child's.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cmf_agent.child import NOT_EXECUTABLE_CODE, NOT_FOUND_CODE, SignalsToChild
from cmf_agent.outcome import outcome_of_code
from cmf_agent.progress import hashing_progress
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_graph.content.files import Content
from cmf_protocol.errors import CallerError, CmfError


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
    """Run the command, record it, and return its exit code.

    Raises `CallerError` before anything is run, for a name or a kind that can't be one.
    """
    command = list(wanted.command)
    run = Run(wanted.pipeline, wanted.stage, wanted.params, kind=wanted.kind, name=wanted.name, command=command)
    with SignalsToChild() as signals:
        _attempt("its start", run.start)
        _record_files(run, "missing_inputs", [(path, run.input) for path in wanted.inputs])
        code = signals.run(command, _environment(run))
        try:
            recorded = [(path, run.output) for path in wanted.outputs] + [
                (path, run.log_model) for path in wanted.models
            ]
            _record_files(run, "missing_outputs", recorded)
        except KeyboardInterrupt:
            say("interrupted: the outputs were not all recorded")
        _attempt("its end", lambda: _finish(run, code, command[0]))
    return code


def _environment(run: Run) -> dict[str, str]:
    environment = {**os.environ, "CMF_EXECUTION": run.id, "CMF_PIPELINE": run.pipeline, "CMF_STAGE": run.stage}
    if run.home is not None:
        environment["CMF_HOME"] = str(run.home.path)
    return environment


def _record_files(run: Run, property_: str, files: list[tuple[Path, Callable[..., Content]]]) -> None:
    missing = []
    for path, record in files:
        try:
            with hashing_progress(path) as progress:
                record(path, progress=progress)
        except CallerError as error:
            say(f"not recorded: {error}")
            missing.append(str(path))
        except CmfError as error:
            say(f"not recorded: {path}: {error}")
    if missing:
        _attempt(property_, lambda: run.property(property_, missing))


def _finish(run: Run, code: int, program: str) -> None:
    status, exit_code, _ = outcome_of_code(code)
    reasons = {NOT_FOUND_CODE: "FileNotFoundError", NOT_EXECUTABLE_CODE: "PermissionError"}
    error = {"type": reasons[code], "message": program} if code in reasons else None
    run.finish(status, exit_code=exit_code, error=error)


def _attempt(what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - recording never keeps the command from running
        say(f"{what} was NOT recorded: {error}")
