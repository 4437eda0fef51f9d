"""nats-py's TCP transport, made observable: what arrived, what has not left, and a way to drop it at once."""

import fcntl
import struct
import sys
import termios
from collections.abc import Iterable

from nats.aio.transport import TcpTransport


class WatchedTransport(TcpTransport):
    """A TCP transport that counts what it carries and can be aborted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_read = 0
        self.bytes_written = 0
        #: Whether a NATS server's greeting came.
        self.greeted = False

    def __bool__(self) -> bool:
        # nats-py replaces a transport that is false, and its own is until it is connected.
        return True

    @property
    def reached(self) -> bool:
        """Whether the TCP connection was ever made."""
        return self._io_writer is not None

    async def read(self, buffer_size: int) -> bytes:
        """Read up to `buffer_size` bytes, and count them."""
        data: bytes = await super().read(buffer_size)
        self.bytes_read += len(data)
        return data

    async def readline(self) -> bytes:
        """Read one line: nats-py does so only while it logs in."""
        line: bytes = await super().readline()  # type: ignore[no-untyped-call]
        self.greeted = self.greeted or line.startswith(b"INFO {")
        return line

    def write(self, payload: bytes) -> None:
        """Hand bytes to the connection, and count them."""
        self.bytes_written += len(payload)
        super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Hand several pieces to the connection, and count them."""
        self.write(b"".join(payload))

    def unsent_bytes(self) -> int:
        """Return how many bytes the peer's kernel has not acknowledged (Linux), or ours not taken (elsewhere)."""
        if self._io_writer is None or self._io_writer.transport.is_closing():
            return 0
        waiting: int = self._io_writer.transport.get_write_buffer_size()
        return waiting + _unacknowledged(self._io_writer.get_extra_info("socket").fileno())

    def abort(self) -> None:
        """Drop the connection without waiting for unsent bytes."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()


def _unacknowledged(descriptor: int) -> int:
    if sys.platform != "linux":  # TIOCOUTQ on sockets is Linux's (tcp(7), SIOCOUTQ)
        return 0
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
