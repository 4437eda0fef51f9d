"""Names an artifact by where it lies: the path below the project's root, or the whole path outside of it.

Rules
- Slashes, valid UTF-8, no Unicode normalisation: a name is what the file is called, wherever UTF-8 can say it.
- `..` is resolved in the text, links are not: `data/x.csv` stays that when `data` is a link to another disk.
"""

# os.path: Path.resolve would follow links, and name another file than the caller did.
# ruff: noqa: PTH100, PTH118

import os
from pathlib import Path

from cmf_protocol.errors import CallerError

#: How the names of what is run, and not read, end.
_SOURCES = (
    ".py",
    ".ipynb",
    ".sh",
    ".bash",
    ".r",
    ".rmd",
    ".jl",
    ".pl",
    ".sql",
    ".scala",
    ".java",
    ".go",
    ".rs",
    ".js",
    ".ts",
)


def is_source(name: str) -> bool:
    """Tell if a file is a program's source, by its name."""
    return name.lower().endswith(_SOURCES)


def artifact_name(path: Path, root: Path) -> tuple[str, bool]:
    """Return the name of the file at `path` in the project at `root`, and whether it had to be bent to fit UTF-8.

    In a bent name, bytes that are not UTF-8 stand as `%XX` and a percent sign as `%25`. The root itself is `.`.
    Raises `CallerError` for what no file can be called.
    """
    full, base = os.path.abspath(path), os.path.abspath(root)
    name = _below(full, base)
    if name is None:
        # The root may have been named by way of a link (as /tmp is on macOS) and the file not, or the reverse.
        parent, last = os.path.split(full)
        name = _below(os.path.join(os.path.realpath(parent), last), os.path.realpath(base))
    return _as_text(full if name is None else name)


def _below(path: str, root: str) -> str | None:
    if path == root:
        return "."
    prefix = root.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _as_text(name: str) -> tuple[str, bool]:
    if "\0" in name:
        raise CallerError(f"{name!r} is no path", "paths hold no U+0000")
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise CallerError(f"{name!r} is no path", "give the path as the system lists it") from error
    try:
        return raw.decode(), False
    except UnicodeDecodeError:
        text = raw.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
        return "".join(_escaped(character) for character in text), True


def _escaped(character: str) -> str:
    code = ord(character)
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else character
