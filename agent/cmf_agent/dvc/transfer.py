"""Carries contents between DVC's cache and a remote: only what is lacking, several files at a time, each one checked.

Theory of operation: a content is an object, a folder its manifest and an object for each of its files. What is to be carried is found out
first; then each object is carried by itself, and what has arrived stays, so that whoever runs it again goes on. A folder's manifest is
given to a remote last: where it is, the files are.

Rules
- An object is read and its md5 compared before it is given to a remote, and after it came from one: nothing damaged is passed on, or gets
  its name in the cache. After a push the remote is asked whether it holds all of it.
- An object that a remote holds in another size counts as lacking: it was cut short.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH108, PTH118, PTH202

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import md5
from tempfile import mkstemp
from typing import Literal, NamedTuple

from cmf_agent.dvc.dvc_files import cached_path, read_manifest
from cmf_agent.dvc.stores import Cache, Remote
from cmf_agent.dvc.work import Showing, Work, silent
from cmf_graph.database import hint_for
from cmf_protocol.errors import IntegrityError, StoreError

#: Where objects arrive, in the cache's folder; what lies there for longer than this, s, is left over.
_INCOMING, _LEFT_OVER_S = "cmf-incoming", 86_400.0
#: Room that is left on the cache's disk, bytes.
_SPARE_BYTES = 1 << 20
_CHUNK = 1 << 20
_FOLDER = ".dir"

State = Literal["transferred", "present", "missing", "failed"]


class Carried(NamedTuple):
    """What became of one content: `bytes` is what was carried of it; `is_damaged` if what a side holds is not that content."""

    content_id: str
    state: State
    bytes: int = 0
    reason: str = ""
    is_damaged: bool = False


def carries(content_id: str) -> bool:
    """Tell if DVC names content so: other digests are found in no cache and no remote."""
    digest = content_id.removeprefix("md5:").removesuffix(_FOLDER)
    return content_id.startswith("md5:") and len(digest) == 32 and all(c in "0123456789abcdef" for c in digest)


def push(
    cache: Cache, remote: Remote, content_ids: Iterable[str], *, jobs: int | None = None, show: Showing = silent
) -> list[Carried]:
    """Give the remote what it lacks of these contents, `jobs` files at a time; raise `StoreError` if it can't be asked."""
    wanted = list(dict.fromkeys(content_ids))
    parts = {content_id: _parts(cache, content_id) for content_id in wanted}
    oids = {oid for files in parts.values() for oid in files} | {_oid(content_id) for content_id in wanted}
    held, sizes = _sizes(cache, oids), remote.sizes(oids)
    lacking = {oid for oid in oids if oid in held and sizes.get(oid) != held[oid]}
    absent = {oid for oid in oids if oid not in held and oid not in sizes}
    work = Work(jobs or remote.jobs)

    def give(oid: str) -> None:
        path = cached_path(cache.folder, f"md5:{oid}")
        _check(path, oid, "DVC's cache", path)
        remote.put(path, oid, work.counted)
        if remote.sizes([oid]).get(oid) != held[oid]:
            raise StoreError(f"{remote.url} does not hold all of it after the upload", "run it again")

    manifests = {oid for oid in lacking if oid.endswith(_FOLDER)}
    with show(len(lacking), sum(held[oid] for oid in lacking)) as counter:
        work.counter = counter
        work.run(lacking - manifests, give)
        whole = {_oid(id_) for id_, files in parts.items() if not (set(files) & (absent | set(work.failed)))}
        work.run(manifests & whole, give)
    lost = "neither in DVC's cache nor in the remote"
    return [_carried(content_id, parts[content_id], held, work, absent, lost) for content_id in wanted]


def pull(
    cache: Cache, remote: Remote, content_ids: Iterable[str], *, jobs: int | None = None, show: Showing = silent
) -> list[Carried]:
    """Bring into the cache what it lacks of these contents; raise `StoreError` if the remote can't be asked, or there is no room."""
    wanted = list(dict.fromkeys(content_ids))
    incoming = _make_incoming(cache)
    work = Work(jobs or remote.jobs)
    sizes: dict[str, int] = {}

    def take(oid: str) -> None:
        handle, path = mkstemp(dir=incoming, prefix=f"{oid}.")
        os.close(handle)
        try:
            remote.get(oid, path, work.counted)
            _check(path, oid, remote.url, remote.path(oid))
            _sync(path)
            cache.adopt(path, oid)
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"{cache.folder}: {reason}", hint_for(reason)) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def fetch(oids: set[str]) -> None:
        lacking = oids - set(_sizes(cache, oids))
        found = remote.sizes(lacking)
        sizes.update(found)
        _require_room(cache, sum(found.values()))
        with show(len(found), sum(found.values())) as counter:
            work.counter = counter
            work.run(set(found), take)

    folders = {_oid(id_) for id_ in wanted if id_.endswith(_FOLDER)}
    if folders:
        fetch(folders)
    parts = {content_id: _parts(cache, content_id) for content_id in wanted}
    fetch({oid for files in parts.values() for oid in files} | {_oid(id_) for id_ in wanted} - folders)
    every = {oid for files in parts.values() for oid in files} | {_oid(id_) for id_ in wanted}
    absent = every - set(_sizes(cache, every)) - set(work.failed)
    return [_carried(id_, parts[id_], sizes, work, absent, f"not in {remote.url}") for id_ in wanted]


