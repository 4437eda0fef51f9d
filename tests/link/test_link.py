import asyncio
import contextlib
import secrets
from pathlib import Path

import pytest
from tests.support.faults import fault_proxy
from tests.support.forwarding import Line
from tests.support.nats import HOST, eventually, free_port, running_nats

from cmf_link.link import connect
from cmf_link.login import new_login
from cmf_protocol.errors import AccessDenied, CallerError, CmfError, HubUnreachable, LinkError


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def message_id() -> str:
    return secrets.token_hex(16)


async def refusal(url: str, seed: str = "", timeout_s: float = 30.0) -> CmfError:
    with pytest.raises(CmfError) as caught:
        await connect(url, seed=seed or new_login().seed, name="t", timeout_s=timeout_s)
    assert caught.value.hint
    return caught.value


def test_a_login_is_a_user_pair_and_hides_its_seed() -> None:
    login = new_login()
    assert login.public.startswith("U") and login.seed.startswith("SU")
    assert login.seed not in repr(login)
    assert new_login() != login


def test_a_port_where_nobody_listens_is_unreachable_and_named() -> None:
    port = free_port()
    error = asyncio.run(refusal(f"nats://{HOST}:{port}"))
    assert isinstance(error, HubUnreachable)
    assert f"{HOST}:{port}" in str(error) and "nobody answers" in str(error)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"INFO\r\n", b"x" * 100_000, b"INFO [1]\r\n"])
def test_another_service_on_the_port_is_told_apart(greeting: bytes) -> None:
    async def main() -> CmfError:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(greeting)
                with contextlib.suppress(OSError):
                    await reader.read()
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(greet, HOST, 0)
        try:
            return await refusal(f"{HOST}:{server.sockets[0].getsockname()[1]}", timeout_s=0.5)
        finally:
            server.close()

    error = asyncio.run(main())
    assert isinstance(error, HubUnreachable)
    assert "does not answer as a NATS server" in str(error)


@pytest.mark.parametrize("url", ["http://h:1", "nats://", "h:x", "nats://u:p@h", "nats://h/path", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    assert isinstance(asyncio.run(refusal(url)), CallerError)


@pytest.mark.parametrize("seed", ["SUX", "U" * 56, "SÄ", "SOAOOG2C4PL3ZBTTFZLGCIM5OL2ZWHLJDBK2WKZDH6SXDSWGPTHCSBHYNE"])
def test_what_is_no_seed_is_refused_before_anything_is_sent(seed: str) -> None:
    assert isinstance(asyncio.run(refusal(f"{HOST}:1", seed)), CallerError)


def test_a_login_that_is_not_enrolled_is_denied(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as nats:
            error = await refusal(nats.url)
            assert isinstance(error, AccessDenied)
            assert nats.url.removeprefix("nats://") in str(error)

    asyncio.run(main())


def test_requests_are_answered_side_by_side_and_a_failing_handler_ends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            released = asyncio.Event()

            async def answer(subject: str, data: bytes) -> bytes:
                if data == b"slow":
                    await released.wait()
                if data == b"bad":
                    raise ValueError("no")
                return subject.encode() + b"|" + data

            await hub.serve("cmf.v1.rpc.*.>", "hub", answer)
            slow = asyncio.create_task(site.request("cmf.v1.rpc.a.hello", b"slow", timeout_s=60))
            bad = asyncio.create_task(site.request("cmf.v1.rpc.a.hello", b"bad", timeout_s=0.3))
            assert await site.request("cmf.v1.rpc.a.hello", b"x", timeout_s=30) == b"cmf.v1.rpc.a.hello|x"
            with pytest.raises(LinkError, match="did not answer"):
                await bad
            released.set()
            assert (await slow).endswith(b"slow")

    asyncio.run(main())


def test_only_requests_from_another_account_are_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link() as inside:

            async def answer(_subject: str, data: bytes) -> bytes:
                return data

            await hub.serve("cmf.v1.rpc.*.>", "hub", answer)
            with pytest.raises(LinkError, match="did not answer"):
                await inside.request("cmf.v1.rpc.a.hello", b"x", timeout_s=0.3)
            await hub.serve("cmf.v1.test", "hub", answer, in_account_too=True)
            assert await inside.request("cmf.v1.test", b"x", timeout_s=30) == b"x"

    asyncio.run(main())


def test_a_message_too_large_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link("a") as site:
            with pytest.raises(CallerError, match="exceeds"):
                await site.publish("cmf.v1.log.a", bytes(1 << 20), message_id=message_id(), timeout_s=30)
            with pytest.raises(CallerError, match="not a NATS subject"):
                await site.request("cmf v1", b"", timeout_s=30)
            assert site.connected

    asyncio.run(main())


def test_a_request_that_nobody_takes_says_so_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link("a") as site:
            with pytest.raises(HubUnreachable, match="does not serve"):
                await site.request("cmf.v1.rpc.a.hello", b"", timeout_s=30)

    asyncio.run(main())


def test_a_half_open_connection_is_noticed_and_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub:
            with fault_proxy(port_of(nats.url)) as proxy:
                async with nats.link("a", proxy.url) as site:

                    async def answer(_subject: str, data: bytes) -> bytes:
                        return data

                    heard: list[bytes] = []

                    async def hear(_subject: str, data: bytes) -> None:
                        heard.append(data)

                    await hub.serve("cmf.v1.rpc.*.>", "hub", answer)
                    await site.subscribe("cmf.v1.confirm.a", hear)
                    proxy.stall()
                    with pytest.raises(LinkError, match="broke before"):
                        # More than the sockets' buffers hold: unsent bytes are what makes nats-py hang.
                        async with asyncio.timeout(120):
                            await asyncio.gather(
                                *(site.request("cmf.v1.rpc.a.x", bytes(1 << 19), timeout_s=600) for _ in range(40))
                            )
                    proxy.resume(open_too=False)
                    await site.wait_connected(60)
                    assert await site.request("cmf.v1.rpc.a.x", b"again", timeout_s=60) == b"again"
                    await hub.send("cmf.v1.confirm.a", b"heard")
                    await eventually(lambda: heard == [b"heard"])

    asyncio.run(main())


# Both take 7 s: longer than doubt and patience together. The one takes all at once, the other makes the sender wait.
@pytest.mark.parametrize("line", [Line(delay_s=7), Line(bytes_per_s=100_000)])
def test_a_slow_line_is_not_taken_for_a_dead_one(tmp_path: Path, line: Line) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats, nats.link() as hub:
            with fault_proxy(port_of(nats.url)) as proxy:
                async with nats.link("a", proxy.url) as site:

                    async def answer(_subject: str, data: bytes) -> bytes:
                        return str(len(data)).encode()

                    await hub.serve("cmf.v1.rpc.*.>", "hub", answer)
                    proxy.up = line
                    size = 700_000
                    assert await site.request("cmf.v1.rpc.a.x", bytes(size), timeout_s=120) == str(size).encode()
                    assert proxy.counts.connections == 1

    asyncio.run(main())


def test_dropping_the_connection_is_told_and_mended(tmp_path: Path) -> None:
    async def main() -> None:
        states: list[str] = []
        async with running_nats(tmp_path, "a") as nats:
            link = await connect(nats.url, seed=nats.sites["a"].seed, name="a", on_state=states.append)
            link.abort()
            await eventually(lambda: states == ["connected", "disconnected", "connected"])
            await link.close()
            assert states[-1] == "closed"
            with pytest.raises(HubUnreachable, match="closed"):
                await link.send("x", b"")

    asyncio.run(main())
