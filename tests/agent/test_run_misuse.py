"""Runs that are used in ways nobody meant: nothing is lost, and what is wrong is said."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import of_type, only, recorded

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.runs import Run
from cmf_protocol.errors import CallerError

CALLS: list[Callable[[Run], object]] = [
    lambda run: run.metric("m", 1),
    lambda run: run.metric("m", 1, step=1),
    lambda run: run.metrics({"m": 1}, step=1),
    lambda run: run.params(a=1),
    lambda run: run.tag("t"),
    lambda run: run.input("f"),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_was_not_started_starts_with_its_first_call(home: Home, call: Callable[[Run], object]) -> None:
    Path("f").write_text("x")
    run = cmf.run("p", "s")
    call(run)
    call(run)
    run.finish()
    types = [header.type for header, _ in recorded(home)]
    assert types.count("execution.started") == 1
    assert types.index("execution.started") == 2
    assert types[-1] == "execution.finished"


def test_a_run_that_was_started_is_not_started_again(home: Home) -> None:
    with cmf.run("p", "s").start():
        pass
    assert only(home, "execution.started")


def test_a_second_end_does_nothing(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.finish("failed")
    run.finish()
    assert only(home, "execution.finished")[1]["status"] == "failed"


def test_an_unknown_status_is_refused_and_loses_nothing(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.metric("loss", 1, step=1)
        with pytest.raises(CallerError, match="'success' is no status"):
            run.finish("success")
    assert only(home, "metrics.recorded")[1]["metrics"] == {"loss": 1}
    assert only(home, "execution.finished")[1]["status"] == "finished"


def test_a_run_that_ended_is_nobodys_parent(home: Home) -> None:
    first = cmf.run("p", "a").start()
    second = cmf.run("p", "b").start()
    first.finish()
    with cmf.run("p", "inner"):
        pass
    second.finish()
    with cmf.run("p", "after"):
        pass
    parents = [body["facts"].get("parent") for _, body in of_type(home, "execution.started")]
    assert parents == [None, first.execution, second.execution, None]


def test_values_that_are_no_mapping_are_refused_with_the_way_out(home: Home) -> None:
    args: Any = Namespace(lr=0.1)
    with pytest.raises(CallerError, match="params is a Namespace, not a mapping") as failure:
        cmf.run("p", "s", args)
    assert failure.value.hint == "give vars(args)"
    with cmf.run("p", "s") as run:
        for call in (run.params, run.properties):
            with pytest.raises(CallerError, match="not a mapping"):
                call(args)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("name", ["", 3, None, "x" * 501])
def test_impossible_metric_names_are_refused_alike(home: Home, name: Any, step: int | None) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="can't be the name of a metric"):
        run.metric(name, 1, step=step)
    assert not of_type(home, "metrics.recorded")


def test_no_series_is_the_plain_one(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.metric("m", 1, step=1, series=None)
    assert only(home, "metrics.recorded")[1]["steps"][0][1] == ""


def test_secrets_in_the_text_of_an_exception_are_masked(home: Home) -> None:
    with pytest.raises(ValueError, match="hunter2"), cmf.run("p", "s"):
        raise ValueError("can't reach postgres://maria:hunter2@db/x with password=hunter2")
    message = only(home, "execution.finished")[1]["error"]["message"]
    assert "hunter2" not in message
    assert message.startswith("can't reach postgres://maria:***@db")


@pytest.mark.parametrize("call", ["input", "output", "log_model"])
def test_an_empty_path_is_not_the_whole_project(home: Home, call: str) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="not the path"):
        getattr(run, call)("")
