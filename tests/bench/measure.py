"""How a benchmark measures: rounds in which floor and subject take turns, medians, rows of a table."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

ROUNDS = 5


class Row(NamedTuple):
    """One line of the table."""

    what: str
    measured: str
    floor: str
    ratio: str
    aim: str


def seconds(action: Callable[[], object]) -> float:
    """Return how long one call takes, s."""
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def alternate(subject: Callable[[], object], floor: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median times (s) of both, which take turns; the first round only warms up."""
    times = [(seconds(subject), seconds(floor)) for _ in range(rounds + 1)][1:]
    return statistics.median(t for t, _ in times), statistics.median(t for _, t in times)


def rate(count: int, time_s: float) -> str:
    """Return events per second, readable."""
    return f"{count / time_s:,.0f}/s"


def micro(time_s: float) -> str:
    """Return a time in µs or ms."""
    return f"{time_s * 1e6:.1f} µs" if time_s < 1e-3 else f"{time_s * 1e3:.1f} ms"
