"""Pull, subscribe and clone between a real hub and its sites: what comes, what does not come twice, what it is worth offline."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.programs import ask, call
from tests.support.sites import PIPELINE, SiteFolder

from cmf_agent.commands.asking import digest_at, questions_at
from cmf_agent.fetching import PullReport
from cmf_agent.hub_file import hub_in_force
from cmf_agent.listings import Listings
from cmf_agent.log import now_us
from cmf_agent.pull import pull
from cmf_agent.pulled import Pulled
from cmf_agent.pulled_verify import verify_pulled
from cmf_graph.filtered import filtered_digest
from cmf_hub.projector import caught_up_graph
from cmf_hub.registry import Registry
from cmf_protocol import types as t
from cmf_protocol.errors import IntegrityError
from cmf_protocol.filters import Filter, filter_of

SCREENING = filter_of(pipelines=["screening"])
QUIET_BYTES = 2_000


class World(NamedTuple):
    hub: Hub
    ana: SiteFolder
    boris: SiteFolder
    reader: SiteFolder
    runs: dict[str, str]
    middle_us: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two clinics: ana screened and billed, boris screened later and deployed ana's model."""
    folder = tmp_path_factory.mktemp("pull")
    ana, boris = SiteFolder(folder / "ana"), SiteFolder(folder / "boris")
    runs = {}
    (ana.folder / "data.csv").write_bytes(b"a,b\n1,2\n")
    model = {"model.pkl": b"model of ana"}
    runs["ana"] = ana.run("screening", "train", inputs=["data.csv"], outputs=model, metrics={"auc": 0.8})
    runs["billing"] = ana.run("billing", "sum", outputs={"bill.csv": b"1 EUR"})
    middle_us = now_us()
    runs["boris"] = boris.run("screening", "train", outputs={"other.pkl": b"model of boris"}, metrics={"auc": 0.9})
    (boris.folder / "taken.pkl").write_bytes(model["model.pkl"])
    runs["deploy"] = boris.run("serving", "deploy", inputs=["taken.pkl"])
    with running_hub(folder / "hub") as hub:
        reader = SiteFolder(folder / "reader")
        for site in (ana, boris, reader):
            hub.join(site)
            site.push()
        yield World(hub, ana, boris, reader, runs, middle_us)


@pytest.fixture
def reader(world: World) -> Iterator[SiteFolder]:
    """A site that has recorded nothing, and pulled nothing before the test."""
    yield world.reader
    for file in world.reader.home.path.iterdir():
        if file.name.startswith(("pulled.db", "view.db")):
            file.unlink()


def pulled(site: SiteFolder, *filters: Filter, prove: bool = False, timeout_s: float = 60.0) -> PullReport:
    """Pull, which must come to its end."""
    report = pull(site.home, hub_in_force(site.home), filters or None, prove=prove, timeout_s=timeout_s)
    assert report.complete
    return report


def executions(site: SiteFolder) -> dict[str, Any]:
    with questions_at(site.home) as questions:
        return {item["id"]: item for item in questions.executions()["items"]}


def shown(site: SiteFolder, ref: str) -> Any:
    with questions_at(site.home) as questions:
        return questions.show(ref)


def assert_same_digest(site: SiteFolder, hub: Hub, pipeline: str) -> None:
    graph, behind = caught_up_graph(hub.data, wait_s=60.0)
    registry = Registry(hub.data.registry)
    try:
        there = filtered_digest(graph, filter_of(pipelines=[pipeline]), registry.names_by_key())
    finally:
        registry.close()
        graph.connection.close()
    assert behind == 0
    assert digest_at(site.home, [pipeline]) == there


# -- what comes --------------------------------------------------------------------------------------------------------


