"""What an import could not give a place of its own: what it is, where it is kept, how often, and some of it by name."""

from collections.abc import Iterable
from typing import Any

#: How many of each are named.
NAMED_MAX = 5
_NAME_CHARS_MAX = 200


class Unmapped:
    """A list that grows while a file is mapped."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def note(self, what: str, kept: str, name: str) -> None:
        """Note one more of `what`, called `name`; `kept` says where it is kept."""
        self.note_all(what, kept, [name])

    def note_all(self, what: str, kept: str, names: Iterable[str], count: int | None = None) -> None:
        """Note several of `what`: `count`, or as many as there are names."""
        given = list(names)
        before, examples = self._found.get((what, kept), (0, []))
        for name in given:
            if name not in examples and len(examples) < NAMED_MAX:
                examples.append(name[:_NAME_CHARS_MAX])
        self._found[what, kept] = before + (len(given) if count is None else count), examples

    def items(self) -> list[dict[str, Any]]:
        """Return the list as JSON has it."""
        return [
            {"what": what, "kept": kept, "count": count, "examples": examples}
            for (what, kept), (count, examples) in self._found.items()
        ]
