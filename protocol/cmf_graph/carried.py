"""Files that are carried by hand, bundles and receipts: written whole or not at all, checked before they are used.

Rules
- What is written goes to a draft beside the file, to the disk, and only then under the file's name; a file that is there is never
  replaced, since it may be the only copy.
- A bundle is read twice: once to see that it is whole, once to use it. Neither needs it in memory.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cmf_graph.database import store_errors, sync_folder
from cmf_protocol.bundles import BUNDLE_MAGIC, read_bundle
from cmf_protocol.errors import CallerError, PeerError
from cmf_protocol.receipts import RECEIPT_MAGIC, Receipt, decode_receipt

_CHUNK_BYTES = 1 << 20
#: A receipt names a log in about 60 bytes; one that is longer than this is none, and is not read.
RECEIPT_BYTES_MAX = 64 << 20
_BUNDLE_HINT = "nothing of it was taken; have it made and carried again"


def must_be_new(path: Path) -> None:
    """Raise `CallerError` if there is a file at `path` already."""
    with store_errors(path):
        if path.exists() or path.is_symlink():
            raise CallerError(f"{path} exists already", "name another file, or remove that one first")


def write_new(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file that was not there, whole or not at all, durably; return its size in bytes."""
    must_be_new(path)
    draft, size = path.with_name(f".{path.name}.{os.getpid()}"), 0
    with store_errors(path):
        try:
            with draft.open("xb") as out:
                for chunk in chunks:
                    out.write(chunk)
                    size += len(chunk)
                out.flush()
                os.fsync(out.fileno())
            must_be_new(path)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return size


def is_receipt(path: Path) -> bool:
    """Tell by its first bytes whether a file is a receipt; raise `CallerError` if it is neither that nor a bundle."""
    with store_errors(path), path.open("rb") as file:
        magic = file.read(len(BUNDLE_MAGIC))
    if magic not in (BUNDLE_MAGIC, RECEIPT_MAGIC):
        raise CallerError(
            f"{path} is neither a bundle nor a receipt", "use what `bundle export` or `cmf-hub receipt` wrote"
        )
    return magic == RECEIPT_MAGIC


def load_receipt(path: Path) -> Receipt:
    """Return the receipt in a file, its signature not checked."""
    with store_errors(path), path.open("rb") as file:
        content = file.read(RECEIPT_BYTES_MAX)
    try:
        return decode_receipt(content)
    except PeerError as error:
        raise type(error)(f"{path}: {error}", "have the hub make it again: cmf-hub receipt SITE -o FILE") from error


def check_bundle(path: Path, progress: Callable[[int], None]) -> int:
    """Return the number of segments in a bundle file; `progress` gets the number of bytes just read.

    Raises `PeerError` if it was cut or altered, or is no bundle.
    """
    return sum(1 for _ in _segments(path, progress))


def bundled_segments(path: Path) -> Iterator[bytes]:
    """Yield the segments of a bundle that was checked."""
    return _segments(path, lambda _count: None)


def _segments(path: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    try:
        yield from read_bundle(_chunks(path, progress))
    except PeerError as error:
        raise type(error)(f"{path}: {error}", _BUNDLE_HINT) from error


def _chunks(path: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    with store_errors(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            progress(len(chunk))
            yield chunk
