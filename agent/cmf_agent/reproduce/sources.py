"""Finds where the bytes of an input are at hand, and brings them to a place.

Rules
- Bytes count as at hand only if their digest was found to be right: a file under its name here, the DVC cache, a blob of the repository.
- A table that was recorded in events needs no bytes: it is read from the local view.
- What is brought is written beside its place, checked by its digest, and put there in one step. No link leads out of the target, and
  nothing that a folder's manifest says leads out of that folder.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cmf_agent.dvc.dvc_files import cache_folder, object_folders, object_path
from cmf_agent.dvc.projects import dvc_root
from cmf_agent.home import Home
from cmf_agent.reproduce.code import has_blob, read_blob
from cmf_agent.reproduce.plan import File, is_md5, safe_path
from cmf_graph.content.files import hash_path
from cmf_graph.content.folders import list_members
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import CmfError, IntegrityError, StoreError

_FOLDER = ".dir"
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: A manifest names each file in some 60 bytes; no more of one is read.
_MANIFEST_BYTES_MAX = 1 << 30


class Source(NamedTuple):
    """Where an input is at hand: how (`file`, `cache`, `blob` or `events`), where, for people, and by which path or blob."""

    how: str
    where: str
    path: Path | None = None
    blob: str | None = None


def find_source(home: Home, file: File, repository: Path | None) -> Source | None:
    """Return where an input's bytes are at hand, None if they are not; `repository` is the one around the project."""
    if file.is_table:
        return Source("events", "recorded as a table: no file is needed")
    with DigestMemory(home.digests_path) as memory:
        return _file_here(home, file, memory) or _cached(home, file, memory) or _blob(file, repository)


# -- files here --------------------------------------------------------------------------------------------------------


def _file_here(home: Home, file: File, memory: DigestMemory) -> Source | None:
    """Return the file that has this name here, if it has this content too."""
    if file.name is None or "\0" in file.name:
        return None
    path = home.root / file.name  # an absolute name stays one
    if not holds(path, file, memory):
        return None
    return Source("file", f"{path} here", path)


def holds(path: Path, file: File, memory: DigestMemory | None = None) -> bool:
    """Tell if the file or folder at `path` has an input's content; what has another size is not read."""
    with suppress(CmfError, OSError):
        if path.is_dir() != file.content_id.endswith(_FOLDER):
            return False
        if file.size is not None and _size(path) != file.size:
            return False
        return file.content_id in _ids(path, memory)
    return False


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(facts.size for facts in list_members(os.path.abspath(path)).values())  # noqa: PTH100 - follows no links
    return path.stat().st_size


def _ids(path: Path, memory: DigestMemory | None) -> tuple[str | None, ...]:
    found = hash_path(path, memory=memory)
    return found.content_id, found.sha256


# -- DVC's cache -------------------------------------------------------------------------------------------------------


def _cached(home: Home, file: File, memory: DigestMemory) -> Source | None:
    if not is_md5(file.content_id):
        return None
    for cache in cache_folders(home.root):
        path = _object(cache, file.content_id.removeprefix("md5:"))
        with suppress(CmfError, OSError):
            if path is not None and _is_whole(cache, path, file, memory):
                return Source("cache", f"DVC cache ({path})", path)
    return None


def cache_folders(folder: Path) -> list[Path]:
    """Return the folders of objects of the DVC repository around `folder`, of DVC 3 and of DVC 2; none outside of one."""
    root = dvc_root(str(folder / "any"))
    if root is None:
        return []
    return [Path(folder) for folder in object_folders(cache_folder(root))]


def _object(cache: Path, digest: str) -> Path | None:
    path = Path(object_path(str(cache), digest))
    return path if path.is_file() else None


def _is_whole(cache: Path, path: Path, file: File, memory: DigestMemory) -> bool:
    """Tell if an object of the cache has the bytes that its name says, a folder's files too."""
    digest = file.content_id.removesuffix(_FOLDER)
    if digest not in _ids(path, memory):
        return False
    if not file.content_id.endswith(_FOLDER):
        return True
    members = [(md5, _object(cache, md5)) for md5, _ in _manifest(path)]
    return all(found is not None and f"md5:{md5}" in _ids(found, memory) for md5, found in members)


