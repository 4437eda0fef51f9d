"""`cmf-hub serve`: one process with everything of a hub; its life from start to stop.

Theory of operation: lock the data, start the nats-server, log in, make the stream, start the processes of the projector and of pulls, then
answer. A stop (SIGTERM, SIGINT) ends them in the opposite order; what a kill -9 leaves behind (a nats-server, a
projector) is ended by the next start or by itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path

from cmf_graph.database import store_errors
from cmf_hub.addresses import Addresses, is_wildcard
from cmf_hub.broker import Broker
from cmf_hub.children import Child
from cmf_hub.consumer import Consumer
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder, only_server
from cmf_hub.registry import Registry
from cmf_hub.upstreams import configured
from cmf_link.link import Link, connect
from cmf_link.login import login_from_seed, new_login
from cmf_link.stream import ensure_stream

logger = logging.getLogger("cmf_hub")


@dataclass(frozen=True)
class Options:
    """What `serve` was asked for."""

    data: DataFolder
    addresses: Addresses
    ready_file: Path | None


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
            _say_addresses(options)
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
        broker = await Broker.start(data.nats, options.addresses, login_from_seed(seed), registry.logins)
        stack.push_async_callback(broker.stop)
        projector = Child("projector", "cmf_hub.projector", data)
        stack.callback(projector.stop)
        greeting = json.dumps({"url": broker.url, "ca": broker.ca}) + "\n"
        pulls = Child("pulls", "cmf_hub.pull_service", data, greeting.encode())
        stack.callback(pulls.stop)
        told = [projector, *_forwarders(data, stack)]
        consumer = Consumer(custody, registry, hub_id, lambda: _poke(told))
        stack.callback(consumer.close)
        link = await connect(broker.url, seed=seed, name="cmf-hub", ca=broker.ca)
        stack.push_async_callback(link.close)
        await _answer(link, consumer, stack)
        watched = (child.watch() for child in (*told, pulls))
        for work in (broker.supervise(_say_broker_ended), broker.keep_certificate(), *watched):
            _background(work, stack)
        await pulls.ready()
        _write_ready(options)
        stack.callback(_remove_ready, options)
        yield


def _forwarders(data: DataFolder, stack: contextlib.AsyncExitStack) -> list[Child]:
    """Start what forwards to the hubs that `hub.toml` names, if it names any. Raises `CallerError` for what can't be meant."""
    if not configured(data):
        return []
    child = Child("forwarder", "cmf_hub.forwarder", data)
    stack.callback(child.stop)
    return [child]


def _poke(children: list[Child]) -> None:
    for child in children:
        child.poke()


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


def _say_addresses(options: Options) -> None:
    addresses = options.addresses
    logger.info("serving %s on %s", options.data.root, addresses.listen.url)
    if is_wildcard(addresses.listen.host) or addresses.advertised != addresses.listen:
        logger.info("sites are told to come to %s (--advertise HOST:PORT names another)", addresses.advertised.url)


def _write_ready(options: Options) -> None:
    content = json.dumps({"http": None, "nats": str(options.addresses.advertised), "pid": os.getpid()}) + "\n"
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
