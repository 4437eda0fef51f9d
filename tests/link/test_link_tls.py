import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.faults import fault_proxy
from tests.support.nats import HOST, Nats, eventually, free_port, running_nats
from tests.support.tls import new_authority, put_certificate

from cmf_hub.broker_files import configuration_lock, have_read
from cmf_hub.certificates import Certificates, certificate_pem
from cmf_link.link import Link, connect
from cmf_link.login import new_login
from cmf_link.stream import ensure_stream
from cmf_protocol.errors import AccessDenied, CallerError, CmfError, HubUnreachable, LinkError

NAMES = frozenset({HOST, "hub.example.org"})
DAY = timedelta(days=1)


@asynccontextmanager
async def tls_nats(tmp_path: Path, *sites: str) -> AsyncIterator[Nats]:
    """Run a server with TLS; its CA is in `tmp_path / "tls"`."""
    async with running_nats(tmp_path / "nats", *sites, advertise=f"hub.example.org:{free_port()}") as broker:
        assert broker.url.startswith("tls://")
        yield broker


async def refusal(url: str, ca: str | None, seed: str = "", timeout_s: float = 5.0) -> CmfError:
    with pytest.raises(CmfError) as caught:
        await connect(url, seed=seed or new_login().seed, name="t", ca=ca, timeout_s=timeout_s)
    assert caught.value.hint
    return caught.value


async def echo(_subject: str, data: bytes) -> bytes:
    return data


async def publish(link: Link, data: bytes) -> None:
    await link.publish("cmf.v1.log.a", data, message_id=secrets.token_hex(16), timeout_s=10)


# --- the same link


def test_everything_goes_by_tls_and_says_nothing_on_standard_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats, nats.link() as hub, nats.link("a") as site:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            await hub.serve("cmf.v1.rpc.*.>", "hub", echo)
            heard: list[bytes] = []

            async def hear(_subject: str, data: bytes) -> None:
                heard.append(data)

            await site.subscribe("cmf.v1.confirm.a", hear)
            large = secrets.token_bytes(900_000)
            assert await site.request("cmf.v1.rpc.a.x", large, timeout_s=30) == large
            await asyncio.gather(*(publish(site, bytes([number])) for number in range(20)))
            assert (await stream.state()).messages == 20
            await hub.send("cmf.v1.confirm.a", b"heard")
            await eventually(lambda: heard == [b"heard"])

    asyncio.run(main())
    assert caplog.messages == []


def test_a_login_that_is_not_enrolled_is_denied_by_tls_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path) as nats:
            error = await refusal(nats.url, nats.broker.ca)
            assert isinstance(error, AccessDenied) and "refuses this login" in str(error)

    asyncio.run(main())