def _manifest(path: Path) -> Iterator[tuple[str, str]]:
    """Yield md5 and path of every file that a folder's manifest names; raise `IntegrityError` if it can't be one."""
    try:
        if path.stat().st_size > _MANIFEST_BYTES_MAX:
            raise ValueError("too large")
        for entry in json.loads(path.read_bytes()):
            md5, name = entry["md5"], entry["relpath"]
            if not is_md5(f"md5:{md5}") or safe_path(name) is None:
                raise ValueError(f"it names {name!r}")
            yield md5, name
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"the manifest {path} is refused: {error}") from error


# -- git ---------------------------------------------------------------------------------------------------------------


def _blob(file: File, repository: Path | None) -> Source | None:
    """Return the blob that a location names, if the repository has it and it holds these bytes."""
    blobs = {place["blob"] for place in file.locations if place.get("kind") == "git" and "blob" in place}
    for blob in sorted(b for b in blobs if _BLOB.fullmatch(b)):
        if repository is not None and has_blob(repository, blob):
            with tempfile.TemporaryDirectory(prefix="cmf-") as folder:
                copy = Path(folder) / "copy"
                with suppress(StoreError):
                    read_blob(repository, blob, copy)
                    if holds(copy, file):
                        return Source("blob", f"git blob {blob[:12]}", repository, blob)
    return None


# -- bringing ----------------------------------------------------------------------------------------------------------


def bring(source: Source, file: File, target: Path, root: Path) -> None:
    """Write an input's bytes to `target` below `root`; raise `IntegrityError` for a wrong digest, `StoreError` for a place outside."""
    assert source.path is not None
    _require_inside(target, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cmf-", dir=target.parent) as beside:
        copy = Path(beside) / target.name
        if source.blob is not None:
            read_blob(source.path, source.blob, copy)
        elif not file.content_id.endswith(_FOLDER):
            shutil.copyfile(source.path, copy)
        else:
            _copy_folder(source, copy)
        if not holds(copy, file):
            raise IntegrityError(f"{source.where} does not hold {file.content_id}", "it has changed, or is damaged")
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif target.is_symlink():
            target.unlink()
        copy.replace(target)


def _require_inside(target: Path, root: Path) -> None:
    """Raise `StoreError` if a link on the way to `target` leads out of `root`, or into what git and DVC obey."""
    if not leads_inside(target, root):
        raise StoreError(f"{target} leads out of {root}, or into .git, by a link", "look at the links in the code")


def leads_inside(path: Path, root: Path) -> bool:
    """Tell if `path`, with the links on the way to it followed, is a place below `root` (or `root`) that may be written."""
    real = Path(os.path.realpath(path.parent), path.name)
    top = Path(os.path.realpath(root))
    return real == top or (real.is_relative_to(top) and safe_path(str(real.relative_to(top))) is not None)


def _copy_folder(source: Source, copy: Path) -> None:
    assert source.path is not None
    copy.mkdir()
    if source.how == "cache":
        cache = source.path.parent.parent
        files = {name: _object(cache, md5) for md5, name in _manifest(source.path)}
    else:
        files = {name: source.path / name for name in list_members(os.path.abspath(source.path))}  # noqa: PTH100
    for name, found in files.items():
        if found is None:
            raise IntegrityError(f"the DVC cache lacks {name} of {source.path}", "pull it again")
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, copy / name)


# -- packages ----------------------------------------------------------------------------------------------------------


def packages_from_folders() -> dict[str, str]:
    """Return name (as PEP 503 writes it) and version of the packages that are installed here from a folder, not from an index."""
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for distribution in distributions():
        with suppress(ValueError, AttributeError, OSError):
            told = json.loads(distribution.read_text("direct_url.json") or "{}")
            if "dir_info" in told:
                found[re.sub(r"[-_.]+", "-", distribution.name).lower()] = distribution.version
    return found
