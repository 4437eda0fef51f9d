"""Records a dvc.lock, and commits it: the one call of this package that commits, since a commit is what it asks for.

Rules
- Only this file is committed: what else is staged stays as it is, and no branch is switched.
- Git's environment names no other repository (as inside a hook); the user's identity and hooks apply.
"""

import os
import subprocess
from pathlib import Path

from cmf_agent.cmflib.artifacts import log_file
from cmf_agent.cmflib.session import Session
from cmf_protocol.errors import CallerError, StoreError

#: A hook may run tests, s.
_GIT_WAIT_S = 600.0


def log_dvc_lock(session: Session, file_path: str | os.PathLike[str]) -> str:
    """Commit the file, if it changed, record it as an output, and return the first line of `git log`.

    Raises `CallerError` if there is no such file or no repository, `StoreError` if git refuses.
    """
    path = Path(file_path)
    if not path.is_file():
        raise CallerError(f"{os.fspath(path)!r} is no file", "run `dvc repro` first, and name its dvc.lock")
    folder, name = path.absolute().parent, path.name
    if _git(folder, "rev-parse", "--is-inside-work-tree", check=False) != "true":
        raise CallerError(f"{path} is in no git repository", "run `git init` in the project's folder")
    if _git(folder, "status", "--porcelain", "--ignored", "--", name):
        _git(folder, "add", "--force", "--", name)
        _git(folder, "commit", "--quiet", "--only", "-m", f"{name} of {session.pipeline}", "--", name)
    log_file(session, path, "output", "other", {})
    return _git(folder, "log", "-1", "--format=commit %H", "--", name).partition("\n")[0]


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in _OTHER_REPOSITORY}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"git {arguments[0]} did not run: {error}", "is git installed?") from error
    if check and done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).partition("\n")[0]
        raise StoreError(f"git {arguments[0]} refused: {reason}", "commit the file yourself, then log it as a dataset")
    return done.stdout.strip()


_OTHER_REPOSITORY = frozenset(
    {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"}
)
