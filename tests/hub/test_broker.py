import asyncio
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import nats
import pytest
from tests.support.nats import HOST, Nats, eventually, free_port, running_nats

from cmf_hub.accounts import Settings, configuration, read_settings
from cmf_hub.addresses import read_addresses
from cmf_hub.broker import Broker
from cmf_hub.broker_files import configuration_file, reload_running, running_server, running_settings
from cmf_hub.broker_program import find_server
from cmf_hub.proof import prove
from cmf_link.link import Link, connect
from cmf_link.login import Login, new_login
from cmf_link.stream import ensure_stream
from cmf_protocol.errors import AccessDenied, CallerError, CmfError, HubUnreachable, StoreError

HERE = read_addresses(f"{HOST}:4222", None, "")


async def publish(link: Link, site: str, data: bytes) -> None:
    await link.publish(f"cmf.v1.log.{site}", data, message_id=secrets.token_hex(16), timeout_s=30)


async def echo(_subject: str, data: bytes) -> bytes:
    return data


# --- configuration


def test_the_configuration_is_one_account_per_site_and_reads_back() -> None:
    settings = Settings(HERE, new_login().public)
    text = configuration(settings, Path("/data dir"), {"b": new_login().public, "a-1": new_login().public})
    assert read_settings(text) == settings
    assert text.index('"SITE_a-1" {') < text.index('"SITE_b" {')
    assert "sync_interval: always" in text and '"/data dir/jetstream"' in text
    site_b = text[text.index('"SITE_b" {') :]
    assert "a-1" not in site_b and ">" in site_b


@pytest.mark.parametrize("name", ["", "A", "-a", "a.b", "a b", "a" * 64, 'a" }', "a\n", "*", ">"])
def test_a_name_that_could_reach_into_the_configuration_is_refused(name: str) -> None:
    with pytest.raises(CallerError, match="can't be a site's name"):
        configuration(Settings(HERE, new_login().public), Path("/x"), {name: new_login().public})


@pytest.mark.parametrize(
    "public",
    [
        "",
        "U",
        pytest.param(new_login().seed, id="a seed"),
        pytest.param(new_login().public + " }", id="more than a key"),
    ],
)
def test_a_login_that_is_no_public_key_is_refused(public: str) -> None:
    with pytest.raises(CallerError, match="not the public key"):
        configuration(Settings(HERE, new_login().public), Path("/x"), {"a": public})


def test_a_configuration_of_somebody_else_is_told() -> None:
    with pytest.raises(StoreError, match="not written by cmf-hub"):
        read_settings("port: 4222\n")


# --- the program


def test_the_wheels_server_is_found_and_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMF_NATS_SERVER", raising=False)
    assert find_server().name == "nats-server"


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo nats-server: v2.9.10", "v2.9.10; 2.12"), ("echo hello", "does not say"), ("exit 3", "does not say")],
)
def test_a_server_that_is_too_old_or_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("CMF_NATS_SERVER", str(program))
    with pytest.raises(CallerError, match=said):
        find_server()


def test_a_server_that_is_not_there_or_not_a_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMF_NATS_SERVER", str(tmp_path / "none"))
    with pytest.raises(CallerError, match="no file"):
        find_server()
    (tmp_path / "none").write_text("text")
    with pytest.raises(CallerError, match="can't be run"):
        find_server()


# --- the accounts keep sites apart


def test_a_site_can_neither_publish_nor_ask_nor_listen_as_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a", "b") as broker, broker.link() as hub, broker.link("a") as a:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            await hub.serve("cmf.v1.rpc.*.>", "hub", echo)
            heard: list[str] = []

            async def hear(subject: str, _data: bytes) -> None:
                heard.append(subject)

            with pytest.raises(HubUnreachable):
                await publish(a, "b", b"as b")
            with pytest.raises(HubUnreachable):
                await a.request("cmf.v1.rpc.b.hello", b"", timeout_s=30)
            own_api = await a.request("$JS.API.STREAM.INFO.CMF_LOG", b"", timeout_s=30)
            assert b"not enabled for account" in own_api
            await a.subscribe(">", hear)
            await a.subscribe("cmf.v1.confirm.b", hear)
            async with broker.link("b") as b:
                await publish(b, "b", b"own")
                await b.request("cmf.v1.rpc.b.hello", b"", timeout_s=30)
            await hub.send("cmf.v1.confirm.b", b"")
            await hub.send("cmf.v1.notice.a", b"")
            await eventually(lambda: "cmf.v1.notice.a" in heard)
            assert heard == ["cmf.v1.notice.a"]
            assert (await stream.state()).messages == 1

    asyncio.run(main())


