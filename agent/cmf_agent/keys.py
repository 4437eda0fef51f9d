"""The site's signing key: 32 random bytes, kept as hexadecimal text that only their owner may read."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cmf_agent.private_files import write_private
from cmf_graph.database import store_errors
from cmf_protocol.errors import StoreError
from cmf_protocol.signing import KEY_BYTES

if TYPE_CHECKING:
    from cmf_protocol.signing import Signer

_LOST = "bring it back from a copy: the log can't be signed without it"


def make_key(path: Path) -> None:
    """Make a new signing key at `path`."""
    write_private(path, os.urandom(KEY_BYTES).hex().encode() + b"\n")


def read_signer(path: Path) -> "Signer":
    """Return the signer whose seed is in the file at `path`, as hexadecimal text or as 32 raw bytes.

    Raises `StoreError` if it is missing or holds something else.
    """
    from cmf_protocol.signing import Signer

    if not path.exists():
        raise StoreError(f"the signing key {path} is missing", _LOST)
    with store_errors(path):
        content = path.read_bytes()
    if len(content) == KEY_BYTES:
        return Signer(content)
    try:
        seed = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise StoreError(f"{path} holds no signing key", _LOST)
    return Signer(seed)
