"""A real nats-server for tests, ports for it, and waiting for a condition."""

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from tempfile import gettempdir

from cmf_hub.addresses import read_addresses
from cmf_hub.broker import Broker
from cmf_link.link import Link, connect
from cmf_link.login import Login, new_login

HOST = "127.0.0.1"
#: What is waited for takes far less, even on a machine that is busy with all the other tests, s.
EVENTUALLY_S = 60.0
#: The tests' ports lie in ranges of this size, from here up to the first port that the kernel gives to outgoing connections.
FIRST_PORT = 10_000
RANGE_PORTS = 200
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: What Linux has there unless told otherwise; macOS, which has no such file, begins at 49152.
FIRST_EPHEMERAL_PORT = 32_768


def free_port() -> int:
    """Return a port that nobody listens on, from a range that no other process of any test run has.

    The ports of the range come one after another, each tried by binding it. An outgoing connection is never given one of them: it
    can't take the port before the server starts, nor while a test has its server down, and no client that tries again and
    again meets itself there.
    """
    for port in islice(_own_ports(), RANGE_PORTS):
        with suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise RuntimeError(f"all {RANGE_PORTS} ports of this process are taken")


@cache
def _own_ports() -> Iterator[int]:
    """Claim a range for this process, for as long as it lives, and return its ports, round and round."""
    told = EPHEMERAL_PORTS.read_text().split()[0] if EPHEMERAL_PORTS.exists() else FIRST_EPHEMERAL_PORT
    for first in range(FIRST_PORT, int(told) - RANGE_PORTS, RANGE_PORTS):
        if _claim(Path(gettempdir()) / f"cmf-tests-ports-{first}"):
            return cycle(range(first, first + RANGE_PORTS))
    raise RuntimeError(f"no ports are left between {FIRST_PORT} and {told}, where the kernel's own begin")


def _claim(file: Path) -> bool:
    """Lock a file until this process ends; False if another process, or another user, has it."""
    try:
        claim = os.open(file, os.O_RDWR | os.O_CREAT)
    except PermissionError:
        return False
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        return False
    return True


async def eventually(condition: Callable[[], bool], limit_s: float = EVENTUALLY_S) -> None:
    """Wait until `condition()`, and fail after `limit_s` seconds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class Nats:
    """A running broker, the hub's login and those of the enrolled sites."""

    broker: Broker
    hub: Login
    sites: dict[str, Login] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.broker.url

    async def enrol(self, site: str) -> Login:
        self.sites[site] = new_login()
        await self.broker.apply()
        await self.broker.prove(site, self.sites[site].seed)
        return self.sites[site]

    async def revoke(self, site: str) -> None:
        del self.sites[site]
        await self.broker.apply()

    @asynccontextmanager
    async def link(self, site: str = "", url: str = "") -> AsyncIterator[Link]:
        """A link of the hub, or of `site`."""
        login = self.sites[site] if site else self.hub
        link = await connect(url or self.url, seed=login.seed, name=site or "hub", ca=self.broker.ca)
        try:
            yield link
        finally:
            await link.close()


@asynccontextmanager
async def running_nats(
    folder: Path, *sites: str, hub: Login | None = None, port: int = 0, advertise: str | None = None
) -> AsyncIterator[Nats]:
    """Run a broker on `folder` with these sites enrolled, and end it whatever happens.

    It speaks TLS if `advertise` (HOST:PORT) is not loopback; its CA is in `tls` beside `folder` then.
    """
    logins = {site: new_login() for site in sites}
    hub = hub or new_login()
    addresses = read_addresses(f"{HOST}:{port or free_port()}", advertise, "")
    broker = await Broker.start(folder, addresses, hub, lambda: {site: login.public for site, login in logins.items()})
    try:
        yield Nats(broker, hub, logins)
    finally:
        await broker.stop()
