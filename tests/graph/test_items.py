"""One thing as it is shown: what sites disagree about, dispute, took back; digests that join."""

from typing import Any

import pytest
from tests.support.graphs import NOON_US, SECOND_US, Site, World, id_text, md5, sha256

from cmf_graph.filters import Filter
from cmf_graph.items import POINTS_MAX
from cmf_protocol import types as t


@pytest.fixture
def berlin(world: World) -> Site:
    return world.site("berlin")


@pytest.fixture
def munich(world: World) -> Site:
    return world.site("munich")


def only(world: World) -> dict[str, Any]:
    (item,) = world.questions().executions()["items"]
    return dict(item)


# -- conflicts, disputes, retractions ----------------------------------------------------------------------------------


def test_values_that_sites_state_differently_are_a_conflict_with_the_shown_one_first(
    world: World, berlin: Site, munich: Site
) -> None:
    run = berlin.run(params={"lr": 0.1, "same": 1}, status=None)
    (other,) = munich.record(t.execution_updated(run, params={"lr": 0.2, "same": 1}))
    item = only(world)
    assert item["params"] == {"lr": 0.2, "same": 1}
    (conflict,) = item["conflicts"]
    assert (conflict["space"], conflict["key"]) == ("params", "lr")
    assert conflict["values"][0] == {"value": 0.2, "site": "munich", "event_id": other.event_id.hex()}
    assert conflict["values"][1]["value"] == 0.1 and conflict["values"][1]["site"] == "berlin"


def test_a_fork_of_one_log_is_a_conflict_too(world: World, berlin: Site) -> None:
    run = berlin.run(params={"lr": 0.1}, status=None)
    copy = berlin.fork()
    berlin.record(t.execution_updated(run, params={"lr": 0.2}))
    copy.record(t.execution_updated(run, params={"lr": 0.3}))
    (conflict,) = only(world)["conflicts"]
    assert sorted(value["value"] for value in conflict["values"]) == [0.2, 0.3]


def test_a_status_on_which_unrelated_logs_differ_is_a_conflict(world: World, berlin: Site, munich: Site) -> None:
    run = berlin.run(status="finished")
    munich.run(execution=run, status="failed")
    item = only(world)
    assert item["status"] == "failed" and item["site"] == "munich"
    assert [v["value"] for c in item["conflicts"] if c["space"] == "status" for v in c["values"]] == [
        "failed",
        "finished",
    ]
    (node,) = world.questions().lineage(id_text(run))["nodes"]
    assert node["status_conflict"] and node["status"] == "failed"


def test_what_its_own_log_takes_back_is_gone_everywhere(world: World, berlin: Site) -> None:
    run = berlin.run(uses={"wrong.csv": md5("wrong"), "right.csv": md5("right")}, status=None)
    wrong = next(e for e in berlin.events if ("artifact", md5("wrong")) in e.header.about)
    (retraction,) = berlin.record(t.retracted(wrong.header.about, "not this one", event=wrong.event_id))
    asked = world.questions()
    assert [use["name"] for use in only(world)["inputs"]] == ["right.csv"]
    assert {n["label"] for n in asked.lineage(id_text(run))["nodes"]} == {"mnist/train", "right.csv"}
    assert asked.show(md5("wrong"))["used_by"]["count"] == 0
    assert asked.show(md5("wrong"))["names"] == []
    assert asked.show(wrong.event_id.hex())["retracted"] is True
    berlin.record(t.unretracted(wrong.header.about, retraction.event_id))
    assert len(only(world)["inputs"]) == 2
    assert world.questions().show(wrong.event_id.hex())["retracted"] is False


def test_what_another_log_retracts_is_disputed_and_stays(world: World, berlin: Site, munich: Site) -> None:
    run = berlin.run(makes={"model.pkl": md5("model")})
    used = next(e for e in berlin.events if ("artifact", md5("model")) in e.header.about)
    (retraction,) = munich.record(
        t.retracted(used.header.about, "it is stolen", event=used.event_id), at=NOON_US + SECOND_US
    )
    asked = world.questions()
    dispute = {
        "event_id": retraction.event_id.hex(),
        "event": used.event_id.hex(),
        "text": "it is stolen",
        "site": "munich",
        "at": "2025-06-01T12:00:01.000000Z",
    }
    assert only(world)["disputes"] == [dispute]
    assert asked.artifacts()["items"][0]["disputes"] == [dispute]
    assert all(node["disputed"] for node in asked.lineage(id_text(run))["nodes"])


