"""A bundle: signed segments in a file, written and read piece by piece (protocol/README.md, section 11). Pure.

Rules
- Bytes come and go as chunks of any size: a site's year may be larger than memory. Nothing is held but one segment.
- What `read_bundle` yields is vouched for only once it has ended without an error: so a file is read twice, to check it and to use it.
- Every way in which a file may be cut or altered is an `IntegrityError` that says where; a file of another kind is a `DecodeError`.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256

from cmf_protocol.errors import DecodeError, IntegrityError

BUNDLE_MAGIC = b"CMFBNDL1"
#: No segment is longer, bytes: twice what its frame may hold, which bounds what a forged length makes a reader keep.
BUNDLED_SEGMENT_BYTES_MAX = 2_097_152
_LENGTH_BYTES = 4
_DIGEST_BYTES = 32


def write_bundle(segments: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a bundle of these segments, in chunks; each segment is asked for when those before it were taken."""
    digest, count = sha256(BUNDLE_MAGIC), 0
    yield BUNDLE_MAGIC
    for segment in segments:
        chunk = _number(len(segment)) + segment
        digest.update(chunk)
        count += 1
        yield chunk
    end = _number(0) + _number(count)
    digest.update(end)
    yield end + digest.digest()


def read_bundle(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the segments of a bundle that comes in chunks.

    Raises `DecodeError` if it is no bundle, `IntegrityError` at the place where it turns out to be cut or altered.
    """
    reader = _Reader(chunks)
    if reader.take(len(BUNDLE_MAGIC)) != BUNDLE_MAGIC:
        raise DecodeError("this file is not a bundle")
    count = 0
    while length := reader.number(f"segment {count + 1}"):
        if length > BUNDLED_SEGMENT_BYTES_MAX:
            raise _damaged(f"segment {count + 1} is said to have {length:,} bytes, more than a segment can have")
        segment = reader.exactly(length, f"segment {count + 1}")
        count += 1
        yield segment
    _check_end(reader, count)


def _check_end(reader: "_Reader", count: int) -> None:
    said = reader.number("its end")
    expected = reader.digest.digest()
    if reader.exactly(_DIGEST_BYTES, "its end") != expected:
        raise _damaged("its SHA-256 is not the one that it states")
    if said != count:
        raise _damaged(f"it holds {count:,} segments, and says {said:,}")
    if reader.take(1):
        raise _damaged("something follows its end")


class _Reader:
    """Takes a number of bytes at a time from chunks of any size, and keeps the digest of what was taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._pending = bytearray()
        self.digest = sha256()

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only where there are no more."""
        while len(self._pending) < size and (chunk := next(self._chunks, None)) is not None:
            self._pending += chunk
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        self.digest.update(taken)
        return taken

    def exactly(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes, which belong to `what`."""
        taken = self.take(size)
        if len(taken) < size:
            raise _damaged(f"it ends within {what}")
        return taken

    def number(self, what: str) -> int:
        """Return the number that comes next."""
        return int.from_bytes(self.exactly(_LENGTH_BYTES, what), "big")


def _number(value: int) -> bytes:
    return value.to_bytes(_LENGTH_BYTES, "big")


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"this bundle was cut or altered: {what}")
