"""Has DVC add files and folders, and looks whether it did.

Rules
- What several threads want to add at the same time is one `Repo.add`: the thread whose turn it is takes all that wait. If that fails, it is
  halved until each failure is told for its own path.
- What is not in the cache afterwards was not added, whatever DVC says (of a full disk it says nothing): the `.dvc` file is brought back
  as it was.
- Another DVC that holds the lock is waited for, as long as the caller says.
- The files that a run works with stay the very same files: DVC puts no links in their place.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.dvc.quiet import Complaints
from cmf_agent.dvc.reasons import hint_of, reason_of
from cmf_agent.dvc.repository import DvcBusy, Lent, dvc_errors, queued_repository, thread_turn
from cmf_agent.forking import Forkable, renew_after_fork
from cmf_protocol.errors import CmfError, StoreError

#: How often a path that DVC itself is busy with is tried again, s (DVC's own lock is tried for 3 s by DVC).
_LOOK_EVERY_S = 0.2


class Added(NamedTuple):
    """The `.dvc` file that tells of a path, None if a stage or the file of a folder around it does; `is_new` if it was changed now."""

    file: str | None
    is_new: bool = False


class _Request:
    """What one thread wants to be added, and what came of it."""

    def __init__(self, root: str, path: str) -> None:
        self.root = root
        self.path = path
        self.outcome: Added | CmfError | None = None

    def result(self) -> Added:
        assert self.outcome is not None
        if isinstance(self.outcome, CmfError):  # a new one: several threads may raise it
            raise type(self.outcome)(str(self.outcome), self.outcome.hint) from self.outcome
        return self.outcome


class _Waiting(Forkable):
    """The requests of all threads; appending to a list, removing from it and copying it are atomic."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        renew_after_fork(self)

    def of(self, root: str) -> list[_Request]:
        """Return those of a project that nobody has answered."""
        return [request for request in list(self.requests) if request.root == root and request.outcome is None]

    def after_fork(self) -> None:
        """Forget the parent's threads."""
        self.requests = []


_waiting = _Waiting()


def add(root: str, path: str, *, wait_s: float) -> Added:
    """Have DVC track the file or folder at the absolute `path`, unless a stage or a tracked folder around it does already.

    `wait_s` is how long another DVC that holds the lock is waited for, s. Raises `DvcBusy` after it, `StoreError` for anything else.
    """
    request = _Request(root, path)
    requests = _waiting.requests
    requests.append(request)
    try:
        with thread_turn(root):
            if request.outcome is None:
                _add_waiting(root, wait_s)
    finally:
        requests.remove(request)
    return request.result()


def _add_waiting(root: str, wait_s: float) -> None:
    """Add all that waits when it is this process's turn."""
    try:
        with queued_repository(root) as lent:
            deadline = time.monotonic() + wait_s
            left = _waiting.of(root)
            while left:
                outcomes = _attempt(root, lent, left)
                is_late = time.monotonic() + _LOOK_EVERY_S > deadline
                for request, outcome in outcomes:
                    if is_late or not isinstance(outcome, DvcBusy):
                        request.outcome = outcome
                left = [request for request in left if request.outcome is None]
                if left:
                    time.sleep(_LOOK_EVERY_S)
    except DvcBusy as error:
        for request in _waiting.of(root):  # they all have waited: none is to wait as long again
            request.outcome = error


def _attempt(root: str, lent: Lent, requests: Sequence[_Request]) -> list[tuple[_Request, Added | CmfError]]:
    """Return what came of each request."""
    from dvc.repo import lock_repo

    lent.repo.__dict__.pop("scm_context", None)  # it keeps `core.autostage` as it was
    try:
        with dvc_errors(root), lock_repo(lent.repo):
            added = _add_or_halve(root, lent, sorted({request.path for request in requests}))
    except CmfError as error:
        return [(request, error) for request in requests]
    return [(request, added[request.path]) for request in requests]


def _add_or_halve(root: str, lent: Lent, paths: Sequence[str]) -> dict[str, Added | CmfError]:
    try:
        with dvc_errors(root):
            lent.stages.show(lent.repo)
    except CmfError as error:
        return dict.fromkeys(paths, error)
    try:
        with dvc_errors(root):
            return dict(zip(paths, _add(lent, paths), strict=True))
    except BaseException as error:
        lent.stages.forget()
        if not isinstance(error, CmfError):
            raise
        if len(paths) == 1:
            return {paths[0]: error}
    half = len(paths) // 2
    return _add_or_halve(root, lent, paths[:half]) | _add_or_halve(root, lent, paths[half:])


def _add(lent: Lent, paths: Sequence[str]) -> list[Added]:
    repo, complaints = lent.repo, lent.complaints
    files = {path: _own_file(repo, path) for path in paths}
    own = {path: file for path, file in files.items() if file is not None}
    before = {path: _bytes(file) for path, file in own.items()}
    complaints.errors.clear()
    outs = {path: stage.outs[0] for path, stage in zip(own, repo.add(list(own), relink=False), strict=True)}
    missing = [path for path, out in outs.items() if out.use_cache and not _is_cached(out)]
    for path in missing:  # DVC only logs that
        _undo(repo, path, own[path], before[path])
    if missing:
        raise StoreError(f"not all of it got into the cache: {_complaint(complaints)}", hint_of(*complaints.errors))
    return [Added(file, file is not None and before[path] != _bytes(file)) for path, file in files.items()]


def _own_file(repo: Any, path: str) -> str | None:
    """Return the `.dvc` file that tells of the path, or is to; None if a stage or a folder around it has it."""
    from dvc.exceptions import OutputNotFoundError

    try:
        owner = repo.find_outs_by_path(path, strict=False)[0]
    except OutputNotFoundError:
        return f"{path}.dvc"
    return owner.stage.path if owner.stage.is_data_source and owner.fs_path == path else None


def _is_cached(out: Any) -> bool:
    """Tell if the cache holds the bytes of an output."""
    members = [oid for _, _, oid in out.obj] if out.hash_info.isdir else []
    return all(os.path.exists(out.cache.oid_to_path(oid.value)) for oid in [out.hash_info, *members])  # noqa: PTH110


def _undo(repo: Any, path: str, file: str, before: bytes | None) -> None:
    """Bring the `.dvc` file back as it was: nobody is to take it for a promise."""
    if before is not None:
        Path(file).write_bytes(before)
        return
    Path(file).unlink(missing_ok=True)
    repo.scm_context.ignore_remove(path)


def _complaint(complaints: Complaints) -> str:
    return reason_of(complaints.errors[0]) if complaints.errors else "DVC does not say why"


def _bytes(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
