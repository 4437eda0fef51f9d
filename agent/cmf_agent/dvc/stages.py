"""What DVC knows of a project's stages and `.dvc` files, without reading again what is as it was.

Rules
- DVC reads every `.dvc` file for every `Repo.add`, 2 ms each. Here a `.dvc` file is read again only if it changed; a dvc.yaml always is,
  since what it says depends on other files.
- The stages belong to one `Repo` and are forgotten with it.
- One file that DVC can't read makes it refuse to add anything: the error names that file.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH116, PTH118

import os
from collections.abc import Callable, Iterator
from typing import Any

from cmf_agent.dvc.dvc_files import DVC_SUFFIX
from cmf_agent.dvc.reasons import reason_of
from cmf_protocol.errors import StoreError

#: How many are remembered: 10 KB each.
_REMEMBERED_MAX = 5_000

_Facts = tuple[int, int, int, int]


class Stages:
    """The stages of one `Repo`, as they were read."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Facts, Any]] = {}

    def show(self, repo: Any) -> None:
        """Have `repo`, which is locked, know all its stages as the files tell them now; raise `StoreError` if one can't be read."""
        from dvc.repo.index import Index

        found = dict(_files(repo, self._read))
        self._known = {path: known for path, known in self._known.items() if path in found}
        repo.__dict__["index"] = Index.from_indexes(repo, found.values())

    def forget(self) -> None:
        """Read all again next time: what failed may have left a stage other than its file tells it."""
        self._known = {}

    def _read(self, repo: Any, path: str) -> Any:
        from dvc.repo.index import Index

        facts = _facts(path) if path.endswith(DVC_SUFFIX) else None
        known = self._known.get(path)
        if known is not None and known[0] == facts:
            return known[1]
        try:
            index = Index.from_file(repo, path)
        except Exception as error:
            raise StoreError(
                f"DVC adds nothing while it can't read {path}: {reason_of(error)}",
                "mend that file, bring it back from git, or remove it",
            ) from error
        if facts is not None and len(self._known) < _REMEMBERED_MAX:
            self._known[path] = facts, index
        return index


def _files(repo: Any, read: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    """Yield what each file of DVC's says, as `dvc.repo.index.collect_files` finds them: not in outputs, not what git ignores."""
    from dvc.dvcfile import is_valid_filename

    outs: set[str] = set()
    for folder, folders, names in repo.dvcignore.walk(repo.fs, repo.root_dir, followlinks=False):
        for path in (os.path.join(folder, name) for name in names if is_valid_filename(name)):
            if not repo.scm.is_ignored(path):
                index = read(repo, path)
                outs.update(out.fspath for stage in index.stages for out in stage.outs if out.protocol == "local")
                yield path, index
        inside = [(name, os.path.join(folder, name)) for name in folders]
        folders[:] = [name for name, path in inside if path not in outs and not repo.scm.is_ignored(f"{path}/")]


def _facts(path: str) -> _Facts | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
