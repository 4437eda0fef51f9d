"""A regional hub that forwards to a central one: real hubs, real sites, the centre verifies the sites themselves."""

import functools
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.programs import until
from tests.support.sites import SiteFolder, folded, twin_of

from cmf_agent.bundle import export_bundle
from cmf_hub.data import DataFolder
from cmf_hub.importing import import_bundle
from cmf_hub.upstreams import Progress, configured
from cmf_protocol.errors import CallerError

MakeSite = Callable[[str], SiteFolder]
LIMIT_S = 90.0


def enrol_sites_of(region: Hub, centre: Hub, *options: str) -> None:
    """Let the centre verify the sites of a region."""
    listed = region.call("site", "list", "--json")
    file = region.folder.with_name(f"{region.folder.name}-sites.json")
    file.write_text(listed.stdout)
    centre.ask("site", "import", file, *options)


def forward(region: Hub, centre: Hub, name: str) -> None:
    """Have `hub.toml` of a region name the centre, from its next start on."""
    file = region.folder / f"{name}.join"
    centre.ask("site", "add", name, "--carrier", "-o", file)
    (region.folder / "hub.toml").write_text(f'[[upstream]]\njoin = "{file.name}"\n')


def restart(hub: Hub) -> None:
    assert hub.stop() == 0
    hub.start()


def has_all_of(hub: Hub, sites: list[SiteFolder]) -> None:
    wanted = sum(len(site.events()) for site in sites)
    until(
        lambda: hub.events() == wanted, f"{wanted} events to be forwarded, of which {hub.events()} are there", LIMIT_S
    )


def is_at_rest(hub: Hub) -> bool:
    return bool(hub.ask("status")["upstreams"][0]["state"] == "idle")


