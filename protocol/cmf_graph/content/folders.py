"""Hashes a folder the way DVC does: the md5 of the very manifest that DVC writes, plus `.dir`.

Rules (dvc_data/hashfile/build.py and tree.py, dvc-data 3)
- The manifest lists md5 and path of every file, sorted by path. Links to files count as the files; links to
  folders are left out, so no link can make a loop of folders; empty folders leave no trace.
- What DVC skips silently or waits for (a folder without right to enter, a FIFO, a dead link) is an error here.
- The folder is listed again at the end: a digest is returned only if nothing changed since its file was read.
"""

# os.path: one call per file of a large folder, where pathlib is several times slower.
# ruff: noqa: PTH118

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from cmf_graph.content.digests import RETRIES_MAX, THREADED_FROM, Hashed, Progress, hash_file
from cmf_graph.content.facts import FileFacts, facts_of, is_settled, require_regular, shown, status_of, unreadable
from cmf_graph.content.ignoring import IGNORE_FILE, IgnoreRules, is_nested_project, rules_for
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_graph.content.memory import DigestMemory

#: More threads than this read faster than disks deliver.
THREADS_MAX = 8


class _Stopped(Exception):
    """Ends the threads of a hashing that was given up."""


class FolderDigest(NamedTuple):
    """DVC's digest of a folder (`<hex>.dir`), the bytes of all its files together, and their number."""

    md5: str
    size: int
    files: int


def hash_folder(folder: str, memory: "DigestMemory | None", progress: Progress | None) -> FolderDigest:
    """Return the digest of the absolute `folder`.

    Raises `CallerError` if anything in it can't be read, is no file, or changes each time it is read.
    """
    known: dict[str, Hashed] = {}
    clock_ns = memory.clock_ns if memory else time.time_ns
    for _ in range(1 + RETRIES_MAX):
        began_ns = clock_ns()
        hashed = _hash_members(folder, known, memory, progress)
        changed = _first_change(hashed, list_members(folder))
        if changed is None:
            size = sum(item.facts.size for item in hashed.values())
            return FolderDigest(_manifest_md5(hashed), size, len(hashed))
        # Another round reads only what changed; what was just touched might have changed unseen.
        known = {name: item for name, item in hashed.items() if is_settled(item.facts, began_ns)}
    raise CallerError(
        f"{shown(os.path.join(folder, changed or ''))} keeps changing while its folder is read",
        "record the folder when what writes it has finished, or leave the file out by .dvcignore",
    )


def list_members(folder: str) -> dict[str, FileFacts]:
    """Return the facts of every file that counts, by its path below the absolute `folder`, with slashes."""
    rules, below_root = rules_for(folder)
    return dict(_walk(folder, "", below_root, rules))


def _walk(folder: str, below: str, below_root: str, rules: IgnoreRules) -> Iterator[tuple[str, FileFacts]]:
    """Yield the files of `folder`, which is `below` the recorded folder and `below_root` of the rules."""
    subfolders: list[tuple[str, str, str]] = []
    for entry, is_folder in _entries(folder):
        path_in_rules = f"{below_root}/{entry.name}" if below_root else entry.name
        if entry.name == IGNORE_FILE or rules.hides(path_in_rules, is_folder=is_folder):
            continue
        path = f"{below}/{entry.name}" if below else entry.name
        if not is_folder:
            status = status_of(entry.path)
            require_regular(entry.path, status)
            yield path, facts_of(status)
        elif not entry.is_symlink() and not is_nested_project(entry.path):
            subfolders.append((entry.path, path, path_in_rules))
    for full, path, path_in_rules in subfolders:
        yield from _walk(full, path, path_in_rules, rules.inside(path_in_rules))


def _entries(folder: str) -> list[tuple["os.DirEntry[str]", bool]]:
    """Return what `folder` holds, each with whether it is (or links to) a folder."""
    try:
        with os.scandir(folder) as entries:
            return [(entry, _is_folder(entry)) for entry in entries]
    except OSError as error:
        raise unreadable(folder, error) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere or back to itself: reading it as a file says so
        return False


def _hash_members(
    folder: str, known: Mapping[str, Hashed], memory: "DigestMemory | None", progress: Progress | None
) -> dict[str, Hashed]:
    """Return the digests of all files in `folder`, reading those that neither `known` nor `memory` holds."""
    members = list_members(folder)
    hashed = {name: item for name, item in known.items() if members.get(name) == item.facts}
    names = {os.path.join(folder, name): name for name in members if name not in hashed}
    wanted = {path: members[name] for path, name in names.items()}
    if memory is None:
        fresh = dict(_hash_files(wanted, progress))
    else:
        recalled = memory.recall(wanted)
        hashed |= {names[path]: Hashed(wanted.pop(path), digests) for path, digests in recalled.items()}
        fresh = _hash_and_remember(wanted, memory, progress)
    return hashed | {names[path]: item for path, item in fresh.items()}


def _hash_and_remember(
    wanted: Mapping[str, FileFacts], memory: "DigestMemory", progress: Progress | None
) -> dict[str, Hashed]:
    began_ns = memory.clock_ns()
    fresh: dict[str, Hashed] = {}
    try:
        fresh.update(_hash_files(wanted, progress))
    finally:  # interrupted in the middle of a large folder, what was read need not be read again
        memory.remember(fresh, began_ns)
    return fresh


def _hash_files(wanted: Mapping[str, FileFacts], progress: Progress | None) -> Iterator[tuple[str, Hashed]]:
    """Hash small files here, one after the other, and big ones in threads."""
    big = [path for path, facts in wanted.items() if facts.size >= THREADED_FROM]
    in_threads = frozenset(big) if len(big) > 1 else frozenset()
    for path in wanted:
        if path not in in_threads:
            yield path, hash_file(path, sha256=False, progress=progress)
    if in_threads:
        yield from _hash_in_threads(big, progress)


def _hash_in_threads(paths: list[str], progress: Progress | None) -> Iterator[tuple[str, Hashed]]:
    from concurrent.futures import ThreadPoolExecutor

    stopped = threading.Event()
    report = _one_at_a_time(progress, stopped)
    with ThreadPoolExecutor(min(THREADS_MAX, os.cpu_count() or 1), "cmf-hash") as pool:
        try:
            hashed = pool.map(lambda path: hash_file(path, sha256=False, progress=report), paths)
            yield from zip(paths, hashed, strict=True)
        except BaseException:  # Ctrl-C too: the threads end at their next chunk, not at their file's end
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_at_a_time(progress: Progress | None, stopped: threading.Event) -> Callable[[int], None]:
    lock = threading.Lock()

    def report(count: int) -> None:
        if stopped.is_set():
            raise _Stopped
        if progress:
            with lock:
                progress(count)

    return report


def _first_change(hashed: Mapping[str, Hashed], listed: Mapping[str, FileFacts]) -> str | None:
    """Return the first path that is gone, new or different since it was hashed, or None."""
    names = hashed.keys() | listed.keys()
    changed = [name for name in names if name not in hashed or hashed[name].facts != listed.get(name)]
    return min(changed, default=None)


def _manifest_md5(hashed: Mapping[str, Hashed]) -> str:
    """Return the md5 of the bytes that dvc_data's Tree.as_bytes makes of the same files."""
    entries = [{"md5": hashed[name].digests.md5, "relpath": name} for name in sorted(hashed)]
    manifest = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(manifest, usedforsecurity=False).hexdigest() + ".dir"
