"""Functions whose arguments and outcome are logged by their types."""

from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import of_type, only

from cmf_agent.cmflib import Cmf
from cmf_agent.cmflib.auto_logging import (
    Artifact,
    Context,
    Dataset,
    ExecutionMetrics,
    MLModel,
    Parameters,
    cli_run,
    prepare_workspace,
    step,
)
from cmf_agent.home import Home
from cmf_protocol.errors import CallerError


@step(pipeline_name="iris", pipeline_stage="train")
def train(ctx: Context, params: Parameters, data: Dataset) -> dict[str, Artifact]:
    """Train on `data`."""
    assert isinstance(ctx["cmf"], Cmf)
    model = prepare_workspace(ctx) / "model.pkl"
    model.write_text(f"{params['lr']} of {data.uri}")
    described = {"model_framework": "own", "model_name": "best", "rows": 3}
    return {"model": MLModel(model, described), "metrics": ExecutionMetrics("unused", "train", {"auc": 0.9})}


@step(pipeline_name="iris")
def broken(data: Dataset) -> None:
    raise ValueError("no use")


@pytest.fixture(autouse=True)
def data(home: Home) -> None:
    (home.root / "data.csv").write_text("1\n")


def test_a_call_is_an_execution_with_inputs_and_outputs(home: Home) -> None:
    context = Context(workspace="out")
    returned = train(context, Parameters(lr=0.5), data=Dataset("data.csv", {"split": "all"}))
    assert set(returned) == {"model", "metrics"}
    assert context == {"workspace": "out"}
    header, start = only(home, "execution.started")
    assert ("stage", ("iris", "train")) in header.about
    assert start["params"] == {"lr": 0.5}
    assert only(home, "artifact.used")[1]["properties"] == {"split": "all"}
    made = {body["name"]: body["properties"] for _, body in of_type(home, "artifact.produced")}
    assert made["out/model.pkl"]["model_name"] == "best"
    assert made["out/model.pkl"]["rows"] == 3
    assert made["train"] == {"auc": 0.9, "metrics_name": "train"}
    assert only(home, "execution.finished")[1]["status"] == "finished"


def test_an_exception_is_recorded_and_goes_on(home: Home) -> None:
    with pytest.raises(ValueError, match="no use"):
        broken(Dataset("data.csv"))
    header, _ = only(home, "execution.started")
    assert ("stage", ("iris", "broken")) in header.about
    assert only(home, "execution.finished")[1]["error"] == {"type": "ValueError", "message": "no use"}


def test_the_command_line_names_parameters_context_and_inputs(home: Home) -> None:
    cli_run(train, ["--params", "lr=0.1,x=a=b", "data=data.csv", "--ctx", "workspace=w"])
    assert Path("w/model.pkl").read_text() == "0.1 of data.csv"
    assert only(home, "execution.started")[1]["params"] == {"lr": "0.1", "x": "a=b"}


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (train, ["--params", "lr=1"], "input 'data' is missing"),
        (train, ["data=data.csv", "more=x"], "takes no more"),
        (broken, ["data=data.csv", "--params", "lr=1"], "takes no --params"),
        (train, ["data"], "'data' is no NAME=VALUE"),
    ],
)
def test_a_command_line_that_does_not_fit_is_refused(
    home: Home, function: Any, arguments: list[str], said: str
) -> None:
    with pytest.raises(CallerError, match=said):
        cli_run(function, arguments)
    assert not of_type(home, "execution.started")


def test_the_environment_names_the_pipeline_or_somebody_must(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    @step()
    def plain(ctx: Context) -> None:
        """Do nothing."""

    with pytest.raises(CallerError, match="no name"):
        plain(Context())
    monkeypatch.setenv("CMF_PIPELINE", "named")
    plain(Context())
    with pytest.raises(CallerError, match="neither of them"):
        plain(3)  # type: ignore[arg-type]
    header, _ = only(home, "execution.started")
    assert ("stage", ("named", "plain")) in header.about
