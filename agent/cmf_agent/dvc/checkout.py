"""Puts contents from DVC's cache where their names say, below one folder.

Rules
- Names come from metadata, and may be hostile: what is no plain path below the folder, leaves it through a link, or would write into
  git's, DVC's or our own files is refused.
- What is there with other content stays, unless the caller forces it. What is put there is a copy, checked while it is copied; it gets its
  name when all of it is there.
"""

# os.path: Path.resolve would follow links where it must not.
# ruff: noqa: PTH108, PTH112, PTH118, PTH120, PTH123

import os
import shutil
from contextlib import suppress
from hashlib import md5
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

from cmf_agent.dvc.dvc_files import cached_path, read_manifest
from cmf_agent.dvc.stores import Cache
from cmf_agent.dvc.transfer import carries
from cmf_graph.content.files import hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_graph.database import store_errors
from cmf_graph.text import shorter
from cmf_protocol.errors import CallerError, IntegrityError

#: Folders that decide what programs do; nothing is put into them.
RESERVED = frozenset((".git", ".dvc", ".cmf", ".hg", ".svn"))
_CHUNK = 1 << 20
#: What Linux's and macOS's file systems take as the name of one file.
_NAME_BYTES_MAX = 255

State = Literal["placed", "there", "kept", "refused"]


class Placed(NamedTuple):
    """Where a content was to be put, and whether it is there now (`placed`, `there` before), or why not."""

    path: str
    state: State
    reason: str = ""


def check_out(
    cache: Cache, content_id: str, folder: Path, name: str, memory: DigestMemory, *, force: bool = False
) -> Placed:
    """Put a content, which the cache holds, at `name` below `folder`.

    Raises `IntegrityError` if the cache's copy is damaged, `StoreError` if it can't be written.
    """
    root = os.path.abspath(folder)  # noqa: PTH100
    try:
        target = _below(root, name)
    except CallerError as error:
        return Placed(name, "refused", f"{error}; {error.hint}")
    if os.path.lexists(target):
        if _content_at(target, memory) == content_id:
            return Placed(target, "there")
        if not force:
            return Placed(target, "kept", "something else is there; --force replaces it")
        if _holds_reserved(target):
            return Placed(target, "refused", "the folder there holds files of git, DVC or cmf-sync")
    with store_errors(target):
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103
        except (FileExistsError, NotADirectoryError):
            return Placed(target, "kept", "a file is where its folder would be")
        part = os.path.join(os.path.dirname(target), f".cmf-{uuid4().hex}")
        try:
            if content_id.endswith(".dir"):
                _copy_folder(cache, content_id, part)
            else:
                _copy(cache, content_id, part)
            _swap(part, target)
        except CallerError as error:  # a folder may hold hostile names too
            return Placed(target, "refused", str(error))
        finally:
            _remove(part)
    return Placed(target, "placed")


def plain_parts(name: str) -> list[str]:
    """Return the parts of a path that stays where it is put; raise `CallerError` for any other."""
    parts = name.split("/")
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError as error:
        raise CallerError(f"{name!r} is not valid Unicode text", "name another artifact") from error
    if max(sizes) > _NAME_BYTES_MAX:
        raise CallerError(f"{shorter(name, 80)!r} is too long for a file's name", "name another artifact")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise CallerError(f"{name!r} is no path inside of the project", "put it elsewhere: --to DIR")
    if any(part.casefold() in RESERVED for part in parts):
        raise CallerError(f"{name!r} would be among the files of git, DVC or cmf-sync", "name another artifact")
    return parts


def _below(root: str, name: str) -> str:
    """Return the path of `name` below `root`; raise `CallerError` if that is none, or a link leads elsewhere."""
    target = os.path.join(root, *plain_parts(name))
    real_root, real_parent = os.path.realpath(root), os.path.realpath(os.path.dirname(target))
    if os.path.commonpath([real_root, real_parent]) != real_root:
        raise CallerError(f"{name!r} leads out of the project through a link", "put it elsewhere: --to DIR")
    inside = os.path.relpath(real_parent, real_root)
    if any(part.casefold() in RESERVED for part in Path(inside).parts):
        raise CallerError(f"{name!r} leads into the files of git, DVC or cmf-sync", "name another artifact")
    return target


def _content_at(path: str, memory: DigestMemory) -> str | None:
    try:
        return hash_path(Path(path), memory=memory).content_id
    except CallerError:  # a broken link, a device: something else
        return None


def _holds_reserved(path: str) -> bool:
    """Tell if a folder holds a repository or a home: with it more would go than what is seen."""
    if os.path.islink(path):  # noqa: PTH114
        return False
    return any(name.casefold() in RESERVED for _, folders, files in os.walk(path) for name in (*folders, *files))


def _copy_folder(cache: Cache, content_id: str, part: str) -> None:
    manifest = read_manifest(cache.folder, content_id)
    if manifest is None:
        raise _damaged(cached_path(cache.folder, content_id))
    os.mkdir(part)  # noqa: PTH102
    for name, digest in manifest.items():
        if not carries(f"md5:{digest}"):
            raise CallerError(f"{digest!r} in the folder's manifest is no md5", "name another artifact")
        target = os.path.join(part, *plain_parts(name))
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103
        _copy(cache, f"md5:{digest}", target)


def _copy(cache: Cache, content_id: str, part: str) -> None:
    source = cached_path(cache.folder, content_id)
    digest = md5(usedforsecurity=False)
    with open(source, "rb") as file, open(part, "xb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    if f"md5:{digest.hexdigest()}" != content_id:
        raise _damaged(source)


def _damaged(path: str) -> IntegrityError:
    return IntegrityError(f"{path} in DVC's cache is damaged", "remove that file, and pull it again")


def _swap(part: str, target: str) -> None:
    """Give what was made its name; what had it goes."""
    aside = f"{part}.old"
    if os.path.lexists(target):
        os.rename(target, aside)  # noqa: PTH104
    try:
        os.rename(part, target)  # noqa: PTH104
    except BaseException:
        if os.path.lexists(aside):
            os.rename(aside, target)  # noqa: PTH104
        raise
    _remove(aside)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH114
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)
