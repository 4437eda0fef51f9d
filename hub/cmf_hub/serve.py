"""`cmf-hub serve`: one process with everything of a hub; its life from start to stop.

Theory of operation: lock the data, start the nats-server, log in, make the stream, start the projector's process, then
answer. A stop (SIGTERM, SIGINT) ends them in the opposite order; what a kill -9 leaves behind (a nats-server, a
projector) is ended by the next start or by itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path

from cmf_graph.database import store_errors
from cmf_hub.broker import Broker
from cmf_hub.consumer import Consumer
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder, only_server
from cmf_hub.registry import Registry
from cmf_link.link import Link, connect
from cmf_link.login import login_from_seed, new_login
from cmf_link.stream import ensure_stream
from cmf_protocol.errors import CallerError

logger = logging.getLogger("cmf_hub")

CHILD_END_S = 10.0
PROJECTOR_RESTART_S = 1.0


@dataclass(frozen=True)
class Options:
    """What `serve` was asked for."""

    data: DataFolder
    host: str
    port: int
    ready_file: Path | None


class ProjectorChild:
    """The projector's process, started again if it dies."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the process; it ends when its standard input closes, so also when this process is killed."""
        command = [sys.executable, "-m", "cmf_hub.projector", str(self._data.root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)  # a poke that finds no room is not needed

    def poke(self) -> None:
        """Tell it that there is something new."""
        pipe = self._process.stdin if self._process else None
        if pipe is not None:
            with contextlib.suppress(OSError):  # it died: `watch` starts it again, and it looks for itself
                os.write(pipe.fileno(), b"\n")

    async def watch(self) -> None:
        """Start it again whenever it ends."""
        while True:
            await asyncio.sleep(PROJECTOR_RESTART_S)
            if self._process is not None and self._process.poll() is not None:
                logger.error("the projector ended with %s: started again", self._process.returncode)
                self.start()

    def stop(self) -> None:
        """End it after the commit that it is in."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(CHILD_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; returns once everything is ended.

    Raises `StoreError` if the data or the port is in use, `CallerError` for an address that can't be one.
    """
    options.data.prepare()
    with only_server(options.data):
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with _running(options):
            logger.info("serving %s on nats://%s:%s", options.data.root, options.host, options.port)
            await stop.wait()
            logger.info("stopping")


@contextlib.asynccontextmanager
async def _running(options: Options) -> AsyncIterator[None]:
    data = options.data
    async with contextlib.AsyncExitStack() as stack:
        registry = Registry(data.registry)
        stack.callback(registry.close)
        hub_id, seed = registry.identity(new_login().seed)
        custody = Custody(data.store, registry)
        stack.callback(custody.close)
        broker = await Broker.start(data.nats, options.host, options.port, login_from_seed(seed), registry.logins)
        stack.push_async_callback(broker.stop)
        projector = ProjectorChild(data)
        stack.callback(projector.stop)
        consumer = Consumer(custody, registry, hub_id, projector.poke)
        stack.callback(consumer.close)
        link = await connect(broker.url, seed=seed, name="cmf-hub")
        stack.push_async_callback(link.close)
        await _answer(link, consumer, stack)
        for work in (broker.supervise(_say_broker_ended), projector.watch()):
            _background(work, stack)
        _write_ready(options, broker.url)
        stack.callback(_remove_ready, options)
        yield


async def _answer(link: Link, consumer: Consumer, stack: contextlib.AsyncExitStack) -> None:
    stream = await ensure_stream(link)
    await link.serve("cmf.v1.rpc.*.hello", "hub", consumer.hello)
    _background(consumer.consume(link, stream), stack)


def _background(work: Coroutine[object, object, None], stack: contextlib.AsyncExitStack) -> None:
    task = asyncio.ensure_future(work)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    task.add_done_callback(_say_if_failed)
    stack.push_async_callback(end)


def _say_if_failed(task: "asyncio.Future[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("a part of the hub ended: stopping", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


def _say_broker_ended(code: int) -> None:
    logger.error("the nats-server ended with %s: started again", code)


def _write_ready(options: Options, url: str) -> None:
    address = url.removeprefix("nats://")
    content = json.dumps({"http": None, "nats": address, "pid": os.getpid()}) + "\n"
    for file in (options.data.server_file, options.ready_file):
        if file is None:
            continue
        with store_errors(file):
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(file)


def _remove_ready(options: Options) -> None:
    for file in (options.data.server_file, options.ready_file):
        if file is not None:
            file.unlink(missing_ok=True)


def read_host_port(text: str) -> tuple[str, int]:
    """Return (host, port) of `HOST:PORT`; raise `CallerError` for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise CallerError(f"{text!r} is not HOST:PORT", "for example 127.0.0.1:4222")
    return host.strip("[]"), int(port)
