"""Step metrics: buffered in columns, flushed in time, one block per name and series."""

import math
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pytest
from tests.agent.helpers import EXECUTION, of_type, only, wait_until

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.steps import FLUSH_AFTER_S, StepBuffer
from cmf_protocol.errors import CallerError
from cmf_protocol.events import EVENT_BYTES_MAX, Draft


def test_points_become_blocks_with_their_last_value_beside_them(home: Home) -> None:
    with cmf.run("p", "s") as run:
        for step in range(3):
            run.metric("loss", 1.0 / (step + 1), step=step)
            run.metric("loss", step, step=step, series="valid")
        run.metrics({"accuracy": 0.5, "f1": 0.25}, step=2)
    _, body = only(home, "metrics.recorded")
    blocks = {(name, series): (steps, values) for name, series, steps, values, _ in body["steps"]}
    assert blocks == {
        ("loss", ""): ((0, 1, 2), (1.0, 0.5, 1.0 / 3)),
        ("loss", "valid"): ((0, 1, 2), (0, 1, 2)),
        ("accuracy", ""): ((2,), (0.5,)),
        ("f1", ""): ((2,), (0.25,)),
    }
    assert body["metrics"] == {"loss": 2, "accuracy": 0.5, "f1": 0.25}
    assert all(offset <= 0 for block in body["steps"] for offset in block[4])


def test_special_floats_are_kept(home: Home) -> None:
    with cmf.run("p", "s") as run:
        for step, value in enumerate((math.nan, math.inf, -math.inf)):
            run.metric("x", value, step=step)
        run.metric("y", math.nan)
    (_, steps), (_, plain) = of_type(home, "metrics.recorded")
    assert math.isnan(steps["steps"][0][3][0])
    assert steps["steps"][0][3][1:] == (math.inf, -math.inf)
    assert math.isnan(plain["metrics"]["y"])


def test_what_is_said_without_a_step_comes_after_the_points_that_waited(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.metric("loss", 1, step=1)
        run.metric("loss", 2)
    assert [body["metrics"]["loss"] for _, body in of_type(home, "metrics.recorded")] == [1, 2]


def test_points_are_recorded_within_the_time_promised(home: Home) -> None:
    with cmf.run("p", "s") as run:
        began = time.monotonic()
        run.metric("loss", 1, step=1)
        wait_until(lambda: bool(of_type(home, "metrics.recorded")))
        assert time.monotonic() - began >= FLUSH_AFTER_S * 0.9
        run.metric("loss", 2, step=2)
        wait_until(lambda: len(of_type(home, "metrics.recorded")) == 2)


@pytest.mark.parametrize("name_chars", [4, 500])
def test_many_points_are_recorded_before_an_event_is_full(name_chars: int) -> None:
    drafts: list[Draft] = []
    buffer = StepBuffer(EXECUTION, drafts.append)
    for at in range(20_000):
        buffer.add(f"{at % 2_000:0{name_chars}}", 2.0**-at, 2**40 + at, "")
    buffer.flush()
    assert len(drafts) > 1
    assert sum(len(block[2]) for draft in drafts for block in draft.body["steps"]) == 20_000
    from cmf_protocol.encoding import encode

    assert all(len(encode(draft.body)) < EVENT_BYTES_MAX - 4_096 for draft in drafts)


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (True, 1),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(7), 7),
        (numpy.array(1.5), 1.5),
        (Decimal("0.25"), 0.25),
        (2**80, float(2**80)),
        (10**400, math.inf),
    ],
)
def test_whatever_is_one_number_is_taken(home: Home, value: Any, recorded: float) -> None:
    with cmf.run("p", "s") as run:
        run.metric("x", value, step=numpy.int64(1))  # type: ignore[arg-type]
        run.metric("y", value)
    (_, steps), (_, plain) = of_type(home, "metrics.recorded")
    assert steps["steps"][0][3] == (recorded,)
    assert steps["steps"][0][2] == (1,)
    assert plain["metrics"] == {"y": recorded}


@pytest.mark.parametrize("value", ["0.5", None, [1], numpy.array([1.0, 2.0])])
def test_whatever_is_not_one_number_is_refused(home: Home, value: Any) -> None:
    with cmf.run("p", "s") as run:
        for step in (None, 1):
            with pytest.raises(CallerError, match="'x' is"):
                run.metric("x", value, step=step)
    assert not of_type(home, "metrics.recorded")


@pytest.mark.parametrize(("name", "step"), [("", 1), ("x" * 501, 1), ("x", 1.5), ("x", 2**63)])
def test_impossible_names_and_steps_are_refused(home: Home, name: str, step: Any) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError):
        run.metric(name, 1, step=step)


def test_a_failing_timer_is_told_at_the_next_strict_call(home: Home) -> None:
    aside = home.log_path.with_name("aside.db")
    with cmf.run("p", "s", strict=True) as run:
        run._recorder._held.close()
        home.log_path.rename(aside)
        run.metric("loss", 1, step=1)
        wait_until(lambda: bool(run._recorder._waiting))
        with pytest.raises(Exception, match="missing"):
            run.metric("other", 1)
        Path(aside).rename(home.log_path)
    assert [body["metrics"] for _, body in of_type(home, "metrics.recorded")] == [{"loss": 1}]
