"""Writes files whole or not at all, those with secrets so that only their owner may read them."""

import os
from pathlib import Path

from cmf_graph.database import store_errors, sync_folder


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path` with mode 0600, in place of what was there; a crash leaves the old or the new file."""
    write_whole(path, content, 0o600)


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Put `content` at `path` with `mode`, in place of what was there; a crash leaves the old or the new file.

    What a crash may leave besides has a random name, so that it is in nobody's way: a process id comes back.
    """
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    with store_errors(path):
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
