"""A replay against a real broker and a real hub's consumer, with a log in memory as its source."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from tests.support.faults import BEFORE_ACK, FaultProxy, fault_proxy
from tests.support.logs import MadeLog
from tests.support.nats import EVENTUALLY_S, HOST, Nats, eventually, free_port, running_nats
from tests.support.store import ANA, Store

from cmf_hub.consumer import Consumer
from cmf_link.link import Link
from cmf_link.replay import Replay, ReplayState, Target
from cmf_link.sending import Sender
from cmf_link.stream import ensure_stream
from cmf_protocol.chains import Cut, Mark, Offer
from cmf_protocol.encoding import Value
from cmf_protocol.errors import HubUnreachable, IntegrityError, StoreError
from cmf_protocol.messages import (
    NOTICE_HELLO,
    NOTICE_NEW,
    Confirm,
    HelloAnswer,
    Notice,
    encode_notice,
    points_of,
    sign_hello,
)
from cmf_protocol.sync import Moves

HUB_ID = b"\x11" * 16
EVENTS = 60
CUT_EVENTS = 5


class MemorySource:
    """Logs in memory, cut into segments of a few events; `calls` names what was asked of it or told to it, in order."""

    def __init__(self, *logs: MadeLog) -> None:
        self.logs = {log.log_id: log for log in logs}
        self.calls: list[str] = []
        self.on_call: Callable[[], None] = lambda: None
        self.sent: list[Cut] = []
        self.confirmed: dict[bytes, int] = {}
        self.marks: dict[bytes, Mark] = {}
        self.damaged: set[bytes] = set()
        self.full_disks = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.on_call()

    @property
    def all_confirmed(self) -> bool:
        return self.confirmed == {log_id: log.head[0] for log_id, log in self.logs.items()}

    def offers(self) -> Iterator[Offer]:
        self._called("offers")
        for log_id, log in self.logs.items():
            yield Offer(log_id, log_id, log.head[0], 0, self.marks.get(log_id))

    def event_id_at(self, chain: bytes, sequence: int) -> bytes | None:
        events = self.logs[chain].events
        return events[sequence - 1].event_id if 1 <= sequence <= len(events) else None

    def next_cut(self, chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:  # noqa: ARG002 - it was cut and signed
        self._called("next_cut")
        if chain in self.damaged:
            raise IntegrityError("a page of it can't be read")
        last = min(after - after % CUT_EVENTS + CUT_EVENTS, self.logs[chain].head[0])
        return Cut(chain, chain, after + 1, last, self.logs[chain].events[last - 1].event_id, 1_000)

    def data(self, cut: Cut) -> bytes:
        self._called("data")
        return self.logs[cut.chain].cut(cut.first_sequence, cut.last_sequence)

    def hello(self, chains: Mapping[bytes, int]) -> bytes:
        self._called("hello")
        logs: list[Value] = [
            [
                log_id,
                [list(point) for point in self.logs[log_id].points(*points_of(self.logs[log_id].head[0], confirmed))],
            ]
            for log_id, confirmed in chains.items()
        ]
        return sign_hello(ANA, site="ana", hub_id=HUB_ID, token=None, time_us=0, agent="test", logs=logs)

    def on_answer(self, answer: HelloAnswer) -> None:  # noqa: ARG002 - who answered is of no interest
        self._called("answer")

    def on_confirm(self, confirm: Confirm) -> None:  # noqa: ARG002
        self._called("confirm")

    def on_moves(self, moves: Moves) -> None:
        self._called("moves")
        self.confirmed |= {chain: place[0] for chain, place in moves.confirmed.items()} | moves.restored

    def on_marks(self, marks: Mapping[bytes, Mark]) -> None:
        self._called("marks")
        if self.full_disks:
            self.full_disks -= 1
            raise StoreError("the disk is full")
        self.marks |= marks

    def on_sent(self, cut: Cut, size: int) -> None:
        assert size > 0
        self._called("sent")
        self.sent.append(cut)


class Bench:
    """A broker, a hub's store, and what a site of it would replay."""

    def __init__(self, nats: Nats, store: Store, hub: Link) -> None:
        self.nats, self.store, self.hub = nats, store, hub
        self.consumer = Consumer(store.custody, store.registry, HUB_ID, lambda: None)
        self.source = MemorySource(MadeLog(ANA).say(EVENTS - 1))
        self.states: list[ReplayState] = []
        self.notices: list[str] = []

    def replay(self, url: str = "", *, carrier: str = "ana", hub_id: bytes = HUB_ID) -> Replay:
        target = Target(url or self.nats.url, self.nats.sites["ana"].seed, "test", carrier, hub_id)
        return Replay(target, self.source, on_state=self.states.append, on_notice=self.notices.append)

    @asynccontextmanager
    async def serving(self, *, site_messages_max: int = 100) -> AsyncIterator[None]:
        """Have the hub answer and decide."""
        stream = await ensure_stream(self.hub, bytes_max=1 << 24, site_messages_max=site_messages_max)
        await self.hub.serve("cmf.v1.rpc.*.hello", "hub", self.consumer.hello)
        async with running(self.consumer.consume(self.hub, stream)):
            yield

    @property
    def is_stored(self) -> bool:
        """Whether the hub holds every event once."""
        held = [event.event_id for event in self.store.events()]
        wanted = [event.event_id for log in self.source.logs.values() for event in log.events]
        return sorted(held) == sorted(wanted)