@pytest.mark.parametrize("reply", ["cmf.v1.log.b", "cmf.v1.confirm.b", "_R_.forged", "$JS.API.STREAM.DELETE.CMF_LOG"])
def test_a_forged_reply_subject_reaches_nobody(tmp_path: Path, reply: str) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a", "b") as broker, broker.link() as hub, broker.link("b") as b:
            stream = await ensure_stream(hub, bytes_max=1 << 24)
            heard: list[bytes] = []

            async def hear(_subject: str, data: bytes) -> None:
                heard.append(data)

            await hub.serve("cmf.v1.rpc.*.>", "hub", echo)
            await b.subscribe("cmf.v1.confirm.b", hear)

            async def ignore(_error: Exception) -> None:
                pass  # the server refuses some of these outright

            raw = await nats.connect(broker.url, nkeys_seed_str=broker.sites["a"].seed, error_cb=ignore)
            await raw.publish("cmf.v1.rpc.a.x", b"forged", reply=reply)
            await raw.publish("cmf.v1.log.a", b"mine", reply=reply)
            # When these two are answered, everything sent before has been dealt with.
            await raw.request("cmf.v1.rpc.a.x", b"", timeout=30)
            await raw.request("cmf.v1.log.a", b"mine too", timeout=30)
            await raw.close()
            stored = {(message.subject, message.data) for message in await stream.fetch(10, 5.0)}
            assert stored <= {("cmf.v1.log.a", b"mine"), ("cmf.v1.log.a", b"mine too")}
            await hub.send("cmf.v1.confirm.b", b"real")
            await eventually(lambda: bool(heard))
            assert heard == [b"real"]

    asyncio.run(main())


# --- sites come and go


def test_a_site_added_live_works_and_disturbs_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as broker, broker.link() as hub:
            await ensure_stream(hub, bytes_max=1 << 24)
            await hub.serve("cmf.v1.rpc.*.>", "hub", echo)
            states: list[str] = []
            a = await connect(broker.url, seed=broker.sites["a"].seed, name="a", on_state=states.append)
            busy = asyncio.create_task(publish_until_cancelled(a))
            for site in ("b", "c-3"):
                await broker.enrol(site)
                async with broker.link(site) as link:
                    await publish(link, site, b"x")
                    assert await link.request(f"cmf.v1.rpc.{site}.hello", b"hi", timeout_s=30) == b"hi"
            assert not busy.done()  # not one of its messages failed meanwhile
            busy.cancel()
            assert states == ["connected"] and hub.connected
            await a.close()

    async def publish_until_cancelled(link: Link) -> None:
        while True:
            await publish(link, "a", b"x")

    asyncio.run(main())


