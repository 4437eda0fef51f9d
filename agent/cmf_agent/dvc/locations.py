"""Where the bytes of a file or folder are told to be: in a `.dvc` file, in a dvc.lock, or in git itself.

Rules
- Only what is true now is told: the `.dvc` file or the lock names this very content, or git would make that very blob of the file.
- Of a path inside a tracked folder the folder's file is told, if the folder's manifest in the cache has this content there.
- Nothing here needs DVC, or writes anything.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH110, PTH112, PTH118, PTH120

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cmf_agent.dvc import git_objects
from cmf_agent.dvc.dvc_files import (
    DVC_SUFFIX,
    LEGACY_HASH,
    LOCK_NAME,
    PIPELINE_NAME,
    Entry,
    cache_folder,
    cached_path,
    read_declared_outs,
    read_dvc_file,
    read_lock,
    read_manifest,
)
from cmf_agent.dvc.projects import dvc_root
from cmf_agent.sources.masking import clean_url
from cmf_agent.sources.names import artifact_name
from cmf_graph.content.files import hash_path
from cmf_protocol.errors import CmfError

#: Who tracks a path: its own `.dvc` file, that of a folder around it, a stage of dvc.yaml, git (a stage's uncached output too), nobody.
Owner = Literal["own", "folder", "stage", "git", ""]


class Place(NamedTuple):
    """A file that tells of a content: `kind` is one of `types.LOCATION_KINDS`; `hash` is what it is told by, if that is no md5."""

    kind: str
    file: str
    hash: str = ""


class Found(NamedTuple):
    """Who tracks a path, and the place that tells of its content as it is now, if one does."""

    owner: Owner
    place: Place | None = None


class Location(NamedTuple):
    """What an `artifact.stored` event tells, but for commit and repository, which the working tree at `top` names (for `git_path`)."""

    said: dict[str, str]
    top: str | None
    git_path: str


def find(root: str, path: str, content_id: str) -> Found:
    """Return who tracks `path` in the DVC project at `root` and where its content `content_id` is told of.

    Raises `CallerError` for a file of DVC's that can't be read.
    """
    found = _in_own_file(path, content_id)
    for folder in _folders_around(root, path):
        if found is not None:
            return found
        found = _in_folder_file(root, folder, path, content_id) if folder != root else None
        found = found or _in_stages(root, folder, path, content_id)
    return found or Found("git" if _is_in_git(path) else "")


def git_place(path: str) -> Place | None:
    """Return git itself as the place of a file that it tracks; None for a folder."""
    return None if os.path.isdir(path) else Place("git", path)


def locate(place: Place, path: str, content_id: str) -> Location | None:
    """Return what there is to tell of `content_id` at `path`; None if its place no longer tells that, since others write there too."""
    top = git_objects.top_folder(place.file)
    blob = _blob(place, top)
    if blob is None or not _still_tells(place, path, content_id) or _blob(place, top) != blob:
        return None
    base = top or dvc_root(place.file) or os.path.dirname(place.file)
    name, is_bent = artifact_name(Path(place.file), Path(base))
    said = {"kind": place.kind, "path": name, "blob": blob}
    if place.hash:
        said["hash"] = place.hash
    return Location(said, None if is_bent else top, name)


def _still_tells(place: Place, path: str, content_id: str) -> bool:
    try:
        if place.kind == "git":
            return hash_path(Path(path)).content_id == content_id
        if place.hash:
            return legacy_place(path) == place
        locked = place.kind == "dvc.lock"
        entries = (
            [entry for stage in read_lock(place.file) for entry in stage.outs] if locked else _entries_of(place.file)
        )
        root = dvc_root(place.file) or os.path.dirname(place.file)
        return any(_covers(entry, path) and _holds(root, entry, path, content_id) for entry in entries)
    except CmfError:
        return False


def remote_url(top: str) -> str | None:
    """Return the address of the repository at `top`, without credentials, None if it has none."""
    from cmf_agent.sources.code import capture_code

    url = (capture_code(Path(top), diff=False) or {}).get("remote")
    return clean_url(url) if isinstance(url, str) else None


def is_cached(root: str, content_id: str) -> bool:
    """Tell if the project's cache holds all of a content; no if that can't be told without DVC."""
    cache = cache_folder(root)
    if not content_id.endswith(".dir"):
        return os.path.exists(cached_path(cache, content_id))
    manifest = read_manifest(cache, content_id)
    return manifest is not None and all(os.path.exists(cached_path(cache, f"md5:{md5}")) for md5 in manifest.values())


def _folders_around(root: str, path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, up to the project's root."""
    folder = os.path.dirname(path)
    while folder != root:
        yield folder
        folder = os.path.dirname(folder)
    yield root