def test_a_pull_by_pipeline_answers_offline_what_the_hub_answers(world: World, reader: SiteFolder) -> None:
    said = reader.ask("pull", "-p", "screening")
    assert said.keys() == {"events", "bytes", "complete", "found", "empty", "as_of", "hub", "proven"}
    assert (said["found"], said["empty"]) == (True, [])
    assert (said["complete"], said["proven"], said["hub"]) == (True, False, f"nats://{world.hub.address}")
    assert said["events"] > 0
    assert said["as_of"].endswith("Z")
    found = executions(reader)
    there = {item["id"]: item for item in world.hub.ask("query", "executions")["items"]}
    for name in ("ana", "boris"):
        assert found[world.runs[name]] == there[world.runs[name]]
    assert reader.ask("digest", "-p", "screening") == world.hub.ask("digest", "-p", "screening")


def test_what_is_only_pulled_in_part_is_marked(world: World, reader: SiteFolder) -> None:
    pulled(reader, SCREENING)
    answer = reader.ask("query", "executions")
    (told,) = answer["view"]["pulled"]
    assert (answer["view"]["own"], told["filter"], told["complete"]) == (True, {"pipelines": ["screening"]}, True)
    assert (told["proven"], len(told["hub"])) == (False, 32)
    marked = {item["id"] for item in answer["items"] if item.get("incomplete")}
    assert marked == {world.runs["deploy"]}  # it used ana's model; nothing else of it was asked for
    done = reader.call("query", "executions")
    assert done.stderr.count("\n") == 1
    assert "1 of these is incomplete" in done.stderr
    with questions_at(reader.home) as questions:
        lineage = questions.lineage("model.pkl", down=True)
    assert {node["id"] for node in lineage["nodes"] if node.get("incomplete")} == {world.runs["deploy"]}
    found = shown(reader, world.runs["ana"])
    assert (found["told_by"], found["said_by"], found.get("incomplete")) == ("hub", ["ana"], None)


def test_what_is_recorded_here_is_nobodys_word(world: World) -> None:
    pulled(world.boris, filter_of(pipelines=["screening"]))
    assert world.runs["ana"] in executions(world.boris)
    assert not {"told_by", "incomplete"} & shown(world.boris, world.runs["deploy"]).keys()
    assert len(world.boris.ask("log")["items"]) == len(world.boris.events())


@pytest.mark.parametrize(
    ("filter_", "names"),
    [
        (filter_of(sites=["boris"]), {"boris", "deploy"}),
        (filter_of(pipelines=["screening"], sites=["ana"]), {"ana", "deploy"}),
        (filter_of(pipelines=["screening", "billing"]), {"ana", "boris", "billing", "deploy"}),
    ],
)
def test_filters_select_what_they_say(world: World, reader: SiteFolder, filter_: Filter, names: set[str]) -> None:
    pulled(reader, filter_)
    assert set(executions(reader)) >= {world.runs[name] for name in names}
    assert not set(executions(reader)) & {run for name, run in world.runs.items() if name not in {*names, "ana"}}


def test_a_filter_by_time_is_widened_by_another_one_that_brings_what_is_older(world: World, reader: SiteFolder) -> None:
    recent = filter_of(pipelines=["screening"], since_us=world.middle_us)
    first = pulled(reader, recent)
    assert world.runs["ana"] not in executions(reader)
    second = pulled(reader, SCREENING)
    assert second.events > 0
    assert_same_digest(reader, world.hub, "screening")
    with Pulled(reader.home.pulled_path) as store:
        assert store.rows("SELECT count(*) FROM events") == [(first.events + second.events,)]


def test_a_file_brings_what_it_came_from_and_what_came_of_it(world: World, reader: SiteFolder) -> None:
    (reader.folder / "mine.pkl").write_bytes(b"model of ana")
    assert reader.ask("pull", "--artifact", "mine.pkl")["complete"]
    found = executions(reader)
    assert {world.runs["ana"], world.runs["deploy"]} <= set(found)
    assert not {world.runs["billing"], world.runs["boris"]} & set(found)
    assert not any(item.get("incomplete") for item in found.values())
    by_name = pulled(reader, filter_of(artifacts=["other.pkl"]))
    assert by_name.events > 0
    assert world.runs["boris"] in executions(reader)
    assert any("md5:" in str(row["filter"]) for row in reader.ask("subscriptions")["items"])


