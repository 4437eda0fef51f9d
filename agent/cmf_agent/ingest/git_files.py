"""Reads what git holds of some files: commits, the files' content in them, where the repository comes from. Nothing is changed.

Rules
- Only plumbing and `log`, which write nothing; what ties a git process to another repository (inside a hook, for one) is left out.
- Where git or a repository is missing there is no `GitFiles`; what git can't or won't read (another user's repository) is a `StoreError`
  with its own words: without commits the same lock would be told otherwise.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cmf_agent.sources.masking import clean_url
from cmf_protocol.errors import StoreError

#: What git says where there are no working files of a repository: that is no failure.
_NO_WORKING_FILES = (b"not a git repository", b"must be run in a work tree")
#: Which files of settings git reads; it is by them that one user's repository is another's to read.
_SETTINGS = frozenset({"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"})
_HINT = "run `git fsck`, or name a repository that git can read"


class Commit(NamedTuple):
    """A commit: its id and when it was written, µs UTC."""

    id: str
    at_us: int


class Blob(NamedTuple):
    """A file as git holds it: its id and its bytes."""

    id: str
    content: bytes


class GitFiles:
    """Reads the repository whose working files are at `root`; made by `git_files`."""

    def __init__(self, root: Path, reader: "subprocess.Popen[bytes]") -> None:
        self.root = root
        self._reader = reader
        self.repo = _remote(root)
        self.name = _folder_name(root)

    def path(self, file: Path) -> str | None:
        """Return a file's path from the root of the repository, None if it lies outside."""
        full = Path(os.path.realpath(file.parent)) / file.name
        return full.relative_to(self.root).as_posix() if full.is_relative_to(self.root) else None

    def commits(self, path: str) -> Iterator[Commit]:
        """Yield the commits that changed the file at `path`, the newest first."""
        lines = _output(self.root, "log", "--topo-order", "--format=%H %at", "HEAD", "--", f":(top,literal){path}")
        for line in lines.split(b"\n"):
            commit, _, seconds = line.decode().partition(" ")
            if commit:
                yield Commit(commit, int(seconds) * 1_000_000)

    def has_commits(self) -> bool:
        """Tell if there is a commit at all."""
        return bool(_output(self.root, "rev-parse", "--quiet", "--verify", "HEAD", may_fail=True))

    def blob(self, commit: str, path: str) -> Blob | None:
        """Return the file at `path` as `commit` has it, None if it has none there."""
        if "\n" in path:  # one question is one line
            return None
        assert self._reader.stdin is not None
        assert self._reader.stdout is not None
        try:
            self._reader.stdin.write(f"{commit}:{path}\n".encode(errors="surrogateescape"))
            self._reader.stdin.flush()
        except BrokenPipeError as error:
            raise StoreError(f"git can't read the repository at {self.root}", _HINT) from error
        answer = self._reader.stdout.readline().split()
        if len(answer) != 3:
            return None
        content = self._reader.stdout.read(int(answer[2]))
        self._reader.stdout.read(1)
        return Blob(answer[0].decode(), content) if answer[1] == b"blob" else None


@contextmanager
def git_files(folder: Path) -> Iterator[GitFiles | None]:
    """Lend what git holds of the repository around `folder`; None where there is none, or no git."""
    root = repository_root(folder)
    if root is None:
        yield None
        return
    reader = subprocess.Popen(
        ["git", "cat-file", "--batch"],
        cwd=root,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield GitFiles(root, reader)
    finally:
        reader.communicate()


def repository_root(folder: Path) -> Path | None:
    """Return the root of the working files of the repository around `folder`, None if there is none or no git."""
    command = ["git", "rev-parse", "--show-toplevel"]
    try:
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode and not any(reason in done.stderr for reason in _NO_WORKING_FILES):
        raise _refused(folder, done.stderr)
    found = done.stdout.rstrip(b"\n")
    return Path(os.path.realpath(os.fsdecode(found))) if found else None


def hooks_folder(root: Path) -> Path:
    """Return the folder of the repository's hooks, as `core.hooksPath` has it."""
    return root / os.fsdecode(_output(root, "rev-parse", "--git-path", "hooks").rstrip(b"\n"))


def environment() -> dict[str, str]:
    """Return the process's environment without what ties git to another repository, index or set of settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _SETTINGS}
    return kept | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}


def _folder_name(root: Path) -> str:
    """Return the name of the repository's folder, which all its linked working trees share."""
    common = Path(os.path.realpath(root / os.fsdecode(_output(root, "rev-parse", "--git-common-dir").rstrip(b"\n"))))
    return common.parent.name if common.name == ".git" else root.name


def _remote(root: Path) -> str | None:
    """Return the address of `origin`, else of the first remote, without credentials."""
    lines = (
        _output(root, "config", "--get-regexp", r"^remote\..*\.url$", may_fail=True)
        .decode("utf-8", "replace")
        .splitlines()
    )
    urls = dict(reversed([line.split(" ", 1) for line in lines if " " in line]))
    url = urls.get("remote.origin.url") or next(reversed(urls.values()), None)
    return clean_url(url) if url else None


def _output(root: Path, *arguments: str, may_fail: bool = False) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=root, env=environment(), capture_output=True, check=False)
    if done.returncode and not may_fail:
        raise _refused(root, done.stderr)
    return done.stdout if not done.returncode else b""


def _refused(root: Path, said: bytes) -> StoreError:
    reason = said.decode("utf-8", "replace").strip().partition("\n")[0].removeprefix("fatal: ")
    hint = f"git config --global --add safe.directory '{root}'" if "dubious ownership" in reason else _HINT
    return StoreError(f"git can't read the repository at {root}: {reason}", hint)
