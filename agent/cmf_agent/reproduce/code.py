"""Brings the code of a recorded execution back: finds the commit here, or clones it, and applies what was not committed.

Rules
- The user's own checkout is read, never changed: what is made is a clone of its own, with its HEAD detached.
- Nothing of the repository is run: no hooks, no helper that an address names. What git is given was checked (`plan.is_fetchable`).
- What git refuses is a `StoreError` with its own words.
"""

import os
import subprocess
from pathlib import Path

from cmf_agent.reproduce.plan import Code, is_fetchable
from cmf_protocol.errors import StoreError

_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "advice.detachedHead=false",
    "protocol.ext.allow=never",
)
#: What a user says of connections and of configuration; the rest ties git to another repository, as inside a hook.
_KEPT = ("GIT_SSH", "GIT_ASKPASS", "GIT_SSL_", "GIT_PROXY_", "GIT_HTTP_", "GIT_TERMINAL_PROMPT", "GIT_CONFIG_GLOBAL",
         "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH", "GIT_TRACE")  # fmt: skip
_REASON_CHARS_MAX = 300


def local_repository(folder: Path, commit: str) -> Path | None:
    """Return the root of the repository around `folder` if it has `commit`."""
    try:
        root = Path(os.fsdecode(git("rev-parse", "--show-toplevel", cwd=folder).rstrip(b"\n")))
        git("cat-file", "-e", f"{commit}^{{commit}}", cwd=root)
    except StoreError:
        return None
    return root


def clone_code(code: Code, source: Path | str, target: Path, *, borrow: bool = False) -> None:
    """Make at `target` a clone of `source`, a repository here or an address, with the recorded commit checked out.

    With `borrow` it reads the objects of a repository here instead of having its own: for one that is soon removed again.
    """
    assert code.commit is not None
    origin = str(source)
    if isinstance(source, str) and not is_fetchable(source):
        raise StoreError(
            f"the address {source!r} is refused", "clone the repository yourself, and run this in the clone"
        )
    how = ["--quiet", "--no-checkout", "--origin", "origin", *(["--shared"] if borrow else [])]
    git("clone", *how, "--", origin, str(target), cwd=target.parent)
    if not _has(target, code.commit):  # on no branch
        git("fetch", "--quiet", "--no-tags", "origin", code.commit, cwd=target)
    git("checkout", "--quiet", "--detach", code.commit, cwd=target)
    if code.repo is not None and is_fetchable(code.repo):
        git("remote", "set-url", "origin", code.repo, cwd=target)
    else:
        git("remote", "remove", "origin", cwd=target)


def apply_diff(diff: str, target: Path) -> None:
    """Apply the recorded diff to the files in a clone, all of it or nothing."""
    git("apply", "--whitespace=nowarn", "-", cwd=target, text=diff)


def has_submodules(root: Path, commit: str) -> bool:
    """Tell if a commit names other repositories that it needs."""
    return _has(root, f"{commit}:.gitmodules")


def has_file(root: Path, commit: str, path: str) -> bool:
    """Tell if a commit of a repository has a file or folder at `path`, from its root."""
    return _has(root, f"{commit}:{path}")


def has_blob(root: Path, blob: str) -> bool:
    """Tell if a repository holds a blob; its id must be one (hexadecimal)."""
    return _has(root, f"{blob}^{{blob}}")


def read_blob(root: Path, blob: str, target: Path) -> None:
    """Write what a blob holds to `target`."""
    with target.open("wb") as file:
        git("cat-file", "blob", blob, cwd=root, output=file.fileno())


def _has(root: Path, object_: str) -> bool:
    try:
        git("cat-file", "-e", object_, cwd=root)
    except StoreError:
        return False
    return True


def git(*arguments: str, cwd: Path, text: str | None = None, output: int = subprocess.PIPE) -> bytes:
    """Run git in a folder and return what it prints, or write that to the file `output`; `text` is its standard input."""
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(_KEPT)}
    try:
        done = subprocess.run(
            ["git", *settings, *arguments],
            cwd=cwd,
            env=kept | {"GIT_ALLOW_PROTOCOL": "https:http:ssh:file", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"},
            input=None if text is None else text.encode(),
            stdin=subprocess.DEVNULL if text is None else None,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise StoreError(f"git can't be run in {cwd}: {error.strerror}", "install git") from error
    if done.returncode:
        raise StoreError(_reason(done.stderr, arguments[0]), "see that git can reach and read that repository")
    return done.stdout or b""


def _reason(complaint: bytes, verb: str) -> str:
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    said = [
        line.removeprefix("fatal: ").removeprefix("error: ")
        for line in lines
        if line.startswith(("fatal: ", "error: "))
    ]
    return f"git {verb}: {'; '.join(said or lines or ['it failed'])}"[:_REASON_CHARS_MAX]
