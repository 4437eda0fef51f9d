"""The fault proxy of the tests: what it does to a connection is what a bad line does, and at the byte that was asked for."""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.faults import (
    BEFORE_ACK,
    BEFORE_CONFIRMATION,
    IN_HEADER_LINE,
    IN_INFO,
    IN_PAYLOAD,
    FaultProxy,
    fault_proxy,
)
from tests.support.forwarding import Cut, How, Line
from tests.support.frames import Scanner
from tests.support.nats import HOST, Nats, eventually, running_nats
from tests.support.programs import until

from cmf_link.stream import LogStream, ensure_stream
from cmf_protocol.errors import LinkError

MESSAGE = b"HPUB cmf.v1.log.a _INBOX.x.1 14 19\r\nNATS/1.0\r\nA: B" + b"hello" + b"\r\n"
STREAM = b'INFO {"server_id":"x"}\r\n' + MESSAGE + b"PING\r\npub b 0\r\n\r\nMSG b 1 r 3\r\na\r\n\r\n" + b"+OK\r\n"


@asynccontextmanager
async def behind_proxy(folder: Path) -> AsyncIterator[tuple[Nats, FaultProxy, LogStream]]:
    async with running_nats(folder, "a") as nats, nats.link() as hub:
        with fault_proxy(int(nats.url.rpartition(":")[2])) as proxy:
            yield nats, proxy, await ensure_stream(hub, bytes_max=1 << 24)


def connected(proxy: FaultProxy) -> socket.socket:
    """Return a bare connection through the proxy."""
    return socket.create_connection((HOST, proxy.port), 60)


def read_all(connection: socket.socket) -> tuple[bytes, bool]:
    """Return what still comes, and whether a reset ended it."""
    found = b""
    try:
        while data := connection.recv(65_536):
            found += data
    except ConnectionResetError:
        return found, True
    return found, False


def gets_info(proxy: FaultProxy) -> bool:
    """Tell whether a new connection gets the whole of INFO, or is reset before, be it while it connects."""
    try:
        with connected(proxy) as client:
            found = b""
            while not found.endswith(b"\r\n"):
                data = client.recv(65_536)
                assert data
                found += data
    except ConnectionResetError:
        return False
    return True


# --- the protocol in a stream of bytes


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_frames_are_the_same_however_the_stream_is_split(cuts: list[int]) -> None:
    scanner, ends = Scanner(), [*sorted(cuts), len(STREAM)]
    pieces = [piece for begin, end in zip([0, *ends], ends, strict=False) for piece in scanner.feed(STREAM[begin:end])]
    assert b"".join(piece.data for piece in pieces) == STREAM
    begun = [piece.frame for piece in pieces if piece.at == 0]
    assert [(f.kind, f.subject, f.reply, f.header_bytes, f.payload_bytes) for f in begun] == [
        ("INFO", "", "", 0, 0),
        ("PUB", "cmf.v1.log.a", "_INBOX.x.1", 14, 5),
        ("PING", "", "", 0, 0),
        ("PUB", "b", "", 0, 0),
        ("MSG", "b", "r", 0, 3),
        ("+OK", "", "", 0, 0),
    ]
    assert sum(piece.payload_bytes for piece in pieces if piece.frame.kind == "PUB") == 5


@given(st.binary(min_size=1, max_size=50), st.integers(0, 50))
def test_what_is_not_the_protocol_is_passed_on_as_it_is(noise: bytes, cut: int) -> None:
    scanner, data = Scanner(), b"\x16\x03\x01" + noise  # as TLS begins
    pieces = [*scanner.feed(data[:cut]), *scanner.feed(data[cut:])]
    assert b"".join(piece.data for piece in pieces) + scanner.finish() == data


# --- the line


def test_a_delay_holds_back_each_byte_and_no_number_of_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, _):
            proxy.shape(round_trip_s=0.4)
            began = time.monotonic()
            with connected(proxy) as client:
                assert client.recv(4) == b"INFO"
                assert time.monotonic() - began >= 0.6  # connecting takes one round trip, INFO half of one
                proxy.up = Line(delay_s=3_600)
                sent = b"PUB x 8000000\r\n" + bytes(8_000_000)
                client.sendall(sent)  # ends although nothing arrives
                until(lambda: proxy.counts.up_bytes == len(sent), "the bytes to be under way")

    asyncio.run(main())


def test_a_narrow_line_takes_its_time_and_makes_the_sender_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (nats, proxy, stream):
            async with nats.link("a", proxy.url) as site:
                proxy.shape(bytes_per_s=8_000)
                began = time.monotonic()
                await site.publish("cmf.v1.log.a", bytes(8_000), message_id=secrets.token_hex(16), timeout_s=60)
                assert time.monotonic() - began >= 0.9
                assert (await stream.state()).messages == 1
            with connected(proxy) as client:
                client.setblocking(False)
                sent = 0
                with pytest.raises(BlockingIOError):
                    while sent < 1_000_000:
                        sent += client.send(bytes(1_000))
                assert sent < 300_000

    asyncio.run(main())


