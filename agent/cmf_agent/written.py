"""Tells which files and folders a command left as they were: named as its outputs, they are not what it wrote.

Rules
- Compared is what the inodes say (size, times), before and after: nothing is read.
- What can't be looked at counts as changed: nothing is said of it.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cmf_agent.globs import is_pattern, matches
from cmf_graph.content.facts import facts_of
from cmf_graph.content.folders import list_members
from cmf_protocol.errors import CmfError

#: What is compared, by path.
Marks = dict[Path, object]


def marks(texts: Iterable[str]) -> Marks:
    """Return the marks of what is there already of these paths and patterns."""
    found: Marks = {}
    for text in texts:
        with suppress(CmfError, OSError):
            for path in matches(text) if is_pattern(text) else [Path(text)]:
                found[path] = _mark(path)
    return found


def unchanged(paths: Iterable[Path], before: Marks) -> list[Path]:
    """Return those of the paths that are as they were when `before` was made."""
    return [path for path in paths if before.get(path) is not None and before[path] == _mark(path)]


def _mark(path: Path) -> object:
    """Return what changes when a file, or any file of a folder, is written; None if that can't be told."""
    with suppress(CmfError, OSError, ValueError):
        if path.is_file():
            return facts_of(path.stat())
        if not path.is_dir():
            return None
        members = hashlib.sha256()
        for name, facts in sorted(list_members(os.path.abspath(path)).items()):  # noqa: PTH100 - follows no links
            members.update(repr((name, facts)).encode("utf-8", "surrogateescape"))
        return members.digest()
    return None
