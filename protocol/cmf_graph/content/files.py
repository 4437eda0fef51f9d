"""Says what content is at a path: the digests, the size, the number of files.

Rules
- A file's md5 and SHA-256 come from one read; a folder's digest is DVC's, with or without DVC installed.
- What changes while it is read never yields a wrong digest: it is read again, then refused.
- What can't be recorded is a `CallerError` that names the path and the way out. No screen output here.
"""

# os.path: Path.resolve would follow links, and name another file than the caller did.
# ruff: noqa: PTH100

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmf_graph.content.digests import Digests, hash_file
from cmf_graph.content.facts import facts_of, require_regular, status_of
from cmf_graph.content.folders import hash_folder

if TYPE_CHECKING:
    from cmf_graph.content.memory import DigestMemory


@dataclass(frozen=True, slots=True)
class Content:
    """What is at a path.

    `content_id` is `md5:<hex>`, for a folder `md5:<hex>.dir`; `sha256` is `sha256:<hex>`, None for a folder;
    `size` is in bytes, of all `files` together.
    """

    content_id: str
    sha256: str | None
    size: int
    files: int


def hash_path(
    path: Path, *, memory: "DigestMemory | None" = None, progress: Callable[[int], None] | None = None
) -> Content:
    """Return the content of the file or folder at `path`; a link counts as what it points to.

    `progress` gets the number of bytes just read (what is read again counts again; what `memory` knows is not
    read). Raises `CallerError` if something there can't be read, is neither file nor folder, or won't keep still.
    """
    full = os.path.abspath(path)
    status = status_of(full)
    if stat.S_ISDIR(status.st_mode):
        folder = hash_folder(full, memory, progress)
        return Content(f"md5:{folder.md5}", None, folder.size, folder.files)
    require_regular(full, status)
    if memory is None:
        hashed = hash_file(full, sha256=True, progress=progress)
        return _content(hashed.digests, hashed.facts.size)
    known = memory.recall({full: facts_of(status)}).get(full)
    if known is not None and known.sha256 is not None:
        return _content(known, status.st_size)
    began_ns = memory.clock_ns()
    hashed = hash_file(full, sha256=True, progress=progress)
    memory.remember({full: hashed}, began_ns)
    return _content(hashed.digests, hashed.facts.size)


def _content(digests: Digests, size: int) -> Content:
    return Content(f"md5:{digests.md5}", f"sha256:{digests.sha256}", size, 1)