def test_a_stages_start_that_is_taken_back_is_no_dispute_of_the_stage(world: World, berlin: Site, munich: Site) -> None:
    for site, disputes in ((berlin, 0), (munich, 1)):
        berlin.run("mnist", site.name)
        start = next(e for e in reversed(berlin.events) if e.header.type == t.EXECUTION_STARTED)
        site.record(t.retracted(start.header.about, "no", event=start.event_id))
        (stage,) = world.questions().stages(Filter(stage=site.name))["items"]
        assert len(stage["disputes"]) == disputes


def test_a_dispute_of_a_node_is_shown_with_it(world: World, berlin: Site) -> None:
    berlin.record(t.pipeline_described("mnist", {"owner": "us"}), t.retracted((("pipeline", "mnist"),), "outdated"))
    (pipeline,) = world.questions().pipelines()["items"]
    assert [(d["text"], d["event"]) for d in pipeline["disputes"]] == [("outdated", None)]


# -- artifacts: digests that join --------------------------------------------------------------------------------------


def test_an_artifact_without_md5_is_one_with_the_only_md5_that_claims_its_digest(
    world: World, berlin: Site, munich: Site
) -> None:
    imported = munich.run("old", "import", makes={"from-mlflow.bin": sha256("model")})
    using = berlin.run("new", "use", uses={"model.pkl": md5("model")})
    asked = world.questions()
    assert len(asked.artifacts()["items"]) == 2
    assert len(asked.lineage(id_text(using))["nodes"]) == 2

    berlin.record(t.usage(t.ARTIFACT_USED, using, md5("model"), digests=[sha256("model")]))
    asked = world.questions()
    (item,) = asked.artifacts()["items"]
    assert item["content_id"] == md5("model") and item["digests"] == [md5("model"), sha256("model")]
    assert item["names"] == ["from-mlflow.bin", "model.pkl"] and item["sites"] == ["berlin", "munich"]
    assert asked.artifacts(Filter(pipeline="old"))["items"] == [item]
    shown = asked.show(sha256("model"))
    assert [e["id"] for e in shown["produced_by"]["executions"]] == [id_text(imported)]
    for ref in (sha256("model"), md5("model"), id_text(using), id_text(imported)):
        lineage = asked.lineage(ref)
        assert {n["id"] for n in lineage["nodes"]} == {md5("model"), id_text(using), id_text(imported)}, ref
    assert asked.show(id_text(imported))["outputs"] == [
        {"content_id": md5("model"), "name": "from-mlflow.bin", "kind": "dataset"}
    ]
    assert {p["name"]: p["artifacts"] for p in asked.pipelines()["items"]} == {"old": 1, "new": 1}


def test_a_digest_claimed_of_two_md5_joins_nothing_and_is_ambiguous(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[sha256("x")], status=None)
    for text in ("a", "b"):
        berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, md5(text), digests=[sha256("x")]))
    items = {item["content_id"]: item for item in world.questions().artifacts()["items"]}
    assert set(items) == {sha256("x"), md5("a"), md5("b")}
    ambiguous = [{"digest": sha256("x"), "claimed_by": sorted([md5("a"), md5("b")])}]
    assert all(item["ambiguous"] == ambiguous for item in items.values())


def test_a_claim_on_the_artifact_without_md5_counts_like_one_on_the_md5(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[md5("a")], status=None)
    berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, sha256("a"), digests=[md5("a")]))
    (item,) = world.questions().artifacts()["items"]
    assert item["digests"] == [md5("a"), sha256("a")]


def test_two_sha256_of_one_md5_are_flagged(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[md5("a")], status=None)
    berlin.record(t.usage(t.ARTIFACT_USED, run, md5("a"), digests=[sha256("a"), sha256("b")]))
    (item,) = world.questions().artifacts()["items"]
    assert item["flags"] and not item["ambiguous"]


def test_two_md5_are_never_joined(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[md5("a"), md5("b")], status=None)
    berlin.record(t.usage(t.ARTIFACT_USED, run, md5("a"), digests=[md5("b"), "md5-dos2unix:00"]))
    assert {item["content_id"] for item in world.questions().artifacts()["items"]} == {md5("a"), md5("b")}


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_tells_what_a_ref_is(world: World, berlin: Site) -> None:
    run = berlin.run(environment=md5("env"), makes={"model.pkl": md5("model")})
    (note,) = berlin.record(t.note_added(("pipeline", "mnist"), "read me"))
    berlin.record(t.environment_recorded(md5("env"), {"python": "3.11"}))
    asked = world.questions()
    for ref, type_ in (
        ("mnist", "pipeline"), ("mnist/train", "stage"), (id_text(run), "execution"), ("model.pkl", "artifact"),
        (note.event_id.hex(), "event"),
    ):  # fmt: skip
        assert asked.show(ref)["type"] == type_
    assert [n["text"] for n in asked.show("mnist")["notes"]] == ["read me"]
    environment = asked.show(md5("env"))
    assert environment["facts"]["environment"] == {"python": "3.11"}
    assert [e["id"] for e in environment["environment_of"]["executions"]] == [id_text(run)]


