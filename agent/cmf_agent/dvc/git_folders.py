"""Reads from git's own files, without a process, which commit is checked out and how the repository names its objects.

Rules
- A linked working tree or a submodule has its own HEAD, and the references and the configuration of the repository that it belongs to.
- What can't be told from files (references kept in a reftable, a damaged repository) is `None`: git itself is to be asked.
"""

# os.path: git's paths are texts.
# ruff: noqa: PTH113, PTH118

import os
import re
from typing import NamedTuple

#: A reference may name another; git itself follows no more than five.
_REFERENCES_MAX = 5
_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class GitFolders(NamedTuple):
    """Where a working tree's own HEAD is, and where its repository's references and configuration are."""

    own: str
    common: str


def git_folders(top: str) -> GitFolders:
    """Return the folders of the working tree at `top`; raise `OSError` if its `.git` can't be read."""
    own = os.path.join(top, ".git")
    if os.path.isfile(own):
        own = os.path.join(top, _text(own).partition("gitdir:")[2].strip())
    try:
        return GitFolders(own, os.path.join(own, _text(os.path.join(own, "commondir")).strip()))
    except FileNotFoundError:
        return GitFolders(own, own)


def object_format(top: str) -> str:
    """Return `sha1` or `sha256`, as the configuration of the repository at `top` says."""
    try:
        config = _text(os.path.join(git_folders(top).common, "config"))
    except OSError:
        return "sha1"
    words = config.lower().replace(" ", "").replace("\t", "")
    return "sha256" if "\nobjectformat=sha256" in words else "sha1"


def checked_out(top: str) -> str | None:
    """Return the id of the commit that is checked out in the working tree at `top`, None if the files don't tell or there is none."""
    try:
        folders = git_folders(top)
        value = _text(os.path.join(folders.own, "HEAD")).strip()
        for _ in range(_REFERENCES_MAX):
            if not value.startswith("ref:"):
                break
            value = _reference(folders, value.removeprefix("ref:").strip())
    except OSError:
        return None
    return value if _OBJECT_ID.fullmatch(value) else None


def _reference(folders: GitFolders, name: str) -> str:
    """Return what the reference holds, empty if there is none."""
    for folder in dict.fromkeys(folders):
        try:
            return _text(os.path.join(folder, name)).strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass  # it may be packed
    try:
        packed = _text(os.path.join(folders.common, "packed-refs"))
    except FileNotFoundError:
        return ""
    ending = f" {name}"
    return next((line.removesuffix(ending) for line in packed.splitlines() if line.endswith(ending)), "")


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()
