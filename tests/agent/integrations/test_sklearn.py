"""scikit-learn's estimators record themselves, the outermost ones only, and are otherwise what they were."""

# ruff: noqa: ARG002 - the methods are there to be called

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.agent.helpers import of_type, only

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.tables import read_table

X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20.0)
NAMES = ("fit", "fit_transform", "fit_predict", "score", "__init_subclass__")


def attributes() -> dict[tuple[type, str], Any]:
    """Return what every class of every estimator defines itself under the names that are replaced."""
    classes, left = set(), [BaseEstimator]
    while left:
        cls = left.pop()
        classes |= set(cls.__mro__[:-1])
        left += cls.__subclasses__()
    return {(cls, name): cls.__dict__[name] for cls in classes for name in NAMES if name in cls.__dict__}


@pytest.fixture
def on(home: Home) -> Iterator[None]:
    before = attributes()
    with cmf.autolog():
        yield
    after = attributes()
    assert all(after[key] is value for key, value in before.items())


def said(home: Home, space: str) -> dict[str, Any]:
    """Return all that was said of executions in a space."""
    bodies = [*of_type(home, "execution.updated"), *of_type(home, "metrics.recorded")]
    return {key: value for _, body in bodies for key, value in body.get(space, {}).items()}


def test_a_fit_records_class_parameters_and_what_it_was_fitted_on(home: Home, on: None) -> None:
    with cmf.run("p", "s"):
        model = Ridge(alpha=0.5).fit(X, Y)
        scores = [model.score(X, Y), model.score(X[:5], Y[:5])]
        Ridge().fit(X[:, :1], Y)
    params, properties, metrics = said(home, "params"), said(home, "properties"), said(home, "metrics")
    assert (params["Ridge.alpha"], params["Ridge_2.alpha"]) == (0.5, 1.0)
    assert properties["Ridge.class"] == "sklearn.linear_model._ridge.Ridge"
    assert (properties["Ridge.n_features_in"], properties["Ridge_2.n_features_in"]) == (2, 1)
    assert metrics["Ridge.fit_seconds"] > 0
    blocks = [block for _, body in of_type(home, "metrics.recorded") for block in body.get("steps", ())]
    assert [(block[0], block[2], block[3]) for block in blocks] == [("Ridge.score", (0, 1), tuple(scores))]


def test_a_search_over_a_pipeline_is_one_record(home: Home, on: None) -> None:
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 100.0]}, cv=2, scoring="r2")
    with cmf.run("p", "s"):
        search.fit(X, Y)
    params = said(home, "params")
    assert {key.partition(".")[0] for key in params} == {"GridSearchCV"}
    assert params["GridSearchCV.estimator__ridge"] == "Ridge"
    assert params["GridSearchCV.estimator__ridge__alpha"] == 1.0
    assert said(home, "properties")["GridSearchCV.best_params"] == search.best_params_
    assert said(home, "metrics")["GridSearchCV.best_score"] == search.best_score_
    header, body = only(home, "artifact.produced")
    table = read_table(home, str(header.about[0][1]))
    assert (body["name"], table.rows) == ("GridSearchCV.cv_results", 2)
    assert table.columns["param_ridge__alpha"] == [0.1, 100.0]
    assert table.columns["mean_test_score"] == search.cv_results_["mean_test_score"].tolist()


def test_classes_made_later_and_methods_under_a_condition_are_recorded(home: Home, on: None) -> None:
    class Majority(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, x: Any, y: Any) -> "Majority":
            self.classes_, counts = np.unique(y, return_counts=True)
            self.top_ = self.classes_[counts.argmax()]
            return self

        def predict(self, x: Any) -> Any:
            return np.full(len(x), self.top_)

    pipeline = make_pipeline(StandardScaler(), Majority())
    with cmf.run("p", "s"):
        pipeline.fit(X, [0] * 15 + [1] * 5)
        assert pipeline.score(X, [0] * 20) == 1.0
        Majority().fit(X, [1] * 20)
        make_pipeline(StandardScaler()).fit_transform(X)
    assert not hasattr(make_pipeline(StandardScaler()), "score")
    properties = said(home, "properties")
    assert {key.partition(".")[0] for key in properties} == {"Pipeline", "Majority", "Pipeline_2"}
    assert (properties["Pipeline.n_classes"], properties["Majority.n_classes"]) == (2, 1)
    assert "n_classes" not in str([key for key in properties if key.startswith("Pipeline_2")])


def test_estimators_are_what_they_are_without_it(home: Home) -> None:
    plain = Ridge().fit(X, Y).coef_
    signature = inspect.signature(Ridge.fit), inspect.signature(Ridge().fit)
    with cmf.autolog(), cmf.run("p", "s"):
        model = Ridge().fit(X, Y)
        assert (model.coef_ == plain).all()
        assert (inspect.signature(Ridge.fit), inspect.signature(Ridge().fit)) == signature
        pickled = pickle.dumps([model, model.fit, make_pipeline(model).score, clone(model)])
        assert vars(model).keys() == vars(pickle.loads(pickled)[0]).keys()
        with pytest.raises(ValueError, match="inconsistent"):
            Ridge().fit(X, Y[:3])
    with cmf.run("p", "after"):
        pickle.loads(pickled)[1](X, Y)
    assert {key.partition(".")[0] for key in said(home, "params")} == {"Ridge"}
    assert len(of_type(home, "execution.updated")) == 2


def test_nothing_is_recorded_outside_of_a_run_or_when_switched_off(home: Home) -> None:
    logging = cmf.autolog()
    with cmf.autolog():
        Ridge().fit(X, Y)
    assert hasattr(Ridge.fit, "__wrapped__") and "autolog" not in str(of_type(home, "execution.updated"))
    logging.off()
    with cmf.run("p", "s"):
        Ridge().fit(X, Y)
    assert not of_type(home, "execution.updated")


def test_what_cannot_be_recorded_is_said_and_changes_nothing(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(BaseEstimator):  # type: ignore[misc]
        def fit(self, x: Any) -> str:
            return "fitted"

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            raise RuntimeError("no parameters")

        def score(self, x: Any) -> str:
            return "good"

    with cmf.autolog(), cmf.run("p", "s"):
        assert Odd().fit(X) == "fitted"
        assert Odd().score(X) == "good"
    told = capsys.readouterr().err
    assert "Odd.fit was not recorded: no parameters" in told
    assert "Odd.score was not recorded" in told
