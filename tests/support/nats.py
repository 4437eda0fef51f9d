"""A real nats-server for tests, a TCP proxy that can fall silent, and waiting for a condition."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cmf_hub.broker import Broker
from cmf_link.link import Link, connect
from cmf_link.login import Login, new_login

HOST = "127.0.0.1"


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


async def eventually(condition: Callable[[], bool], limit_s: float = 15.0) -> None:
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
        link = await connect(url or self.url, seed=login.seed, name=site or "hub")
        try:
            yield link
        finally:
            await link.close()


@asynccontextmanager
async def running_nats(folder: Path, *sites: str, hub: Login | None = None, port: int = 0) -> AsyncIterator[Nats]:
    """Run a broker on `folder` with these sites enrolled, and end it whatever happens."""
    logins = {site: new_login() for site in sites}
    hub = hub or new_login()
    broker = await Broker.start(
        folder, HOST, port or free_port(), hub, lambda: {site: login.public for site, login in logins.items()}
    )
    try:
        yield Nats(broker, hub, logins)
    finally:
        await broker.stop()


class Proxy:
    """Forwards TCP to `port` until `forwarding` is taken away; connections then stay open and silent."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.forwarding = asyncio.Event()
        self.forwarding.set()
        self.accepted = 0
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there, back = await asyncio.open_connection(HOST, self._target)
        self._writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._forward(source, sink))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.forwarding.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    def resume_for_new_connections(self) -> None:
        """Let what connects from now on through; what was silent stays so."""
        self.forwarding = asyncio.Event()
        self.forwarding.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._accept, HOST, 0)
        self.url = f"nats://{HOST}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
