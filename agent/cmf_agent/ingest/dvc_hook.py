"""Git's hooks that ingest a lock file when a commit or a merge has changed it.

Rules
- A hook never fails a commit, writes nothing where all went well, and where no lock file changed costs one `git diff-tree`.
- What is in a hook already stays as it is: ours is a part between two marks, put behind its first line, since a hook may end with `exec`.
- Installing again replaces our part, uninstalling takes it out, and a file in which nothing else was.
"""

import os
import shlex
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from cmf_agent.ingest.git_files import hooks_folder, repository_root
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError

_BEGIN, _END = "# >>> cmf-agent ingest dvc >>>", "# <<< cmf-agent ingest dvc <<<"
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
#: What a hook that can't hold our part may run instead, and the folder of hooks that husky writes.
_LINE, _HUSKY = "cmf-agent ingest dvc --quiet || :", (".husky", "_")
_FIRST_LINE = "#!/bin/sh\n"
#: The commits that git's hook compares: those of one commit and its parents, or those before and after a merge.
_HOOKS = {"post-commit": "--root -m HEAD", "post-merge": "ORIG_HEAD HEAD"}
_PART = """\
{begin} (out again: cmf-agent ingest dvc --uninstall-hook)
git -c core.quotePath=false diff-tree -r --no-commit-id --name-only --diff-filter=d {commits} -- ':(top,glob)**/dvc.lock' |
  sort -u | while IFS= read -r lock; do
    cmf_agent={agent}; [ -x "$cmf_agent" ] || cmf_agent=cmf-agent
    "$cmf_agent" ingest dvc --quiet {options}-- "$lock" </dev/null || :
  done || :
{end}
"""


def install_hooks(folder: Path, options: Sequence[str]) -> list[Path]:
    """Put our part into the hooks of the repository around `folder` and return their files; `options` go to `ingest dvc`.

    Raises `CallerError` where a hook is there that is no shell script, or that git would not run.
    """
    hooks = _hooks(folder)
    for path in hooks:
        if path.parts[-3:-1] == _HUSKY:
            own = path.parents[1] / path.name
            raise CallerError(f"husky writes {path.parent} anew at each install", f"put `{_LINE}` into {own} yourself")
    texts = {path: _with_part(path, commits, options) for path, commits in hooks.items()}
    for path, text in texts.items():
        with store_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text)
    return list(texts)


def uninstall_hooks(folder: Path) -> list[Path]:
    """Take our part out of the hooks of the repository around `folder` and return the files that had it."""
    changed = []
    for path in _hooks(folder):
        text = _text(path)
        if _BEGIN not in text:
            continue
        rest = _without_part(text)
        if rest.strip() in ("", _FIRST_LINE.strip()):
            with store_errors(str(path)):
                path.unlink()
        else:
            _write(path, rest)
        changed.append(path)
    return changed


def _hooks(folder: Path) -> dict[Path, str]:
    root = repository_root(folder)
    if root is None:
        raise CallerError(
            f"{folder.absolute()} is in no git repository with working files", "run `git init`, or go to one"
        )
    hooks = hooks_folder(root)
    return {hooks / name: commits for name, commits in _HOOKS.items()}


def _with_part(path: Path, commits: str, options: Sequence[str]) -> str:
    text = _without_part(_text(path)) or _FIRST_LINE
    first, rest = text.partition("\n")[0], text.partition("\n")[2]
    words = [word for word in first.removeprefix("#!").split() if not word.startswith("-")]
    names = [Path(word).name for word in words if first.startswith("#!")]
    shell = next((name for name in names if name != "env"), "")
    if shell not in _SHELLS:
        raise CallerError(f"{path} is there and is no shell script", f"have it run `{_LINE}` itself")
    if path.exists() and not path.stat().st_mode & stat.S_IXUSR:
        raise CallerError(f"{path} is there but git does not run it: it is not executable", "chmod +x it, or remove it")
    given = "".join(f"{shlex.quote(word)} " for word in options)
    part = _PART.format(begin=_BEGIN, end=_END, commits=commits, agent=shlex.quote(_command()), options=given)
    return f"{first}\n{part}{rest}"


def _without_part(text: str) -> str:
    before, begin, after = text.partition(_BEGIN)
    return before + after.partition(_END + "\n")[2] if begin else text


def _command() -> str:
    """Return the path of this installation's command: git's hooks often run without its environment."""
    beside = Path(sys.executable).with_name("cmf-agent")
    return str(beside) if beside.exists() else shutil.which("cmf-agent") or "cmf-agent"


def _text(path: Path) -> str:
    with store_errors(str(path)):
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""


def _write(path: Path, text: str) -> None:
    with store_errors(str(path)):
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode if target.exists() else 0o755
        new = target.with_name(f"{target.name}.cmf-new")
        new.write_text(text, encoding="utf-8", errors="surrogateescape")
        new.chmod(mode)
        new.replace(target)
