"""Where a hub's NATS server listens: `nats://host:port`, or `host:port`."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from cmf_protocol.errors import CallerError

DEFAULT_PORT = 4222


@dataclass(frozen=True)
class Address:
    """A host (name, IPv4 or bare IPv6) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as NATS clients write it."""
        return f"nats://{self}"


def read_address(text: str) -> Address:
    """Read `nats://host:port` or `host:port`; the port may be left out. Raises `CallerError`."""
    hint = "write it as nats://HOST:PORT"
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise CallerError(f"{text!r} is not an address of a hub: {error}", hint) from error
    if parts.scheme != "nats" or not host or parts.path.strip("/") or parts.username is not None:
        raise CallerError(f"{text!r} is not an address of a hub", hint)
    return Address(host, DEFAULT_PORT if port is None else port)
