"""nats-py's TCP transport, made observable: what arrived, what has not left, and a way to drop it at once.

Rules
- With a CA, nothing is ever sent in the clear: a server that offers no TLS is refused before a byte goes to it, so
  that whoever sits in the middle can't talk a site out of TLS.
- Without a CA, no certificate is trusted: not the system's either, since a hub's certificate is its own CA's.
"""

import asyncio
import fcntl
import ssl
import struct
import sys
import termios
from collections.abc import Iterable
from typing import Any

from nats.aio.transport import TcpTransport

from cmf_protocol.errors import CallerError


class NoTlsOffered(Exception):
    """The server speaks plain NATS, where TLS is a must."""


class NoCaGiven(Exception):
    """The server wants TLS, and there is no CA to know it by."""


def trust_in(ca: str) -> ssl.SSLContext:
    """Return a TLS context (1.2 or later) that trusts certificates of `ca` (PEM) only and checks the host's name.

    Raises `CallerError` if `ca` is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise CallerError(
            "the hub's CA that came with the join file is not a certificate", "use the join file as it came"
        ) from error
    return context


class WatchedTransport(TcpTransport):
    """A TCP transport that counts what it carries and can be aborted; with `tls`, it carries nothing without."""

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_read = 0
        #: Whether a NATS server's greeting came.
        self.greeted = False
        self._tls = tls
        self._secured = False
        self._bytes_written = 0
        self._bytes_left = 0

    def __bool__(self) -> bool:
        # nats-py replaces a transport that is false, and its own is until it is connected.
        return True

    @property
    def reached(self) -> bool:
        """Whether the TCP connection was ever made."""
        return self._bare_io_writer is not None

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Go over to TLS with the host `uri` (its name): nats-py asks for it when the server's greeting does."""
        if not self._tls:  # then nats-py made a context of its own, which trusts whatever the system trusts
            raise NoCaGiven
        if self._bare_io_writer is None:
            raise ConnectionError("not connected")
        loop = asyncio.get_running_loop()
        # A reader of its own: what came in the clear behind the greeting must not pass for what came by TLS.
        reader = asyncio.StreamReader(limit=buffer_size)
        protocol = asyncio.StreamReaderProtocol(reader)
        bare = self._bare_io_writer.transport
        async with asyncio.timeout(connect_timeout):
            secured = await loop.start_tls(bare, protocol, ssl_context, server_hostname=uri)
        if secured is None:  # it was aborted meanwhile
            raise ConnectionAbortedError
        protocol.connection_made(secured)  # nats-py leaves this out; without it reading has no flow control
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(secured, protocol, reader, loop)
        self._secured = True

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
        """Hand bytes to the connection, and count them. Raises `NoTlsOffered` rather than send in the clear."""
        if self._tls and not self._secured:
            raise NoTlsOffered
        self._bytes_written += len(payload)
        super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Hand several pieces to the connection, and count them."""
        self.write(b"".join(payload))

    def unsent_bytes(self) -> int:
        """Return how many bytes the peer's kernel has not acknowledged (Linux), or ours not taken (elsewhere).

        Under TLS they are counted as they travel, so a little more than was written.
        """
        bare = self._bare_io_writer
        if bare is None or bare.transport.is_closing():
            return 0
        return _waiting(bare) + _waiting(self._io_writer) * self._secured + _unacknowledged(bare)

    def bytes_left(self) -> int:
        """Return how many of the bytes that were written ever left, as far as is known."""
        # What left stays so: more to send, and TLS's own bytes with it, must not look as if something had moved.
        self._bytes_left = max(self._bytes_left, self._bytes_written - self.unsent_bytes())
        return self._bytes_left

    def abort(self) -> None:
        """Drop the connection without waiting for unsent bytes."""
        if self._bare_io_writer is not None:  # TLS lies upon it, and goes with it
            self._bare_io_writer.transport.abort()


def _waiting(writer: asyncio.StreamWriter | None) -> int:
    return 0 if writer is None else writer.transport.get_write_buffer_size()


def _unacknowledged(bare: asyncio.StreamWriter) -> int:
    if sys.platform != "linux":  # TIOCOUTQ on sockets is Linux's (tcp(7), SIOCOUTQ)
        return 0
    answer = fcntl.ioctl(bare.get_extra_info("socket").fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
