"""Where a hub's NATS server is reached: `nats://host:port`, `tls://host:port` or `host:port`."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from cmf_protocol.errors import CallerError

DEFAULT_PORT = 4222
PLAIN = "nats"
TLS = "tls"


@dataclass(frozen=True)
class Address:
    """A host (name, IPv4 or bare IPv6), a TCP port, and whether the server there speaks TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as NATS clients write it."""
        return f"{TLS if self.tls else PLAIN}://{self}"


def read_address(text: str) -> Address:
    """Read `nats://host:port`, `tls://host:port` or `host:port`; the port may be left out. Raises `CallerError`."""
    hint = "write it as nats://HOST:PORT or tls://HOST:PORT"
    try:
        parts = urlsplit(text if "://" in text else f"{PLAIN}://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise CallerError(f"{text!r} is not an address of a hub: {error}", hint) from error
    if parts.scheme not in (PLAIN, TLS) or not host or parts.path.strip("/") or parts.username is not None:
        raise CallerError(f"{text!r} is not an address of a hub", hint)
    return Address(host, DEFAULT_PORT if port is None else port, parts.scheme == TLS)
