"""Bundles of other sites at a site: in the local view by their signatures alone, or refused."""

from pathlib import Path

import pytest
from tests.support.bundles import bundle_of, segments_in
from tests.support.logs import MadeLog
from tests.support.sites import SiteFolder, folded
from tests.support.strategies import SIGNERS

from cmf_agent.bundle import export_bundle, take_bundle
from cmf_agent.outbox import Outbox
from cmf_agent.view import local_view
from cmf_graph.graph import Digest
from cmf_protocol.errors import IntegrityError

Sites = tuple[SiteFolder, SiteFolder]


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    """Two sites that know nothing of each other."""
    kim, lea = SiteFolder(tmp_path / "kim"), SiteFolder(tmp_path / "lea")
    kim.run("screening", "train", outputs={"model.pkl": b"model"}, metrics={"auc": 0.9})
    lea.run("screening", "report", outputs={"report.csv": b"report"})
    return kim, lea


def digest(site: SiteFolder) -> Digest:
    with local_view(site.home) as graph:
        return graph.digest()


def test_what_another_site_recorded_answers_questions_here(sites: Sites, tmp_path: Path) -> None:
    kim, lea = sites
    kim.ask("bundle", "export", "../kim.bundle")
    (lea.folder / "model.pkl").write_bytes(b"model")  # only the bytes were there before
    assert lea.ask("query", "executions")["items"][0]["stage"] == "report"
    said = lea.ask("bundle", "import", "../kim.bundle")
    events = len(kim.events())
    assert said == {
        "kind": "bundle", "segments": 1, "events": events, "duplicates": 0, "own": 0, "waiting": [], "refused": [],
    }  # fmt: skip
    assert {item["stage"] for item in lea.ask("query", "executions")["items"]} == {"train", "report"}
    assert "train" in lea.call("query", "lineage", "./model.pkl", "--up").stdout
    assert digest(lea) == folded(tmp_path / "graph.db", [lea, kim])
    again = lea.ask("bundle", "import", "../kim.bundle")
    assert (again["events"], again["duplicates"]) == (0, 1)
    assert digest(lea) == folded(tmp_path / "graph.db", [lea, kim])
    lea.home.brought_path.unlink()
    lea.home.view_path.unlink()
    assert digest(lea) == folded(tmp_path / "alone.db", [lea])


def test_the_own_bundle_brings_nothing_new(sites: Sites) -> None:
    kim, _ = sites
    export_bundle(kim.home, kim.folder / "a.bundle")
    before = digest(kim)
    found = take_bundle(kim.home, kim.folder / "a.bundle")
    assert (found.own, found.kept, found.waiting, found.refused) == (1, 0, {}, [])
    assert digest(kim) == before


def test_what_lacks_its_beginning_is_not_taken_until_that_is_here(sites: Sites, tmp_path: Path) -> None:
    kim, lea = sites
    export_bundle(kim.home, tmp_path / "first.bundle")
    first = len(kim.events())
    kim.record(3)
    export_bundle(kim.home, tmp_path / "both.bundle")
    rest = tmp_path / "rest.bundle"
    rest.write_bytes(bundle_of(segments_in((tmp_path / "both.bundle").read_bytes())[1:]))
    before = digest(lea)
    done = lea.call("bundle", "import", rest)
    assert done.returncode == 1
    assert f"what is before event {first + 1} is not here" in done.stderr
    assert digest(lea) == before
    assert take_bundle(lea.home, tmp_path / "first.bundle").events == first
    assert take_bundle(lea.home, rest).waiting == {}
    assert digest(lea) == folded(tmp_path / "graph.db", [lea, kim])


def test_withheld_bodies_come_with_a_later_bundle(sites: Sites, tmp_path: Path) -> None:
    kim, lea = sites
    kim.run("secret", "train", metrics={"auc": 0.1})
    part, whole = tmp_path / "part.bundle", tmp_path / "whole.bundle"
    withheld = export_bundle(kim.home, part, pipelines=["screening"]).withheld
    export_bundle(kim.home, whole)
    take_bundle(lea.home, part)
    assert digest(lea).unfolded == withheld > 0
    found = take_bundle(lea.home, whole)
    assert (found.kept, found.events) == (1, 0)
    assert digest(lea) == folded(tmp_path / "graph.db", [lea, kim])


def test_what_is_not_authentic_is_refused_and_the_rest_is_taken(sites: Sites, tmp_path: Path) -> None:
    _, lea = sites
    log, other = MadeLog(SIGNERS[0]).say(9), MadeLog(SIGNERS[1]).say(4)
    thief = MadeLog(SIGNERS[1], events=log.events)
    file = tmp_path / "mixed.bundle"
    file.write_bytes(
        bundle_of(
            [
                log.cut(1, 5), log.forged(6, 10, SIGNERS[1]), thief.cut(6, 10), thief.cut(1, 5), b"junk", other.cut(1, 5),
            ]
        )
    )  # fmt: skip
    done = lea.call("bundle", "import", file)
    assert done.returncode == 5
    for said in (
        "the signature does not verify",
        "belongs to another key",
        "a log begins with log.opened",
        "version byte",
    ):
        assert said in done.stderr
    with local_view(lea.home) as graph:
        held = set(graph.event_ids())
    assert {event.event_id for event in [*log.events[:5], *other.events]} <= held
    assert not {event.event_id for event in log.events[5:]} & held


def test_both_branches_of_a_copied_log_are_taken(sites: Sites, tmp_path: Path) -> None:
    _, lea = sites
    log = MadeLog(SIGNERS[0]).say(9)
    copy = log.fork(4).say(3)
    file = tmp_path / "fork.bundle"
    file.write_bytes(bundle_of([log.cut(1, 7), copy.cut(5, 7), log.cut(8, 10)]))  # the copy goes on within a segment
    found = take_bundle(lea.home, file)
    assert (found.kept, found.waiting, found.refused) == (3, {}, [])
    with local_view(lea.home) as graph:
        held = set(graph.event_ids())
    assert {event.event_id for event in [*log.events, *copy.events]} <= held


def test_a_damaged_bundle_is_refused_whole(sites: Sites, tmp_path: Path) -> None:
    kim, lea = sites
    file = tmp_path / "a.bundle"
    export_bundle(kim.home, file)
    file.write_bytes(file.read_bytes()[:-40] + b"x" + file.read_bytes()[-39:])
    with pytest.raises(IntegrityError, match="cut or altered"):
        take_bundle(lea.home, file)
    assert not lea.home.brought_path.exists()
    with Outbox(kim.home.log_path) as outbox:
        assert outbox.cuts(kim.events()[0].header.log_id) != []
