"""Functions as stages: what a call was given, used, produced and returned is recorded, and nothing else changes."""

# ruff: noqa: ARG002, ARG003 - the methods are there to be called

import asyncio
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest
from tests.agent.helpers import of_type, only, python

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_protocol.errors import CallerError

Data = Annotated[str, cmf.Input("dataset")]


@cmf.stage("p", "train", metrics=True)
def train(
    data: Data, model: Annotated[Path, cmf.Output("model", "the model")], lr: float = 0.1, *, odd: Any = None
) -> Any:
    """Trains."""
    model.write_text(Path(data).read_text())
    return {"accuracy": 0.5, "rows": 2}


def test_a_call_is_recorded_as_a_run(home: Home) -> None:
    Path("d.csv").write_text("x")
    assert train("d.csv", Path("m"), odd=object()) == {"accuracy": 0.5, "rows": 2}
    header, body = only(home, "execution.started")
    assert ("stage", ("p", "train")) in header.about
    assert body["params"] == {"lr": 0.1}
    used, made = only(home, "artifact.used")[1], only(home, "artifact.produced")[1]
    assert (used["name"], used["facts"]["kind"]) == ("d.csv", "dataset")
    assert (made["name"], made["facts"]["kind"]) == ("the model", "model")
    assert only(home, "metrics.recorded")[1]["metrics"] == {"accuracy": 0.5, "rows": 2}
    assert only(home, "execution.finished")[1]["status"] == "finished"


def test_the_function_stays_what_it_was(home: Home) -> None:
    assert (train.__name__, train.__doc__) == ("train", "Trains.")
    assert train.__wrapped__.__name__ == "train"  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(train)) is train
    with pytest.raises(TypeError, match="missing 2 required"):
        train()
    assert not of_type(home, "execution.started")


def test_inputs_are_recorded_before_the_call_and_outputs_after(home: Home) -> None:
    @cmf.stage(pipeline="p")
    def rewrite(old: cmf.Input, new: cmf.Output) -> None:
        Path(old).write_text("changed")  # type: ignore[arg-type]

    Path("f").write_text("before")
    rewrite("f", "f")  # type: ignore[arg-type]
    assert only(home, "artifact.used")[0].about[0] != only(home, "artifact.produced")[0].about[0]
    assert ("stage", ("p", "rewrite")) in only(home, "execution.started")[0].about


def test_arguments_of_every_form_are_recorded(home: Home) -> None:
    @cmf.stage("p")
    def many(
        files: Annotated[list[str], cmf.Input()],
        maybe: Optional[Data] = None,  # noqa: UP045 - as people write it
        either: "cmf.Input | None" = None,
        config: Annotated[dict[str, int], cmf.Param("settings")] = {"a": 1},  # noqa: B006
        *rest: Data,
        flag: bool = True,
        text: str | None = None,
        **more: Any,
    ) -> None:
        """Do nothing."""

    for name in "abcde":
        Path(name).write_text(name)
    with cmf.run("p", "other") as run:
        table = run.metrics_table("t", [{"a": 1}])
    many(["a", "b"], "c", table, {"b": 2}, "d", "e", extra=3, secret_key="x", thing=object())  # type: ignore[arg-type]
    many(["a", None])  # type: ignore[list-item]
    _, (_, first), (_, second) = of_type(home, "execution.started")
    plain = {"flag": True, "text": None}
    assert first["params"] == plain | {"settings": {"b": 2}, "extra": 3, "secret_key": "***"}
    assert second["params"] == plain | {"settings": {"a": 1}}
    assert [body["name"] for _, body in of_type(home, "artifact.used")] == ["a", "b", "c", "t", "d", "e", "a"]


def test_methods_and_async_functions_are_stages_too(home: Home) -> None:
    class Trainer:
        @cmf.stage("p")
        def fit(self, epochs: int) -> "Trainer":
            return self

        @classmethod
        @cmf.stage("p")
        def make(cls, name: str) -> "Trainer":
            return cls()

        @cmf.stage("p")
        async def wait(self, seconds: float) -> float:
            await asyncio.sleep(seconds)
            Trainer.make("inner").fit(2)
            return seconds

    async def both() -> list[float]:
        return list(await asyncio.gather(Trainer().wait(0), Trainer().wait(0.0)))

    assert asyncio.run(both()) == [0, 0.0]
    trainer = Trainer()
    assert trainer.fit(1) is trainer
    started = of_type(home, "execution.started")
    stages = [next(id_[1] for kind, id_ in header.about if kind == "stage") for header, _ in started]
    assert sorted(stages) == ["fit", "fit", "fit", "make", "make", "wait", "wait"]
    waiting = {
        next(id_ for kind, id_ in h.about if kind == "execution")
        for (h, _), s in zip(started, stages, strict=True)
        if s == "wait"
    }
    nested = {
        body["facts"]["parent"]
        for (_, body), s in zip(started, stages, strict=True)
        if s in ("make", "fit") and "parent" in body["facts"]
    }
    assert nested == waiting


