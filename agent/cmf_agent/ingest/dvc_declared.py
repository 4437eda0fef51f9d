"""What dvc.yaml declares of a stage beyond its lock entry: what its group runs over, which outputs are metrics, plots or models. Pure.

Rules
- Templates are not filled in from files of variables: a `${…}` in a path stands for any text, which is enough to know a locked path by.
- A model is what dvc.yaml calls one (`type: model`, of an output or under `artifacts:`) or what a given pattern matches; metrics are what
  stands under `metrics:`, what stands under a stage's `plots:` is of the kind `other`, a program's source too, every other output is a
  dataset. Of other dependencies nothing is said: who made them knows.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import product
from typing import Any

from cmf_agent.sources.names import is_source

_TEMPLATE = re.compile(r"\\?\$\{\s*([^}]*?)\s*\}")
_UNKNOWN: Mapping[str, Any] = {}


def item_of(definition: Mapping[str, Any], member: str) -> Any:
    """Return what a member of a group runs over: its value where dvc.yaml states it, else its name."""
    over = definition.get("foreach")
    if isinstance(over, Mapping):
        return over.get(member, member)
    if isinstance(over, list):
        at = int(member) if member.isdecimal() and any(isinstance(each, Mapping | list) for each in over) else None
        return over[at] if at is not None and at < len(over) else member
    matrix = definition.get("matrix")
    if isinstance(matrix, Mapping) and all(isinstance(values, list) for values in matrix.values()):
        for combination in product(*(list(enumerate(values)) for values in matrix.values())):
            if _member(list(matrix), combination) == member:
                return dict(zip(map(str, matrix), (value for _, value in combination), strict=True))
    return member


def _member(keys: Sequence[Any], combination: Sequence[tuple[int, Any]]) -> str:
    """Return the name that DVC gives to a combination (dvc/parsing, `MatrixDefinition.normalized_iterable`)."""
    parts = (
        f"{key}{at}" if isinstance(value, Mapping | list) else _text(value)
        for key, (at, value) in zip(keys, combination, strict=True)
    )
    return "-".join(parts)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def filled(template: str, member: str, item: Any) -> str | None:
    """Return a path with `${item}` and `${key}` filled in; None if it needs more than these."""
    if "${" not in template:
        return template
    known = {"item": item, "key": member}
    if isinstance(item, Mapping):
        known |= {f"item.{key}": value for key, value in item.items()}
    found = [match[1] for match in _TEMPLATE.finditer(template)]
    if not all(name in known for name in found):
        return None
    return _TEMPLATE.sub(lambda match: _text(known[match[1]]), template)


class Kinds:
    """Which kind the outputs of one stage are of, by what dvc.yaml declares."""

    def __init__(
        self, body: Mapping[str, Any], pipeline: Mapping[str, Any], folder: str, base: str | None, models: Sequence[str]
    ) -> None:
        self._models = models
        self._rules: list[tuple[re.Pattern[str], str]] = []
        self._uncached: list[re.Pattern[str]] = []
        for part, kind in (("metrics", "metrics"), ("plots", "other"), ("outs", None)):
            for path, flags in paths_of(body.get(part)):
                self._add(path, base or "", "model" if flags.get("type") == "model" else kind)
                if flags.get("cache") is False:
                    self._uncached.append(_pattern(path, base or ""))
        for path, _ in paths_of(pipeline.get("metrics")):
            self._add(path, folder, "metrics")
        for artifact in as_map(pipeline.get("artifacts")).values():
            if as_map(artifact).get("type") == "model":
                self._add(str(artifact.get("path", "")), folder, "model")

    def _add(self, path: str, base: str, kind: str | None) -> None:
        if kind is not None:
            self._rules.append((_pattern(path, base), kind))

    def kind(self, name: str) -> str | None:
        """Return the kind of the output called `name`, from the project's root; None where nobody says."""
        declared = {kind for pattern, kind in self._rules if pattern.fullmatch(name)}
        if any(fnmatch(name, pattern) or fnmatch(posixpath.basename(name), pattern) for pattern in self._models):
            declared.add("model")
        return next((kind for kind in ("model", "metrics", "other") if kind in declared), source_kind(name))

    def is_cached(self, name: str) -> bool:
        """Tell if DVC keeps the bytes of that output."""
        return not any(pattern.fullmatch(name) for pattern in self._uncached)


def source_kind(name: str) -> str | None:
    """Return the kind of a program's source, None for what is none by its name: lists call that a dataset."""
    return "other" if is_source(name) else None


def _pattern(template: str, base: str) -> re.Pattern[str]:
    """Return what a path in dvc.yaml can become: each `${…}` is some text."""
    path = posixpath.normpath(posixpath.join(base, _TEMPLATE.sub("\0", template)))
    return re.compile(".+".join(map(re.escape, path.split("\0"))))


def paths_of(declared: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield path and flags of what is declared, which is a path or a map of one."""
    for each in as_list(declared):
        if isinstance(each, Mapping):
            yield from ((str(path), as_map(flags)) for path, flags in each.items())
        else:
            yield str(each), {}


def as_map(value: Any) -> Mapping[str, Any]:
    """Return a value if it is a map, else an empty one."""
    return value if isinstance(value, Mapping) else _UNKNOWN


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, nothing as an empty one, and anything else as the one element of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
