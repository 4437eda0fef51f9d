"""One small protocol through which a training loop tells what it does, and the callback that records it in a run.

A library with callbacks of its own is adapted in a few lines, for example Keras:

    class Recorded(keras.callbacks.Callback):
        def on_train_begin(self, logs=None): callback.on_start(self.params)
        def on_epoch_end(self, epoch, logs=None): callback.on_result(epoch, logs)
        def on_train_end(self, logs=None): callback.on_end()

    with cmf.run("mnist", "train") as run:
        callback = cmf.RunCallback(run)
        model.fit(x, y, callbacks=[Recorded()])

Rules
- `on_start` begins the run if nobody has; `on_end` ends only a run that `on_start` began.
- Results may hold anything: numbers are recorded, in nested dictionaries too (`val/loss`), all else is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from cmf_agent.finding import PathLike
from cmf_agent.outcome import outcome_of
from cmf_agent.recorder import say
from cmf_agent.recording import Recording
from cmf_agent.runs import Run
from cmf_agent.steps import as_number
from cmf_protocol.errors import CallerError
from cmf_protocol.types import NAME_CHARS_MAX

_DEPTH_MAX = 8


class Callback(Protocol):
    """What a training loop calls."""

    def on_start(self, config: Mapping[str, object]) -> None:
        """Begin, with these parameters."""

    def on_result(self, step: int, metrics: Mapping[str, object]) -> None:
        """Tell the numbers of a step."""

    def on_artifact(self, path: PathLike, kind: str | None = None) -> None:
        """Tell of a file or folder that was written."""

    def on_end(self, error: BaseException | str | None = None) -> None:
        """End, well or with an error."""


class RunCallback:
    """Records in `run` what a training loop calls; it is a `Callback`."""

    def __init__(self, run: Recording) -> None:
        self.run = run
        self._began_here = False

    def on_start(self, config: Mapping[str, object] | None = None) -> None:
        """Begin the run unless it has begun, and record its parameters."""
        if isinstance(self.run, Run) and not self.run.is_open:
            self.run.start()
            self._began_here = True
        if config:
            self.run.params(config)

    def on_result(self, step: int, metrics: Mapping[str, object] | None = None) -> None:
        """Record the numbers of a step."""
        for name, value in numbers(metrics or {}):
            self.run.metric(name, value, step=step)

    def on_artifact(self, path: PathLike, kind: str | None = None) -> None:
        """Record a file or folder as produced; one that is not there is said, and the loop goes on."""
        try:
            self.run.output(path, kind=kind)
        except CallerError as error:
            if self.run.strict:
                raise
            say(f"not recorded: {error}")

    def on_end(self, error: BaseException | str | None = None) -> None:
        """End the run if `on_start` began it; an error that is told as text counts as a failure."""
        if not self._began_here or not isinstance(self.run, Run):
            return
        self._began_here = False
        if isinstance(error, str):
            self.run.finish("failed", error={"type": error_type(error), "message": error})
        else:
            status, exit_code, texts = outcome_of(error)
            self.run.finish(status, exit_code=exit_code, error=texts)


def error_type(text: str) -> str:
    """Return the type of an error that is told as text: what the last line of a traceback begins with."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    name = last.partition(":")[0].strip().rpartition(".")[2]
    return name if name.isidentifier() else "Error"


def numbers(values: Mapping[str, object], prefix: str = "", depth: int = _DEPTH_MAX) -> Iterator[tuple[str, float]]:
    """Yield name and value of every number in nested dictionaries, names joined by slashes; truth values are none."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if depth:
                yield from numbers(value, f"{name}/", depth - 1)
        elif not _is_truth(value) and not isinstance(value, str | bytes) and 1 <= len(name) <= NAME_CHARS_MAX:
            try:
                yield name, as_number(name, value)
            except CallerError:  # no number
                continue


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")  # numpy's and torch's
