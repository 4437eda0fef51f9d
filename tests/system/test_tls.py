import asyncio
import json
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.hubs import Hub, hub_at
from tests.support.nats import HOST, eventually, free_port, running_nats
from tests.support.programs import Done, call, processes_of
from tests.support.sites import SiteFolder, folded
from tests.support.tls import new_authority, put_certificate, read_authority, server_certificate

from cmf_hub.addresses import LOOPBACK_NAMES
from cmf_hub.broker_files import configuration_file, configuration_lock, have_read, tls_folder
from cmf_hub.certificates import Certificates, certificate_pem, names_of
from cmf_link.link import Link, connect
from cmf_protocol.errors import LinkError, StoreError

MakeSite = Callable[[str], SiteFolder]

DAY = timedelta(days=1)

#: Where sites reach the hub in these tests: another address of this machine, at which it is not local to itself.
ELSEWHERE = "127.0.0.2"
#: An address of this machine that no certificate here is for.
UNNAMED = "127.0.0.3"


def start_with_tls(hub: Hub) -> dict[str, object]:
    return hub.start("--nats", f"0.0.0.0:{hub.port}", "--advertise", f"{ELSEWHERE}:{hub.port}")


def take_certificate(hub: Hub) -> None:
    """Have the hub's server read the certificate that lies in its folder now."""

    async def main() -> None:
        async with configuration_lock(hub.data.nats):
            assert await have_read(hub.data.nats)

    asyncio.run(main())


def told(done: Done, *words: str) -> None:
    """The command said that no hub can be reached, and why, in words."""
    assert done.returncode == 4, done.stderr
    for word in (*words, "hint: "):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


# --- between two addresses


