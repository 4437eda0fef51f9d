"""Marks a function's arguments as what a stage uses, produces, or takes as parameters, by their annotations."""

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from cmf_protocol.errors import CallerError


@dataclass(frozen=True)
class Input:
    """Marks an argument as what the stage uses: `path: cmf.Input`, or `path: Annotated[str, cmf.Input("dataset")]`."""

    kind: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Output:
    """Marks an argument as what the stage produces, as `Input` does."""

    kind: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Param:
    """Marks an argument as a parameter though it is no plain value, or gives it another name."""

    name: str | None = None


Marker = Input | Output | Param
_MARKERS = (Input, Output, Param)


def function_name(function: Any) -> str:
    """Return a function's name; of a partial one, that of what it calls, of an object its class's."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def markers_of(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Marker]:
    """Return the markers of a function's arguments, by name; raise `CallerError` for one that can't be looked up."""
    found = {}
    for name, parameter in signature.parameters.items():
        marker = _marker(_evaluated(function, name, parameter.annotation))
        if marker is not None:
            found[name] = marker
    return found


def _evaluated(function: Any, name: str, annotation: Any) -> Any:
    """Return an annotation as an object, though it be written as text (`from __future__ import annotations`)."""
    if not isinstance(annotation, str):
        return annotation
    inner = inspect.unwrap(function)
    try:
        closed = inspect.getclosurevars(inner).nonlocals
        return eval(annotation, {**getattr(inner, "__globals__", {}), **closed})
    except Exception as error:
        if any(marker.__name__ in annotation for marker in _MARKERS):
            raise CallerError(
                f"the annotation {annotation!r} of {function_name(function)}'s {name} can't be looked up: {error}",
                "import what it names at the top of the module",
            ) from error
        return None  # a name for type checkers only


def _marker(annotation: Any) -> Marker | None:
    """Return the marker in an annotation: itself, in `Annotated[…]`, or in a union with None."""
    if isinstance(annotation, _MARKERS):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, _MARKERS):
        return annotation()
    origin = typing.get_origin(annotation)
    if origin is Annotated or origin is typing.Union or origin is types.UnionType:
        parts = [*getattr(annotation, "__metadata__", ()), *typing.get_args(annotation)]
        return next((marker for part in parts if (marker := _marker(part)) is not None), None)
    return None
