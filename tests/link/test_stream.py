import asyncio
import os
import secrets
import shutil
import signal
from pathlib import Path

import pytest
from tests.support.nats import Nats, eventually, running_nats

from cmf_link.link import Link
from cmf_link.stream import LogStream, Message, ensure_stream
from cmf_protocol.errors import BackPressure, HubUnreachable, LinkError, StoreError


async def publish(link: Link, site: str, data: bytes) -> int:
    ack = await link.publish(f"cmf.v1.log.{site}", data, message_id=secrets.token_hex(16), timeout_s=30)
    return ack.stream_sequence


async def fetch_all(stream: LogStream, count: int) -> list[Message]:
    """Fetch until `count` messages came, whatever the link does meanwhile."""
    found: list[Message] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                found += await stream.fetch(64, 1.0)
            except LinkError:
                await asyncio.sleep(0.05)
    return found


async def emptied(stream: LogStream) -> None:
    """Wait until every acknowledgement has arrived."""
    async with asyncio.timeout(60):
        while (await stream.state()).messages:
            await asyncio.sleep(0.01)


async def kill_and_wait(nats: Nats) -> None:
    """End the server as a power cut would, and wait until the supervisor has it back."""
    old = nats.broker.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    await eventually(lambda: nats.broker.pid not in (None, old))


def test_a_segment_is_stored_acknowledged_fetched_and_confirmed(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            confirmed: list[bytes] = []

            async def confirm(_subject: str, data: bytes) -> None:
                confirmed.append(data)

            await site.subscribe("cmf.v1.confirm.a", confirm)
            assert await stream.fetch(10, 0.2) == []
            assert [await publish(site, "a", b"one"), await publish(site, "a", b"two")] == [1, 2]
            messages = await stream.fetch(10, 5.0)
            assert [(m.subject, m.data, m.stream_sequence, m.deliveries) for m in messages] == [
                ("cmf.v1.log.a", b"one", 1, 1),
                ("cmf.v1.log.a", b"two", 2, 1),
            ]
            for message in messages:
                assert message.headers["Nats-Msg-Id"]
                await message.ack()
            await hub.send("cmf.v1.confirm.a", b"up to two")
            await eventually(lambda: confirmed == [b"up to two"])
            await emptied(stream)
            assert (await stream.state()).last_sequence == 2

    asyncio.run(main())


def test_a_waiting_fetch_returns_as_soon_as_something_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            waiting = asyncio.create_task(stream.fetch(100, 30.0))
            await publish(site, "a", b"x")
            async with asyncio.timeout(60):
                assert [message.data for message in await waiting] == [b"x"]

    asyncio.run(main())


def test_the_same_message_id_is_told_as_a_duplicate(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            await ensure_stream(hub, bytes_max=1 << 24)
            first, second = [
                await site.publish("cmf.v1.log.a", b"x", message_id="same", timeout_s=30) for _ in range(2)
            ]
            assert (first.duplicate, second.duplicate) == (False, True)

    asyncio.run(main())


def test_a_full_stream_is_back_pressure_for_one_site_and_drains(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a", "b") as nats, nats.link() as hub:
            stream = await ensure_stream(hub, bytes_max=1 << 24, site_messages_max=3)
            async with nats.link("a") as a, nats.link("b") as b:
                for _ in range(3):
                    await publish(a, "a", b"x")
                with pytest.raises(BackPressure):
                    await publish(a, "a", b"x")
                await publish(b, "b", b"x")
                for message in await stream.fetch(10, 5.0):
                    await message.ack()
                await emptied(stream)
                assert await publish(a, "a", b"x") == 5

    asyncio.run(main())


def test_a_stream_full_of_bytes_is_back_pressure(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            await ensure_stream(hub, bytes_max=100_000)
            await publish(site, "a", bytes(60_000))
            with pytest.raises(BackPressure):
                await publish(site, "a", bytes(60_000))

    asyncio.run(main())


def test_a_buffer_that_the_disk_has_no_room_for_is_refused_clearly(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as nats, nats.link() as hub:
            with pytest.raises(StoreError, match="can't reserve"):
                await ensure_stream(hub, bytes_max=1 << 60)

    asyncio.run(main())


def test_limits_change_on_a_stream_that_is_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            await ensure_stream(hub, bytes_max=1 << 24, site_messages_max=1)
            await publish(site, "a", b"x")
            stream = await ensure_stream(hub, bytes_max=1 << 25, site_messages_max=2)
            await publish(site, "a", b"y")
            assert (await stream.state()).messages == 2

    asyncio.run(main())


def test_before_there_is_a_stream_a_publisher_is_told_that_nobody_serves(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link("a") as site:
            with pytest.raises(HubUnreachable, match="does not serve"):
                await publish(site, "a", b"x")

    asyncio.run(main())


def test_a_killed_broker_loses_nothing_and_everybody_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            ended: list[int] = []
            supervisor = asyncio.create_task(nats.broker.supervise(ended.append))
            stream = await ensure_stream(hub, bytes_max=1 << 24, ack_wait_s=1.0)
            await publish(site, "a", b"before")
            assert len(await stream.fetch(10, 5.0)) == 1  # and not acknowledged
            await kill_and_wait(nats)
            assert ended == [-signal.SIGKILL]
            await site.wait_connected(60)
            async with asyncio.timeout(60):
                while True:
                    try:
                        await publish(site, "a", b"after")
                        break
                    except LinkError:
                        await asyncio.sleep(0.05)
            found = await fetch_all(stream, 2)
            assert {message.data for message in found} == {b"before", b"after"}
            await nats.broker.stop()
            async with asyncio.timeout(60):
                await supervisor

    asyncio.run(main())


def test_a_wiped_store_is_made_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            created = (await stream.state()).created
            supervisor = asyncio.create_task(nats.broker.supervise(lambda _code: shutil.rmtree(tmp_path / "jetstream")))
            await kill_and_wait(nats)
            await site.wait_connected(60)
            fetching = asyncio.create_task(fetch_all(stream, 1))
            async with asyncio.timeout(60):
                while True:
                    try:
                        await publish(site, "a", b"anew")
                        break
                    except LinkError:
                        await asyncio.sleep(0.05)
            assert [message.data for message in await fetching] == [b"anew"]
            assert (await stream.state()).created != created
            supervisor.cancel()

    asyncio.run(main())
