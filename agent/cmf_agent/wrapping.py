"""Records a command that runs as a child process: `cmf-agent run`.

Rules
- The exit code is the child's, whatever happens to the record of it. What can't be recorded is said on standard error.
- Inputs are hashed before it starts, outputs after it has ended; patterns of outputs are looked up then too. What is
  missing is recorded as the property `missing_inputs` or `missing_outputs`, a file of metrics that gives none as
  `metrics_errors`.
- An output that the command did not write is recorded all the same, and as `unchanged_outputs`; metrics in such a file are
  those of an earlier run, and not read.
- Nothing is written to standard output: it is the child's.
"""

import os
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cmf_agent.child import NOT_EXECUTABLE_CODE, NOT_FOUND_CODE, SignalsToChild
from cmf_agent.globs import is_pattern, matches
from cmf_agent.outcome import outcome_of_code
from cmf_agent.progress import hashing_progress
from cmf_agent.reading import LogReader
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_agent.written import Marks, marks, unchanged
from cmf_graph.content.files import Content
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.types import EXECUTION_FINISHED

Recording = Callable[..., Content]

_NOT_STARTED = "the command was not started"
#: As many digits of an id serve as a REF: those of its millisecond.
_ID_CHARS = 13
#: How far back the end of a run is looked for, which has been recorded just now.
_NEWEST_MAX = 1_000
#: How many unchanged outputs are named on standard error.
_SHOWN = 3


class Wanted(NamedTuple):
    """A command and what is known of it beforehand; `outputs` and `models` are paths or patterns, `metrics` files to read."""

    pipeline: str
    stage: str
    command: Sequence[str]
    inputs: Sequence[Path]
    outputs: Sequence[str]
    models: Sequence[str]
    params: dict[str, object]
    kind: str
    name: str | None
    metrics: Sequence[Path] = ()
    commit: bool = False
    machine_metrics: bool = False


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
            inputs = [(path, Run.input) for path in wanted.inputs]
            counts["in"] = _record_files(run, "missing_inputs", inputs, [], wanted.commit)
            before = _marks(wanted)
            signals.run(command, _environment(run))
            if run is not None:
                counts["out"] = _record_results(run, wanted, before, has_failed=signals.code != 0)
        except KeyboardInterrupt:
            say("interrupted: " + (_NOT_STARTED if signals.code is None else "the outputs were not all recorded"))
        code = 128 + signals.stopped_by if signals.code is None else signals.code
        if run is not None and (is_started or signals.code is not None):
            _end(run, code, command[0], counts)
    return code


def _new_run(wanted: Wanted, command: list[str]) -> Run | None:
    """Return the run that records the command; None, having said so, if it can't even be made."""
    try:
        return Run(
            wanted.pipeline,
            wanted.stage,
            wanted.params,
            name=wanted.name,
            kind=wanted.kind,
            command=command,
            machine_metrics=wanted.machine_metrics,
        )
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


def _marks(wanted: Wanted) -> Marks:
    before: Marks = {}
    names = [*wanted.outputs, *wanted.models, *map(str, wanted.metrics)]
    _attempt("what was there before", lambda: before.update(marks(names)))
    return before


def _record_results(run: Run, wanted: Wanted, before: Marks, *, has_failed: bool) -> int:
    """Record what the command has left, and return how many files and folders that was.

    What it left as it was is an output all the same, unless the command failed: then it is what an earlier one made.
    """
    files: list[tuple[Path, Recording]] = []
    missing: list[str] = []
    for texts, record in ((wanted.outputs, Run.output), (wanted.models, Run.log_model)):
        for text in texts:
            found = _found(text)
            files += [(path, record) for path in found if path not in wanted.metrics]
            missing += [] if found else [text]
    stale: list[Path] = []
    paths = dict.fromkeys([*(path for path, _ in files), *wanted.metrics])
    if _attempt("unchanged_outputs", lambda: stale.extend(unchanged(paths, before))) and stale:
        how = "not recorded as an output" if has_failed else "recorded as an output all the same"
        say(f"not written by the command, and {how}: {_listed(stale)}")
        _attempt("unchanged_outputs", lambda: run.property("unchanged_outputs", [str(path) for path in stale]))
    left_out = set(stale) if has_failed else set()
    written = [(path, record) for path, record in files if path not in left_out]
    counted = _record_files(run, "missing_outputs", written, missing, wanted.commit)
    return counted + _record_metrics(run, wanted, stale, left_out)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more


def _found(text: str) -> list[Path]:
    """Return the paths that an output names; none, having said so, if it is a pattern that nothing matches."""
    if not is_pattern(text):
        return [Path(text)]
    found: list[Path] = []
    if not _attempt(text, lambda: found.extend(matches(text))) or found:
        return found
    say(f"not recorded: nothing matches {text!r}")
    return []


def _record_metrics(run: Run, wanted: Wanted, stale: Sequence[Path], left_out: Container[Path]) -> int:
    """Record what files of metrics say, and the files that are not left out; what gives none becomes a property. Return how many."""
    errors: dict[str, str] = {}
    count = 0
    for path in wanted.metrics:
        try:
            if path.exists() and path not in left_out:
                _record_one(run, path, Run.output, wanted.commit, kind="metrics")
                count += 1
            if path in stale:
                raise CallerError(f"{path} was not written by the command: what it holds is of an earlier run", "")
            _record_numbers(run, path)
        except CallerError as error:
            say(f"no metrics recorded: {_told(error)}")
            errors[str(path)] = str(error)
        except Exception as error:  # noqa: BLE001 - recording never hurts the command
            say(f"no metrics recorded: {path}: {_told(error)}")
            errors[str(path)] = _told(error)
    if errors:
        _attempt("metrics_errors", lambda: run.property("metrics_errors", errors))
    return count


def _record_numbers(run: Run, path: Path) -> None:
    from cmf_agent.metric_files import read_metrics  # here: most runs name none

    found = read_metrics(path)
    if found.values:
        run.metrics(found.values)
    for name, value, step in found.points:
        run.metric(name, value, step)


def _record_files(
    run: Run | None, property_: str, files: Iterable[tuple[Path, Recording]], missing: list[str], commit: bool
) -> int:
    """Record files and return how many were; those that are missing become a property."""
    if run is None:
        return 0
    count = 0
    for path, record in dict.fromkeys(files):
        try:
            _record_one(run, path, record, commit)
            count += 1
        except CallerError as error:
            say(f"not recorded: {error}")
            missing.append(str(path))
        except Exception as error:  # noqa: BLE001 - recording never hurts the command
            say(f"not recorded: {path}: {_told(error)}")
    if missing:
        _attempt(property_, lambda: run.property(property_, missing))
    return count


def _record_one(run: Run, path: Path, record: Recording, commit: bool, **described: str) -> None:
    with hashing_progress(path) as progress:
        record(run, path, progress=progress, commit=commit, **described)


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
