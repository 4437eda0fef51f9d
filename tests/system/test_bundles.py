"""Bundles between real sites and a real hub: by hand instead of over a link, with the same effect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.bundles import bundle_of, segments_in
from tests.support.hubs import Hub
from tests.support.sites import SiteFolder, folded
from tests.support.strategies import SIGNERS

from cmf_agent.bundle import export_bundle, take_receipt
from cmf_agent.hub_file import join
from cmf_hub.enrol import add_site
from cmf_hub.importing import import_bundle
from cmf_protocol.bundles import BUNDLE_MAGIC
from cmf_protocol.errors import IntegrityError, PeerError
from cmf_protocol.receipts import decode_receipt, sign_receipt
from cmf_protocol.segments import decode_segment

MakeSite = Callable[[str], SiteFolder]


def enrol(hub: Hub, site: SiteFolder) -> None:
    """Let a site join that will never have a link: its key goes to the hub, a join file comes back."""
    file = site.folder / "hub.join"
    add_site(hub.data, site.name, file, key=site.signer.public_key)
    join(site.home, file)


def exported(site: SiteFolder, name: str = "a.bundle") -> Path:
    """Return a new bundle of what is not confirmed."""
    export_bundle(site.home, site.folder / name)
    return site.folder / name


# --- the whole way


def test_a_site_without_a_link_is_brought_up_by_hand(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    kim = site("kim")
    kim.record(50, metrics=30)
    file = kim.folder / "hub.join"
    added = hub.ask("site", "add", "kim", "--key", kim.status()["public_key"], "-o", file)
    assert added == {"site": "kim", "key": kim.signer.public_key.hex(), "file": str(file), "joins": False}
    assert file.stat().st_mode & 0o777 == 0o600
    assert kim.ask("join", file) == {"site": "kim"}
    assert kim.call("push").returncode == 2
    kim.ask("bundle", "export", "first.bundle")
    imported = hub.ask("import", kim.folder / "first.bundle", "--receipt", kim.folder / "first.receipt")
    assert imported["receipt"] == str(kim.folder / "first.receipt")
    first = kim.ask("bundle", "import", "first.receipt")
    total = len(kim.events())
    assert (first["confirmed"], first["pending"]) == (total, 0)
    assert (kim.status()["confirmed"], kim.status()["waits_for"][:8]) == (total, "nothing:")
    kim.record(3)
    new = len(kim.events()) - total
    said = export_bundle(kim.home, kim.folder / "second.bundle")
    assert (said.events, said.segments) == (new, 1)
    found = import_bundle(hub.data, kim.folder / "second.bundle")
    assert (found.admitted, found.duplicates, found.parked, found.refused) == (new, 0, [], [])
    before = hub.digest()
    assert before == folded(tmp_path / "graph.db", [kim])
    again = import_bundle(hub.data, kim.folder / "second.bundle")
    assert (again.admitted, again.duplicates) == (0, new)
    assert hub.digest() == before
    hub.ask("receipt", "kim", "-o", kim.folder / "later.receipt")
    assert take_receipt(kim.home, kim.folder / "later.receipt").confirmed == new
    assert kim.ask("bundle", "export", "third.bundle") == {
        "file": None,
        "segments": 0,
        "events": 0,
        "withheld": 0,
        "bytes": 0,
    }
    (row,) = hub.ask("query", "sites")["items"]
    assert (row["name"], row["state"], row["events"]) == ("kim", "complete", total + new)
    assert hub.ask("verify")["ok"] is True


def test_what_is_withheld_is_counted_and_a_full_bundle_supplies_it(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    kim, ana = site("kim"), site("ana")
    for each in (kim, ana):
        each.run("mine", "train", outputs={"model.pkl": b"model"}, metrics={"auc": 0.9})
        each.run("secret", "train", outputs={"other.pkl": b"other"}, metrics={"auc": 0.1})
    enrol(hub, kim)
    part, whole = kim.folder / "part.bundle", kim.folder / "whole.bundle"
    said = export_bundle(kim.home, part, pipelines=["mine"])
    assert 0 < said.withheld < said.events == len(kim.events())
    import_bundle(hub.data, part)
    assert hub.digest().unfolded == said.withheld
    assert [item["name"] for item in hub.ask("query", "pipelines")["items"]] == ["mine"]
    hub.join(ana)
    ana.push()
    export_bundle(kim.home, whole, everything=True)
    assert import_bundle(hub.data, whole).duplicates == said.events
    assert hub.digest() == folded(tmp_path / "graph.db", [kim, ana])
    assert hub.digest().unfolded == 0


def test_bundles_come_in_any_order_and_what_lacks_its_beginning_waits(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    kim, lea = site("kim"), site("lea")
    bundles = []
    for each in (kim, lea):
        enrol(hub, each)
        for part in range(3):
            each.record(4)
            bundles.append(exported(each, f"{part}.bundle"))
    whole = {path: segments_in(path.read_bytes()) for path in bundles}
    for path, segments in whole.items():
        path.write_bytes(bundle_of(segments[-1:]))  # only what was new when it was made
    for at in (2, 4, 1):
        found = import_bundle(hub.data, bundles[at])
        assert (found.admitted, found.refused) == (0, [])
    waiting = hub.ask("import", bundles[2])["parked"]
    assert [(row["site"], row["log_id"]) for row in waiting] == [("kim", kim.status()["log_id"])] * 2
    said = hub.call("import", bundles[4])
    assert f"of lea from event {decode_segment(whole[bundles[4]][-1]).statement.first_sequence} on waits" in said.stdout
    rest = kim.folder / "rest.receipt"
    taken = import_bundle(hub.data, bundles[0], receipt=rest)
    assert (taken.admitted, taken.parked) == (len(kim.events()), [])
    assert take_receipt(kim.home, rest).pending == 0
    for at in (3, 5):
        assert import_bundle(hub.data, bundles[at]).refused == []
    assert hub.digest() == folded(tmp_path / "graph.db", [kim, lea])


# --- what is refused


def test_a_bundle_cut_or_altered_anywhere_is_refused_whole(shared_hub: Hub, site: MakeSite) -> None:
    lars = site("lars")
    enrol(shared_hub, lars)
    for _ in range(3):
        lars.record(5)
        file = exported(lars, f"{len(lars.events())}.bundle")
    whole = file.read_bytes()
    places, at = {0, 1, len(BUNDLE_MAGIC)}, len(BUNDLE_MAGIC)
    for segment in segments_in(whole):  # each length, each segment's first and last byte, the number, the digest
        places |= {at + 1, at + 4, at + 5, at + 3 + len(segment)}
        at += 4 + len(segment)
        places |= {at}
    places |= {at + 4, at + 8, at + 9, len(whole) - 1}
    before, bundle = shared_hub.digest(), lars.folder / "bad.bundle"
    for place in sorted(places):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :]):
            bundle.write_bytes(content)
            with pytest.raises(
                PeerError, match=r"bad\.bundle: this (file is not a bundle|bundle was cut or altered: .)"
            ):
                import_bundle(shared_hub.data, bundle)
    bundle.write_bytes(whole + b"\n")
    receipt = lars.folder / "bad.receipt"
    done = shared_hub.call("import", bundle, "--receipt", receipt)
    assert done.returncode == 5
    assert "something follows its end" in done.stderr
    assert "nothing of it was taken" in done.stderr
    assert not receipt.exists()
    assert shared_hub.digest() == before
    assert import_bundle(shared_hub.data, file).admitted == len(lars.events())


def test_what_may_not_be_brought_is_refused_and_the_rest_is_taken(shared_hub: Hub, site: MakeSite) -> None:
    mara, nina, olga = site("mara"), site("nina"), site("olga")
    enrol(shared_hub, mara)
    enrol(shared_hub, nina)
    for each in (mara, nina, olga):
        each.record(3)
    shared_hub.ask("site", "revoke", "nina")
    mixed = mara.folder / "mixed.bundle"
    mixed.write_bytes(bundle_of([*olga.segments(), b"junk", *nina.segments(), *mara.segments()]))
    receipt = mara.folder / "mixed.receipt"
    done = shared_hub.call("import", mixed, "--receipt", receipt, "--json")
    assert done.returncode == 5
    found = json.loads(done.stdout)
    assert [row["code"] for row in found["refused"]] == ["unknown-key", "malformed", "revoked"]
    assert found["admitted"] == len(mara.events())
    taken = take_receipt(mara.home, receipt)
    assert (taken.confirmed, taken.pending) == (len(mara.events()), 0)
    told = nina.call("bundle", "import", receipt)
    assert (told.returncode, "the site nina is revoked" in told.stderr) == (0, True)
    assert nina.status()["confirmed"] == 0


def test_a_receipt_is_taken_only_from_the_own_hub_for_the_own_logs(shared_hub: Hub, site: MakeSite) -> None:
    pia, rosa = site("pia"), site("rosa")
    for each in (pia, rosa):
        enrol(shared_hub, each)
        each.record(2)
        import_bundle(shared_hub.data, exported(each), receipt=each.folder / "a.receipt")
    others = pia.call("bundle", "import", rosa.folder / "a.receipt")
    assert (others.returncode, "another site's logs" in others.stderr) == (5, True)
    real = decode_receipt((pia.folder / "a.receipt").read_bytes())
    parts: dict[str, Any] = {
        "incarnation": real.incarnation,
        "time_us": real.time_us,
        "confirmed": real.confirmed,
        "refused": (),
    }
    for name, content, said in (
        ("hub", sign_receipt(SIGNERS[0], hub_id=b"x" * 16, **parts), "another hub"),
        ("key", sign_receipt(SIGNERS[0], hub_id=real.hub_id, **parts), "another key"),
        ("self", sign_receipt(pia.signer, hub_id=real.hub_id, **parts), "another key"),
    ):
        file = pia.folder / f"{name}.receipt"
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=said):
            take_receipt(pia.home, file)
    assert pia.status()["confirmed"] == 0
    assert take_receipt(pia.home, pia.folder / "a.receipt").confirmed == len(pia.events())
    assert shared_hub.call("receipt", "nobody", "-o", pia.folder / "n.receipt").returncode == 2
    again = shared_hub.call("receipt", "pia", "-o", pia.folder / "a.receipt")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


# --- with a link as well


def test_a_push_sends_only_what_no_bundle_has_brought(shared_hub: Hub, site: MakeSite) -> None:
    tove = site("tove")
    shared_hub.join(tove)
    tove.push()
    tove.record(20)
    carried = len(tove.events()) - 1  # the log's opening is confirmed
    assert import_bundle(shared_hub.data, exported(tove)).admitted == carried
    tove.record(2)
    pushed = tove.push()
    assert (pushed["confirmed"], pushed["pending"]) == (carried + 8, 0)
    assert pushed["sent"] <= 8  # fewer where the confirmation overtakes the acknowledgement
    assert not exported(tove, "b.bundle").exists()
