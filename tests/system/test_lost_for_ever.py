"""What a site has lost: a hole that an operator accepts, a disk or login in whose place it joins again."""

import json
import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import Hub
from tests.support.programs import until
from tests.support.sites import SiteFolder
from tests.support.store import NOW_US

from cmf_agent.commands.saying import accept
from cmf_agent.remarks import accept_gap
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.enrol import add_site, import_sites, rejoin_site, revoke_site
from cmf_hub.registry import Registry
from cmf_hub.sites import list_sites
from cmf_protocol.errors import CallerError
from cmf_protocol.gaps import Gap

MakeSite = Callable[[str], SiteFolder]


def shown(hub: Hub, name: str) -> dict[str, Any]:
    registry = Registry(hub.data.registry)
    with closing(registry), closing(Custody(hub.data.store, registry)) as custody:
        (found,) = [item for item in list_sites(custody, registry, {}) if item["name"] == name]
        return found


def bring(hub: Hub, segments: list[bytes]) -> None:
    """Import segments, as `cmf-hub import` does, while the hub serves."""
    registry = Registry(hub.data.registry)
    with closing(registry), closing(Custody(hub.data.store, registry)) as custody:
        answers = custody.receive([(None, segment) for segment in segments], NOW_US)
    assert not any(answer.refused for answer in answers)


def test_a_gap_is_named_accepted_and_stays_visible_until_it_is_filled(shared_hub: Hub, site: MakeSite) -> None:
    ship, office = site("ship"), site("office")
    add_site(shared_hub.data, "ship", None, key=ship.signer.public_key)
    shared_hub.join(office)
    ship.record(10)
    segments = ship.segments(size=10)
    bring(shared_hub, [segments[0], *segments[2:]])
    assert shown(shared_hub, "ship")["state"] == "gap"
    told = shared_hub.call("query", "sites").stdout
    (command,) = [line.strip() for line in told.splitlines() if line.strip().startswith("cmf-agent gap accept")]
    assert "ship: events 11 to 20 of log" in told
    words = shlex.split(command)[1:-1]
    said = office.ask(*words, "the disk burnt")
    assert said["items"][0]["type"] == "gap.accepted"
    office.push()
    assert shown(shared_hub, "ship")["state"] == "gap", "this site may not operate"
    assert shared_hub.ask("site", "allow", "office", "--operator")["may_operate"]
    until(lambda: shown(shared_hub, "ship")["lost"] == 10, "the hub to take what lies beyond the gap")
    found = shown(shared_hub, "ship")
    assert (found["state"], found["events"]) == ("complete, 10 lost", len(ship.events()) - 10)
    assert "are lost: that was accepted" in shared_hub.call("query", "sites").stdout
    bring(shared_hub, segments)
    assert shown(shared_hub, "ship")["state"] == "complete"
    assert shared_hub.ask("verify")["ok"]


def test_malformed_ids_are_refused() -> None:
    log, event = "ab" * 16, "cd" * 32
    for words, said in (
        ((log[1:], event, "ef" * 32, event), "no log's id"),
        ((log, event[2:], "ef" * 32, event), "no event's id"),
        ((log, event, "x" * 64, event), "no event's id"),
        ((log, event, "ef" * 32, log), "no key's id"),
    ):
        with pytest.raises(CallerError, match=said):
            accept(*words, reason="burnt")


def test_a_gap_needs_two_ends(site: MakeSite) -> None:
    office = site("desk")
    with pytest.raises(CallerError, match="are one"):
        accept_gap(office.home, b"k" * 32, Gap(b"l" * 16, b"e" * 32, b"e" * 32), "burnt")
    with pytest.raises(CallerError, match="reason"):
        accept_gap(office.home, b"k" * 32, Gap(b"l" * 16, b"b" * 32, b"e" * 32), " ")
    assert len(office.events()) == 1


def test_a_site_that_lost_its_disk_joins_again_and_its_old_login_is_cut(
    shared_hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    old, new = site("barge"), SiteFolder(tmp_path / "again" / "barge")
    shared_hub.join(old)
    old.record(2)
    old.push()
    file = tmp_path / "barge-again.join"
    shared_hub.ask("site", "rejoin", "barge", "-o", file)
    old.record(1)
    done = old.call("push", "--timeout", "5")
    assert done.returncode == 4
    new.ask("join", file)
    new.record(3)
    new.push()
    found = shown(shared_hub, "barge")
    assert found["keys"] == [each.signer.public_key.hex() for each in (old, new)]
    assert sum(len(log["branches"]) for log in found["logs"]) == 2
    assert found["events"] == len(old.events()) - 4 + len(new.events())
    revoke_site(shared_hub.data, "barge")
    with pytest.raises(CallerError, match="is revoked"):
        rejoin_site(shared_hub.data, "barge", tmp_path / "no.join")
    assert not (tmp_path / "no.join").exists()


def test_a_central_hub_enrols_the_sites_of_a_regional_one(shared_hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    buoy = site("buoy")
    shared_hub.ask("site", "add", "buoy", "--key", buoy.signer.public_key.hex(), "--operator")
    sites = shared_hub.ask("site", "list")
    sites["items"].append({"name": "never-joined", "keys": []})
    sites["items"].append({"name": "revoked", "keys": ["07" * 32], "revoked": True})
    listed = tmp_path / "sites.json"
    listed.write_text(json.dumps(sites))
    data = DataFolder(tmp_path / "central")
    data.prepare()
    Registry(data.registry).close()
    central = Hub(data.root)
    done = central.ask("site", "import", listed, "--prefix", "sea-")
    assert "sea-buoy" in done["added"]
    assert not {"sea-never-joined", "sea-revoked"} & set(done["added"])
    again = import_sites(data, listed, "sea-")
    assert (again.added, again.unchanged) == ([], done["added"])
    (found,) = [each for each in Registry(data.registry).sites() if each.name == "sea-buoy"]
    assert (found.keys, found.may_operate) == ((buoy.signer.public_key,), False)
    with pytest.raises(CallerError, match="buoy"):
        import_sites(data, listed, "")
    for content in ("{}", '{"items": [{"name": "x", "keys": ["00"]}]}', "[", '{"items": [1]}'):
        listed.write_text(content)
        with pytest.raises(CallerError, match="no list of sites"):
            import_sites(data, listed, "")
