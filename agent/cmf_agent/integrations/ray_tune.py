"""Records Ray Tune: each trial is an execution, nested in the run that the tuning is part of.

    with cmf.run("mnist", "tune"):
        recorded = CmfCallback("mnist", "trial", metric="loss", mode="min")
        tune.Tuner(train, run_config=tune.RunConfig(callbacks=[recorded])).fit()

Rules
- It runs in the process that tunes, not in the workers: a trial's execution says nothing of the worker's environment but its host.
- A trial's configuration is its parameters, each result a step of its metrics (`training_iteration`), a failure its error. A trial that
  goes on after a failure goes on in its execution. At the end, the best of those that completed gets the tag `best`.
- What can't be recorded is said; tuning goes on.
"""

# ruff: noqa: ARG002 - the methods are called with what Ray has to say

from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

from cmf_agent.callbacks import RunCallback
from cmf_agent.finding import PathLike
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_agent.steps import as_number
from cmf_protocol.errors import CallerError
from cmf_protocol.types import stage_node

try:
    from ray import cloudpickle, tune
    from ray.tune.experiment import Trial
except ImportError as missing:
    raise CallerError("Ray Tune is not installed", "pip install 'ray[tune]'") from missing

MODES = ("min", "max")
#: The step of a result.
_STEP = "training_iteration"
#: Numbers in a result that say nothing of the model.
_BOOKKEEPING = ("timestamp", "pid", "iterations_since_restore", "time_since_restore", "time_this_iter_s")


class CmfCallback(tune.Callback):  # type: ignore[misc] # untyped
    """Records the trials of a tuning as executions of `stage` in `pipeline`.

    `metric` and `mode` (`min` or `max`) say which of the trials that completed is the best one, by its last result.
    """

    def __init__(
        self,
        pipeline: str,
        stage: str = "trial",
        *,
        metric: str | None = None,
        mode: str = "max",
        strict: bool = False,
        home: PathLike | None = None,
    ) -> None:
        if mode not in MODES:
            raise CallerError(f"{mode!r} is no mode", f"it is one of {', '.join(MODES)}")
        stage_node(pipeline, stage)  # names that can't be are refused at once
        self._pipeline, self._stage, self._metric, self._mode = pipeline, stage, metric, mode
        self._strict, self._home = strict, home
        self._trials: dict[str, RunCallback] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what Ray may keep of it on disk: not the runs, which belong to this process."""
        return {**self.__dict__, "_trials": {}}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Begin a trial's execution, unless it only goes on."""
        self._attempt("start", trial, lambda: self._callback(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a result as a step."""
        self._attempt("result", trial, lambda: self._callback(trial).on_result(result.get(_STEP, 0), _told(result)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial's execution."""
        self._attempt("end", trial, lambda: self._callback(trial).on_end())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End a trial's execution with its error."""
        self._attempt("error", trial, lambda: self._callback(trial).on_end(_error_of(trial)))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Tag the best trial; what has neither completed nor failed was interrupted."""
        for trial in trials:
            callback = self._trials.get(trial.trial_id)
            if callback is not None and isinstance(callback.run, Run) and callback.run.is_open:
                self._attempt("end", trial, partial(callback.on_end, KeyboardInterrupt()))
        best = self._best(trials)
        if best is not None:
            self._attempt("best", best, lambda: self._callback(best).run.tag("best"))

    def _callback(self, trial: Any) -> RunCallback:
        """Return what records a trial; the first time, its execution begins, in the run in whose body the tuning is."""
        callback = self._trials.get(trial.trial_id)
        if callback is None:
            run = Run(self._pipeline, self._stage, name=self._name(trial), strict=self._strict, home=self._home)
            callback = self._trials[trial.trial_id] = RunCallback(run)
            copy_context().run(callback.on_start, trial.config)  # trials overlap: none is the current run of the others
        return callback

    def _name(self, trial: Any) -> str:
        return str(trial.trial_id)

    def _best(self, trials: list[Any]) -> Any:
        if self._metric is None:
            return None
        found = [
            (as_number(self._metric, value), trial) for trial in trials if (value := self._value(trial)) is not None
        ]
        scores = [(number, trial) for number, trial in found if number == number]  # NaN is never the best
        if not scores:
            return None
        return (min if self._mode == "min" else max)(scores, key=lambda score: score[0])[1]

    def _value(self, trial: Any) -> Any:
        if trial.status != Trial.TERMINATED or trial.trial_id not in self._trials:
            return None
        return (trial.last_result or {}).get(self._metric)

    def _attempt(self, what: str, trial: Any, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            if self._strict:
                raise
            say(f"the {what} of trial {trial.trial_id} was not recorded: {error}")


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in _BOOKKEEPING and key != "config"}


def _error_of(trial: Any) -> BaseException | str:
    """Return the error that ended a trial: the worker's own, as far as Ray has written it down beside the trial."""
    pickled, text = trial.pickled_error_file, trial.error_file
    if pickled and Path(pickled).exists():
        with suppress(Exception):  # its class may be the worker's own
            error = cloudpickle.loads(Path(pickled).read_bytes())
            found = getattr(error, "cause", None) or error
            if isinstance(found, BaseException):
                return found
    return Path(text).read_text(errors="replace") if text and Path(text).exists() else "the trial failed"
