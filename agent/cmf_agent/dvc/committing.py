"""Commits what DVC wrote about a path, where the user asked for it.

Rules
- The `.dvc` file, and the `.gitignore` beside it if all that was changed there is lines of DVC's: what else the user did stays uncommitted.
- One commit at a time of ours per repository.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH118, PTH120

import os
from collections import Counter
from pathlib import Path

from cmf_agent.dvc import git_objects
from cmf_agent.locking import QueueLock
from cmf_protocol.errors import StoreError

_LOCK_NAME = "cmf-commit.lock"
_LOCK_WAIT_S = 120.0
_IGNORE_NAME = ".gitignore"


def commit_place(root: str, dvc_file: str) -> None:
    """Commit the file `dvc_file` of the DVC project at `root`, unless HEAD has it; raise `StoreError` if git refuses."""
    top = git_objects.top_folder(dvc_file)
    if top is None:
        raise StoreError("not committed: no git repository holds it", "run `git init`")
    folder = Path(root, ".dvc", "tmp")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}", "give this user the right to write there") from error
    lock = QueueLock(folder / _LOCK_NAME, _LOCK_WAIT_S)
    try:
        with lock:
            name = os.path.relpath(dvc_file, top)
            ignore = os.path.join(os.path.dirname(name), _IGNORE_NAME)
            files = [name, ignore] if _is_all_of_dvc(top, ignore) else [name]
            git_objects.commit_files(top, files, f"Track {name.removesuffix('.dvc')} with DVC")
    finally:
        lock.close()


def _is_all_of_dvc(top: str, ignore: str) -> bool:
    """Tell if the `.gitignore` was changed, and only by adding lines that name what a `.dvc` file beside it tells of."""
    path = Path(top, ignore)
    try:
        present = Counter(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False
    committed = Counter((git_objects.committed_text(top, ignore) or "").splitlines())
    added = present - committed
    return bool(added) and not committed - present and all(_is_of_dvc(path.parent, line) for line in added)


def _is_of_dvc(folder: Path, line: str) -> bool:
    return line.startswith("/") and (folder / f"{line[1:]}.dvc").is_file()