def is_whole(cache: Cache, content_id: str) -> bool:
    """Tell if the cache holds all of a content."""
    if not carries(content_id):
        return False
    has_manifest = not content_id.endswith(_FOLDER) or read_manifest(cache.folder, content_id) is not None
    oids = _parts(cache, content_id) | {_oid(content_id)}
    return has_manifest and len(_sizes(cache, oids)) == len(oids)


def held(cache: Cache, remote: Remote, content_ids: Iterable[str]) -> dict[str, bool]:
    """Tell which of these contents the remote holds; of a folder whose manifest is not in the cache, its manifest counts."""
    parts = {content_id: _parts(cache, content_id) | {_oid(content_id)} for content_id in content_ids}
    sizes = remote.sizes(oid for oids in parts.values() for oid in oids)
    return {content_id: oids <= set(sizes) for content_id, oids in parts.items()}


def _carried(
    content_id: str, files: Iterable[str], sizes: Mapping[str, int], work: "Work", absent: set[str], lost: str
) -> Carried:
    oids = {*files, _oid(content_id)}
    size = sum(sizes[oid] for oid in oids & work.done)
    errors = [work.failed[oid] for oid in sorted(oids & set(work.failed))]
    if errors:
        damaged = next((error for error in errors if isinstance(error, IntegrityError)), None)
        first = damaged or errors[0]
        return Carried(
            content_id, "failed", size, f"{first}: {first.hint}" if first.hint else str(first), damaged is not None
        )
    gone = oids & absent
    if gone:
        some = f"{len(gone)} of its {len(oids) - 1} files: " if len(oids) > 1 and _oid(content_id) not in gone else ""
        return Carried(content_id, "missing", size, some + lost)
    return Carried(content_id, "transferred" if oids & work.done else "present", size)


# -- objects in the cache ----------------------------------------------------------------------------------------------


def _oid(content_id: str) -> str:
    return content_id.removeprefix("md5:")


def _parts(cache: Cache, content_id: str) -> set[str]:
    """Return the objects of a folder's files, as far as its manifest is in the cache; none of a file."""
    if not content_id.endswith(_FOLDER):
        return set()
    return {oid for oid in (read_manifest(cache.folder, content_id) or {}).values() if carries(f"md5:{oid}")}


def _sizes(cache: Cache, oids: Iterable[str]) -> dict[str, int]:
    found = {}
    for oid in oids:
        with suppress(FileNotFoundError):
            found[oid] = os.path.getsize(cached_path(cache.folder, f"md5:{oid}"))
    return found


def _check(path: str, oid: str, where: str, kept_at: str) -> None:
    """Raise `IntegrityError` if the bytes at `path`, which `where` keeps at `kept_at`, are not those of the object."""
    digest = md5(usedforsecurity=False)
    with open(path, "rb") as file:  # noqa: PTH123
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != oid.removesuffix(_FOLDER):
        raise IntegrityError(
            f"what {where} has as md5:{oid} is damaged", f"remove {kept_at}, and push it again from a site that has it"
        )


def _make_incoming(cache: Cache) -> str:
    """Make the folder where objects arrive, and remove what a killed process left there."""
    folder = os.path.join(cache.folder, _INCOMING)
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with os.scandir(folder) as entries:
            old = [entry.path for entry in entries if time.time() - entry.stat().st_mtime > _LEFT_OVER_S]
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"{folder}: {reason}", hint_for(reason) or "give this user the right to write there"
        ) from error
    for path in old:
        with suppress(OSError):
            os.unlink(path)
    return folder


def _require_room(cache: Cache, size: int) -> None:
    free = shutil.disk_usage(cache.folder).free
    if size + _SPARE_BYTES > free and size:
        raise StoreError(
            f"{size:,} bytes are to come, and {free:,} are free where {cache.folder} is",
            "make room, or pull less at a time",
        )


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