def _in_own_file(path: str, content_id: str) -> Found | None:
    file = path + DVC_SUFFIX
    entry = next((entry for entry in _entries_of(file) if entry.path == path), None)
    if entry is None:
        return None
    return Found("own", Place("dvc", file) if entry.content_id == content_id and entry.is_cached else None)


def legacy_place(path: str) -> Place | None:
    """Return the path's own `.dvc` file if DVC 2 wrote it, which tells the content by another hash."""
    file = path + DVC_SUFFIX
    is_legacy = any(entry.path == path and entry.hash == LEGACY_HASH for entry in _entries_of(file))
    return Place("dvc", file, LEGACY_HASH) if is_legacy else None


def _entries_of(file: str) -> tuple[Entry, ...]:
    return read_dvc_file(file) if os.path.isfile(file) else ()  # noqa: PTH113


def _in_folder_file(root: str, folder: str, path: str, content_id: str) -> Found | None:
    file = folder + DVC_SUFFIX
    entry = next((entry for entry in _entries_of(file) if entry.path == folder), None)
    if entry is None:
        return None
    return Found("folder", Place("dvc", file) if _holds(root, entry, path, content_id) else None)


def _in_stages(root: str, folder: str, path: str, content_id: str) -> Found | None:
    pipeline, lock = os.path.join(folder, PIPELINE_NAME), os.path.join(folder, LOCK_NAME)
    if not os.path.exists(pipeline):
        return None
    declared = [entry for entry in read_declared_outs(pipeline) if _covers(entry, path)]
    if any(not entry.is_cached for entry in declared):
        return Found("git" if _is_in_git(path) else "stage")
    locked = [entry for stage in read_lock(lock) for entry in stage.outs if _covers(entry, path)]
    if not declared and not locked:
        return None
    holds = any(_holds(root, entry, path, content_id) for entry in locked)
    return Found("stage", Place("dvc.lock", lock) if holds else None)


def _covers(entry: Entry, path: str) -> bool:
    return path == entry.path or path.startswith(entry.path + "/")


def _holds(root: str, entry: Entry, path: str, content_id: str) -> bool:
    """Tell if an entry tells of the content at `path`, which is the entry's own path or lies in that folder."""
    if path == entry.path:
        return entry.content_id == content_id
    if entry.hash != "md5":
        return False
    manifest = read_manifest(cache_folder(root), entry.content_id) or {}
    below = path[len(entry.path) + 1 :]
    if not content_id.endswith(".dir"):
        return f"md5:{manifest.get(below)}" == content_id
    inside = {name.removeprefix(f"{below}/"): md5 for name, md5 in manifest.items() if name.startswith(f"{below}/")}
    listed = json.dumps([{"md5": inside[name], "relpath": name} for name in sorted(inside)], sort_keys=True)
    return f"md5:{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir" == content_id


def _is_in_git(path: str) -> bool:
    top = git_objects.top_folder(path)
    return top is not None and bool(git_objects.tracked_files(top, os.path.relpath(path, top)))


def _blob(place: Place, top: str | None) -> str | None:
    if place.kind == "git":
        return git_objects.blob_of_file(top, os.path.relpath(place.file, top)) if top is not None else None
    try:
        content = Path(place.file).read_bytes()
    except OSError:
        return None
    return git_objects.blob_id(top or os.path.dirname(place.file), content)
