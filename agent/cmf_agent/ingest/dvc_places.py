"""Which lock files are meant, and the project that each belongs to."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cmf_agent.dvc.dvc_files import LOCK_NAME, PIPELINE_NAME
from cmf_agent.ingest.git_files import GitFiles
from cmf_protocol.errors import CallerError

#: Folders of programs, not of people: no pipeline is in them.
_NOT_LOOKED_INTO = frozenset({".git", ".dvc", ".cmf", ".venv", "node_modules", "__pycache__"})


def lock_files(paths: Sequence[Path], *, everything: bool) -> list[Path]:
    """Return the lock files that are meant, absolute, each once."""
    folders = paths or (Path(),)
    if everything:
        found = [lock for folder in folders for lock in _below(project_of(_absolute(folder)))]
        if not found:
            raise CallerError(
                f"there is no {LOCK_NAME} in {project_of(_absolute(folders[0]))}", "run `dvc repro` first"
            )
    else:
        found = [_lock_at(_absolute(path)) for path in folders]
    return list(dict.fromkeys(found))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links stay: names are what people wrote


def _lock_at(path: Path) -> Path:
    lock = path.with_name(LOCK_NAME) if path.name in (LOCK_NAME, PIPELINE_NAME) else path / LOCK_NAME
    if lock.is_file():
        return lock
    if lock.with_name(PIPELINE_NAME).is_file():
        raise CallerError(
            f"{lock} does not exist: nothing of {PIPELINE_NAME} was reproduced yet", "run `dvc repro` first"
        )
    raise CallerError(
        f"there is no {LOCK_NAME} in {lock.parent}", "name the folder of a DVC pipeline, or give --all for those below"
    )


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_LOOKED_INTO)
        if LOCK_NAME in files:
            yield Path(parent) / LOCK_NAME


def by_project(locks: Iterable[Path]) -> Mapping[Path, list[Path]]:
    """Return lock files by the root of the project that they belong to."""
    found: dict[Path, list[Path]] = {}
    for lock in locks:
        found.setdefault(project_of(lock.parent), []).append(lock)
    return found


def project_of(folder: Path) -> Path:
    """Return the root of the project around `folder`: DVC's, else git's, else the folder itself."""
    for parent in (folder, *folder.parents):
        if (parent / ".dvc").is_dir():
            return parent
        if (parent / ".git").exists():
            return parent
    return folder


def project_name(project: Path, git: GitFiles | None) -> str:
    """Return what to call a pipeline that nobody named.

    That is the repository's name where it comes from, else its folder's; of a project in a sub-folder of the repository with its path,
    so that stages of several projects stay apart; without git the project's folder.
    """
    if git is None:
        return project.name or "pipeline"
    repo = (git.repo or "").rstrip("/").removesuffix(".git").replace(":", "/").rpartition("/")[2]
    return PurePosixPath(
        repo or git.name or "pipeline", os.path.relpath(os.path.realpath(project), git.root)
    ).as_posix()
