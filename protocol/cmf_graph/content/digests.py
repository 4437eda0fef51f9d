"""Hashes one file: md5, and SHA-256 if asked for, from one read, never of a content that the file did not have.

Rules
- The file's facts are taken before and after, from the open file and from its path: if they differ, or if
  another number of bytes was read than they promise, the digest is thrown away and the file is read again.
- A change can go unseen only within one tick of the file system's clock, so a big file that was changed less
  than a tick ago is read a tick later. (A small one is read in one call.)
- Writes through a shared memory map show in the times only when the system gets round to it; git, DVC and make
  share that limit.
"""

# os.path: one call per file of a large folder, where pathlib is several times slower.
# ruff: noqa: PTH116

import hashlib
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cmf_graph.content.facts import FileFacts, facts_of, require_regular, shown, status_of, unreadable
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from concurrent.futures import Future
    from hashlib import _Hash

Progress = Callable[[int], None]

#: From this size on, bytes, hashing takes longer than starting two threads does.
THREADED_FROM = 1 << 20
#: Bytes handed to the hashing threads at a time: measured on 256 MiB, 1 MiB reaches 0.74 of md5 alone, 2 MiB
#: 0.88, 4 MiB 0.90.
CHUNK_BYTES = 2 << 20
#: How often a file that changed while it was read is read again before giving up.
RETRIES_MAX = 3
#: Longest step of a kernel's file clock, ns: 10 ms at CONFIG_HZ=100, twice that to be safe.
TICK_NS = 20_000_000


class Digests(NamedTuple):
    """Hexadecimal digests of one content; `sha256` is None where it was not asked for."""

    md5: str
    sha256: str | None


class Hashed(NamedTuple):
    """A file's digests and the facts that it had while they were taken."""

    facts: FileFacts
    digests: Digests


def hash_file(path: str, *, sha256: bool, progress: Progress | None = None) -> Hashed:
    """Return the digests of the regular file at `path`; `progress` gets the number of bytes just read.

    Raises `CallerError` if it can't be read, is no regular file, or changes each time it is read.
    """
    for _ in range(1 + RETRIES_MAX):
        hashed = _hash_once(path, sha256, progress)
        if hashed is not None:
            return hashed
    raise CallerError(
        f"{shown(path)} keeps changing while it is read", "record it when what writes it has finished, or record a copy"
    )


def _hash_once(path: str, sha256: bool, progress: Progress | None) -> Hashed | None:
    """Return the digests, or None if the file changed meanwhile."""
    require_regular(path, status_of(path))
    try:
        # Should a FIFO have taken the file's place by now, this does not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        before = os.fstat(descriptor)
        require_regular(path, before)
        digests = _digests_of(descriptor, facts_of(before), sha256, progress)
        unchanged = digests is not None and _is_same(before, os.fstat(descriptor))
        unchanged = unchanged and _is_same(before, os.stat(path))
    except FileNotFoundError:  # moved away meanwhile: the next try says what is there now
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return Hashed(facts_of(before), digests) if digests is not None and unchanged else None


def _is_same(before: os.stat_result, after: os.stat_result) -> bool:
    return before.st_dev == after.st_dev and facts_of(before) == facts_of(after)


def _digests_of(descriptor: int, facts: FileFacts, sha256: bool, progress: Progress | None) -> Digests | None:
    hashers = [hashlib.md5(usedforsecurity=False)]
    if sha256:
        hashers.append(hashlib.sha256(usedforsecurity=False))
    if facts.size < THREADED_FROM:
        read = _feed_inline(descriptor, facts.size, hashers)
        if progress and read:
            progress(read)
    else:
        _wait_for_tick(facts.ctime_ns)
        feed = _feed_threads if sha256 else _feed_chunks
        read = feed(descriptor, facts.size, hashers, progress or _no_progress)
    if read != facts.size:
        return None
    return Digests(hashers[0].hexdigest(), hashers[1].hexdigest() if sha256 else None)


def _no_progress(_: int) -> None:
    """Take no notice."""


def _wait_for_tick(ctime_ns: int) -> None:
    age_ns = time.time_ns() - ctime_ns
    if 0 <= age_ns < TICK_NS:
        time.sleep((TICK_NS - age_ns) / 1e9)


def _feed_inline(descriptor: int, size: int, hashers: list["_Hash"]) -> int:
    """Feed up to `size` + 1 bytes, the one more telling that the file grew, and return how many there were."""
    content = os.read(descriptor, size + 1)
    while len(content) < size and (more := os.read(descriptor, size + 1 - len(content))):
        content += more
    for hasher in hashers:
        hasher.update(content)
    return len(content)


def _feed_chunks(descriptor: int, size: int, hashers: list["_Hash"], progress: Progress) -> int:
    buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
    total = 0
    while total <= size and (count := os.readv(descriptor, [buffer])):
        for hasher in hashers:
            hasher.update(buffer[:count])
        total += count
        progress(count)
    return total


def _feed_threads(descriptor: int, size: int, hashers: list["_Hash"], progress: Progress) -> int:
    """Feed each hasher in a thread of its own (hashlib lets go of the GIL), reading ahead by one chunk."""
    from concurrent.futures import ThreadPoolExecutor

    buffers = [memoryview(bytearray(min(size, CHUNK_BYTES))) for _ in range(2)]
    busy: list[Future[None]] = []
    total = 0
    with ThreadPoolExecutor(len(hashers), "cmf-hash") as pool:
        while total <= size and (count := os.readv(descriptor, [buffers[0]])):
            _finish(busy)
            busy = [pool.submit(hasher.update, buffers[0][:count]) for hasher in hashers]
            buffers.reverse()
            total += count
            progress(count)
        _finish(busy)
    return total


def _finish(busy: "list[Future[None]]") -> None:
    for job in busy:
        job.result()
