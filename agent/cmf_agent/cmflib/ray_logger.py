"""Records Ray Tune with the signature of cmflib's `CmfRayLogger`, over our own callback.

    logger = CmfRayLogger("mnist", "mlmd", "tune", data_dir="data", metric="accuracy", order="max")
    tune.Tuner(train, run_config=tune.RunConfig(callbacks=[logger])).fit()

Rules
- A trial is an execution `Trial_<id>`. Its results are step metrics, and at its end a table of them. The `top_n` best trials
  get the property `in_top_n`, the best one the tag `best`.
- A result may name a file as `model_path`: it is recorded as a model that the trial produced (the peer has it as an input).
"""

from functools import partial
from operator import itemgetter
from typing import Any

from cmf_agent.callbacks import numbers
from cmf_agent.cmflib.homes import home_for
from cmf_agent.finding import PathLike
from cmf_agent.integrations.ray_tune import CmfCallback
from cmf_agent.recording import Recording

_MODEL_KEY = "model_path"


class CmfRayLogger(CmfCallback):
    """Records the trials of a tuning as executions of `pipeline_stage`; `order` (`min` or `max`) says which `metric` is best."""

    def __init__(
        self,
        pipeline_name: str,
        file_path: PathLike,
        pipeline_stage: str,
        data_dir: PathLike | None = None,
        metric: str = "accuracy",
        order: str = "max",
        top_n: int = 5,
    ) -> None:
        home = home_for(file_path)
        super().__init__(
            pipeline_name, pipeline_stage, metric=metric, mode=order, home=home.path if home is not None else None
        )
        self._data_dir, self._top_n = data_dir, top_n

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Begin a trial's execution, with its dataset, unless it only goes on."""
        is_new = trial.trial_id not in self._trials
        super().on_trial_start(iteration, trials, trial, **info)
        if is_new and self._data_dir is not None:
            data = self._data_dir
            self._attempt("dataset", trial, lambda: self._callback(trial).run.input(data, "dataset"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the results as a table, and the model; end the trial's execution."""
        self._attempt("outcome", trial, lambda: self._record_outcome(self._callback(trial).run, trial))
        super().on_trial_complete(iteration, trials, trial, **info)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Mark the best trials."""
        super().on_experiment_end(trials, **info)
        for trial in self._top(trials):
            self._attempt("rank", trial, partial(self._callback(trial).run.property, "in_top_n", True))

    def _name(self, trial: Any) -> str:
        return f"Trial_{trial.trial_id}"

    def _record_outcome(self, run: Recording, trial: Any) -> None:
        run.metrics_table(f"{self._name(trial)}_metrics")
        model = (trial.last_result or {}).get(_MODEL_KEY)
        if model:
            run.log_model(model, properties={"model_name": f"{trial.trial_id}_model"})

    def _top(self, trials: list[Any]) -> list[Any]:
        scored = [(number, trial) for trial in trials for _, number in numbers({"score": self._value(trial)})]
        ranked = sorted((score for score in scored if score[0] == score[0]), key=itemgetter(0))  # NaN is never the best
        best_first = ranked if self._mode == "min" else ranked[::-1]
        return [trial for _, trial in best_first[: self._top_n]]