def test_a_line_without_faults_changes_nothing_and_counts(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (nats, proxy, stream), nats.link("a", proxy.url) as site:
            sizes = (0, 1, 200_000)
            for size in sizes:
                await site.publish("cmf.v1.log.a", bytes(size), message_id=secrets.token_hex(16), timeout_s=60)
            found = await stream.fetch(10, 60)
            assert tuple(len(message.data) for message in found) == sizes
            counts = proxy.counts
            assert (counts.connections, counts.log_messages, counts.log_bytes) == (1, 3, sum(sizes))
            assert sum(sizes) < counts.up_bytes < sum(sizes) + 5_000
            assert 0 < counts.down_bytes < 5_000

    asyncio.run(main())


# --- cuts


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_cut_is_at_its_byte_and_of_its_kind(tmp_path: Path, how: How) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, _):
            with connected(proxy) as client:
                line = client.recv(65_536)
            cut = replace(IN_INFO, how=how)
            proxy.cut_next(replace(cut, skip=1))
            assert gets_info(proxy)
            proxy.stall()  # until it is connected: a reset must not come while it connects
            with connected(proxy) as client:
                proxy.resume()
                found, was_reset = read_all(client)
            assert (was_reset, len(found) > 100, line.startswith(found)) == (how == "reset", True, True)
            assert proxy.hits == [cut]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("cut", "stored"),
    [(IN_HEADER_LINE, 0), (IN_PAYLOAD, 0), (replace(IN_PAYLOAD, how="close"), 0), (BEFORE_ACK, 1),
     (replace(BEFORE_ACK, how="close"), 1), (Cut("PUB", "after", subject="cmf.v1.log."), 1)],
)  # fmt: skip
def test_what_was_cut_before_its_end_is_not_stored(tmp_path: Path, cut: Cut, stored: int) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (nats, proxy, stream), nats.link("a", proxy.url) as site:
            proxy.cut_next(cut)
            with pytest.raises(LinkError):
                await site.publish("cmf.v1.log.a", bytes(50_000), message_id=secrets.token_hex(16), timeout_s=60)
            assert proxy.hits == [cut]
            await site.wait_connected(60)
            await site.publish("cmf.v1.log.a", b"x", message_id=secrets.token_hex(16), timeout_s=60)
            assert (await stream.state()).messages == stored + 1
            assert proxy.counts.connections == 2

    asyncio.run(main())


def test_a_message_is_left_out_and_the_next_arrives(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (nats, proxy, _), nats.link() as hub, nats.link("a", proxy.url) as site:
            heard: list[bytes] = []

            async def hear(_subject: str, data: bytes) -> None:
                heard.append(data)

            await site.subscribe("cmf.v1.confirm.a", hear)
            proxy.cut_next(replace(BEFORE_CONFIRMATION, how="drop"))
            for data in (bytes(100_000), b"second"):
                await hub.send("cmf.v1.confirm.a", data)
            await eventually(lambda: bool(heard))
            assert heard == [b"second"]
            assert len(proxy.hits) == 1
            assert site.connected

    asyncio.run(main())


def test_a_stalled_connection_is_silent_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, _):
            proxy.cut_next(replace(IN_INFO, how="stall"))
            with connected(proxy) as client:
                found = client.recv(65_536)
                until(lambda: len(proxy.hits) == 1, "the stall")
                with connected(proxy) as other:
                    assert other.recv(4) == b"INFO"  # only the one is stalled
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(60)
                proxy.resume()
                assert json.loads((found + client.recv(65_536)).removeprefix(b"INFO"))["jetstream"]

    asyncio.run(main())


def test_a_line_that_is_silent_for_all_lets_only_new_connections_through_if_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, _):
            proxy.stall()
            with connected(proxy) as old:
                until(lambda: proxy.counts.connections == 1, "the connection")
                proxy.resume(open_too=False)
                with connected(proxy) as new:
                    assert new.recv(4) == b"INFO"
                old.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    old.recv(1)
                proxy.cut_all()
                old.settimeout(60)
                assert read_all(old) == (b"", True)

    asyncio.run(main())


def test_a_line_that_refuses_resets_all_until_it_accepts(tmp_path: Path) -> None:
    async def main() -> None:
        async with behind_proxy(tmp_path) as (_, proxy, _):
            with connected(proxy) as before:
                assert before.recv(4) == b"INFO"
                proxy.refuse()
                assert read_all(before)[1]
            assert not gets_info(proxy)
            proxy.heal()
            assert gets_info(proxy)

    asyncio.run(main())


def test_the_seed_decides_which_connections_are_reset(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as nats:
            port = int(nats.url.rpartition(":")[2])
            told = []
            for seed in (1, 1, 2):
                with fault_proxy(port, seed) as proxy:
                    proxy.reset_some(0.5)
                    told.append([gets_info(proxy) for _ in range(40)])
                    assert proxy.counts.resets == told[-1].count(False)
            assert told[0] == told[1] != told[2]
            assert 0 < told[0].count(False) < 20  # half of the chosen ones would live longer than INFO

    asyncio.run(main())
