"""Reads what DVC wrote down, without DVC: `.dvc` files, dvc.lock, dvc.yaml, where the cache is, and folders' manifests.

Rules
- YAML 1.2, as DVC writes it. A file that is no such YAML (merge markers in it, say) is a `CallerError` that names it.
- `md5` of an entry with `hash: md5` is the md5 of the bytes. DVC 2 wrote no `hash`: its md5 is that of the bytes with CRLF as LF
  (`md5-dos2unix`), which is no md5 and joins with none.
- Paths in these files are relative to the stage's `wdir`, which is relative to the file; what is returned is absolute.
"""

# os.path: DVC's paths are texts, and `..` in them is resolved as text.
# ruff: noqa: PTH118, PTH120, PTH123

import json
import os
from collections.abc import Mapping
from configparser import ConfigParser, Error
from functools import lru_cache
from typing import Any, NamedTuple

from cmf_agent.dvc.projects import DVC_FOLDER
from cmf_graph.content.facts import shown, unreadable
from cmf_protocol.errors import CallerError

DVC_SUFFIX = ".dvc"
LOCK_NAME, PIPELINE_NAME = "dvc.lock", "dvc.yaml"
#: What DVC 2 hashed with, told by an entry that doesn't say with what.
LEGACY_HASH = "md5-dos2unix"
#: How many read files are remembered: those that a run looks at again and again.
_REMEMBERED = 256


class Entry(NamedTuple):
    """A dependency or an output: absolute `path` (an address stays one), its digest, if DVC keeps its bytes."""

    path: str
    #: `md5`, `md5-dos2unix`, or what else it is known by (`etag`); empty if there is no digest.
    hash: str
    digest: str
    is_cached: bool
    size: int | None = None
    files: int | None = None

    @property
    def content_id(self) -> str:
        """`md5:…`, empty if there is no digest."""
        return f"{self.hash}:{self.digest}" if self.digest else ""


class LockedStage(NamedTuple):
    """A stage as dvc.lock holds it: what it ran, on what, with which parameters (by file), and what came of it."""

    name: str
    command: object
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: Mapping[str, Any]


def read_dvc_file(path: str) -> tuple[Entry, ...]:
    """Return the outputs of the `.dvc` file at the absolute `path`."""
    document = _document(path)
    folder = _folder(path, document.get("wdir"))
    return _entries(document.get("outs"), folder)


def read_lock(path: str) -> tuple[LockedStage, ...]:
    """Return the stages of the dvc.lock at the absolute `path`, in its order; none if there is no such file."""
    document = _document(path) if os.path.exists(path) else {}  # noqa: PTH110
    # The first layout, of DVC 1, had no `schema` and the stages at the top.
    stages = document.get("stages", {}) if "schema" in document else document
    beside = os.path.join(os.path.dirname(path), PIPELINE_NAME)
    declared = _declared(beside)
    found = []
    for name, stage in (stages if isinstance(stages, Mapping) else {}).items():
        if not isinstance(stage, Mapping):
            continue
        folder = _folder(path, _map(declared.get(str(name).partition("@")[0])).get("wdir"))
        deps, outs = _entries(stage.get("deps"), folder), _entries(stage.get("outs"), folder)
        found.append(LockedStage(str(name), stage.get("cmd"), deps, outs, _map(stage.get("params"))))
    return tuple(found)


def read_declared_outs(path: str) -> tuple[Entry, ...]:
    """Return the outputs that the dvc.yaml at the absolute `path` declares, without digests; those with `${…}` can't be told."""
    found: list[Entry] = []
    for stage in _declared(path).values():
        folder = _folder(path, _map(stage).get("wdir"))
        for kind in ("outs", "metrics", "plots"):
            listed = _map(stage).get(kind)
            for item in listed if isinstance(listed, list) else []:
                name, said = next(iter(item.items())) if isinstance(item, Mapping) and item else (item, {})
                if isinstance(name, str) and "${" not in name:
                    found.append(Entry(_absolute(folder, name), "", "", _map(said).get("cache") is not False))
    return tuple(found)


def cache_folder(root: str) -> str:
    """Return the cache's folder of the DVC project at the absolute `root`, as far as the project's own configuration says."""
    folder = os.path.join(root, DVC_FOLDER)
    named = None
    for name in ("config", "config.local"):
        named = _cache_setting(os.path.join(folder, name)) or named
    return os.path.normpath(os.path.join(folder, os.path.expanduser(named) if named else "cache"))  # noqa: PTH111


def object_folders(cache: str) -> tuple[str, str]:
    """Return the folders in which the cache at `cache` keeps objects: that of DVC 3, then that of DVC 2."""
    return os.path.join(cache, "files", "md5"), cache


def object_path(folder: str, digest: str) -> str:
    """Return where a folder of objects keeps the one with this digest."""
    return os.path.join(folder, digest[:2], digest[2:])


def cached_path(cache: str, content_id: str) -> str:
    """Return where the cache at `cache` keeps the content `md5:…`."""
    return object_path(object_folders(cache)[0], content_id.removeprefix("md5:"))


def read_manifest(cache: str, content_id: str) -> dict[str, str] | None:
    """Return the md5 of each file of the folder `md5:….dir` by its path in it; None if the cache does not hold its manifest."""
    try:
        with open(cached_path(cache, content_id), encoding="utf-8") as file:
            return {str(item["relpath"]): str(item["md5"]) for item in json.load(file)}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _document(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    return _parsed(path, content)


@lru_cache(maxsize=_REMEMBERED)
def _parsed(path: str, content: bytes) -> Mapping[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(content.decode())
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise CallerError(
            f"{shown(path)} is not valid YAML{where}", "mend it; are merge markers left in it?"
        ) from error
    if document is not None and not isinstance(document, Mapping):
        raise CallerError(f"{shown(path)} is not a file of DVC's", "bring it back from git, or make it anew with DVC")
    return document or {}


def _declared(path: str) -> Mapping[str, Any]:
    """Return the stages of a dvc.yaml; those of a `foreach` or `matrix` as their one template."""
    if not os.path.exists(path):  # noqa: PTH110
        return {}
    stages = _map(_document(path).get("stages"))
    return {str(name): _map(_map(stage).get("do")) or stage for name, stage in stages.items()}


def _entries(listed: object, folder: str) -> tuple[Entry, ...]:
    items = listed if isinstance(listed, list) else []
    return tuple(
        _entry(item, folder) for item in items if isinstance(item, Mapping) and isinstance(item.get("path"), str)
    )


def _entry(item: Mapping[str, Any], folder: str) -> Entry:
    hash_, digest = "", ""
    if "md5" in item:
        hash_, digest = str(item.get("hash") or LEGACY_HASH), str(item["md5"])
    else:
        hash_ = next((name for name in ("etag", "checksum") if name in item), "")
        digest = str(item[hash_]) if hash_ else ""
    size, files = item.get("size"), item.get("nfiles")
    return Entry(
        _absolute(folder, item["path"]),
        hash_,
        digest,
        item.get("cache") is not False,
        size if isinstance(size, int) else None,
        files if isinstance(files, int) else None,
    )


def _folder(path: str, wdir: object) -> str:
    folder = os.path.dirname(path)
    return os.path.normpath(os.path.join(folder, wdir)) if isinstance(wdir, str) and "${" not in wdir else folder


def _absolute(folder: str, path: str) -> str:
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _cache_setting(path: str) -> str | None:
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, encoding="utf-8")
        return parser.get("cache", "dir", fallback=None)
    except (Error, UnicodeDecodeError):  # DVC says what is wrong with it
        return None
