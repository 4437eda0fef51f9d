"""Ids of executions: UUIDv7, which sort by the time at which they were made (RFC 9562, section 5.7)."""

import os
from uuid import UUID

from cmf_agent.log import now_us
from cmf_protocol.errors import CallerError


def new_execution_id() -> bytes:
    """Return a new UUIDv7, 16 bytes: 48 bits of ms since 1970, 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (now_us() // 1000) << 80 | random
    value = value & ~(0xF << 76) | 7 << 76  # version
    value = value & ~(0b11 << 62) | 0b10 << 62  # variant
    return value.to_bytes(16, "big")


def id_text(execution: bytes) -> str:
    """Return an execution's id as people write it; bytes of another length as hexadecimal digits."""
    return str(UUID(bytes=execution)) if len(execution) == 16 else execution.hex()


def parse_execution_id(value: object) -> bytes:
    """Return the 16 bytes of an execution's id given as bytes, UUID or text; raise `CallerError` for anything else."""
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, bytes) and len(value) == 16:
        return value
    if isinstance(value, str):
        try:
            return UUID(value).bytes
        except ValueError:
            pass
    raise CallerError(f"{value!r} is not an execution's id", "give a UUID")
