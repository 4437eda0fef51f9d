"""Notices that a connection is silent: half-open, or with a server that hangs.

Theory of operation
- Every `PING_EVERY_S`, and as soon as an answer is overdue, the server is asked for a pong.
- While the pong is awaited, bytes that arrive and bytes that leave count as life: on a slow line a pong waits
  behind a whole segment, and cutting that off would mean sending it for ever.
- Nothing for `patience_s`: the connection is silent, and the caller drops it. (Left alone, nats-py needs
  minutes, or hangs: nats-io/nats.py issue 671.)
"""

import asyncio
from typing import Protocol

from cmf_protocol.errors import LinkError

#: How often an idle connection is asked, s: this plus the patience is how long a dead one goes unnoticed.
PING_EVERY_S = 10.0
#: How long nothing may move while a pong is awaited, s.
PATIENCE_S = 4.0
#: Upper bound of the patience, s: it doubles with each silent connection in a row, so that a line whose
#: middle swallows bytes faster than it delivers them is given the time to.
PATIENCE_MAX_S = 64.0
#: How often progress is looked at while a pong is awaited, s.
TICK_S = 0.5


class Watched(Protocol):
    """What the watchdog needs of a connection."""

    lost: "asyncio.Future[None]"
    doubt: asyncio.Event

    async def ping(self, timeout_s: float) -> None:
        """Return once the server has answered."""

    def bytes_read(self) -> int:
        """Return how many bytes ever arrived."""

    def unsent_bytes(self) -> int:
        """Return how many bytes have not left yet."""


async def until_silent(connection: Watched, patience_s: float = PATIENCE_S) -> bool:
    """Return True when `connection` has gone silent for `patience_s`, False when it is lost anyway."""
    while not connection.lost.done():
        try:
            async with asyncio.timeout(PING_EVERY_S):
                await connection.doubt.wait()
        except TimeoutError:
            pass
        connection.doubt.clear()
        if not connection.lost.done() and not await _answers(connection, patience_s):
            return not connection.lost.done()
    return False


async def _answers(connection: Watched, patience_s: float) -> bool:
    """Ask for a pong and return whether it came, or at least something moved all the time until it did."""
    pong = asyncio.ensure_future(connection.ping(timeout_s=float(10**6)))
    try:
        return await _moves_until(pong, connection, patience_s)
    finally:
        pong.cancel()


async def _moves_until(pong: "asyncio.Future[None]", connection: Watched, patience_s: float) -> bool:
    clock = asyncio.get_running_loop().time
    moved_at, read, unsent = clock(), connection.bytes_read(), connection.unsent_bytes()
    while clock() - moved_at < patience_s:
        await asyncio.wait({pong, connection.lost}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        if connection.lost.done():
            return False
        if pong.done():
            return not isinstance(pong.exception(), LinkError)
        read_before, unsent_before = read, unsent
        read, unsent = connection.bytes_read(), connection.unsent_bytes()
        if read > read_before or unsent < unsent_before:
            moved_at = clock()
    return False
