"""Has scikit-learn's estimators record themselves in the run they are fitted in.

    cmf.autolog()                                   # on from here; `with cmf.autolog():` for a part
    with cmf.run("iris", "train"):
        model = GridSearchCV(SVC(), {"C": [1, 10]}).fit(x, y)
        model.score(x_test, y_test)

Recorded, under a name for each estimator of the run (its class, `SVC`, then `SVC_2`):
- of `fit` (`fit_transform`, `fit_predict`): parameters `SVC.C` (nested estimators by their names), properties `SVC.class`,
  `SVC.n_features_in`, `SVC.n_classes`, the metric `SVC.fit_seconds`;
- of a search: metric `GridSearchCV.best_score`, property `GridSearchCV.best_params`, and all results as a metrics table;
- of `score`: the metric `SVC.score`, whose step counts the calls.

Rules
- Only the outermost call: a pipeline's steps and a search's candidates record nothing of their own. Only inside of a run's body, in the
  thread or task of that body (`current.py` says how another thread gets into it).
- Results, exceptions and estimators are what they are without it; what can't be recorded is said. Switched off, every class is as before.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, ref

from cmf_agent.current import current_run
from cmf_agent.integrations.patching import Patches
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_protocol.errors import CallerError, CmfError

_METHODS = ("fit", "fit_transform", "fit_predict", "score")
#: How deep lists in parameters are looked into for estimators.
_DEPTH_MAX = 4

_inside: ContextVar[bool] = ContextVar("cmf_inside_estimator", default=False)


def autolog(enabled: bool = True) -> "Autolog":
    """Switch recording by estimators on (or off), and return what a `with` switches back at its end.

    Raises `CallerError` if scikit-learn is not installed.
    """
    try:
        import sklearn.base
    except ImportError as error:
        raise CallerError("scikit-learn is not installed", "pip install scikit-learn") from error
    return Autolog(_patches.switch(sklearn.base.BaseEstimator, enabled))


class Autolog:
    """Recording by estimators, as `autolog` has just switched it."""

    def __init__(self, was_on: bool) -> None:
        self._was_on = was_on

    def off(self) -> None:
        """Switch it off."""
        autolog(False)

    def __enter__(self) -> "Autolog":
        return self

    def __exit__(self, *_: object) -> None:
        autolog(self._was_on)


# -- calls -------------------------------------------------------------------------------------------------------------


def _recording(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(function)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = None if _inside.get() or not _patches.is_on else current_run()
        if run is None:
            return function(self, *args, **kwargs)
        token = _inside.set(True)
        began_s = time.perf_counter()
        try:
            result = function(self, *args, **kwargs)
        finally:
            _inside.reset(token)
        _record(run, self, name, result, time.perf_counter() - began_s)
        return result

    return recorded


_patches = Patches(_METHODS, _recording)


# -- what is recorded --------------------------------------------------------------------------------------------------


class _Names:
    """The names of a run's estimators, and how often each was scored."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, ref[Any]] = {}
        self._scored: dict[str, int] = {}

    def name(self, estimator: Any) -> str:
        """Return the name of an estimator: its class, with a number from the second one on."""
        kind = type(estimator).__name__
        with self._lock:
            number = 1
            while True:
                name = kind if number == 1 else f"{kind}_{number}"
                owner = self._owners.get(name)
                if owner is None:
                    self._owners[name] = ref(estimator)
                    return name
                if owner() is estimator:
                    return name
                number += 1

    def next_score(self, name: str) -> int:
        """Return how often the estimator of that name was scored before."""
        with self._lock:
            count = self._scored.get(name, 0)
            self._scored[name] = count + 1
            return count


_names: "WeakKeyDictionary[Run, _Names]" = WeakKeyDictionary()


def _record(run: Run, estimator: Any, method: str, result: Any, seconds: float) -> None:
    """Record a call; what goes wrong is said, unless the run is strict."""
    try:
        names = _names.setdefault(run, _Names())
        name = names.name(estimator)
        if method == "score":
            run.metric(f"{name}.score", result, step=names.next_score(name))
            return
        _record_fit(run, estimator, name, seconds)
        if hasattr(estimator, "cv_results_"):
            _record_search(run, estimator, name)
    except Exception as error:
        if run.strict and isinstance(error, CmfError):
            raise
        say(f"{type(estimator).__name__}.{method} was not recorded: {error}")


def _record_fit(run: Run, estimator: Any, name: str, seconds: float) -> None:
    params = estimator.get_params() if hasattr(estimator, "get_params") else {}
    run.params({f"{name}.{key}": _plain(value) for key, value in params.items()})
    facts = {"class": f"{type(estimator).__module__}.{type(estimator).__qualname__}"}
    facts |= _fitted(estimator)
    run.properties({f"{name}.{key}": value for key, value in facts.items()})
    run.metric(f"{name}.fit_seconds", round(seconds, 6))


def _fitted(estimator: Any) -> dict[str, Any]:
    """Return what fitting has shown of the data; some estimators have properties that only pass on a part's."""
    found: dict[str, Any] = {}
    with suppress(AttributeError):
        found["n_features_in"] = int(estimator.n_features_in_)
    with suppress(AttributeError, TypeError):
        found["n_classes"] = len(estimator.classes_)
    return found


def _record_search(run: Run, search: Any, name: str) -> None:
    if hasattr(search, "best_score_"):
        run.metric(f"{name}.best_score", search.best_score_)
    if hasattr(search, "best_params_"):
        run.property(f"{name}.best_params", _plain(search.best_params_))
    results = {key: _cells(values) for key, values in search.cv_results_.items()}
    run.metrics_table(f"{name}.cv_results", results)


def _cells(values: Any) -> list[Any]:
    """Return a column of a search's results; in its masked arrays, what is masked is None."""
    cells = values.tolist() if hasattr(values, "tolist") else list(values)
    return [_plain(cell) for cell in cells]


def _plain(value: Any, depth: int = _DEPTH_MAX) -> Any:
    """Return a value with the name of its class in place of each estimator."""
    if hasattr(value, "get_params"):
        return value.__name__ if isinstance(value, type) else type(value).__name__
    if depth and isinstance(value, Mapping):
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    return value
