import asyncio
import contextlib
import json
import os
import secrets
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.support.bundles import bundle_of
from tests.support.hubs import Hub, hub_at, running_hub
from tests.support.nats import free_port
from tests.support.programs import call, processes_of, until
from tests.support.sites import SiteFolder, folded

from cmf_graph.database import connect
from cmf_hub.addresses import read_host_port
from cmf_hub.broker_files import running_server
from cmf_hub.enrol import add_site
from cmf_link.link import connect as connect_link
from cmf_protocol.errors import CallerError, CmfError

MakeSite = Callable[[str], SiteFolder]


# --- start and stop


def test_the_ready_file_says_where_the_hub_is_and_goes_with_it(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        ready = hub.start()
        assert hub.process is not None
        assert ready == {"http": None, "nats": hub.address, "pid": hub.process.pid}
        status = hub.ask("status")
        assert (status["serving"], status["nats"], status["pid"]) == (True, hub.address, hub.process.pid)
        # the hub, its nats-server, its projector
        until(lambda: len(processes_of(hub.folder)) == 4, "the hub's processes")
        assert hub.stop() == 0
        assert not processes_of(hub.folder)
        assert not hub.ready_file.exists()
        status = hub.ask("status")
        assert (status["serving"], status["nats"], status["pid"]) == (False, None, None)


def test_a_stop_while_sites_push_is_clean_and_the_push_goes_on_after_the_next_start(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(20, metrics=500)
    pushing = ana.start_push()
    until(lambda: hub.events() > 0 or pushing.poll() is not None, "the push to arrive")
    assert hub.stop() == 0
    assert not processes_of(hub.folder)
    hub.start()
    out, err = pushing.communicate(timeout=180)
    assert pushing.returncode == 0, err
    assert json.loads(out)["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])


def test_a_second_hub_on_the_same_data_is_refused_and_the_first_goes_on(shared_hub: Hub) -> None:
    second = call("cmf-hub", "serve", "--data", shared_hub.folder, "--nats", f"127.0.0.1:{free_port()}", cwd=Path.cwd())
    assert second.returncode == 1
    assert shared_hub.process is not None
    assert f"a hub is serving {shared_hub.folder} already (process {shared_hub.process.pid})" in second.stderr
    assert "hint: " in second.stderr
    assert shared_hub.ask("status")["pid"] == shared_hub.process.pid


def test_two_hubs_on_one_port_the_second_is_refused_and_leaves_nothing(shared_hub: Hub, tmp_path: Path) -> None:
    done = call("cmf-hub", "serve", "--data", tmp_path / "two", "--nats", shared_hub.address, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{shared_hub.address} is in use by another program" in done.stderr
    assert "--nats" in done.stderr
    assert not processes_of(tmp_path / "two")
    until(lambda: len(processes_of(shared_hub.folder)) == 4, "the first hub to be alone with its own processes")


@pytest.mark.parametrize("address", ["", "4222", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CallerError, match="is not HOST:PORT"):
        read_host_port(address)


def test_commands_say_so_where_there_is_no_hub(tmp_path: Path) -> None:
    for words in (["digest"], ["query", "sites"], ["site", "add", "a", "-o", "x"]):
        done = call("cmf-hub", *words, "--data", tmp_path / "none", cwd=tmp_path)
        assert done.returncode == 2
        assert f"there is no hub at {tmp_path / 'none'}" in done.stderr
    assert not (tmp_path / "none").exists()


# --- what a crash leaves


def test_a_killed_hub_leaves_its_server_and_the_next_start_copes(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(5)
    ana.push()
    left = running_server(hub.data.nats)
    assert left is not None
    hub.kill()
    assert psutil.pid_exists(left)
    until(lambda: hub.pids("cmf_hub.projector") == [], "the projector to notice")
    assert hub.ask("status")["serving"] is False
    assert hub.digest().events == len(ana.events())  # questions are answered without a hub
    ana.record(5)
    assert ana.call("push", "--timeout", "1").returncode == 4  # a server, but nobody behind it
    hub.start()
    assert running_server(hub.data.nats) not in (None, left)
    assert ana.push()["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])


@pytest.mark.parametrize("word", ["nats-server", "cmf_hub.projector"])
def test_a_part_of_the_hub_that_dies_is_started_again(hub: Hub, site: MakeSite, tmp_path: Path, word: str) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(5)
    ana.push()
    (before,) = hub.pids(word)
    os.kill(before, signal.SIGKILL)
    until(lambda: hub.pids(word) not in ([], [before]), f"{word} to be started again")
    ana.record(5)
    assert ana.push()["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])
    assert hub.stop() == 0
    assert not processes_of(hub.folder)


def test_a_hub_restored_from_an_old_copy_is_noticed_and_filled_again(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(3)
    ana.push()
    assert hub.stop() == 0
    copy = tmp_path / "store.copy"
    with contextlib.closing(connect(hub.data.store)) as store, contextlib.closing(connect(copy)) as target:
        store.backup(target)
    hub.start()
    ana.record(7)
    ana.push()
    assert hub.stop() == 0
    copy.replace(hub.data.store)
    hub.start()
    ana.record(1)
    done = ana.call("push", "--json")
    assert done.returncode == 0
    assert "the hub holds less than it confirmed earlier" in done.stderr
    assert json.loads(done.stdout)["pending"] == 0
    assert hub.digest() == folded(tmp_path / "graph.db", [ana])
    assert hub.ask("verify")["ok"] is True


def test_what_is_damaged_of_one_site_stops_no_other(hub: Hub, site: MakeSite) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
    for _ in range(3):
        ana.record(2)
        ana.push()
    boris.push()
    with contextlib.closing(connect(hub.data.store)) as store:
        store.execute("UPDATE segments SET data = x'00' WHERE id = 2")
    boris.record(5)
    hub.kill()  # its server takes what comes, so that the next hub gets it in one batch

    async def send(sender: SiteFolder) -> None:
        login = json.loads(sender.home.hub_path.read_text())["login"]
        link = await connect_link(f"nats://{hub.address}", seed=login, name="test")
        try:
            for segment in sender.segments(3):
                subject = f"cmf.v1.log.{sender.name}"
                await link.publish(subject, segment, message_id=secrets.token_hex(16), timeout_s=30)
        finally:
            await link.close()

    for each in (ana, boris):
        asyncio.run(send(each))
    hub.start()
    until(lambda: hub.events() == len(ana.events()) + len(boris.events()), "the other site's events")
    assert "a segment on cmf.v1.log.ana could not be stored" in hub.said()
    verified = hub.call("verify")
    assert verified.returncode == 5
    assert "segment 2: " in verified.stdout


# --- sites


def test_sites_are_added_listed_and_revoked_while_the_hub_serves(shared_hub: Hub, site: MakeSite) -> None:
    dora = site("dora")
    file = shared_hub.enrol("dora")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    joining = json.loads(file.read_text())
    assert joining.keys() == {"version", "site", "url", "hub_id", "hub_key", "login", "token", "ca"}
    assert (joining["site"], joining["url"]) == ("dora", f"nats://{shared_hub.address}")

    def listed() -> dict[str, object]:
        (found,) = [each for each in shared_hub.ask("site", "list")["items"] if each["name"] == "dora"]
        return dict(found)

    assert (listed()["joined"], listed()["revoked"]) == (False, False)
    dora.ask("join", file)
    dora.record(1)
    dora.push()
    assert listed()["keys"] == [dora.signer.public_key.hex()]
    assert shared_hub.ask("site", "revoke", "dora") == {"site": "dora", "revoked": True, "cut": True}
    assert (listed()["joined"], listed()["revoked"]) == (True, True)


def test_an_enrolment_that_fails_leaves_nothing(shared_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    cases = {
        "Not-A-Name": (tmp_path / "x", "can't be a site's name"),
        "emil": (tmp_path / "there", "exists already"),
        "fina": (tmp_path / "no" / "folder", "No such file or directory"),
    }
    for name, (file, said) in cases.items():
        with pytest.raises(CmfError, match=said):
            add_site(shared_hub.data, name, file)
    with pytest.raises(CallerError, match="needs a name"):
        add_site(shared_hub.data, "gina", None)
    listed = [each["name"] for each in shared_hub.ask("site", "list")["items"]]
    assert not {*cases, "gina"} & {*listed}
    shared_hub.enrol("fina")  # the name is free
    again = shared_hub.call("site", "add", "fina", "-o", tmp_path / "y")
    assert again.returncode == 2
    assert "enrolled already" in again.stderr
    assert shared_hub.call("site", "revoke", "nobody").returncode == 2


def test_a_join_token_serves_one_key_only(shared_hub: Hub, site: MakeSite) -> None:
    first, thief = site("hana"), site("thief")
    file = shared_hub.enrol("hana")
    first.ask("join", file)
    thief.ask("join", file)
    first.record(2)
    first.push()
    thief.record(2)
    done = thief.call("push", "--timeout", "60")
    assert done.returncode == 4
    assert "the join token of hana was used already" in done.stderr
    assert json.loads(first.home.hub_path.read_text())["token"] is None
    assert first.status()["pending"] == 0
    sites = shared_hub.ask("query", "sites")["items"]
    (shown,) = [each for each in sites if each["name"] == "hana"]
    assert shown["keys"] == [first.signer.public_key.hex()]


def test_a_revoked_site_can_neither_connect_nor_bring_anything_new(
    shared_hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana = site("inga")
    shared_hub.join(ana)
    ana.record(4)
    ana.push()
    before = shared_hub.digest()
    shared_hub.ask("site", "revoke", "inga")
    known = ana.segments()
    ana.record(3)
    done = ana.call("push", "--timeout", "60")
    assert done.returncode == 4
    assert "refused" in done.stderr or "refuses" in done.stderr
    assert "revoked" in done.stderr
    for segments, code, counts in (
        (known, 0, {"admitted": 0, "duplicates": len(ana.events()) - 12, "refused": []}),
        (ana.segments(), 5, {"admitted": 0, "duplicates": 0}),
        (ana.segments(5)[-1:], 5, {"admitted": 0}),
    ):
        bundle = tmp_path / "inga.bundle"
        bundle.write_bytes(bundle_of(segments))
        done = shared_hub.call("import", bundle, "--json")
        assert done.returncode == code, done.stderr
        found = json.loads(done.stdout)
        assert {key: found[key] for key in counts} == counts
        assert [each["code"] for each in found["refused"]] == (["revoked"] if code else [])
    assert shared_hub.digest() == before
    quarantined = shared_hub.ask("quarantine", "list")["items"]
    assert {"revoked"} == {each["code"] for each in quarantined if "inga" in each["message"]}


def test_a_revocation_cuts_a_connection_that_is_open(shared_hub: Hub, site: MakeSite) -> None:
    jana = site("jana")
    shared_hub.join(jana)
    jana.record(40, metrics=400)
    before = shared_hub.events()
    pushing = jana.start_push(120)
    until(
        lambda: shared_hub.events() > before or pushing.poll() is not None,
        "the push to arrive",
    )
    shared_hub.ask("site", "revoke", "jana")
    _, err = pushing.communicate(timeout=180)
    assert pushing.returncode in (0, 4), err  # 0: it was done before
    assert jana.call("push", "--timeout", "60").returncode == 4


# --- bundles


def test_a_site_that_only_sends_bundles_is_admitted_by_its_key(shared_hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    kim = site("kim")
    kim.record(5)
    added = shared_hub.ask("site", "add", "kim", "--key", kim.status()["public_key"])
    assert added == {"site": "kim", "key": kim.signer.public_key.hex(), "file": None, "joins": False}
    bundle = tmp_path / "kim.bundle"
    bundle.write_bytes(bundle_of(kim.segments(3)))
    found = shared_hub.ask("import", bundle)
    assert (found["admitted"], found["refused"], found["parked"]) == (len(kim.events()), [], [])
    before = shared_hub.digest()
    assert shared_hub.ask("import", bundle)["duplicates"] == len(kim.events())
    assert shared_hub.digest() == before
    executions = shared_hub.ask("query", "executions", "--site", "kim")["items"]
    assert len(executions) == 5
    assert shared_hub.call("site", "add", "lea", "--key", "00").returncode == 2


def test_a_bundle_that_was_cut_or_altered_is_refused(shared_hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    lars = site("lars")
    lars.record(5)
    shared_hub.ask("site", "add", "lars", "--key", lars.status()["public_key"])
    whole = bundle_of(lars.segments())
    before = shared_hub.digest()
    bundle = tmp_path / "lars.bundle"
    for content, said in (
        (whole[: len(whole) // 2], "cut or altered"),
        (whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], "cut or altered"),
        (b"PK\x03\x04 another file", "not a bundle"),
    ):
        bundle.write_bytes(content)
        done = shared_hub.call("import", bundle)
        assert done.returncode == 5, done.stderr
        assert said in done.stderr
    missing = shared_hub.call("import", tmp_path / "none")
    assert missing.returncode == 1
    assert "none: No such file" in missing.stderr
    assert shared_hub.digest() == before


def test_everything_is_rebuilt_while_the_hub_serves_and_sites_push(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    for _ in range(2):
        ana.record(30, metrics=100)
        pushing = ana.start_push()
        hub.ask("rebuild")
        out, err = pushing.communicate(timeout=180)
        assert pushing.returncode == 0, err
        assert json.loads(out)["pending"] == 0
    incremental = hub.digest()
    assert hub.ask("verify")["ok"] is True
    hub.ask("rebuild")
    assert hub.digest() == incremental == folded(tmp_path / "graph.db", [ana])
    assert "failed" not in hub.said()


def test_a_hub_in_a_folder_whose_name_is_not_plain(tmp_path: Path) -> None:
    with running_hub(tmp_path / "a hub, 100% ünlike #1?") as hub:
        ana = SiteFolder(tmp_path / "ana")
        hub.join(ana)
        ana.record(2)
        assert ana.push()["pending"] == 0
        assert hub.digest().events == len(ana.events())
        assert hub.stop(signal.SIGINT) == 0