def test_what_is_here_does_not_come_again(world: World, reader: SiteFolder) -> None:
    pulled(reader, SCREENING)
    again = pulled(reader, SCREENING)
    assert (again.events, again.bytes < QUIET_BYTES) == (0, True)
    wider = pulled(reader, filter_of(pipelines=["screening", "billing"]))
    with Pulled(reader.home.pulled_path) as store:
        held = store.rows("SELECT count(*) FROM events")[0][0]
    assert wider.events < held


def test_a_sites_own_events_are_not_fetched(world: World) -> None:
    pulled(world.ana, filter_of(pipelines=["billing"]))
    with Pulled(world.ana.home.pulled_path) as store:
        held = {event_id for (event_id,) in store.rows("SELECT event_id FROM events")}
    assert held < {event.event_id for event in world.boris.events()}  # what it says of the environment that both ran in
    assert_same_digest(world.ana, world.hub, "billing")


def test_proven_events_bear_the_signatures_of_their_sites(world: World, reader: SiteFolder) -> None:
    told = pulled(reader, SCREENING)
    proven = pulled(reader, SCREENING, prove=True)
    assert (proven.events, proven.proven, told.proven) == (0, True, False)  # only what proves them came
    assert shown(reader, world.runs["ana"])["told_by"] == "proven"
    with questions_at(reader.home) as questions:
        assert questions.executions()["view"]["pulled"][0]["proven"]
    assert verify_pulled(reader.home) == (told.events, [])
    with Pulled(reader.home.pulled_path) as store, store.writing():
        store.write("UPDATE events SET body = x'92' WHERE number = 2")
    assert reader.call("verify").returncode == IntegrityError.exit_code


# -- subscriptions -----------------------------------------------------------------------------------------------------


def test_subscriptions_are_pulled_until_they_are_ended(world: World, reader: SiteFolder) -> None:
    done = reader.call("pull")
    assert (done.returncode, "nothing is subscribed" in done.stderr) == (2, True)
    assert reader.ask("subscribe", "-p", "screening", "--no-pull")["items"][0]["as_of"] is None
    assert "not everything" in reader.call("query", "executions").stderr
    assert reader.ask("subscribe", "-p", "billing")["complete"]
    assert pulled(reader).events > 0
    kept = set(executions(reader))
    reader.ask("unsubscribe", "-p", "billing", "--forget")
    assert set(executions(reader)) == kept - {world.runs["billing"]}
    assert reader.ask("unsubscribe", "--all", "--forget") == {"items": [], "next": None}
    assert executions(reader) == {}
    assert reader.call("unsubscribe", "-p", "billing").returncode == 2


def test_what_the_hub_can_not_take_is_the_callers_error_and_is_not_kept(world: World, reader: SiteFolder) -> None:
    done = reader.call("pull", "--artifact", "no-such-name")
    assert (done.returncode, "no-such-name" in done.stderr) == (2, True)
    assert reader.ask("subscriptions")["items"] == []


# -- clone -------------------------------------------------------------------------------------------------------------


def test_a_new_colleague_has_everything_with_one_command(world: World, tmp_path: Path) -> None:
    file = world.hub.enrol("maria")
    said = ask("cmf-agent", "clone", file, "-p", "screening", "work", cwd=tmp_path)
    assert said["complete"]
    items = ask("cmf-agent", "query", "executions", "-p", "screening", cwd=tmp_path / "work")["items"]
    assert {item["id"] for item in items} == {world.runs["ana"], world.runs["boris"]}
    assert ask("cmf-agent", "subscriptions", cwd=tmp_path / "work")["items"][0]["subscribed"]
    done = call("cmf-agent", "clone", file, "-p", "screening", "work", cwd=tmp_path)
    assert (done.returncode, "already" in done.stderr) == (2, True)
    again = call("cmf-agent", "clone", file, "-p", "screening", "copy", cwd=tmp_path)  # the file's token was used
    assert again.returncode == 4
    assert not (tmp_path / "copy").exists()


