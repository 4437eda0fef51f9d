"""DVC's repository, used in this process through its Python API; only what is here and lent from here touches DVC.

Rules
- Quiet (`quiet.py`), and one thread at a time. Processes of ours that need DVC's own lock queue on `.dvc/tmp/cmf.lock`, since that gives
  up after three seconds.
- A repository is opened once per process and root, anew when its configuration changed. A fork waits for what is going on, and closes it.
- Everything that DVC, git or the system raises leaves as a `StoreError`: `DvcBusy` if somebody else holds DVC's lock.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH118

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.dvc.quiet import Complaints, import_repo, quiet
from cmf_agent.dvc.reasons import hint_of, reason_of
from cmf_agent.dvc.stages import Stages
from cmf_agent.forking import FORK_WAIT_S, Forkable, renew_after_fork
from cmf_agent.locking import QueueLock
from cmf_protocol.errors import CallerError, CmfError, StoreError

#: How long one waits for the others of ours, s: each holds the repository for one file or folder.
QUEUE_WAIT_S = 60.0
#: How long a thread waits for the others of its process, s: the one whose turn it is may be waiting in the queue, then works for all.
THREAD_WAIT_S = 2 * QUEUE_WAIT_S
#: In the environment of a command that `dvc repro` runs: which stage it is.
STAGE_VARIABLE = "DVC_STAGE"
_CONFIG_FILES = ("config", "config.local")


class DvcBusy(StoreError):
    """Somebody else holds DVC's lock."""


class Lent(NamedTuple):
    """DVC's `Repo`, what was read of its stages, and what DVC complains of while it is lent."""

    repo: Any
    stages: Stages
    complaints: Complaints


def is_installed() -> bool:
    """Tell if DVC can be imported, without doing so."""
    return "dvc" in sys.modules or find_spec("dvc") is not None


def require_dvc() -> None:
    """Raise `CallerError` if DVC is not installed."""
    if not is_installed():
        raise CallerError("DVC is not installed", "install it: pip install 'cmf-sync[dvc]'")


@contextmanager
def repository(root: str, *, wait_s: float = QUEUE_WAIT_S) -> Iterator[Any]:
    """Lend DVC's `Repo` of the project at the absolute `root`, quiet, to this thread alone.

    Raises `CallerError` without DVC, `StoreError` if others of ours keep it longer than `wait_s` seconds, and for all that goes wrong
    in the block.
    """
    require_dvc()
    with _repositories.lend(root, wait_s) as lent, dvc_errors(root):
        yield lent.repo


@contextmanager
def thread_turn(root: str) -> Iterator[None]:
    """Wait until no other thread of this process uses a repository; raise `DvcBusy` after `THREAD_WAIT_S` seconds."""
    with _repositories.turn(root, THREAD_WAIT_S):
        yield


@contextmanager
def queued_repository(root: str) -> Iterator[Lent]:
    """Lend the same, and what is known of it, with all processes of ours in a queue: for what needs DVC's own lock.

    Raises `DvcBusy` if it is not this one's turn within `QUEUE_WAIT_S` seconds.
    """
    require_dvc()
    with _repositories.lend(root, QUEUE_WAIT_S, in_queue=True) as lent, dvc_errors(root):
        yield lent


class _Repositories(Forkable):
    """The repositories of this process, by root."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._busy = False
        self._opened: dict[str, tuple[object, Any, Stages]] = {}
        self._queues: dict[str, QueueLock] = {}
        self._turns_for_forks: list[bool] = []
        self._stranded: list[Any] = []
        renew_after_fork(self)

    @contextmanager
    def turn(self, root: str, wait_s: float) -> Iterator[None]:
        turn = self._turn
        if not turn.acquire(timeout=wait_s):
            raise DvcBusy(f"DVC's repository {root} is in use by another thread for {wait_s:.0f} s", "try again later")
        try:
            yield
        finally:
            turn.release()

    @contextmanager
    def lend(self, root: str, wait_s: float, *, in_queue: bool = False) -> Iterator[Lent]:
        with self.turn(root, wait_s):
            if self._busy:
                raise StoreError(
                    "DVC is in the midst of what this signal interrupted", "record files outside of signal handlers"
                )
            self._busy = True
            try:
                with dvc_errors(root), self._queue(root) if in_queue else nullcontext(), quiet() as complaints:
                    yield Lent(*self._repo(root), complaints)
            finally:
                self._busy = False

    def before_fork(self) -> None:
        """Wait for what is going on, and close what is open."""
        got = self._turn.acquire(timeout=FORK_WAIT_S)
        self._turns_for_forks.append(got)
        if got and not self._busy:
            for _, repo, _ in self._opened.values():
                with suppress(Exception):
                    repo.close()
            self._opened = {}
            for queue in self._queues.values():
                queue.close()

    def after_fork_in_parent(self) -> None:
        """Let the other threads go on."""
        if self._turns_for_forks and self._turns_for_forks.pop():
            self._turn.release()

    def after_fork(self) -> None:
        """Start afresh in a forked child; what is open after all is neither used nor closed there."""
        self._turn, self._busy, self._turns_for_forks = threading.RLock(), False, []
        self._stranded += self._opened.values()
        self._opened, self._queues = {}, {}

    @contextmanager
    def _queue(self, root: str) -> Iterator[None]:
        folder = Path(root, ".dvc", "tmp")
        folder.mkdir(exist_ok=True)
        if root not in self._queues:
            self._queues[root] = QueueLock(folder / "cmf.lock", QUEUE_WAIT_S)
        with ExitStack() as stack:
            try:
                stack.enter_context(self._queues[root])
            except StoreError as error:
                raise DvcBusy(str(error), error.hint) from error
            yield

    def _repo(self, root: str) -> tuple[Any, Stages]:
        state = [_facts(os.path.join(root, ".dvc", name)) for name in _CONFIG_FILES]
        known, repo, stages = self._opened.pop(root, (None, None, Stages()))
        if repo is not None and known != state:
            repo.close()
            repo = None
        if repo is None:
            repo, stages = import_repo()(root), Stages()
        self._opened[root] = state, repo, stages
        return repo, stages


_repositories = _Repositories()


def _facts(path: str) -> object:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


@contextmanager
def dvc_errors(root: str) -> Iterator[None]:
    """Turn all that DVC raises into our errors."""
    try:
        yield
    except CmfError:
        raise
    except Exception as error:
        raise _as_ours(root, error) from error


def _as_ours(root: str, error: Exception) -> StoreError:
    reason = reason_of(error)
    if type(error).__name__ == "LockError":  # DVC's own; where DVC can't be imported, there is no class to ask for
        holder = reason if "busy" in reason else "another DVC process works in this repository"
        return DvcBusy(f"{root}: {holder}", "wait until it is done, or end it")
    return StoreError(f"DVC in {root}: {reason}", hint_of(error))