def test_a_half_open_connection_is_noticed_and_replaced_by_tls(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats, nats.link() as hub:
            port = int(nats.url.rpartition(":")[2])
            with fault_proxy(port) as proxy:
                async with nats.link("a", proxy.url) as site:
                    await hub.serve("cmf.v1.rpc.*.>", "hub", echo)
                    proxy.stall()
                    busy = asyncio.create_task(keep_writing(site))
                    with pytest.raises(LinkError, match="broke before"):
                        async with asyncio.timeout(60):  # a failure must not wait for the requests' own limit
                            await asyncio.gather(
                                *(site.request("cmf.v1.rpc.a.x", bytes(1 << 19), timeout_s=600) for _ in range(40))
                            )
                    busy.cancel()
                    proxy.resume(open_too=False)
                    await site.wait_connected(60)
                    assert await site.request("cmf.v1.rpc.a.x", b"again", timeout_s=30) == b"again"
                    assert proxy.counts.connections >= 2

    async def keep_writing(link: Link) -> None:
        """What is written into a dead connection is no sign of life, though TLS adds to it."""
        while True:
            with contextlib.suppress(LinkError):
                await link.send("cmf.v1.log.a", b"")
            await asyncio.sleep(0.2)

    asyncio.run(main())


def test_a_connection_that_is_dropped_is_made_again_by_tls(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats:
            states: list[str] = []
            login = nats.sites["a"]
            link = await connect(nats.url, seed=login.seed, name="a", ca=nats.broker.ca, on_state=states.append)
            link.abort()
            await eventually(lambda: states == ["connected", "disconnected", "connected"])
            await link.close()

    asyncio.run(main())


def test_an_end_is_bounded_when_the_server_is_silent(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats:
            with fault_proxy(int(nats.url.rpartition(":")[2])) as proxy:
                login = nats.sites["a"]
                link = await connect(proxy.url, seed=login.seed, name="a", ca=nats.broker.ca)
                proxy.stall()
                async with asyncio.timeout(25):  # asyncio's own bound on a good-bye by TLS is 30 s
                    await link.close()

    asyncio.run(main())


# --- whom it trusts


@pytest.mark.parametrize(
    ("case", "said", "hint"),
    [
        ("expired", "has expired", "clock"),
        ("early", "not yet valid", "clock"),
        ("others", f"is for other hosts, not for {HOST}", "--advertise"),
        ("stranger", "was not made by the CA", "join file"),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused_and_says_why(
    tmp_path: Path, case: str, said: str, hint: str
) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats:
            folder, now = tmp_path / "tls", datetime.now(UTC)
            match case:
                case "expired":
                    put_certificate(folder, now - 100 * DAY, NAMES)
                case "early":
                    put_certificate(folder, now + 100 * DAY, NAMES)
                case "others":
                    put_certificate(folder, now, frozenset({"hub.example.org", "10.0.0.1"}))
                case _:
                    put_certificate(folder, now, NAMES, new_authority(now))
            async with configuration_lock(nats.broker.folder):
                assert await have_read(nats.broker.folder)
            error = await refusal(nats.url, nats.broker.ca, nats.sites["a"].seed)
            assert isinstance(error, AccessDenied)
            assert f"{HOST}:{nats.url.rpartition(':')[2]}" in str(error)
            assert said in str(error) and hint in error.hint

    asyncio.run(main())


def test_a_link_that_meets_a_stranger_after_a_break_says_refused_and_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats:
            states: list[str] = []
            login = nats.sites["a"]
            link = await connect(nats.url, seed=login.seed, name="a", ca=nats.broker.ca, on_state=states.append)
            put_certificate(tmp_path / "tls", datetime.now(UTC), NAMES, new_authority(datetime.now(UTC)))
            async with configuration_lock(nats.broker.folder):
                await have_read(nats.broker.folder)
            link.abort()
            await eventually(lambda: states[-1] == "refused")
            with pytest.raises(AccessDenied, match="was not made by the CA"):
                await publish(link, b"x")
            await link.close()

    asyncio.run(main())


def test_a_server_without_tls_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        got = bytearray()

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"nonce":"abc"}\r\n')
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    got.extend(data)
            writer.close()

        ca = certificate_pem(new_authority(datetime.now(UTC))[1])
        server = await asyncio.start_server(greet, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        for scheme in ("nats", "tls"):
            error = await refusal(f"{scheme}://{HOST}:{port}", ca)
            assert isinstance(error, AccessDenied) and f"{HOST}:{port} offers no TLS" in str(error)
        server.close()
        assert got == b""
        async with running_nats(tmp_path, "a") as nats:
            error = await refusal(nats.url, ca, nats.sites["a"].seed)
            assert isinstance(error, AccessDenied) and "offers no TLS" in str(error)

    asyncio.run(main())


def test_a_server_with_tls_is_refused_without_a_ca(tmp_path: Path) -> None:
    async def main() -> None:
        async with tls_nats(tmp_path, "a") as nats:
            address = nats.url.removeprefix("tls://")
            for scheme in ("nats", "tls"):
                error = await refusal(f"{scheme}://{address}", None, nats.sites["a"].seed)
                assert isinstance(error, AccessDenied)
                assert f"the hub at {address} speaks TLS" in str(error) and "new one" in error.hint

    asyncio.run(main())


def test_what_comes_in_the_clear_before_tls_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path / "tls"
        Certificates(folder, NAMES).renew(datetime.now(UTC))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        secured = asyncio.Event()

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"server_id":"x","version":"2.12.0","tls_required":true,"nonce":"abc"}\r\nPONG\r\n')
            with contextlib.suppress(OSError):
                await writer.start_tls(context)
                secured.set()
                await reader.read()
            writer.close()

        server = await asyncio.start_server(greet, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        error = await refusal(f"{HOST}:{port}", (folder / "ca.pem").read_text(), timeout_s=2.0)
        assert secured.is_set()
        assert isinstance(error, HubUnreachable) and "broke off the login" in str(error)
        server.close()

    asyncio.run(main())


def test_a_ca_that_is_none_is_the_callers_error() -> None:
    error = asyncio.run(refusal(f"{HOST}:1", "not PEM"))
    assert isinstance(error, CallerError)