def test_an_event_is_shown_decoded(world: World, berlin: Site) -> None:
    run = world.new_execution()
    (event,) = berlin.record(t.execution_started(run, "mnist", "train", params={"x": b"\x01"}), at=NOON_US)
    shown = world.questions().show(event.event_id.hex())
    assert shown | {"previous": 0, "log_id": 0, "clock": 0} == {
        "type": "event", "id": event.event_id.hex(), "event_type": "execution.started", "type_version": 1, "site": "berlin",
        "log_id": 0, "sequence": 2, "previous": 0, "clock": 0, "at": "2025-06-01T12:00:00.000000Z",
        "about": [["stage", ["mnist", "train"]], ["execution", id_text(run)]],
        "body": {"params": {"x": "01"}}, "retracted": False, "unfolded": None,
    }  # fmt: skip


def test_an_event_that_is_not_folded_is_shown_with_the_reason(world: World, berlin: Site) -> None:
    (event,) = berlin.made(t.note_added(("pipeline", "mnist"), "x"))
    world.projection.apply([event._replace(body=None)])
    shown = world.questions().show(event.event_id.hex())
    assert shown["unfolded"] == "withheld body" and shown["body"] is None


def test_who_used_an_artifact_is_bounded_and_counted(world: World, berlin: Site) -> None:
    drafts = []
    for at in range(130):
        run = world.new_execution()
        drafts += [
            t.execution_started(run, "mnist", "train", at=NOON_US + at),
            t.usage(t.ARTIFACT_USED, run, md5("data")),
        ]
    berlin.record(*drafts)
    used = world.questions().show(md5("data"))["used_by"]
    assert used["count"] == 130 and len(used["executions"]) == 100
    starts = [e["started_at"] for e in used["executions"]]
    assert starts == sorted(starts, reverse=True) and starts[0].endswith("000129Z")


def test_series_are_shown_with_their_last_points(world: World, berlin: Site) -> None:
    run = berlin.run(status=None)
    count = POINTS_MAX + 10
    steps = list(range(count))
    berlin.record(t.metrics_recorded(run, steps=[("loss", "", steps, [s / 2 for s in steps], steps)]))
    shown = world.questions().show(id_text(run))
    (series,) = shown["metric_steps"]
    assert series["count"] == count and len(series["points"]) == POINTS_MAX
    assert series["points"][-1]["step"] == count - 1
    assert shown["metrics"] == {"loss": (count - 1) / 2}


def test_the_last_step_wins_whatever_the_order_in_which_steps_were_recorded(world: World, berlin: Site) -> None:
    run = berlin.run(status=None)
    berlin.record(
        t.metrics_recorded(run, steps=[("a", "", [5, 1, 5], [1.0, 2.0, 3.0], [0, 0, 0]), ("a", "val", [7], [9], [0])])
    )
    berlin.record(t.metrics_recorded(run, steps=[("a", "", [2], [4.0], [0]), ("b", "", [-1], [1], [0])]))
    assert only(world)["metrics"] == {"a": 9, "b": 1}
    berlin.record(t.metrics_recorded(run, metrics={"a": 0.5}))
    assert only(world)["metrics"] == {"a": 0.5, "b": 1}


def test_a_value_without_a_step_that_is_the_one_at_the_highest_step_has_that_step(world: World, berlin: Site) -> None:
    run = berlin.run(status=None)
    steps = [("a", "", [1, 2], [1.0, 0.5], [0, 0]), ("n", "", [3], [float("nan")], [0]), ("b", "", [4], [1.0], [0])]
    berlin.record(t.metrics_recorded(run, steps=steps, metrics={"a": 0.5, "n": float("nan"), "b": 2.0, "c": 1}))
    items = world.questions().metrics()["items"]
    assert {item["name"]: (item["value"], item["step"]) for item in items} == {
        "a": (0.5, 2), "n": ("NaN", 3), "b": (2.0, None), "c": (1, None),
    }  # fmt: skip


def test_facts_of_odd_forms_do_no_harm(world: World, berlin: Site) -> None:
    odd = {"stage": 5, "kind": 7, "team": [1], "name": {"a": 1}, "host": None, "git_commit": 3, "environment": 9}
    run = berlin.run(status=None, facts=odd)
    item = only(world)
    assert (item["pipeline"], item["stage"], item["kind"]) == ("mnist", "train", "step")
    world.questions().show(id_text(run))
    world.questions().lineage(id_text(run))
