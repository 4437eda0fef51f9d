"""A connection through the fault proxy: bytes are read, shaped, cut where told, and written.

Rules
- Everything here runs in the proxy's own event loop; what is asked of it, and what it tells, stands in `Faults`.
- Sockets are used bare: a stream's own buffers would hide what is under way.
"""

import asyncio
import math
import random
import socket
import struct
from dataclasses import dataclass, replace
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Literal

from tests.support.frames import Frame, Piece, Scanner
from tests.support.nats import HOST

LOG = "cmf.v1.log."
#: What a sender gets rid of before a limited line makes it wait: a small modem's buffer. The kernel's own on loopback holds megabytes.
BUFFER_BYTES = 16_384
#: As on an Ethernet; loopback's 65,483 would give each sender 2.6 MB of the kernel's memory to send into.
MAX_SEGMENT_BYTES = 1_400
READ_BYTES = 16_384
#: No connection that is to be reset lives longer than this many bytes; half of them end within the first thousand.
RESET_WITHIN_BYTES = 1_000_000

Where = Literal["before", "line", "payload", "after"]
How = Literal["reset", "close", "stall", "drop"]
#: Bytes before a cut arrive, unless the other side reads nothing for so long, s.
ARRIVES_WITHIN_S = 10.0
_NO_BYTES = struct.pack("i", 0)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Cut:
    """What happens at a point of the protocol.

    `kind` is INFO, CONNECT, PUB (also HPUB), MSG (also HMSG), …; `where` before it, in the middle of its line or of its payload
    (headers and all), or after it. `reset` sends RST, `close` FIN, both ways; `stall` leaves the connection open and silent;
    `drop` (only before a message) leaves that message out. `subject` is the beginning of its subject. `acknowledges`: only what
    answers a PUB on `cmf.v1.log.…`. The first `skip` of what fits are spared.
    """

    kind: str
    where: Where = "before"
    how: How = "reset"
    subject: str = ""
    acknowledges: bool = False
    skip: int = 0

    def __post_init__(self) -> None:
        assert self.how != "drop" or self.where == "before", "a part of a message can't be left out"

    def offset(self, frame: Frame) -> int:
        """Return the number of the frame's bytes that still arrive."""
        return {
            "before": 0,
            "line": frame.line_bytes // 2,
            "payload": frame.line_bytes + (frame.header_bytes + frame.payload_bytes) // 2,
            "after": frame.size,
        }[self.where]


@dataclass(frozen=True)
class Line:
    """One direction: how long a byte is under way, s, and how many get on it in a second."""

    delay_s: float = 0.0
    bytes_per_s: float = math.inf


@dataclass
class Counts:
    """What went through since the beginning; `log_bytes` are payloads that clients published on `cmf.v1.log.…`, without headers."""

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    log_messages: int = 0
    log_bytes: int = 0
    #: Those that `reset_some` chose and that lived long enough.
    resets: int = 0


class Faults:
    """What is asked of the connections, and what they tell."""

    def __init__(self, seed: int) -> None:
        self.counts = Counts()
        #: The cuts that happened, in order.
        self.hits: list[Cut] = []
        self.up = self.down = Line()
        self.refuses = False
        self.reset_share = 0.0
        self.armed: list[Cut] = []
        self._chance = random.Random(seed)

    def moment_of_reset(self) -> float:
        """Return after how many bytes a new connection is reset."""
        if self._chance.random() >= self.reset_share:
            return math.inf
        return float(RESET_WITHIN_BYTES ** self._chance.random())

    def take_cut(self, frame: Frame, acknowledges: bool) -> Cut | None:
        """Return the cut that waits for this frame, and forget it."""
        for at, cut in enumerate(self.armed):
            if cut.kind == frame.kind and frame.subject.startswith(cut.subject) and acknowledges >= cut.acknowledges:
                if not cut.skip:
                    return self.armed.pop(at)
                self.armed[at] = replace(cut, skip=cut.skip - 1)
        return None


def made_small(made: socket.socket) -> socket.socket:
    """Give a socket that does not listen or connect yet the buffers of a real line."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT_BYTES)
    made.setblocking(False)
    return made


class Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, faults: Faults, client: socket.socket) -> None:
        self.faults = faults
        self.flowing = asyncio.Event()
        #: Reply subjects of what the client published on its log.
        self.asked: set[str] = set()
        self.until_reset = faults.moment_of_reset()
        self._client = client
        self._server = made_small(socket.socket())
        self._ended: asyncio.Future[How] = asyncio.get_running_loop().create_future()
        self._closed = 0

    def let_flow(self, flows: bool) -> None:
        if flows:
            self.flowing.set()
        else:
            self.flowing.clear()

    def end(self, how: How) -> None:
        """Cut both halves, as soon as the loop comes to it."""
        if how == "stall":
            self.flowing.clear()
        elif how != "drop" and not self._ended.done():
            self._ended.set_result(how)

    def close_one(self) -> None:
        """Say that one direction has ended by itself; after both, so has the connection."""
        self._closed += 1
        if self._closed == 2:
            self.end("close")

    async def serve(self, target_port: int) -> None:
        """Connect to the server and forward until one side, or a fault, ends it."""
        faults = self.faults
        faults.counts.connections += 1
        try:
            if faults.refuses:
                raise ConnectionRefusedError
            # A client on this machine is connected at once; over a real line it would have waited for SYN and its answer.
            await asyncio.sleep(faults.up.delay_s + faults.down.delay_s)
            await asyncio.get_running_loop().sock_connect(self._server, (HOST, target_port))
            how = await self._forward()
        except ConnectionRefusedError:
            how = "reset"
        if how == "reset":
            for half in (self._client, self._server):
                half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            await asyncio.gather(_finish(self._client), _finish(self._server), return_exceptions=True)

    def close(self) -> None:
        """Close both sockets, when nothing uses them any more."""
        self._client.close()
        self._server.close()

    async def _forward(self) -> How:
        """Forward both ways until the connection is to end, and return how."""
        up = _Direction(self, True, self._client, self._server)
        down = _Direction(self, False, self._server, self._client)
        running = [asyncio.create_task(work) for work in (up.read(), up.write(), down.read(), down.write())]
        for task in running:
            task.add_done_callback(self._fail)
        try:
            return await self._ended
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _fail(self, task: asyncio.Task[None]) -> None:
        """End with what is a mistake in here, if one ended the task."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._ended.done():
            self._ended.set_exception(error)