def test_a_removed_site_is_cut_off_at_once_and_denied(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a", "b") as broker, broker.link() as hub, broker.link("b") as b:
            await ensure_stream(hub, bytes_max=1 << 24)
            states: list[str] = []
            login = broker.sites["a"]
            a = await connect(broker.url, seed=login.seed, name="a", on_state=states.append)
            await broker.revoke("a")
            await eventually(lambda: "refused" in states)
            with pytest.raises(AccessDenied, match="refuses this login"):
                await publish(a, "a", b"x")
            with pytest.raises(AccessDenied):
                await connect(broker.url, seed=login.seed, name="a")
            await publish(b, "b", b"x")
            await a.close()

    asyncio.run(main())


def test_another_process_can_change_the_sites(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as broker:
            first, second = broker.sites["a"], new_login()
            sites = {"a": first.public, "late": second.public}
            assert await reload_running(tmp_path, lambda: sites)
            settings = running_settings(tmp_path)
            assert settings is not None and settings.addresses.local.url == broker.url
            await prove(broker.url, None, hub_seed=broker.hub.seed, site="late", site_seed=second.seed)

    asyncio.run(main())


def test_changes_at_the_same_time_leave_the_newest_list(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as broker:

            async def enrol(site: str) -> Login:
                return await broker.enrol(site)

            await asyncio.gather(*(enrol(f"s{number}") for number in range(6)))
            for site, login in broker.sites.items():
                await broker.broker.prove(site, login.seed)

    asyncio.run(main())


def test_without_a_server_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert asyncio.run(reload_running(tmp_path / "none", dict)) is False
    assert running_settings(tmp_path) is None


def test_a_site_that_can_not_be_one_leaves_the_server_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as broker:
            before = configuration_file(tmp_path).read_text()
            for sites in ({"A": new_login().public}, {"x": new_login().public, "y": broker.hub.public}):
                with pytest.raises(CmfError):
                    await reload_running(tmp_path, lambda sites=sites: sites)  # type: ignore[misc]
            assert configuration_file(tmp_path).read_text() == before
            await broker.broker.prove("a", broker.sites["a"].seed)

    asyncio.run(main())


def test_the_proof_fails_for_a_site_that_is_not_enrolled(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as broker:
            with pytest.raises(AccessDenied):
                await broker.broker.prove("b", new_login().seed)
            with pytest.raises(HubUnreachable):
                await broker.broker.prove("b", broker.sites["a"].seed)

    asyncio.run(main())


# --- life of the server


def test_the_configuration_is_for_its_owner_only_and_the_server_has_its_own_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as broker:
            assert stat.S_IMODE(configuration_file(tmp_path).stat().st_mode) == 0o600
            assert broker.hub.seed not in configuration_file(tmp_path).read_text()
            assert broker.broker.pid == running_server(tmp_path)
            assert os.getsid(broker.broker.pid or 0) != os.getsid(0)

    asyncio.run(main())


def test_a_stopped_server_is_gone(tmp_path: Path) -> None:
    async def main() -> Nats:
        async with running_nats(tmp_path) as broker:
            pid = broker.broker.pid or 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert broker.broker.pid is None and running_server(tmp_path) is None
        return broker

    broker = asyncio.run(main())
    with pytest.raises(StoreError, match="does not run"):
        asyncio.run(broker.broker.apply())


def test_a_server_that_does_not_end_by_itself_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmf_hub.broker.END_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with running_nats(tmp_path) as broker:
            os.kill(broker.broker.pid or 0, signal.SIGSTOP)
            await broker.broker.stop()
            assert await broker.broker.wait() == -signal.SIGKILL

    asyncio.run(main())


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        async with running_nats(tmp_path, port=port):
            pass

    port = free_port()
    with socket.create_server((HOST, port)), pytest.raises(CallerError, match=f"{HOST}:{port} is in use") as caught:
        asyncio.run(main(port))
    assert "--nats" in caught.value.hint
    asyncio.run(main(port))


def test_two_hubs_can_not_share_a_folder(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as first:
            with pytest.raises(StoreError, match="another hub"):
                async with running_nats(tmp_path):
                    pass
            assert first.broker.pid == running_server(tmp_path)

    asyncio.run(main())


def test_a_server_left_over_by_a_killed_hub_is_ended_by_the_next_start(tmp_path: Path) -> None:
    port, login = free_port(), new_login()
    script = f"""
import asyncio
from pathlib import Path
from cmf_hub.addresses import read_addresses
from cmf_hub.broker import Broker
from cmf_link.login import login_from_seed

async def main():
    addresses = read_addresses('{HOST}:{port}', None, '')
    broker = await Broker.start(Path({str(tmp_path)!r}), addresses, login_from_seed({login.seed!r}), dict)
    print(broker.pid, flush=True)
    await broker.wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        leftover = int(hub.stdout.readline())
        hub.kill()
    assert running_server(tmp_path) == leftover

    async def main() -> None:
        async with running_nats(tmp_path, hub=login, port=port) as broker:
            assert broker.broker.pid not in (None, leftover)

    asyncio.run(main())
    assert running_server(tmp_path) is None


def test_a_foreign_process_that_got_the_old_number_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "nats-server.pid").write_text(str(os.getpid()))

    async def main() -> None:
        async with running_nats(tmp_path) as broker:
            assert broker.broker.pid

    asyncio.run(main())


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("a file where the store should be")

    async def main() -> None:
        async with running_nats(tmp_path):
            pass

    with pytest.raises(StoreError) as caught:
        asyncio.run(main())
    assert "storage directory is not a directory" in str(caught.value)
    (tmp_path / "jetstream").unlink()
    asyncio.run(main())


def test_a_server_that_dies_is_started_again_and_keeps_its_sites(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path, "a") as nats:
            ended: list[int] = []
            supervisor = asyncio.create_task(nats.broker.supervise(ended.append))
            for _ in range(2):
                old = nats.broker.pid or 0
                os.kill(old, signal.SIGKILL)
                await eventually(lambda old=old: nats.broker.pid not in (None, old))  # type: ignore[misc]
                async with asyncio.timeout(60):
                    await proven(nats.broker, "a", nats.sites["a"])
            assert ended == [-signal.SIGKILL] * 2
            await nats.broker.stop()
            async with asyncio.timeout(60):
                await supervisor

    async def proven(broker: Broker, site: str, login: Login) -> None:
        while True:
            try:
                return await broker.prove(site, login.seed)
            except HubUnreachable:
                await asyncio.sleep(0.02)

    asyncio.run(main())


def test_a_hub_that_stops_while_its_server_restarts_leaves_none_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path) as nats:
            ended = asyncio.Event()
            supervisor = asyncio.create_task(nats.broker.supervise(lambda _code: ended.set()))
            os.kill(nats.broker.pid or 0, signal.SIGKILL)
            await ended.wait()
            await nats.broker.stop()
            async with asyncio.timeout(60):
                await supervisor
            assert nats.broker.pid is None and running_server(tmp_path) is None

    asyncio.run(main())


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        async with running_nats(tmp_path / "file" / "broker"):
            pass

    with pytest.raises(StoreError, match="file"):
        asyncio.run(main())
