"""A TCP proxy before a nats-server that does what bad lines do, while agents and hubs talk through it.

    with fault_proxy(hub.port) as proxy:
        proxy.shape(round_trip_s=0.2, bytes_per_s=8_000)      # any time; applies to what is sent from then on
        proxy.cut_next(BEFORE_ACK)                            # the next time that this point is reached, once
        site.call("push", "--hub", proxy.url)
        until(lambda: proxy.hits == [BEFORE_ACK], "the cut")
        proxy.cut_next(replace(IN_PAYLOAD, how="close", skip=3))
        proxy.cut_all()                                       # every open connection, now
        proxy.stall(); proxy.resume(open_too=False)           # half-open; new connections get through again
        proxy.refuse(); proxy.accept()                        # no line at all; a line again
        proxy.reset_some(0.05)                                # of the connections from now on, each at a random byte
        assert proxy.counts.log_bytes <= 1.15 * new_bytes

It runs in a thread with an event loop of its own: serve subprocesses with it, or use it within an asyncio test.

Rules
- Up is from the client to the server. A delay holds up nothing else: any number of bytes are under way. A limit of the bandwidth
  lets the line's buffer (`BUFFER_BYTES`) fill, then the sender has to wait.
- A point is found in the NATS protocol itself, so it is the same byte in every run. Bytes before it arrive, none after it.
- Of an encrypted connection the proxy knows only INFO and the numbers of bytes.
- What is counted up is what the client sent, whether or not it arrived.
"""

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support.forwarding import LOG, Connection, Cut, Faults, How, Line, made_small
from tests.support.nats import HOST, free_port

CONFIRM = "cmf.v1.confirm."
ANSWER_LIMIT_S = 30.0

IN_INFO = Cut("INFO", "line")
IN_HEADER_LINE = Cut("PUB", "line", subject=LOG)
IN_PAYLOAD = Cut("PUB", "payload", subject=LOG)
BEFORE_ACK = Cut("MSG", acknowledges=True)
IN_CONFIRMATION = Cut("MSG", "payload", subject=CONFIRM)
#: The hub has committed what it confirms here.
BEFORE_CONFIRMATION = Cut("MSG", subject=CONFIRM)


class FaultProxy(Faults):
    """The proxy's controls; every method may be called from any thread, at any time."""

    def __init__(self, target_port: int, seed: int) -> None:
        super().__init__(seed)
        self.port = free_port()
        self._target = target_port
        self._stalls = False
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._mistakes: list[BaseException] = []
        self._loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"nats://{HOST}:{self.port}"

    # -- faults --------------------------------------------------------------------------------------------------------

    def shape(self, *, round_trip_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        """Make both directions so from now on; `up` and `down` can be set one by one."""
        self.up = self.down = Line(round_trip_s / 2, bytes_per_s)

    def cut_next(self, cut: Cut) -> None:
        """Cut when this point is reached next, on whatever connection, once; `hits` tells it."""
        self._do(lambda: self.armed.append(cut))

    def cut_all(self, how: How = "reset") -> None:
        """Cut every open connection now."""
        self._do(lambda: self._end_all(how))

    def stall(self) -> None:
        """Forward nothing any more, on connections that are open and on new ones, and close none."""
        self._stalls = True
        self._do(lambda: self._let_flow(False))

    def resume(self, *, open_too: bool = True) -> None:
        """Forward again; without `open_too` only what connects from now on, as after a router lost its table."""
        self._stalls = False
        if open_too:
            self._do(lambda: self._let_flow(True))

    def refuse(self) -> None:
        """Reset every connection, and whatever connects from now on."""
        self.refuses = True
        self.cut_all()

    def accept(self) -> None:
        """Let connections come again."""
        self.refuses = False

    def reset_some(self, share: float) -> None:
        """Of the connections that come from now on reset this share, each at a byte of its own."""
        self.reset_share = share

    def heal(self) -> None:
        """End every fault: what is stalled goes on, cuts that were not reached yet are forgotten."""
        self._do(self.armed.clear)
        self.reset_some(0.0)
        self.shape()
        self.accept()
        self.resume()

    # -- in the proxy's own thread -------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], None]) -> None:
        """Have the event loop do something, and wait until it is done."""

        async def do() -> None:
            action()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(ANSWER_LIMIT_S)

    def _let_flow(self, flows: bool) -> None:
        for connection in self._open.values():
            connection.let_flow(flows)

    def _end_all(self, how: How) -> None:
        for connection in self._open.values():
            connection.end(how)

    def _take(self, listening: socket.socket) -> None:
        """Take the connection that waits, if it still does."""
        with suppress(OSError):
            client, _ = listening.accept()
            client.setblocking(False)
            connection = Connection(self, client)
            connection.let_flow(not self._stalls)
            task = self._loop.create_task(connection.serve(self._target))
            self._open[task] = connection
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).close()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._mistakes.append(error)

    def _run(self, listening: socket.socket, ended: asyncio.Event) -> None:
        async def run() -> None:
            self._loop.add_reader(listening, self._take, listening)
            await ended.wait()
            self._loop.remove_reader(listening)
            tasks = [*self._open]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(run())


@contextmanager
def fault_proxy(target_port: int, seed: int = 0) -> Iterator[FaultProxy]:
    """Run a proxy before what listens on `target_port` of this machine; nothing of it is left afterwards.

    `seed` decides which connections `reset_some` resets, and where. Raises what went wrong in the proxy itself.
    """
    proxy, ended = FaultProxy(target_port, seed), asyncio.Event()
    with made_small(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, proxy.port))
        listening.listen(1_000)
        thread = threading.Thread(target=proxy._run, args=(listening, ended), name="fault proxy")
        thread.start()
        try:
            yield proxy
        finally:
            proxy._loop.call_soon_threadsafe(ended.set)
            thread.join()
            proxy._loop.close()
    for mistake in proxy._mistakes:
        raise mistake