def test_what_a_region_holds_and_gets_reaches_the_centre_with_the_same_digest(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
        each.record(5)
        each.push()
    with running_hub(tmp_path / "centre") as centre:
        enrol_sites_of(hub, centre)
        forward(hub, centre, "north")
        restart(hub)
        has_all_of(centre, [ana, boris])
        ana.record(3)
        ana.push()
        has_all_of(centre, [ana, boris])
        assert centre.digest() == hub.digest() == folded(tmp_path / "graph.db", [ana, boris])
        shown = {item["name"]: item for item in centre.ask("query", "sites")["items"]}
        assert {shown[name]["state"] for name in ("ana", "boris")} == {"complete"}
        assert centre.ask("verify")["ok"] is True

        def confirmed() -> list[int]:
            items = {item["name"]: item for item in hub.ask("query", "sites")["items"]}
            return [
                upstream["confirmed"] for name in ("ana", "boris") for log in items[name]["logs"]
                for branch in log["branches"] for upstream in branch["upstreams"]
            ]  # fmt: skip

        until(lambda: confirmed() == [len(ana.events()), len(boris.events())], "the region to know it", LIMIT_S)
        assert hub.ask("status")["upstreams"][0]["state"] == "idle"


def test_a_centre_that_was_away_or_restored_gets_everything(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(3)
    ana.push()
    with running_hub(tmp_path / "centre") as centre:
        enrol_sites_of(hub, centre)
        forward(hub, centre, "north")
        restart(hub)
        has_all_of(centre, [ana])
        assert centre.stop() == 0
        ana.record(3)
        ana.push()
        for file in centre.folder.glob("store.db*"):
            file.unlink()
        centre.start()
        has_all_of(centre, [ana])
        assert centre.digest() == hub.digest()


def test_a_site_that_the_centre_does_not_know_stops_no_other_and_is_named(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    ana, boris = site("ana"), site("boris")
    hub.join(ana)
    with running_hub(tmp_path / "centre") as centre:
        enrol_sites_of(hub, centre)  # without a key yet: it is bound at the first push
        ana.record(2)
        ana.push()
        hub.join(boris)
        boris.record(2)
        boris.push()
        listed = json.loads(hub.call("site", "list", "--json").stdout)
        listed["items"] = [item for item in listed["items"] if item["name"] == "ana"]
        (tmp_path / "ana.json").write_text(json.dumps(listed))
        centre.ask("site", "import", tmp_path / "ana.json")
        forward(hub, centre, "north")
        restart(hub)
        has_all_of(centre, [ana])

        def refused() -> str:
            items = {item["name"]: item for item in hub.ask("query", "sites")["items"]}
            return str(items["boris"]["logs"][0]["branches"][0]["upstreams"])

        until(lambda: "unknown-key" in refused(), "the refusal to be shown", LIMIT_S)
        enrol_sites_of(hub, centre)
        restart(hub)  # or in ten minutes by itself
        has_all_of(centre, [ana, boris])
        assert centre.digest() == hub.digest()


@pytest.mark.deep
def test_a_carrier_without_the_right_brings_nothing(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(2)
    ana.push()
    with running_hub(tmp_path / "centre") as centre:
        enrol_sites_of(hub, centre)
        forward(hub, centre, "north")
        centre.ask("site", "allow", "north", "--no-carrier")
        restart(hub)
        until(lambda: centre.ask("quarantine", "list")["items"], "the refusal", LIMIT_S)
        assert centre.ask("quarantine", "list")["items"][0]["code"] == "carrier"
        assert centre.events() == 0


def test_bodies_that_came_late_are_forwarded_whatever_waits_before_them(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    kim, lea = site("kim"), site("lea")
    with running_hub(tmp_path / "centre") as centre:
        for each in (lea, kim):  # what came late of lea, whom the centre does not know, comes first
            each.run("mine", "train", outputs={"model.pkl": b"model"})
            each.run("other", "train", outputs={"other.pkl": b"other"})
            hub.ask("site", "add", each.name, "--key", each.status()["public_key"])
            part, whole = each.folder / "part.bundle", each.folder / "whole.bundle"
            export_bundle(each.home, part, pipelines=["mine"])
            export_bundle(each.home, whole, everything=True)
            for bundle in (part, whole):
                assert import_bundle(hub.data, bundle).refused == []
        centre.ask("site", "add", "kim", "--key", kim.status()["public_key"])
        forward(hub, centre, "north")
        restart(hub)
        has_all_of(centre, [kim])
        wanted = folded(tmp_path / "graph.db", [kim])
        until(lambda: centre.digest() == wanted, "the bodies that came late", LIMIT_S)


def test_hubs_that_forward_to_each_other_come_to_rest(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana, boris = site("ana"), site("boris")
    with running_hub(tmp_path / "other") as other:
        hub.join(ana)
        other.join(boris)
        for each in (ana, boris):
            each.record(4)
            each.push()
        enrol_sites_of(hub, other)
        enrol_sites_of(other, hub)
        forward(hub, other, "first")
        forward(other, hub, "second")
        restart(hub)
        restart(other)
        for one in (hub, other):
            has_all_of(one, [ana, boris])
        assert hub.digest() == other.digest()
        segments = [one.ask("status")["segments"] for one in (hub, other)]
        for one in (hub, other):
            until(functools.partial(is_at_rest, one), "it to rest", LIMIT_S)
        ana.record(1)
        ana.push()
        for one in (hub, other):
            has_all_of(one, [ana, boris])
        assert [one.ask("status")["segments"] for one in (hub, other)] == [count + 1 for count in segments]


@pytest.mark.deep
def test_forks_are_forwarded_with_all_their_branches(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    ana.record(3)
    ana.push()
    twin = twin_of(ana, tmp_path / "twin")
    for each in (ana, twin):
        each.record(2)
        each.push()
    with running_hub(tmp_path / "centre") as centre:
        enrol_sites_of(hub, centre)
        forward(hub, centre, "north")
        restart(hub)
        until(lambda: centre.events() == hub.events(), "both branches to be forwarded", LIMIT_S)
        assert centre.digest() == hub.digest()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[upstream]\n", "TOML"),
        ("upstream = 3\n", "no table"),
        ("[[upstream]]\nurl = 'x'\n", "join file"),
        ("[[upstream]]\njoin = 'nothing.join'\n", "nothing.join"),
        ("[[upstream]]\njoin = 'hub.toml'\n", "not a join file"),
    ],
)
def test_a_hub_toml_that_cannot_be_meant_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "hub.toml").write_text(content)
    with pytest.raises(CallerError, match=said):
        configured(DataFolder(tmp_path))


def test_what_is_kept_of_another_hub_is_read_again(tmp_path: Path) -> None:
    hub, branch = b"h" * 16, b"b" * 32
    with closing(Progress(DataFolder(tmp_path))) as progress:
        progress.keep(hub, {}, {}, {branch: ("unknown-key", "no site")})
        assert progress.of(hub)[branch].refused == "unknown-key: no site"
        progress.keep(hub, {branch: 7}, {}, {})
        for digest, of in ((b"1" * 32, branch), (b"2" * 32, b"c" * 32)):
            progress.note_supplied(hub, of, digest)
        progress.forget_supplied(hub, branch)
    with closing(Progress(DataFolder(tmp_path))) as progress:
        assert progress.of(hub)[branch] == (7, None, None)
        assert progress.supplied(hub) == {b"2" * 32}