def test_what_has_no_name_of_its_own_is_a_stage_by_that_of_what_it_calls(home: Home) -> None:
    class Waiter:
        async def __call__(self, seconds: float) -> float:
            await asyncio.sleep(seconds)
            assert cmf.current_run() is not None
            return seconds

    def scale(by: int, value: int) -> int:
        return by * value

    assert cmf.stage("p")(partial(scale, 2))(3) == 6
    assert asyncio.run(cmf.stage("p")(Waiter())(0.0)) == 0
    started = of_type(home, "execution.started")
    assert [dict(header.about)["stage"] for header, _ in started] == [("p", "scale"), ("p", "Waiter")]
    assert [body["params"] for _, body in started] == [{"value": 3}, {"seconds": 0}]


def test_an_exception_goes_on_and_is_recorded(home: Home) -> None:
    @cmf.stage("p")
    def fail(out: cmf.Output) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail("never")  # type: ignore[arg-type]
    assert only(home, "execution.finished")[1]["error"]["type"] == "KeyError"
    assert not of_type(home, "execution.updated")


def test_files_that_are_missing_do_not_keep_the_function_from_running(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    def copy(old: cmf.Input, new: cmf.Output) -> int:
        return 7

    assert cmf.stage("p")(copy)("old", "new") == 7  # type: ignore[arg-type]
    properties = [body["properties"] for _, body in of_type(home, "execution.updated")]
    assert properties == [{"missing_inputs": ("old",)}, {"missing_outputs": ("new",)}]
    assert "not recorded" in capsys.readouterr().err
    with pytest.raises(CallerError, match="old"):
        cmf.stage("p", strict=True)(copy)("old", "new")  # type: ignore[arg-type]


@pytest.mark.parametrize("result", [None, [1], {"a": "text"}])
def test_a_result_that_is_no_metrics_is_returned_all_the_same(
    home: Home, capsys: pytest.CaptureFixture[str], result: object
) -> None:
    assert cmf.stage("p", "s", metrics=True)(lambda: result)() is result
    assert "recorded" in capsys.readouterr().err
    assert not of_type(home, "metrics.recorded")


def test_without_a_home_stages_run_and_it_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("d.csv").write_text("x")
    with cmf.run("p", "s") as run:
        assert train("d.csv", Path("m")) == {"accuracy": 0.5, "rows": 2}
        with cmf.join(run.id) as joined:
            joined.metric("m", 1, step=1)
    assert capsys.readouterr().err.count("NOTHING of this run is recorded") == 3


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


WRONG: list[Callable[[], object]] = [
    lambda: cmf.stage(_generator),  # type: ignore[arg-type]
    lambda: cmf.stage("p")(_generator),
    lambda: cmf.stage("p")(_async_generator),
    lambda: cmf.stage("p")(Home),
    lambda: cmf.stage("p")(staticmethod),
    lambda: cmf.stage("p")(3),  # type: ignore[arg-type]
    lambda: cmf.stage("p")(max),
    lambda: cmf.stage("p")(partial(_generator)),
    lambda: cmf.stage(" ")(train),
    lambda: cmf.stage("p", "")(train),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_a_stage_is_refused_when_it_is_decorated(wrong: Callable[[], object]) -> None:
    with pytest.raises(CallerError) as refused:
        wrong()
    assert refused.value.hint


def test_annotations_may_be_text(home: Home) -> None:
    script = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated
import cmf_agent as cmf
if TYPE_CHECKING:
    from nowhere import Unknown
@cmf.stage("p")
def read(data: Annotated[str, cmf.Input("dataset")], other: Unknown = 3):
    return cmf.current_run().stage
assert read(__file__ if "__file__" in globals() else "f") == "read"
def inner():
    from cmf_agent import Input as Hidden
    @cmf.stage("p")
    def bad(data: Hidden.Input): pass
try:
    inner()
except Exception as error:
    assert "can't be looked up" in str(error), error
else:
    raise SystemExit("it was not refused")
"""
    (home.root / "f").write_text("x")
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert only(home, "artifact.used")[1]["name"] == "f"
    assert only(home, "execution.started")[1]["params"] == {"other": 3}