def test_a_site_at_another_address_joins_pushes_and_is_confirmed_by_tls(tmp_path: Path, site: MakeSite) -> None:
    with hub_at(tmp_path / "hub") as hub:
        ready = start_with_tls(hub)
        assert ready["nats"] == hub.ask("status")["nats"] == f"{ELSEWHERE}:{hub.port}"
        file = hub.enrol("ana")  # by another process, while it serves
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        joining = json.loads(file.read_text())
        assert joining["url"] == f"tls://{ELSEWHERE}:{hub.port}"
        assert joining["ca"] == (tls_folder(hub.data.nats) / "ca.pem").read_text()
        ana = site("ana")
        ana.ask("join", file)
        ana.record(20, metrics=50)
        done = ana.call("push", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["pending"] == 0
        status = ana.ask("status")
        assert (status["hub"], status["pending"]) == (joining["url"], 0)
        ana.record(1)
        assert ana.ask("push", "--hub", f"nats://{HOST}:{hub.port}")["pending"] == 0  # the CA decides, not the scheme
        assert hub.digest() == folded(tmp_path / "graph.db", [ana])
        assert "eof_received" not in hub.said()
        assert hub.stop() == 0
        assert not processes_of(hub.folder)


def test_a_hub_on_every_address_says_by_which_name_sites_are_told_to_come(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        ready = hub.start("--nats", f"0.0.0.0:{hub.port}")
        name = socket.gethostname()
        assert ready["nats"] == f"{name}:{hub.port}"
        assert f"sites are told to come to tls://{name}:{hub.port} (--advertise" in hub.said()
        assert names_of(server_certificate(tls_folder(hub.data.nats))) == {*LOOPBACK_NAMES, name.lower()}
        assert json.loads(hub.enrol("ana").read_text())["url"] == f"tls://{name}:{hub.port}"


def test_the_ca_outlives_new_addresses_and_old_join_files_hold(tmp_path: Path, site: MakeSite) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.start("--advertise", f"hub.example.org:{hub.port}")  # as behind a tunnel that begins there
        ana = site("ana")
        hub.join(ana)
        ana.record(1)
        assert ana.ask("push", "--hub", f"tls://{HOST}:{hub.port}")["pending"] == 0
        assert hub.stop() == 0
        start_with_tls(hub)
        assert "gets a new certificate: the hub's addresses have changed" in hub.said()
        ana.record(1)
        assert ana.ask("push", "--hub", f"{ELSEWHERE}:{hub.port}")["pending"] == 0


def test_an_address_that_no_site_could_reach_is_a_usage_error(tmp_path: Path) -> None:
    words = ["serve", "--data", tmp_path / "hub", "--nats", f"0.0.0.0:{free_port()}", "--advertise", "0.0.0.0:4222"]
    done = call("cmf-hub", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "no address at which a site could reach" in done.stderr and "Traceback" not in done.stderr
    assert not processes_of(tmp_path / "hub")


# --- what does not hold is told


def test_each_wrong_certificate_is_a_clear_error_at_the_site_and_a_restart_mends_it(
    tmp_path: Path, site: MakeSite
) -> None:
    with hub_at(tmp_path / "hub") as hub:
        start_with_tls(hub)
        ana = site("ana")
        hub.join(ana)
        ana.record(1)
        certificate = f"the certificate of the hub at {ELSEWHERE}:{hub.port}"
        folder, now = tls_folder(hub.data.nats), datetime.now(UTC)
        names = names_of(server_certificate(folder))
        told(
            ana.call("push", "--hub", f"{UNNAMED}:{hub.port}"),
            f"{UNNAMED}:{hub.port} is for other hosts",
            "--advertise",
        )
        for made, authority, said, way_out in (
            (now - 100 * DAY, None, "has expired", "clock"),
            (now + 100 * DAY, None, "is not yet valid", "clock"),
            (now, new_authority(now), "was not made by the CA in this site's join file", "new join file"),
        ):
            put_certificate(folder, made, names, authority)
            take_certificate(hub)
            told(ana.call("push"), f"{certificate} {said}", way_out)
        assert hub.stop() == 0
        start_with_tls(hub)
        assert "gets a new certificate: the one before is another CA's" in hub.said()
        assert ana.push()["pending"] == 0
        kept = json.loads(ana.home.hub_path.read_text())
        ana.home.hub_path.write_text(json.dumps(kept | {"ca": None}))
        told(ana.call("push"), f"the hub at {ELSEWHERE}:{hub.port} speaks TLS", "without the CA")
        ana.home.hub_path.write_text(json.dumps(kept | {"ca": "cut"}))
        damaged = ana.call("push")
        assert damaged.returncode == 2 and "is not a certificate" in damaged.stderr


def test_a_site_with_a_ca_sends_nothing_to_a_hub_that_offers_no_tls(tmp_path: Path, site: MakeSite) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.start()
        ana = site("ana")
        hub.join(ana)
        kept = json.loads(ana.home.hub_path.read_text())
        assert (kept["ca"], kept["url"]) == (None, f"nats://{hub.address}")
        assert not tls_folder(hub.data.nats).exists()
        ca = certificate_pem(new_authority(datetime.now(UTC))[1])
        ana.home.hub_path.write_text(json.dumps(kept | {"ca": ca}))
        ana.record(1)
        told(ana.call("push"), f"{hub.address} offers no TLS", "nothing was sent")


def test_a_ca_that_lost_its_key_stops_the_start_and_names_the_way_out(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        Certificates(tls_folder(hub.data.nats), frozenset()).renew(datetime.now(UTC))
        (tls_folder(hub.data.nats) / "ca.key").unlink()
        done = hub.call("serve", "--nats", hub.address, "--advertise", f"hub.example.org:{hub.port}")
        assert done.returncode == 1
        assert f"{tls_folder(hub.data.nats) / 'ca.key'} is missing" in done.stderr and "hint: " in done.stderr
        assert not processes_of(hub.folder)


# --- renewal


def test_a_certificate_is_renewed_while_a_site_stays_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmf_hub.broker.CERTIFICATE_LOOK_S", 0.1)

    async def main() -> None:
        async with running_nats(tmp_path / "nats", "ana", advertise=f"hub.example.org:{free_port()}") as nats:
            states: list[str] = []
            login, ca, folder = nats.sites["ana"], nats.broker.ca, tmp_path / "tls"
            link = await connect(nats.url, seed=login.seed, name="ana", ca=ca, on_state=states.append)
            heard: list[bytes] = []

            async def hear(_subject: str, data: bytes) -> None:
                heard.append(data)

            await link.subscribe("cmf.v1.confirm.ana", hear)
            authority = read_authority(folder)
            put_certificate(folder, datetime.now(UTC) - 100 * DAY, names_of(server_certificate(folder)))
            expired = server_certificate(folder)
            async with configuration_lock(nats.broker.folder):
                await have_read(nats.broker.folder)
            with pytest.raises(LinkError, match="has expired"):
                await connect(nats.url, seed=login.seed, name="new", ca=ca)
            keeper = asyncio.create_task(nats.broker.keep_certificate())
            async with asyncio.timeout(60):
                while (new := await try_connect(nats.url, login.seed, ca)) is None:
                    await asyncio.sleep(0.05)
            keeper.cancel()
            await new.close()
            assert server_certificate(folder) != expired
            assert read_authority(folder)[1] == authority[1]
            async with nats.link() as hub:
                await hub.send("cmf.v1.confirm.ana", b"still there")
                await eventually(lambda: heard == [b"still there"])
            assert states == ["connected"]
            await link.close()

    async def try_connect(url: str, seed: str, ca: str | None) -> Link | None:
        try:
            return await connect(url, seed=seed, name="new", ca=ca)
        except LinkError:
            return None

    asyncio.run(main())


def test_a_new_certificate_that_the_server_could_not_be_told_of_is_told_the_next_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_nats(tmp_path / "nats", "ana", advertise=f"hub.example.org:{free_port()}") as nats:
            folder, now = tls_folder(nats.broker.folder), datetime.now(UTC)
            put_certificate(folder, now - 100 * DAY, names_of(server_certificate(folder)))
            async with configuration_lock(nats.broker.folder):
                await have_read(nats.broker.folder)
            file = configuration_file(nats.broker.folder)
            content = file.read_text()
            file.write_text("{ not a configuration")
            with pytest.raises(StoreError):
                await nats.broker.renew(now)
            file.write_text(content)
            with pytest.raises(LinkError, match="has expired"):
                async with nats.link("ana"):
                    pass
            await nats.broker.renew(now)
            async with nats.link("ana") as link:
                assert link.connected

    asyncio.run(main())


# --- what it takes


def test_only_a_hub_with_tls_needs_the_package_for_it(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "cryptography.py").write_text("")
    without = {"PYTHONPATH": str(tmp_path / "without")}
    words = ["serve", "--data", tmp_path / "hub", "--nats", f"0.0.0.0:{free_port()}", "--advertise", "hub:4222"]
    done = call("cmf-hub", *words, cwd=tmp_path, **without)
    assert done.returncode == 2
    assert "TLS needs the package cryptography" in done.stderr and "pip install 'cmf-sync[hub]'" in done.stderr
    code = "import sys, cmf_hub.cli, cmf_hub.enrol, cmf_hub.serve; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
