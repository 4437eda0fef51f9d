"""The callback protocol that training loops of any library are adapted to."""

from pathlib import Path

import pytest
from tests.agent.helpers import of_type, only

import cmf_agent as cmf
from cmf_agent.callbacks import Callback, numbers
from cmf_agent.home import Home


def loop(callback: Callback, error: BaseException | str | None = None) -> None:
    callback.on_start({"lr": 0.1, "batch": 8})
    for step in range(3):
        callback.on_result(
            step, {"loss": 1 / (step + 1), "val": {"acc": step}, "text": "x", "done": True, "odd": [1], "": 1}
        )
    Path("model").write_text("m")
    callback.on_artifact("model", "model")
    callback.on_end(error)


def test_a_loop_is_recorded_in_a_run_of_its_own(home: Home) -> None:
    loop(cmf.RunCallback(cmf.run("p", "s")))
    assert only(home, "execution.updated")[1]["params"] == {"lr": 0.1, "batch": 8}
    steps = [block for _, body in of_type(home, "metrics.recorded") for block in body["steps"]]
    assert sorted((block[0], block[2]) for block in steps) == [("loss", (0, 1, 2)), ("val/acc", (0, 1, 2))]
    assert only(home, "artifact.produced")[1]["facts"]["kind"] == "model"
    assert only(home, "execution.finished")[1]["status"] == "finished"


class Scalar:
    """What numpy's and torch's scalars have."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __float__(self) -> float:
        return 1.0


def test_numbers_are_what_libraries_call_numbers_and_truth_values_are_none() -> None:
    given: dict[str, object] = {
        "a": Scalar("float32"),
        "b": Scalar("bool"),
        "c": Scalar("torch.bool"),
        "d": True,
        "e": 2,
    }
    assert dict(numbers(given)) == {"a": 1.0, "e": 2}


def test_a_run_that_has_begun_is_not_ended_by_the_loop(home: Home) -> None:
    with cmf.run("p", "s") as run:
        loop(cmf.RunCallback(run))
        assert run.is_open
    with cmf.join(run.id) as joined:
        loop(cmf.RunCallback(joined))
    assert only(home, "execution.finished")


@pytest.mark.parametrize(
    ("error", "status", "type_"),
    [
        (ValueError("bad"), "failed", "ValueError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        ("Traceback (most recent call last):\n  File …\nsome.library.OddError: it broke\n", "failed", "OddError"),
        ("it broke", "failed", "Error"),
    ],
)
def test_an_error_ends_the_run_with_its_type(home: Home, error: BaseException | str, status: str, type_: str) -> None:
    loop(cmf.RunCallback(cmf.run("p", "s")), error)
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["error"]["type"]) == (status, type_)


def test_a_file_that_is_missing_does_not_break_the_loop(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with cmf.run("p", "s") as run:
        cmf.RunCallback(run).on_artifact("nowhere")
    assert "not recorded: " in capsys.readouterr().err
