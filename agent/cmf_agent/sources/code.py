"""What version of the code a run had: commit, branch, remote, and what is changed but not committed.

Rules
- The repository is never changed: the one git process is a plumbing command, which writes no index, and takes no
  optional lock. (`git diff` and `git status` do write, even when told not to take optional locks.)
- Nothing here raises: a repository that can't be read gives `{"error": reason}`.
- HEAD, branch and remotes are read in-process by GitPython; the diff streams through SHA-256 from a process of our
  own, because GitPython can only add to the caller's environment, and inside a git hook that one names another
  repository. Git's own check of who owns the repository (`safe.directory`) stays in force.
- The diff depends on the code alone, not on the user's git configuration.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmf_agent.sources.masking import clean_url

if TYPE_CHECKING:
    from git import Repo

#: Longest diff kept as text, bytes, so that an event holds it; its digest covers all of it.
DIFF_TEXT_BYTES_MAX = 200 << 10
_CHUNK_BYTES = 1 << 20
_ERROR_LENGTH_MAX = 200

#: The commit that an unborn branch is compared with: the empty tree, which git knows by heart.
_EMPTY_TREES = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}

#: What ties a git process to another repository or another result (the first: `git rev-parse --local-env-vars`).
_VARIABLES_LEFT_OUT = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_OBJECT_DIRECTORY",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_GRAFT_FILE",
        "GIT_INDEX_FILE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_REPLACE_REF_BASE",
        "GIT_PREFIX",
        "GIT_SHALLOW_FILE",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_DIFF_OPTS",
        "GIT_EXTERNAL_DIFF",
        "GIT_LITERAL_PATHSPECS",
        "GIT_GLOB_PATHSPECS",
        "GIT_NOGLOB_PATHSPECS",
        "GIT_ICASE_PATHSPECS",
    }
)
_VARIABLES = {
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "LC_ALL": "C",
}
_SETTINGS = (
    "core.quotePath=true",
    "core.attributesFile=/dev/null",
    "core.fsmonitor=false",
    "diff.suppressBlankEmpty=false",
)
_DIFF_OPTIONS = (
    "--patch",
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--unified=3",
    "--inter-hunk-context=0",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--no-relative",
    "-O/dev/null",
    "--submodule=short",
    "--ignore-submodules=untracked",
)
#: Our own folder changes with every event, even where somebody has committed it. So do the files that DVC writes: they name data, which
#: is recorded with its own digests, and a run's own outputs change them.
_PATHS = (
    "--",
    ":/",
    ":(top,exclude,glob)**/.cmf/**",
    ":(top,exclude,glob)**/*.dvc",
    ":(top,exclude,glob)**/dvc.lock",
    ":(top,exclude,glob)**/.gitignore",
)


Code = dict[str, object] | None


class _Unreadable(Exception):
    """A state of a repository that can't be recorded; the text is its reason."""


def capture_code(start: Path, *, full_diff: bool = False, diff: bool = True) -> Code:
    """Return what code lies at `start`, a file or folder, or None if no git repository holds it.

    Keys: `commit` (None on an unborn branch), `branch` (None if HEAD is detached), `remote` (without credentials,
    None if there is none), `dirty` (changes to tracked files), `diff_sha256` (of the diff against HEAD, None if
    clean), with `full_diff` also `diff` and `diff_truncated`; without `diff` the first three only, which takes 1 ms
    instead of 15. Instead of all these, `error` if they can't be read.
    """
    return begin_capture(start, full_diff=full_diff, diff=diff)()


def begin_capture(start: Path, *, full_diff: bool = False, diff: bool = True) -> Callable[[], Code]:
    """Begin what `capture_code` does, and return what does the rest of it; git compares meanwhile."""
    reading = _reading(start, full_diff, diff)
    first = next(reading)
    return lambda: [first, *reading][-1]


