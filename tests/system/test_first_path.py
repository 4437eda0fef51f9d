"""The whole way once: three sites record offline, a hub starts, they join and push, and it answers for all of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.sites import SiteFolder, folded

DATA = b"age,result\n31,0\n44,1\n"


class Way(NamedTuple):
    hub: Hub
    sites: list[SiteFolder]
    pushed: list[dict[str, Any]]
    runs: dict[str, str]


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp("way")
    clinics = [SiteFolder(folder / name) for name in ("ana", "boris")]
    core = SiteFolder(folder / "core")
    runs = {}
    for at, clinic in enumerate(clinics):
        (clinic.folder / "data.csv").write_bytes(DATA + b"%d,1\n" % at)
        outputs = {"model.pkl": b"model of %d" % at}
        runs[clinic.name] = clinic.run(
            "screening", "train", inputs=["data.csv"], outputs=outputs, metrics={"auc": 0.8 + at / 10}
        )
        (core.folder / f"{clinic.name}.pkl").write_bytes(outputs["model.pkl"])  # only the bytes travel
    merged = {"merged.pkl": b"merged"}
    runs["core"] = core.run("screening", "merge", inputs=["ana.pkl", "boris.pkl"], outputs=merged)
    sites = [*clinics, core]
    with running_hub(folder / "hub") as hub:
        for site in sites:
            hub.join(site)
        yield Way(hub, sites, [site.push() for site in sites], runs)


def test_each_push_says_what_it_did(way: Way) -> None:
    for site, said in zip(way.sites, way.pushed, strict=True):
        events = len(site.events())
        assert said.keys() >= {"sent", "confirmed", "pending", "segments", "bytes"}
        assert (said["sent"], said["confirmed"], said["pending"], said["segments"]) == (events, events, 0, 1)
        assert 0 < said["bytes"] < sum(len(e.header_bytes) + len(e.body or b"") for e in site.events())
        status = site.ask("status")
        assert (status["site"], status["hub"]) == (site.name, f"nats://{way.hub.address}")
        assert (status["events"], status["published"], status["confirmed"], status["pending"]) == (events,) * 3 + (0,)
        assert status["last_contact"].endswith("Z")


def test_the_hub_agrees_with_a_fold_of_the_sites_logs(way: Way, tmp_path: Path) -> None:
    assert way.hub.digest() == folded(tmp_path / "graph.db", way.sites)
    assert way.hub.ask("digest") == way.hub.digest()._asdict()
    assert way.hub.ask("digest").keys() == {"digest", "events_digest", "fold_version", "events", "unfolded"}
    assert way.hub.ask("verify")["ok"] is True


def test_one_sites_own_view_agrees_with_a_fold_of_its_log(way: Way, tmp_path: Path) -> None:
    for site in way.sites:
        assert site.ask("digest")["digest"] == folded(tmp_path / f"{site.name}.db", [site]).digest


def test_executions_are_listed_with_the_names_of_the_design(way: Way) -> None:
    answer = way.hub.ask("query", "executions")
    assert answer["next"] is None
    assert {item["id"]: item["site"] for item in answer["items"]} == {run: name for name, run in way.runs.items()}
    for item in answer["items"]:
        assert item.keys() >= {
            "id", "pipeline", "stage", "name", "kind", "status", "site", "actor", "team", "host", "started_at",
            "finished_at", "params", "properties", "metrics", "git_commit", "git_dirty", "git_repo", "command",
            "exit_code", "error", "environment", "inputs", "outputs", "tags", "conflicts",
        }  # fmt: skip
        assert (item["pipeline"], item["status"], item["params"]["lr"]) == ("screening", "finished", 0.1)
        assert item["started_at"] <= item["finished_at"]
        assert item["started_at"].endswith("Z")
    ana = next(item for item in answer["items"] if item["site"] == "ana")
    assert (ana["stage"], ana["metrics"]["auc"]) == ("train", 0.8)


def test_pages_hold_every_execution_once(way: Way) -> None:
    seen, cursor = [], None
    while True:
        page = way.hub.ask("query", "executions", "--limit", 2, *(["--cursor", cursor] if cursor else []))
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(way.runs.values())


def test_pipelines_stages_artifacts_and_metrics_are_listed(way: Way) -> None:
    (pipeline,) = way.hub.ask("query", "pipelines")["items"]
    assert pipeline.keys() >= {"name", "properties", "executions", "artifacts", "sites"}
    assert (pipeline["name"], pipeline["executions"], sorted(pipeline["sites"])) == (
        "screening", 3, ["ana", "boris", "core"],
    )  # fmt: skip
    stages = way.hub.ask("query", "stages", "--pipeline", "screening")["items"]
    assert {stage["name"] for stage in stages} == {"train", "merge"}
    artifacts = way.hub.ask("query", "artifacts")["items"]
    for artifact in artifacts:
        assert artifact.keys() >= {"content_id", "digests", "kind", "names", "size", "sites", "properties", "tags"}
        assert artifact["content_id"].startswith("md5:")
        assert "conflicts" in artifact
    shared = next(each for each in artifacts if "ana.pkl" in each["names"])
    assert sorted(shared["names"]) == ["ana.pkl", "model.pkl"]
    assert sorted(shared["sites"]) == ["ana", "core"]
    metrics = way.hub.ask("query", "metrics", "--name", "auc")["items"]
    assert sorted(item["value"] for item in metrics) == [0.8, 0.9]


def test_sites_say_what_they_sent_and_up_to_when(way: Way) -> None:
    answer = way.hub.ask("query", "sites")
    for item in answer["items"]:
        assert item.keys() >= {"name", "logs", "complete_until", "last_contact", "revoked"}
        (log,) = item["logs"]
        assert log.keys() >= {"log_id", "predecessor", "forked", "branches"}
        (branch,) = log["branches"]
        assert branch.keys() >= {"confirmed", "head", "behind", "gap"}
        (site,) = [each for each in way.sites if each.name == item["name"]]
        assert (branch["confirmed"], branch["behind"], branch["gap"]) == (len(site.events()), 0, None)
        assert (log["log_id"], item["revoked"]) == (site.status()["log_id"], False)


def test_a_files_lineage_crosses_sites(way: Way) -> None:
    core = way.sites[2]
    lineage = way.hub.ask("query", "lineage", "./merged.pkl", "--up", "--format", "json", cwd=core.folder)
    assert lineage.keys() >= {"nodes", "edges", "truncated"}
    executions = {node["id"] for node in lineage["nodes"] if node["type"] == "execution"}
    assert executions == set(way.runs.values())
    artifacts = [node for node in lineage["nodes"] if node["type"] == "artifact"]
    assert {"merged.pkl", "data.csv"} < {node["label"] for node in artifacts}
    assert len(artifacts) >= 5  # the merged model, both models, both data files
    assert len([node for node in artifacts if node["label"] == "data.csv"]) == 2
    assert {edge["type"] for edge in lineage["edges"]} == {"used", "produced"}
    ids = {node["id"] for node in lineage["nodes"]}
    assert all(edge["source"] in ids and edge["target"] in ids for edge in lineage["edges"])
    produced = [edge for edge in lineage["edges"] if edge["type"] == "produced" and edge["source"] == way.runs["core"]]
    assert len(produced) == 1  # the way the data flows: from the execution to what it made


@pytest.mark.parametrize(
    ("form", "begins"), [("tree", "merged.pkl"), ("dot", "digraph"), ("mermaid", "flowchart"), ("graphml", "<graphml")]
)
def test_lineage_is_drawn_in_other_forms(way: Way, form: str, begins: str) -> None:
    done = way.hub.call("query", "lineage", "merged.pkl", "--up", "--format", form)
    assert done.returncode == 0, done.stderr
    assert begins in done.stdout.splitlines()[0]
    assert "data.csv" in done.stdout


def test_a_json_answer_is_one_document_and_nothing_else(way: Way) -> None:
    for words in (["digest"], ["status"], ["query", "sites"], ["site", "list"], ["quarantine", "list"]):
        done = way.hub.call(*words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout)


def test_a_second_push_sends_nothing(way: Way) -> None:
    before = way.hub.digest()
    for site in way.sites:
        said = site.push()
        assert {said[key] for key in ("sent", "confirmed", "pending", "segments", "bytes")} == {0}
    assert way.hub.digest() == before


def test_what_is_said_of_an_execution_after_its_push_arrives_with_the_next(way: Way, tmp_path: Path) -> None:
    ana = way.sites[0]
    run = way.runs["ana"]
    events = len(ana.events())
    ana.ask("tag", run, "approved")
    ana.ask("note", run, "checked by hand")
    assert ana.ask("push", "--dry-run")["pending"] == 2
    said = ana.push()
    assert (said["sent"], said["confirmed"], said["segments"]) == (2, 2, 1)
    shown = way.hub.ask("query", "show", run)
    assert "approved" in json.dumps(shown)
    assert "checked by hand" in json.dumps(shown)
    assert way.hub.digest() == folded(tmp_path / "graph.db", way.sites)
    assert way.hub.events() == sum(len(site.events()) for site in way.sites)
    assert len(ana.events()) == events + 2
