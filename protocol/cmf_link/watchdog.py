"""Notices that a connection is silent: half-open, or with a server that hangs.

Theory of operation
- Every `PING_EVERY_S`, and as soon as an answer is overdue, the server is asked for a pong.
- While the pong is awaited, bytes that arrive and bytes that leave count as life: on a slow line a pong waits
  behind a whole segment, and cutting that off would mean sending it for ever.
- Nothing for `PATIENCE_S`: the connection is silent, and the caller drops it. (Left alone, nats-py needs minutes, or
  hangs: nats-io/nats.py issue 671.)
- Bytes that have left may still wait in the middle (an SSH tunnel, a satellite's proxy): when none is left here,
  they are given the time that the slowest line needs, or where answers have shown that this one is faster, a multiple
  of what it needs. On a line that is cut the ping itself never leaves.
"""

import asyncio
import contextlib
from typing import Protocol

#: How often an idle connection is asked, s: this plus the patience is how long a dead one goes unnoticed.
PING_EVERY_S = 10.0
#: How long nothing may move while a pong is awaited, s.
PATIENCE_S = 4.0
#: What the slowest line that we serve carries, bytes/s (64 kbit/s), and the longest time given on that ground, s.
SLOWEST_LINE = 8_000
PATIENCE_MORE_MAX_S = 60.0
#: A line may get that much slower than answers have shown it to be before it is taken for dead; messages smaller than this show
#: how long a round trip takes, and nothing about the line, bytes.
SLOWER_MAX = 8
MEASURED_FROM_BYTES = 1_000
#: How often progress is looked at while a pong is awaited, s.
TICK_S = 0.5


class Shown:
    """What answers have shown of a connection: how many of its bytes have reached the server, and how slow the line may be, bytes/s."""

    def __init__(self) -> None:
        self.arrived = 0
        self.bytes_per_s: float = SLOWEST_LINE

    def on_answer(self, arrived: int, size: int, took_s: float) -> None:
        """A message of `size` bytes was answered: it, and with it everything up to the byte `arrived`, has reached the server."""
        self.arrived = max(self.arrived, arrived)
        if size >= MEASURED_FROM_BYTES and took_s > 0:
            self.bytes_per_s = max(SLOWEST_LINE, size / took_s / SLOWER_MAX)


class Watched(Protocol):
    """What the watchdog needs of a connection."""

    shown: Shown
    lost: "asyncio.Future[None]"
    doubt: asyncio.Event

    async def ping(self, timeout_s: float) -> None:
        """Return once the server has answered."""

    def bytes_read(self) -> int:
        """Return how many bytes ever arrived."""

    def bytes_left(self) -> int:
        """Return how many bytes ever left, as far as is known."""

    def unsent_bytes(self) -> int:
        """Return how many bytes have not left yet."""


async def until_silent(connection: Watched) -> None:
    """Return when `connection` has gone silent, or is lost."""
    while not connection.lost.done():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PING_EVERY_S):
                await connection.doubt.wait()
        connection.doubt.clear()
        asked = connection.bytes_left() + connection.unsent_bytes()
        if connection.lost.done() or not await _answers(connection):
            return
        connection.shown.on_answer(asked, 0, 0.0)


async def _answers(connection: Watched) -> bool:
    """Ask for a pong and return whether it came, or at least something moved all the time until it did."""
    pong = asyncio.ensure_future(connection.ping(timeout_s=float(10**6)))
    try:
        return await _moves_until(pong, connection)
    finally:
        pong.cancel()


async def _moves_until(pong: "asyncio.Future[None]", connection: Watched) -> bool:
    clock = asyncio.get_running_loop().time
    moved_at, read, left = clock(), connection.bytes_read(), connection.bytes_left()
    while clock() - moved_at < _patience_s(connection):
        await asyncio.wait({pong, connection.lost}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        if connection.lost.done():
            return False
        if pong.done():
            return pong.exception() is None
        if (connection.bytes_read(), connection.bytes_left()) != (read, left):
            moved_at, read, left = clock(), connection.bytes_read(), connection.bytes_left()
    return False


def _patience_s(connection: Watched) -> float:
    if connection.unsent_bytes():
        return PATIENCE_S
    on_the_way = connection.bytes_left() - connection.shown.arrived
    return PATIENCE_S + min(max(on_the_way, 0) / connection.shown.bytes_per_s, PATIENCE_MORE_MAX_S)
