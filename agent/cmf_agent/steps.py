"""Gathers step metrics in columns and hands them on in blocks (protocol/README.md, section 3).

Rules
- A point waits at most `FLUSH_AFTER_S`: a timer runs only while points wait. So at most that much is lost by a crash.
- Any thread may add points. Points that a forked child finds in its copy belong to its parent.
- Points wait only where something is sure to hand them on: not in a forked child, which may end without a word, not
  after the run's end, not in a signal handler. There each point is recorded at once. What still waits when the
  process ends is handed on by `flush_all`.
- Each draft also states the last value of every metric in it, so that lists need no step data.
"""

import operator
import threading
from collections.abc import Callable
from typing import Any, SupportsFloat, SupportsIndex

from cmf_agent.forking import Forkable, renew_after_fork
from cmf_agent.log import now_us
from cmf_agent.shape import note_lossy
from cmf_protocol.encoding import INTEGER_MAX, INTEGER_MIN, bend
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import NAME_CHARS_MAX, StepBlock, metrics_recorded

#: Longest time that a point waits, s (design, promise 1).
FLUSH_AFTER_S = 1.0
#: A draft is made when its points may take this many bytes: half of what an event may have.
_DRAFT_BYTES = 131_072
#: Step, value and offset, each with its type byte.
_POINT_BYTES = 27
_BLOCK_BYTES = 48

Number = SupportsFloat | SupportsIndex
_Columns = tuple[list[int], list[float], list[int]]


#: The buffers in which points wait.
_filled: set["StepBuffer"] = set()


class StepBuffer(Forkable):
    """The points of one execution that are not yet recorded; `record` takes the draft made of them."""

    def __init__(self, execution: bytes, record: Callable[[Draft], None]) -> None:
        self._execution = execution
        self._record = record
        self._lock = threading.RLock()  # reentrant for signal handlers, which `_busy` keeps out
        self._handing_on = threading.RLock()
        self._busy = False
        self._at_once = False
        self._blocks: dict[tuple[str, str], _Columns] = {}
        self._last: dict[str, float] = {}
        self._bytes = 0
        self._timer: threading.Timer | None = None
        renew_after_fork(self)

    def add(self, name: str, value: Number, step: int, series: str) -> None:
        """Add a point; raise `CallerError` if `value` is no number or `step` no integer."""
        number = value if type(value) is float else as_number(name, value)
        if type(step) is not int or not INTEGER_MIN <= step <= INTEGER_MAX:
            step = _as_step(name, step)
        at = now_us()
        if self._at_once:
            return self._add_at_once(name, number, step, series, at)
        with self._lock:
            if self._busy:
                return self._add_at_once(name, number, step, series, at)
            self._busy = True
            try:
                block = self._blocks.get((name, series))
                if block is None:
                    block = self._new_block(name, series)
                block[0].append(step)
                block[1].append(number)
                block[2].append(at)
                self._last[name] = number
                self._bytes += _POINT_BYTES
                full = self._bytes >= _DRAFT_BYTES
                if self._timer is None:
                    self._start_timer()
            finally:
                self._busy = False
        if full or self._at_once:  # the run may just have ended
            self.flush()
        return None

    def take(self) -> Draft | None:
        """Return a draft of what waits, and wait for nothing more; None if nothing waits."""
        with self._lock:
            if self._busy:  # a signal handler, in the midst of `add`: its points wait on
                return None
            blocks, last = self._blocks, self._last
            self._blocks, self._last, self._bytes = {}, {}, 0
            timer, self._timer = self._timer, None
            _filled.discard(self)
        if timer is not None:
            timer.cancel()
        return _drafted(self._execution, blocks, last) if blocks else None

    def flush(self) -> None:
        """Hand on what waits, and wait for what another thread is handing on."""
        with self._handing_on:
            draft = self.take()
            if draft is not None:
                _handing.add(self)
                try:
                    self._record(draft)
                finally:
                    _handing.discard(self)

    def gather(self, yes: bool) -> None:
        """Let points wait from now on, or not any more."""
        self._at_once = not yes

    def after_fork(self) -> None:
        """Forget, in a forked child, what the parent will record."""
        self._lock, self._handing_on, self._busy = threading.RLock(), threading.RLock(), False
        self._at_once = True
        _filled.discard(self)
        _handing.discard(self)
        self._blocks, self._last, self._bytes, self._timer = {}, {}, 0, None

    def _add_at_once(self, name: str, number: float, step: int, series: str, at: int) -> None:
        _check_names(name, series)
        self._record(_drafted(self._execution, {(name, series): ([step], [number], [at])}, {name: number}))

    def _new_block(self, name: str, series: str) -> _Columns:
        _check_names(name, series)
        self._bytes += 2 * len(name.encode(errors="replace")) + len(series.encode(errors="replace")) + _BLOCK_BYTES
        block: _Columns = ([], [], [])
        self._blocks[name, series] = block
        return block

    def _start_timer(self) -> None:
        self._timer = threading.Timer(FLUSH_AFTER_S, self.flush)
        self._timer.daemon = True
        _filled.add(self)
        self._timer.start()


#: The buffers whose points are just being recorded.
_handing: set[StepBuffer] = set()


def flush_all() -> None:
    """Hand on what waits anywhere, and wait for what timers are handing on."""
    for buffer in _filled | _handing:
        buffer.flush()


def check_metric_name(name: object) -> None:
    """Raise `CallerError` for what can't be the name of a metric."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARS_MAX:
        raise CallerError(f"{name!r} can't be the name of a metric", f"use a text of 1 to {NAME_CHARS_MAX} characters")


def _check_names(name: object, series: object) -> None:
    check_metric_name(name)
    if not isinstance(series, str) or len(series) > NAME_CHARS_MAX:
        raise CallerError(
            f"{series!r} can't be a series of {name!r}", f"use a text of up to {NAME_CHARS_MAX} characters"
        )


def _drafted(execution: bytes, blocks: dict[tuple[str, str], _Columns], last: dict[str, float]) -> Draft:
    wall_us = now_us()
    lossy: dict[str, str] = {}
    steps: list[StepBlock] = []
    for (name, series), (numbers, values, times) in blocks.items():
        names, bent = bend([name, series], "steps")
        lossy |= bent
        steps.append((names[0], names[1], numbers, values, [at - wall_us for at in times]))
    metrics, bent = bend(last, "metrics")
    draft = metrics_recorded(execution, metrics=metrics, steps=steps)._replace(wall_us=wall_us)
    return note_lossy(draft, lossy | bent)


def as_number(name: str, value: Any) -> int | float:
    """Return a metric's value as an integer or float; an integer outside 64 bits becomes a float.

    Takes whatever converts itself, such as numpy's and torch's scalars. Raises `CallerError` for anything else.
    """
    if hasattr(value, "__index__"):  # isinstance with a protocol takes 15 µs
        try:
            number = operator.index(value)
        except TypeError:  # an array of floats has the method too
            pass
        else:
            return number if INTEGER_MIN <= number <= INTEGER_MAX else _as_float(number)
    if not hasattr(value, "__float__"):
        raise CallerError(f"the metric {name!r} is {value!r}, not a number", "give an integer or a float")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # an array of many, a tensor of many
        raise CallerError(f"the metric {name!r} is not one number: {error}", "give a single number") from error


def _as_float(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


def _as_step(name: str, step: object) -> int:
    if isinstance(step, SupportsIndex):
        number = operator.index(step)
        if INTEGER_MIN <= number <= INTEGER_MAX:
            return number
    raise CallerError(f"the step of {name!r} is {step!r}", "a step is an integer of 64 bits")
