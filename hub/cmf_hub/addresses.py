"""Where the hub's NATS server listens, where sites reach it, and whether that takes TLS.

Rules
- Pure: nothing is looked up, this machine's name is an argument.
- NATS beyond this machine is TLS: it is plain only where both addresses are loopback. A tunnel that ends at the
  loopback address is TLS too, once `--advertise` names where it begins.
- The hub's own processes reach the server by a loopback address where it listens on one, so that they need neither
  the network nor a name.
"""

import ipaddress
import re
from dataclasses import dataclass, replace

from cmf_link.address import Address
from cmf_protocol.errors import CallerError

#: By these this machine reaches itself; they are in every certificate, for tunnels and for the hub's own commands.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
#: What can be a host's name in a certificate (an IDN in its ASCII form).
HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


@dataclass(frozen=True)
class Addresses:
    """Where the server binds, and the address that join files name."""

    listen: Address
    advertised: Address

    @property
    def tls(self) -> bool:
        """Whether the server speaks TLS, to everyone."""
        return self.listen.tls

    @property
    def local(self) -> Address:
        """The address by which this machine reaches the server."""
        if not is_wildcard(self.listen.host):
            return self.listen
        return replace(self.listen, host="::1" if ":" in self.listen.host else "127.0.0.1")

    def names(self, this_host: str) -> frozenset[str]:
        """Return the hosts that the server's certificate is for; `this_host` is this machine's name."""
        hosts = {normal(self.advertised.host), *LOOPBACK_NAMES}
        if not is_wildcard(self.listen.host):
            hosts.add(normal(self.listen.host))
        if HOST_NAME.fullmatch(this_host):
            hosts.add(normal(this_host))
        return frozenset(hosts)


def read_addresses(nats: str, advertise: str | None, this_host: str) -> Addresses:
    """Return what `--nats` and `--advertise` (HOST:PORT) mean on a machine called `this_host`.

    Raises `CallerError` for what is no address, or none that a site could reach.
    """
    listen = Address(*read_host_port(nats))
    if advertise is not None:
        advertised = Address(*read_host_port(advertise))
    elif is_wildcard(listen.host):
        advertised = replace(listen, host=this_host)
    else:
        advertised = listen
    if is_wildcard(advertised.host) or not (_is_ip(advertised.host) or HOST_NAME.fullmatch(advertised.host)):
        raise CallerError(
            f"{advertised.host!r} is no address at which a site could reach this hub",
            "name this machine as sites see it, with --advertise HOST:PORT",
        )
    tls = not (is_loopback(listen.host) and is_loopback(advertised.host))
    return Addresses(replace(listen, tls=tls), replace(advertised, tls=tls))


def read_host_port(text: str) -> tuple[str, int]:
    """Return (host, port) of `HOST:PORT`; raise `CallerError` for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise CallerError(f"{text!r} is not HOST:PORT", "for example 127.0.0.1:4222")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Tell if `host` can only ever be this machine; a name other than localhost is not known to be."""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def is_wildcard(host: str) -> bool:
    """Tell if `host` stands for every address of this machine."""
    return _is_ip(host) and ipaddress.ip_address(host).is_unspecified


def normal(host: str) -> str:
    """Return the one spelling of a host in a certificate: lower case, an IP address at its shortest, without a zone."""
    bare = host.partition("%")[0]
    return str(ipaddress.ip_address(bare)) if _is_ip(bare) else host.lower()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
