"""Functions as stages: each call of a decorated function is recorded as a run.

    @cmf.stage("mnist", "train", metrics=True)
    def train(data: Annotated[str, cmf.Input("dataset")], model: Annotated[str, cmf.Output("model")], lr: float = 0.1):
        ...
        return {"accuracy": 0.9}

    train("data/train.csv", "model.pkl", lr=0.2)

Rules
- An argument annotated as input is recorded before the call, one annotated as output after it (if it returned); each may be a path, a
  content id, a table, None (nothing to record), or a list of these. Every other plain argument (number, text, boolean, None) is a
  parameter, defaults too; with `Param`, one of any type.
- The function gets what it was called with, and the caller what it returned or raised. A file that is not there does not keep it
  from running: it is said, and recorded as the property `missing_inputs` or `missing_outputs` (`strict` raises).
- What is called inside is nested in it; `cmf.current_run()` is the run inside of the body.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from cmf_agent.finding import PathLike
from cmf_agent.markers import Input, Marker, Output, function_name, markers_of
from cmf_agent.recorder import say
from cmf_agent.runs import Run
from cmf_agent.steps import as_number
from cmf_protocol.errors import CallerError
from cmf_protocol.types import stage_node

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = (int, float, str, bool, type(None))


def stage(
    pipeline: str,
    stage: str | None = None,
    *,
    metrics: bool = False,
    name: str | None = None,
    kind: str = "step",
    properties: Mapping[str, object] | None = None,
    machine_metrics: bool | float = False,
    strict: bool = False,
    home: PathLike | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that records each call of a function (or method, or async function) as a run of a stage.

    `stage` is by default the function's name. With `metrics`, the numbers in a dictionary that it returns are recorded as
    metrics. The rest is as for `run`. Raises `CallerError` for a generator, of which nobody knows when it ends.
    """
    if not isinstance(pipeline, str):
        raise CallerError("cmf.stage needs a pipeline's name", 'write @cmf.stage("pipeline", "stage")')

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = _checked_signature(function)
        markers = markers_of(function, signature)
        _, (_, label) = stage_node(pipeline, function_name(function) if stage is None else stage)

        def begin(args: Any, kwargs: Any) -> "_Call | None":
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:  # the function itself says so best
                return None
            bound.apply_defaults()
            arguments = _Arguments.of(bound.arguments, signature, markers)
            run = Run(
                pipeline, label, arguments.params, name=name, kind=kind, properties=properties,
                machine_metrics=machine_metrics, strict=strict, home=home,
            )  # fmt: skip
            return _Call(run, arguments, metrics)

        if _is_async(function):
            called: Callable[..., Any] = function

            @wraps(function)
            async def recorded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                call = begin(args, kwargs)
                if call is None:
                    return await called(*args, **kwargs)
                with call.run:
                    call.record_inputs()
                    return call.returned(await called(*args, **kwargs))

            return typing.cast("Callable[P, R]", recorded_async)

        @wraps(function)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
            call = begin(args, kwargs)
            if call is None:
                return function(*args, **kwargs)
            with call.run:
                call.record_inputs()
                return call.returned(function(*args, **kwargs))

        return recorded

    return decorate


def _checked_signature(function: Any) -> inspect.Signature:
    """Return the signature of what can be a stage; raise `CallerError` for what can't."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise CallerError(
            f"{function_name(function)} is a generator, which can't be a stage",
            "record its consumer, or use cmf.run inside of it",
        )
    try:
        if callable(function) and not inspect.isclass(function):
            return inspect.signature(function)
    except ValueError:  # some that are not written in Python don't tell
        pass
    raise CallerError(f"{function!r} can't be a stage", "decorate a function; put @classmethod and the like above it")


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# -- a call ------------------------------------------------------------------------------------------------------------


@dataclass
class _Arguments:
    """What a call was given: parameters, and what it uses and produces."""

    params: dict[str, object]
    inputs: list[tuple[Input, Any]]
    outputs: list[tuple[Output, Any]]

    @classmethod
    def of(
        cls, arguments: Mapping[str, Any], signature: inspect.Signature, markers: Mapping[str, Marker]
    ) -> "_Arguments":
        found = cls({}, [], [])
        for name, value in arguments.items():
            marker, form = markers.get(name), signature.parameters[name].kind
            if isinstance(marker, Input):
                found.inputs += [(marker, each) for each in _each(value)]
            elif isinstance(marker, Output):
                found.outputs += [(marker, each) for each in _each(value)]
            elif marker is not None:
                found.params[marker.name or name] = value
            elif form is inspect.Parameter.VAR_KEYWORD:
                found.params |= {key: inner for key, inner in value.items() if isinstance(inner, _PLAIN)}
            elif isinstance(value, _PLAIN):
                found.params[name] = value
        return found


class _Call:
    """One call while it is recorded."""

    def __init__(self, run: Run, arguments: _Arguments, metrics: bool) -> None:
        self.run = run
        self._arguments = arguments
        self._metrics = metrics

    def record_inputs(self) -> None:
        """Record what the call uses."""
        self._record("missing_inputs", self.run.input, self._arguments.inputs)

    def returned(self, result: R) -> R:
        """Record what the call produced, and return its result."""
        self._record("missing_outputs", self.run.output, self._arguments.outputs)
        if self._metrics:
            self._record_metrics(result)
        return result

    def _record(self, missing: str, record: Callable[..., object], named: Iterable[tuple[Input | Output, Any]]) -> None:
        absent = []
        for marker, value in named:
            try:
                record(value, marker.kind, marker.name)
            except CallerError as error:
                if self.run.strict:
                    raise
                say(f"not recorded: {error}")
                absent.append(str(value))
        if absent:
            self.run.property(missing, absent)

    def _record_metrics(self, result: object) -> None:
        if not isinstance(result, Mapping):
            say(f"{self.run.stage} returned no dictionary, so no metrics were recorded of it")
            return
        try:
            self.run.metrics({str(key): as_number(str(key), value) for key, value in result.items()})
        except CallerError as error:
            if self.run.strict:
                raise
            say(f"the metrics that {self.run.stage} returned were not recorded: {error}")


def _each(value: Any) -> list[Any]:
    """Return the single things that an argument names."""
    if value is None:
        return []
    return (
        [each for each in value if each is not None] if isinstance(value, list | tuple | set | frozenset) else [value]
    )