async def _finish(half: socket.socket) -> None:
    """Send FIN, and read what comes until the other side does so too: closing before would send RST."""
    half.shutdown(socket.SHUT_WR)
    while await asyncio.get_running_loop().sock_recv(half, READ_BYTES):
        pass


class _Direction:
    """One direction of a connection: read as fast as the bandwidth lets, and written after the delay."""

    def __init__(self, connection: Connection, is_up: bool, source: socket.socket, sink: socket.socket) -> None:
        self._connection = connection
        self._faults = connection.faults
        self._is_up = is_up
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        #: When each thing arrives: bytes, a cut, or the end (None).
        self._under_way: asyncio.Queue[tuple[float, bytes | Cut | None]] = asyncio.Queue()
        self._cut: Cut | None = None
        self._free_at = 0.0

    @property
    def _line(self) -> Line:
        return self._faults.up if self._is_up else self._faults.down

    async def read(self) -> None:
        scanner = Scanner()
        try:
            while data := await self._read_some():
                for piece in scanner.feed(data):
                    self._count(piece)
                    self._pass_on(piece)
            self._put(scanner.finish())
            self._put(None)
        except OSError:
            self._connection.end("reset")

    async def write(self) -> None:
        try:
            while True:
                arrives_at, what = await self._under_way.get()
                await asyncio.sleep(max(0.0, arrives_at - self._loop.time()))
                await self._connection.flowing.wait()
                if isinstance(what, Cut):
                    await self._arrived()
                    self._faults.hits.append(what)
                    self._connection.end(what.how)
                elif what is None:
                    self._sink.shutdown(socket.SHUT_WR)
                    return self._connection.close_one()
                else:
                    await self._write_some(what)
        except OSError:
            self._connection.end("reset")

    async def _read_some(self) -> bytes:
        """Return what the line takes next, when it has taken it."""
        await self._connection.flowing.wait()
        limited = self._line.bytes_per_s < math.inf
        data = await self._loop.sock_recv(self._source, MAX_SEGMENT_BYTES if limited else READ_BYTES)
        await self._connection.flowing.wait()
        if self._is_up:
            self._faults.counts.up_bytes += len(data)
        else:
            self._faults.counts.down_bytes += len(data)
        rate = self._line.bytes_per_s  # it may have changed while nothing came
        if rate < math.inf:
            self._free_at = max(self._free_at, self._loop.time()) + len(data) / rate
            await asyncio.sleep(self._free_at - self._loop.time())
        return data

    async def _write_some(self, data: bytes) -> None:
        left = self._connection.until_reset
        if len(data) < left:
            self._connection.until_reset -= len(data)
            await self._loop.sock_sendall(self._sink, data)
        else:
            await self._loop.sock_sendall(self._sink, data[: int(left)])
            await self._arrived()
            self._faults.counts.resets += 1
            self._connection.end("reset")

    async def _arrived(self) -> None:
        """Wait until the other side's kernel has what was written: a reset throws away what is still in ours."""
        waits_until = self._loop.time() + ARRIVES_WITHIN_S
        while ioctl(self._sink, TIOCOUTQ, _NO_BYTES) != _NO_BYTES and self._loop.time() < waits_until:
            await asyncio.sleep(0.001)

    def _count(self, piece: Piece) -> None:
        frame = piece.frame
        if self._is_up and frame.kind == "PUB" and frame.subject.startswith(LOG):
            self._faults.counts.log_bytes += piece.payload_bytes
            self._faults.counts.log_messages += piece.at == 0
            self._connection.asked.add(frame.reply)

    def _pass_on(self, piece: Piece) -> None:
        """Put bytes on the line, and where one is due, a cut between them."""
        frame, at, data = piece
        if at == 0:
            is_ack = not self._is_up and frame.subject in self._connection.asked
            self._cut = self._faults.take_cut(frame, is_ack)
        left = math.inf if self._cut is None else self._cut.offset(frame) - at
        if self._cut is None or left > len(data):
            return self._put(data)
        if at == 0 or self._cut.how != "drop":
            self._put(data[: int(left)])
            self._put(self._cut)
        if self._cut.how != "drop":  # what is left arrives if a stalled connection goes on
            self._put(data[int(left) :])
            self._cut = None
        return None

    def _put(self, what: bytes | Cut | None) -> None:
        if what != b"":
            self._under_way.put_nowait((self._loop.time() + self._line.delay_s, what))