@asynccontextmanager
async def running(work: Awaitable[object]) -> AsyncIterator["asyncio.Future[object]"]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def kept_up() -> set["asyncio.Task[object]"]:
    """Return the tasks that keep links up, and those that send."""
    coroutines = (Link._keep_connected.__qualname__, Sender._send.__qualname__)
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") in coroutines}


def with_bench(folder: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    """Play a scene, and fail if it leaves a link or something that is sent behind."""

    async def main() -> None:
        store = Store(folder / "hub")
        async with running_nats(folder / "nats", "ana") as nats, nats.link() as hub:
            bench = Bench(nats, store, hub)
            before = kept_up()
            try:
                await scene(bench)
            finally:
                bench.consumer.close()
                store.close()
            await eventually(lambda: kept_up() == before)

    asyncio.run(main())


@contextmanager
def proxy_of(bench: Bench) -> Iterator[FaultProxy]:
    with fault_proxy(int(bench.nats.url.rpartition(":")[2])) as proxy:
        yield proxy


def test_all_is_confirmed_and_each_cut_is_told_once(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        async with bench.serving():
            assert await bench.replay().until_confirmed(EVENTUALLY_S)
        assert bench.source.all_confirmed and bench.is_stored
        assert sum(cut.last_sequence - cut.first_sequence + 1 for cut in bench.source.sent) == EVENTS

    with_bench(tmp_path, scene)


def test_what_is_confirmed_without_its_acknowledgement_was_sent(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        bench.source = MemorySource(MadeLog(ANA).say(CUT_EVENTS - 1))
        with proxy_of(bench) as proxy:
            async with bench.serving():
                proxy.cut_next(BEFORE_ACK)
                assert await bench.replay(proxy.url).until_confirmed(EVENTUALLY_S)
            assert proxy.hits == [BEFORE_ACK]
        assert len(bench.source.sent) == 1
        assert bench.is_stored

    with_bench(tmp_path, scene)


def test_after_a_reconnect_the_hub_is_asked_before_anything_is_sent(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        with proxy_of(bench) as proxy:
            async with bench.serving():
                proxy.cut_next(BEFORE_ACK)  # until a first confirmation one piece is on the way
                assert await bench.replay(proxy.url).until_confirmed(EVENTUALLY_S)
        calls = [call for call in bench.source.calls if call in ("answer", "data")]
        assert calls[:4] == ["answer", "data", "answer", "data"]
        assert bench.is_stored

    with_bench(tmp_path, scene)


def test_a_full_buffer_slows_and_loses_nothing(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        (log,) = bench.source.logs.values()
        stream = await ensure_stream(bench.hub, bytes_max=1 << 24, site_messages_max=2)
        await bench.hub.serve("cmf.v1.rpc.*.hello", "hub", bench.consumer.hello)
        async with bench.nats.link("ana") as ana:
            for _ in range(2):
                await ana.publish(
                    "cmf.v1.log.ana", log.cut(1, 5), message_id=secrets.token_hex(16), timeout_s=EVENTUALLY_S
                )
        async with running(bench.replay().until_confirmed(EVENTUALLY_S)) as pushing:
            await eventually(lambda: any("buffer is full" in state.detail for state in bench.states))
            assert bench.source.sent == []
            async with running(bench.consumer.consume(bench.hub, stream)):
                assert await pushing
        assert bench.source.all_confirmed and bench.is_stored

    with_bench(tmp_path, scene)


def cancel_at(pushing: "asyncio.Future[object]", source: MemorySource, moment: int) -> None:
    if len(source.calls) == moment:
        pushing.cancel()


def test_cancelled_at_any_moment_nothing_is_left_running_and_no_mark_is_lost(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        log = MadeLog(ANA).say(14)
        (log_id,) = bench.source.logs = {log.log_id: log}
        async with bench.serving():
            for moment in range(1, 100):
                bench.source.calls, done = [], False
                replay = bench.replay()
                async with running(replay.until_confirmed(EVENTUALLY_S)) as pushing:
                    bench.source.on_call = partial(cancel_at, pushing, bench.source, moment)
                    with suppress(asyncio.CancelledError):
                        done = bool(await pushing)
                assert replay.link is None
                published = {cut.last_sequence for cut in bench.source.sent} - {0}
                confirmed = bench.source.confirmed.get(log_id, 0)
                mark = bench.source.marks.get(log_id)
                assert not published or max(mark.sequence if mark else 0, confirmed) >= max(published)
                if done:
                    break
                log.say(3)
            assert done and moment > 10
        await eventually(lambda: bench.is_stored)

    with_bench(tmp_path, scene)


def test_a_mark_that_could_not_be_kept_is_passed_on_again(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        bench.source.full_disks = 1
        stream = await ensure_stream(bench.hub, bytes_max=1 << 24)
        await bench.hub.serve("cmf.v1.rpc.*.hello", "hub", bench.consumer.hello)
        async with running(bench.consumer.consume(bench.hub, stream)):
            await asyncio.sleep(0)  # it can tell now what its stream has come to
        with pytest.raises(StoreError, match="disk is full"):
            await bench.replay().until_confirmed(EVENTUALLY_S)
        assert [mark.sequence for mark in bench.source.marks.values()] == [CUT_EVENTS]
        async with running(bench.consumer.consume(bench.hub, stream)):
            assert await bench.replay().until_confirmed(EVENTUALLY_S)
        assert len(bench.source.sent) == len(set(bench.source.sent)), "sent again, although it was published"

    with_bench(tmp_path, scene)


def test_what_can_not_be_read_here_stops_no_other_chain(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        damaged, whole = MadeLog(ANA).say(9), MadeLog(ANA).say(9)
        bench.source = MemorySource(damaged, whole)
        bench.source.damaged = {damaged.log_id}
        replay = bench.replay()
        async with bench.serving(), running(replay.for_ever()):
            await eventually(
                lambda: bench.states[-1:] == [ReplayState("refused", "damaged: a page of it can't be read", 10)]
            )
        assert bench.source.confirmed == {whole.log_id: 10}

    with_bench(tmp_path, scene)


def test_a_login_that_may_not_publish_there_is_told_so(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        async with bench.serving():
            with pytest.raises(HubUnreachable, match="boris"):
                await bench.replay(carrier="boris").until_confirmed(1.0)
        assert bench.source.sent == []

    with_bench(tmp_path, scene)


def test_another_hub_gets_nothing(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        async with bench.serving():
            with pytest.raises(IntegrityError, match="another hub"):
                await bench.replay(hub_id=b"\x22" * 16).until_confirmed(EVENTUALLY_S)
        assert bench.source.sent == []

    with_bench(tmp_path, scene)


def test_a_hub_that_does_not_serve_yet_is_waited_for(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        with pytest.raises(HubUnreachable, match="does not serve"):
            await bench.replay().until_confirmed(0.5)
        replay = bench.replay()
        async with running(replay.for_ever()):
            await eventually(lambda: bench.states[-1].word == "waiting")
            async with bench.serving():
                await eventually(lambda: bench.states[-1] == ReplayState("idle"))
        assert replay.reached and bench.is_stored

    with_bench(tmp_path, scene)


def test_a_first_connection_that_fails_is_tried_again_until_the_time_is_up(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        with pytest.raises(HubUnreachable, match="nobody answers"):
            await bench.replay(f"nats://{HOST}:{free_port()}").until_confirmed(0.5)
        with proxy_of(bench) as proxy:
            proxy.refuse()
            async with bench.serving(), running(bench.replay(proxy.url).until_confirmed(EVENTUALLY_S)) as pushing:
                await eventually(lambda: bench.states[-1].detail != "")
                proxy.accept()
                assert await pushing

    with_bench(tmp_path, scene)


def test_every_notice_is_passed_on_and_one_of_a_start_is_answered_by_a_hello(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        async with bench.serving(), running(bench.replay().for_ever()):
            await eventually(lambda: bench.states[-1:] == [ReplayState("idle")])
            hellos = bench.source.calls.count("hello")
            for hub_id, what in ((HUB_ID, NOTICE_NEW), (b"\x22" * 16, "another hub's"), (HUB_ID, NOTICE_HELLO)):
                await bench.hub.send("cmf.v1.notice.ana", encode_notice(Notice(hub_id, b"\x33" * 16, what)))
            await eventually(lambda: bench.source.calls.count("hello") == hellos + 1)
        assert bench.notices[-2:] == [NOTICE_NEW, NOTICE_HELLO]

    with_bench(tmp_path, scene)
