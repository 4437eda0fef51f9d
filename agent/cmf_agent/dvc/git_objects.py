"""Asks git which of its objects hold what DVC wrote, and commits just these files when the user wants that.

Rules
- Reading is plumbing that takes no optional lock. What git can't or won't tell (no git program, another user's repository) is taken
  as *not known*: a location then names no commit.
- A commit is `git commit --only`: of the files named, as the user, with the hooks; the index keeps what else is staged. Never in the
  midst of a merge or a rebase, never a branch switch, never a push. What we had to add to the index first is taken out again if it fails.
"""

# os.path: git's paths are texts.
# ruff: noqa: PTH110, PTH118, PTH120

import hashlib
import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from cmf_agent.dvc.git_folders import checked_out, object_format
from cmf_protocol.errors import StoreError

#: How long git may take, s: a commit runs the user's hooks.
READ_WAIT_S, COMMIT_WAIT_S = 30.0, 120.0
_REASON_CHARS_MAX = 300
_VARIABLES = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
_MERGING = (
    ("MERGE_HEAD", "a merge"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("rebase-merge", "a rebase"),
    ("rebase-apply", "a rebase"),
)


class Head(NamedTuple):
    """The commit that is checked out (None: not known, or none yet), and the blobs that it holds, by path."""

    commit: str | None
    blobs: dict[str, str]


def top_folder(path: str) -> str | None:
    """Return the working tree that holds the absolute `path`, or None."""
    folder = os.path.dirname(path)
    while not os.path.exists(os.path.join(folder, ".git")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return folder


def head_commit(top: str) -> str | None:
    """Return the commit that is checked out at `top`, without a process where its files tell that; None: not known, or none yet."""
    return checked_out(top) or read_head(top).commit


def read_head(top: str, paths: Sequence[str] = ()) -> Head:
    """Return HEAD of the working tree at `top` and the blobs that it has at `paths` (from `top`, with slashes)."""
    asked = [path for path in paths if "\n" not in path]
    lines = ["HEAD^{commit}", *(f"HEAD:{path}" for path in asked)]
    content = os.fsencode("".join(f"{line}\n" for line in lines))
    answer = _read(top, ["cat-file", "--batch-check"], content)
    if answer is None:
        return Head(None, {})
    found = [line.split(b" ") for line in answer.splitlines()]
    ids = [words[0].decode() if words[1:2] in ([b"blob"], [b"commit"]) else None for words in found]
    commit = ids[0] if ids else None
    blobs = {path: blob for path, blob in zip(asked, ids[1:], strict=False) if blob is not None}
    return Head(commit, blobs)


def tracked_files(top: str, path: str) -> list[str]:
    """Return the files that git's index has at `path` or in that folder, from `top`."""
    answer = _read(top, ["--literal-pathspecs", "ls-files", "-z", "--", path])
    return [os.fsdecode(name) for name in (answer or b"").split(b"\0") if name]


def blob_of_file(top: str, path: str) -> str | None:
    """Return the id of the blob that git would make of the file at `path` from `top`, or None if it can't tell."""
    answer = _read(top, ["hash-object", "--", path])
    return answer.decode().strip() or None if answer else None


def blob_id(top: str, content: bytes) -> str:
    """Return git's id of these bytes, in the object format of the repository at `top`."""
    hasher = hashlib.new(object_format(top), usedforsecurity=False)
    hasher.update(b"blob %d\0" % len(content))
    hasher.update(content)
    return hasher.hexdigest()


def committed_text(top: str, path: str) -> str | None:
    """Return the text that HEAD has at `path` from `top`, None if there is none."""
    answer = _read(top, ["cat-file", "blob", f"HEAD:{path}"])
    return None if answer is None else answer.decode("utf-8", "replace")


def commit_files(top: str, paths: Sequence[str], message: str) -> None:
    """Commit the files at `paths` (from `top`) as they are now, if HEAD has them otherwise, and nothing else.

    Raises `StoreError` if git refuses, in the midst of a merge or rebase for instance.
    """
    _refuse_midst(top)
    added = [path for path in paths if not tracked_files(top, path)]
    try:
        if added:
            _must(top, ["--literal-pathspecs", "add", "--", *added], READ_WAIT_S)
        if _must(top, ["--literal-pathspecs", "status", "--porcelain", "--", *paths], READ_WAIT_S):
            _must(
                top, ["--literal-pathspecs", "commit", "--quiet", "--only", "-m", message, "--", *paths], COMMIT_WAIT_S
            )
    except StoreError:
        if added:
            _run(
                top, ["--literal-pathspecs", "rm", "--cached", "--quiet", "--ignore-unmatch", "--", *added], READ_WAIT_S
            )
        raise


def _refuse_midst(top: str) -> None:
    folder = _must(top, ["rev-parse", "--absolute-git-dir"], READ_WAIT_S).strip()
    for name, what in _MERGING:
        if os.path.exists(os.path.join(folder, name)):
            raise StoreError(
                f"{top} is in the midst of {what}, nothing is committed",
                "finish it, then commit what is named yourself",
            )


def _read(top: str, arguments: Sequence[str], content: bytes = b"") -> bytes | None:
    """Return what git answers, or None if it refuses."""
    try:
        done = _run(top, ["-c", "core.fsmonitor=false", *arguments], READ_WAIT_S, content)
    except StoreError:
        return None
    return done.stdout if done.returncode == 0 else None


def _must(top: str, arguments: Sequence[str], wait_s: float) -> str:
    """Return what git answers; raise `StoreError` with its words if it refuses."""
    done = _run(top, arguments, wait_s)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).decode("utf-8", "replace").split())
        raise StoreError(
            f"git in {top}: {said[:_REASON_CHARS_MAX] or 'it refuses'}", "see what `git commit` says there"
        )
    return os.fsdecode(done.stdout)


def _run(
    top: str, arguments: Sequence[str], wait_s: float, content: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    from cmf_agent.sources.code import own_environment

    try:
        process = subprocess.Popen(
            ["git", *arguments],
            cwd=top,
            env=own_environment() | _VARIABLES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise StoreError("there is no git program here", "install git") from error
    except OSError as error:
        raise StoreError(f"git in {top}: {error.strerror}", "see what `git status` says there") from error
    with process:
        try:
            output, complaints = process.communicate(content, timeout=wait_s)
        except BaseException as error:
            process.terminate()  # and so lets it take its lock files away
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            hint = "see what it waits for: a hook, a key's passphrase"
            raise StoreError(f"git in {top}: no answer for {wait_s:.0f} s", hint) from error
    return subprocess.CompletedProcess(arguments, process.returncode, output, complaints)