def test_a_clone_without_a_hub_says_how_to_go_on(world: World, tmp_path: Path) -> None:
    file = world.hub.enrol("late")
    done = call("cmf-agent", "clone", file, "-p", "screening", "work", "--hub", "nats://127.0.0.1:1", cwd=tmp_path)
    assert (done.returncode, "cmf-agent pull" in done.stderr) == (4, True)
    assert ask("cmf-agent", "pull", "--hub", f"nats://{world.hub.address}", cwd=tmp_path / "work")["complete"]
    (tmp_path / "no.join").write_text("{}")
    assert call("cmf-agent", "clone", "no.join", "-p", "x", "other", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "other").exists()


# -- cuts, forks, restored hubs ----------------------------------------------------------------------------------------


class Cut(Exception):
    """What ends a pull in the middle."""


def test_a_pull_that_was_cut_goes_on_with_what_is_lacking(
    world: World, reader: SiteFolder, site: Callable[[str], SiteFolder]
) -> None:
    hub, cora = world.hub, site("cora")
    hub.join(cora)
    cora.record(executions=900, metrics=4)
    cora.push()

    def cut(done: int, total: int) -> None:
        if 0 < done < total:
            raise Cut

    bulk = filter_of(pipelines=[PIPELINE])
    with pytest.raises(Cut):
        pull(reader.home, hub_in_force(reader.home), [bulk], timeout_s=60, progress=cut)
    with Pulled(reader.home.pulled_path) as store:
        held = store.rows("SELECT count(*) FROM events")[0][0]
        assert not Listings(store).filters()[0].complete
    assert 0 < held < len(cora.events())
    rest = pulled(reader, bulk)
    assert held + rest.events == len(cora.events())
    assert_same_digest(reader, hub, PIPELINE)


def test_a_fork_and_a_restored_hub_are_seen_by_those_who_pulled(hub: Hub, site: Callable[[str], SiteFolder]) -> None:
    ana, reader = site("ana"), site("reader")
    for each in (ana, reader):
        hub.join(each)
    (run,) = ana.record(executions=1)
    bulk = filter_of(pipelines=[PIPELINE])
    files = {name: (ana.home.path / name).read_bytes() for name in ("log.db", "place.json")}
    ana.append([t.execution_finished(run, "failed")])
    ana.record(executions=3)
    ana.push()
    pulled(reader, bulk)
    assert_same_digest(reader, hub, PIPELINE)

    for name, content in files.items():  # an old copy, in the same file: nothing betrays it
        with (ana.home.path / name).open("r+b") as file:
            file.write(content)
            file.truncate()
    for suffix in ("-wal", "-shm"):
        (ana.home.path / f"log.db{suffix}").unlink(missing_ok=True)
    hub.stop()
    shutil.copytree(hub.folder, hub.folder.with_name("older"))
    hub.start()
    ana.append([t.execution_finished(run, "interrupted")])
    ana.push()
    pulled(reader, bulk)
    assert_same_digest(reader, hub, PIPELINE)
    assert shown(reader, run.hex())["status"] == "failed"  # of two branches the worse
    with Pulled(reader.home.pulled_path) as store:
        assert len([piece for piece in store.pieces().values() if piece.parent is not None]) == 2

    hub.stop()
    shutil.rmtree(hub.folder)
    hub.folder.with_name("older").rename(hub.folder)
    hub.start()
    pulled(reader, bulk)
    assert_same_digest(reader, hub, PIPELINE)
    ana.push()
    pulled(reader, bulk)
    assert_same_digest(reader, hub, PIPELINE)


def test_a_hub_that_is_reached_and_does_not_answer_in_time_is_told_apart(world: World, reader: SiteFolder) -> None:
    serving = [psutil.Process(pid) for pid in world.hub.pids("cmf_hub.pull_service")]
    assert serving
    for process in serving:
        process.suspend()
    try:
        done = reader.call("pull", "-p", "screening", "--timeout", "2", "--json")
    finally:
        for process in serving:
            process.resume()
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (3, False)
    assert pulled(reader, SCREENING).events > 0


def test_without_a_hub_a_pull_says_so(world: World, reader: SiteFolder) -> None:
    done = reader.call("pull", "-p", "screening", "--hub", "nats://127.0.0.1:1", "--timeout", "2")
    assert done.returncode == 4
    assert executions(reader) == {}