def _reading(start: Path, full_diff: bool, with_diff: bool) -> Iterator[Code]:
    """Yield what is known while git compares, then all."""
    try:
        repo = _open(start)
        if repo is None:
            yield None
            return
        with repo:
            yield from _read(repo, full_diff, with_diff)
    except _Unreadable as error:
        yield {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - GitPython raises anything over a damaged repository; the run goes on
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        yield {"error": f"the repository can't be read: {reason}"[:_ERROR_LENGTH_MAX]}


def _open(start: Path) -> "Repo | None":
    git = _import_git()
    folder = start.absolute()
    if not folder.is_dir():
        folder = folder.parent
    try:
        repo: Repo = git.Repo(str(folder), search_parent_directories=True, expand_vars=False)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        if _looks_like_repository(folder):
            raise _Unreadable("the repository is damaged: its .git is not one that git knows") from error
        return None
    return repo


def _import_git() -> Any:
    """Import GitPython, which otherwise refuses to be imported where there is no git program."""
    variable = "GIT_PYTHON_REFRESH"
    before = os.environ.get(variable)
    os.environ[variable] = "quiet"
    try:
        import git
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
    return git


def _looks_like_repository(folder: Path) -> bool:
    return any(os.path.lexists(path / ".git") for path in (folder, *folder.parents))


def _read(repo: "Repo", full_diff: bool, with_diff: bool) -> Iterator[Code]:
    if repo.bare or repo.working_tree_dir is None:
        raise _Unreadable("the repository is bare: it has no working files")
    config = repo.config_reader("repository")
    object_format = str(config.get_value("extensions", "objectformat", "sha1"))
    reference_storage = str(config.get_value("extensions", "refstorage", "files"))
    known_to_gitpython = object_format == "sha1" and reference_storage == "files"
    commit, branch = (_head if known_to_gitpython else _head_by_git)(repo)
    code: dict[str, object] = {"commit": commit, "branch": branch}
    if not with_diff:
        yield code | {"remote": _remote(config, branch)}
        return
    arguments = ["diff-index", *_DIFF_OPTIONS, commit or _EMPTY_TREES[object_format], *_PATHS]
    with tempfile.TemporaryFile() as complaints, _process(repo, arguments, complaints) as process:
        code["remote"] = _remote(config, branch)
        yield code
        digest, text, truncated = _diff(process, complaints, DIFF_TEXT_BYTES_MAX if full_diff else 0)
    code |= {"dirty": digest is not None, "diff_sha256": digest}
    yield code | {"diff": text, "diff_truncated": truncated} if full_diff else code


def _head(repo: "Repo") -> tuple[str | None, str | None]:
    """Return the commit (None if unborn) and the branch (None if detached)."""
    head = repo.head
    try:
        path = str(head.reference.path)
    except TypeError:  # GitPython's way to say: detached
        return head.dereference_recursive(repo, head.path), None
    branch = path.removeprefix("refs/heads/")
    try:
        return head.dereference_recursive(repo, head.path), branch
    except ValueError:
        if os.path.lexists(Path(repo.common_dir) / path):
            raise  # there, but no reference
        return None, branch


def _head_by_git(repo: "Repo") -> tuple[str | None, str | None]:
    """Return the same where GitPython can't: SHA-256 repositories, references kept in a reftable."""
    branch = _one_line(repo, "symbolic-ref", "--quiet", "--short", "HEAD")
    commit = _one_line(repo, "rev-parse", "--quiet", "--verify", "HEAD")
    if commit is None and branch is None:
        raise _Unreadable("the repository is damaged: its HEAD can't be read")
    return commit, branch


def _one_line(repo: "Repo", *arguments: str) -> str | None:
    with tempfile.TemporaryFile() as complaints, _process(repo, arguments, complaints) as process:
        output = process.communicate()[0]
        if process.returncode > 1:  # 1 is --quiet's way to say no
            raise _Unreadable(_reason(complaints))
    return output.decode().strip() or None


def _remote(config: Any, branch: str | None) -> str | None:
    urls = {
        section[len('remote "') : -1]: str(config.get_values(section, "url")[0])
        for section in config.sections()
        if section.startswith('remote "') and config.has_option(section, "url")
    }
    upstream = str(config.get_value(f'branch "{branch}"', "remote", "")) if branch else ""
    url = urls.get(upstream) or urls.get("origin") or next(iter(urls.values()), None)
    return clean_url(url) if url else None


def _diff(process: "subprocess.Popen[bytes]", complaints: Any, keep_bytes: int) -> tuple[str | None, str, bool]:
    """Return the diff's SHA-256 (None if there is none), the start of its text, and whether that was cut."""
    hasher = hashlib.sha256()
    kept = bytearray()
    total = 0
    assert process.stdout is not None
    while chunk := process.stdout.read(_CHUNK_BYTES):
        hasher.update(chunk)
        kept += chunk[: max(0, keep_bytes - total)]
        total += len(chunk)
    if process.wait():
        raise _Unreadable(_reason(complaints))
    # Events hold no U+0000, which stands in a diff if an attribute calls a binary file text.
    text = kept.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    return (hasher.hexdigest() if total else None), text, total > len(kept)


def own_environment() -> dict[str, str]:
    """Return the environment without what ties a git process to another repository, as inside a git hook."""
    return {name: value for name, value in os.environ.items() if name not in _VARIABLES_LEFT_OUT}


def _process(repo: "Repo", arguments: Any, complaints: Any) -> "subprocess.Popen[bytes]":
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    try:
        return subprocess.Popen(
            [repo.git.GIT_PYTHON_GIT_EXECUTABLE or "git", *settings, *arguments],
            cwd=repo.working_tree_dir,
            env=own_environment() | _VARIABLES,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
    except FileNotFoundError as error:
        missing = "git program" if Path(repo.working_dir).is_dir() else "folder of the working files"
        raise _Unreadable(f"the {missing} is missing") from error


def _reason(complaints: Any) -> str:
    complaints.seek(0)
    text = complaints.read().decode("utf-8", "replace")
    if "dubious ownership" in text or "unsafe repository" in text:
        return "git refuses to read the repository: it belongs to another user (git's safe.directory)"
    line = text.strip().partition("\n")[0].removeprefix("fatal: ").removeprefix("error: ")
    return f"git can't read the repository: {line}"[:_ERROR_LENGTH_MAX]
