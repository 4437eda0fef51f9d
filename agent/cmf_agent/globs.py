"""Finds the files that a pattern on the command line names.

Rules
- `*`, `?` and `[…]` match within a name, `**` any number of folders. With `**` only files are found, else folders too.
- As in a shell, what begins with a dot is found only by a pattern that does. `**` follows no links to folders.
- A file or folder of that very name wins: then the text is no pattern.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from cmf_protocol.errors import CallerError

_MAGIC = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Tell if `text` is a pattern and not the path of something that is there."""
    return not _MAGIC.isdisjoint(text) and not os.path.lexists(text)


def matches(pattern: str) -> list[Path]:
    """Return the paths that a pattern matches, sorted; raise `CallerError` if it can't be one."""
    whole = Path(pattern)
    start, parts = (Path(whole.anchor), whole.parts[1:]) if whole.anchor else (Path(), whole.parts)
    only_files = "**" in parts
    if parts[-1] == "**":  # whatever the version of Python: the files below, not the folders
        parts = (*parts, "*")
    try:
        found = list(start.glob("/".join(parts)))
    except (ValueError, OSError) as error:
        raise CallerError(
            f"{pattern!r} can't be used as a pattern: {error}", "`**` stands alone, as in data/**/*.csv"
        ) from error
    shown = [part for part in parts if part.startswith(".")]
    return sorted({path for path in found if _is_meant(path, start, shown) and not (only_files and path.is_dir())})


def _is_meant(path: Path, start: Path, shown: list[str]) -> bool:
    """Tell if every part that begins with a dot is one that the pattern asks for."""
    parts = path.relative_to(start).parts
    return all(any(fnmatchcase(part, wanted) for wanted in shown) for part in parts if part.startswith("."))
