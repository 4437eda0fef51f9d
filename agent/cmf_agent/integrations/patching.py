"""Replaces methods of a class, of its bases, and of all its subclasses, those made later too; and puts everything back.

Rules
- A replacement is a function on the class, so that bound methods compare, pickle and tell their signature as before.
- A method that is there under a condition only (a descriptor that may raise `AttributeError`) stays under it.
- What somebody else has replaced meanwhile is left alone.
"""

import threading
import types
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

#: Makes of a function the one that takes its place; the second argument is the method's name.
Wrap = Callable[[Callable[..., Any], str], Callable[..., Any]]


class _Replaced(NamedTuple):
    """A class's own attribute before and while it is replaced; `before` is None if it had none of its own."""

    before: Any
    now: Any


class Patches:
    """The methods called `names` of a family of classes, each replaced by what `wrap` makes of it while switched on."""

    def __init__(self, names: tuple[str, ...], wrap: Wrap) -> None:
        self._names = names
        self._wrap = wrap
        self._lock = threading.RLock()
        self._replaced: dict[tuple[type, str], _Replaced] = {}

    @property
    def is_on(self) -> bool:
        """Whether methods are replaced."""
        return bool(self._replaced)

    def switch(self, base: Any, on: bool) -> bool:
        """Replace the methods of `base` and its family, or put them back; return whether they were replaced before."""
        with self._lock:
            was = self.is_on
            if on and not was:
                self._switch_on(base)
            elif was and not on:
                self._switch_off()
            return was

    def _switch_on(self, base: Any) -> None:
        def follow(cls: Any, /, **options: Any) -> None:
            super(base, cls).__init_subclass__(**options)
            with self._lock:
                if self.is_on:
                    self._patch(cls)

        self._replace(base, "__init_subclass__", classmethod(follow))
        for cls in _with_subclasses(base):
            self._patch(cls)

    def _switch_off(self) -> None:
        for (owner, name), (before, now) in self._replaced.items():
            if owner.__dict__.get(name) is not now:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._replaced = {}

    def _patch(self, cls: type) -> None:
        """Replace what a class, or a base of it, defines itself."""
        for owner in cls.__mro__[:-1]:
            for name in self._names:
                before = owner.__dict__.get(name)
                if before is None or (owner, name) in self._replaced:
                    continue
                if isinstance(before, types.FunctionType):
                    self._replace(owner, name, self._wrap(before, name))
                elif hasattr(before, "__get__") and not isinstance(before, classmethod | staticmethod | property):
                    self._replace(owner, name, _Conditional(before, name, self._wrap))

    def _replace(self, owner: type, name: str, now: Any) -> None:
        self._replaced[owner, name] = _Replaced(owner.__dict__.get(name), now)
        setattr(owner, name, now)


class _Conditional:
    """A method that is there under a condition, which the original decides."""

    def __init__(self, before: Any, name: str, wrap: Wrap) -> None:
        self._before = before
        self._name = name
        self._wrap = wrap

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        bound = self._before.__get__(instance, owner)
        if instance is None:
            return bound

        @wraps(bound)
        def handed_on(_: Any, *args: Any, **kwargs: Any) -> Any:
            return bound(*args, **kwargs)

        return types.MethodType(self._wrap(handed_on, self._name), instance)


def _with_subclasses(base: type) -> set[type]:
    found = {base}
    subclasses: list[type] = type.__subclasses__(base)
    for cls in subclasses:
        found |= _with_subclasses(cls)
    return found
