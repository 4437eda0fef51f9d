"""Lists: what they hold, in which order, page by page."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.graphs import DAY_US, NOON_US, SECOND_US, Site, World, id_text, md5, sha256

from cmf_graph.filters import SORT_ROWS_MAX, Filter, Page
from cmf_graph.questions import Questions
from cmf_graph.times import parse_time, rfc3339
from cmf_protocol import types as t
from cmf_protocol.encoding import NAN
from cmf_protocol.errors import CallerError

ListOf = Callable[[Filter, Page], dict[str, Any]]


@pytest.fixture
def berlin(world: World) -> Site:
    return world.site("berlin")


@pytest.fixture
def munich(world: World) -> Site:
    return world.site("munich")


def ids(answer: dict[str, Any], key: str = "id") -> list[Any]:
    return [item[key] for item in answer["items"]]


def all_pages(ask: ListOf, **page: Any) -> list[dict[str, Any]]:
    """Return the items of all pages, and check that no page is longer than asked for."""
    found, cursor = [], None
    while True:
        answer = ask(Filter(), Page(cursor=cursor, **page))
        assert len(answer["items"]) <= page["limit"]
        found += answer["items"]
        cursor = answer["next"]
        if cursor is None:
            return found


# -- an empty graph, fields --------------------------------------------------------------------------------------------


def test_an_empty_graph_has_empty_lists(world: World) -> None:
    asked = world.questions()
    for question in (asked.pipelines, asked.stages, asked.executions, asked.artifacts, asked.metrics):
        assert question() == {"items": [], "next": None}


def test_an_execution_has_every_field(world: World, berlin: Site) -> None:
    environment = md5("environment")
    run = berlin.run(
        uses={"data.csv": md5("data")},
        makes={"model.pkl": md5("model")},
        metrics={"auc": 0.9},
        status=None,
        at=NOON_US,
        environment=environment,
        params={"lr": 0.1, "layers": [1, 2], "name": "é"},
        properties={"note": {"a": b"\x01"}},
        facts={
            "name": "try 1", "kind": "deploy", "host": "h", "user": "u", "actor": "ci", "team": "core", "git_commit": "c0ffee",
            "git_branch": "main", "git_repo": "https://x", "git_dirty": True, "command": ["python", "train.py"],
        },
    )  # fmt: skip
    berlin.record(
        t.execution_finished(run, "failed", exit_code=3, error={"type": "ValueError", "message": "no"}),
        at=NOON_US + 1_500_000,
    )
    berlin.record(t.tag_added(("execution", run), "best"))
    (item,) = world.questions().executions()["items"]
    assert item == {
        "id": id_text(run),
        "pipeline": "mnist",
        "stage": "train",
        "name": "try 1",
        "kind": "deploy",
        "status": "failed",
        "site": "berlin",
        "actor": "ci",
        "user": "u",
        "team": "core",
        "host": "h",
        "started_at": "2025-06-01T12:00:00.000000Z",
        "finished_at": "2025-06-01T12:00:01.500000Z",
        "params": {"lr": 0.1, "layers": [1, 2], "name": "é"},
        "properties": {"note": {"a": "01"}},
        "metrics": {"auc": 0.9},
        "git_commit": "c0ffee",
        "git_branch": "main",
        "git_dirty": True,
        "git_repo": "https://x",
        "command": ["python", "train.py"],
        "exit_code": 3,
        "error": {"type": "ValueError", "message": "no"},
        "environment": environment,
        "inputs": [{"content_id": md5("data"), "name": "data.csv", "kind": "dataset"}],
        "outputs": [{"content_id": md5("model"), "name": "model.pkl", "kind": "dataset"}],
        "tags": ["best"],
        "disputes": [],
        "conflicts": [],
    }


def test_an_execution_that_only_used_something_is_listed_without_what_nobody_said(world: World, berlin: Site) -> None:
    run = world.new_execution()
    berlin.record(t.usage(t.ARTIFACT_USED, run, md5("data")))
    (item,) = world.questions().executions()["items"]
    assert (item["id"], item["status"], item["pipeline"], item["started_at"], item["site"]) == (
        id_text(run), None, None, None, "berlin",
    )  # fmt: skip
    assert item["inputs"] == [{"content_id": md5("data"), "name": None, "kind": "dataset"}]


def test_an_artifact_has_every_field(world: World, berlin: Site, munich: Site) -> None:
    drafts = [
        t.usage(
            t.ARTIFACT_PRODUCED, world.new_execution(), md5("model"), name=name, digests=[sha256("model")],
            facts={"kind": "model", "size": 5}, properties={"format": "pickle"},
        )
        for name in ("b.pkl", "a.pkl")
    ]  # fmt: skip
    berlin.record(drafts[0])
    munich.record(drafts[1])
    (item,) = world.questions().artifacts()["items"]
    assert item == {
        "content_id": md5("model"),
        "digests": [md5("model"), sha256("model")],
        "kind": "model",
        "names": ["a.pkl", "b.pkl"],
        "size": 5,
        "sites": ["berlin", "munich"],
        "properties": {"format": "pickle"},
        "tags": [],
        "disputes": [],
        "conflicts": [],
        "ambiguous": [],
        "flags": [],
    }


def test_pipelines_and_stages_count_executions_and_artifacts_over_all_sites(
    world: World, berlin: Site, munich: Site
) -> None:
    berlin.run("mnist", "prepare", uses=[md5("raw")], makes=[md5("data")])
    munich.run("mnist", "train", uses=[md5("data")], makes=[md5("model")])
    munich.run("mnist", "train", uses=[md5("data")], makes=[md5("model 2")])
    munich.record(t.pipeline_described("mnist", {"owner": "us"}), t.pipeline_described("idle", {}))
    asked = world.questions()
    idle, mnist = asked.pipelines()["items"]
    assert (mnist["name"], mnist["properties"], mnist["executions"], mnist["artifacts"], mnist["sites"]) == (
        "mnist", {"owner": "us"}, 3, 4, ["berlin", "munich"],
    )  # fmt: skip
    assert (idle["name"], idle["executions"], idle["artifacts"], idle["sites"]) == ("idle", 0, 0, [])
    stages = {item["name"]: item for item in asked.stages(Filter(pipeline="mnist"))["items"]}
    assert (stages["train"]["executions"], stages["train"]["artifacts"], stages["train"]["sites"]) == (2, 3, ["munich"])
    assert stages["prepare"]["pipeline"] == "mnist"


def test_a_site_that_nobody_enrolled_is_shown_by_its_key(world: World) -> None:
    stranger = world.site("stranger", known=False)
    stranger.run()
    name = f"key:{stranger.key.hex()[:12]}"
    asked = world.questions()
    assert asked.executions()["items"][0]["site"] == name
    assert len(asked.executions(Filter(site=name))["items"]) == 1


# -- filters -----------------------------------------------------------------------------------------------------------


def test_filters_select_by_pipeline_stage_site_team_and_kind(world: World, berlin: Site, munich: Site) -> None:
    one = id_text(berlin.run("mnist", "train", facts={"team": "red"}))
    two = id_text(munich.run("mnist", "test", facts={"kind": "deploy"}))
    three = id_text(munich.run("iris", "train", facts={"team": "red"}))
    ask = world.questions().executions
    for asked, expected in (
        (Filter(), {one, two, three}),
        (Filter(pipeline="mnist"), {one, two}),
        (Filter(stage="train"), {one, three}),
        (Filter(pipeline="iris", stage="train"), {three}),
        (Filter(site="munich"), {two, three}),
        (Filter(team="red"), {one, three}),
        (Filter(kind="deploy"), {two}),
        (Filter(kind="step"), {one, three}),
        (Filter(site="munich", team="red"), {three}),
        (Filter(pipeline="none"), set()),
        (Filter(pipeline="mnist", stage="none"), set()),
    ):
        assert set(ids(ask(asked))) == expected, asked


def test_other_lists_are_filtered_by_the_executions_behind_them(world: World, berlin: Site, munich: Site) -> None:
    berlin.run("mnist", "train", uses=[md5("shared")], makes=[md5("m")], metrics={"auc": 1}, at=NOON_US)
    munich.run("iris", "test", uses=[md5("shared")], makes=[md5("i")], metrics={"auc": 2}, at=NOON_US + DAY_US)
    asked = world.questions()
    for filter_, pipeline, artifact in (
        (Filter(site="berlin"), "mnist", "m"),
        (Filter(since="2025-06-02"), "iris", "i"),
    ):
        assert ids(asked.pipelines(filter_), "name") == [pipeline]
        assert ids(asked.stages(filter_), "pipeline") == [pipeline]
        assert ids(asked.metrics(filter_), "pipeline") == [pipeline]
        assert set(ids(asked.artifacts(filter_), "content_id")) == {md5("shared"), md5(artifact)}
    assert ids(asked.pipelines(Filter(stage="test")), "name") == ["iris"]
    assert ids(asked.artifacts(Filter(pipeline="mnist", stage="test")), "content_id") == []
    assert ids(asked.artifacts(Filter(pipeline="mnist", since="2025-06-02")), "content_id") == []


def test_since_is_from_and_until_is_before_and_a_dates_day_is_in(world: World, berlin: Site) -> None:
    day = {n: id_text(berlin.run(at=NOON_US + n * DAY_US)) for n in range(4)}  # 1 to 4 June, at noon
    world.now_us = NOON_US + 3 * DAY_US
    ask = world.questions().executions
    for since, until, expected in (
        ("2025-06-02", "2025-06-03", [2, 1]),
        ("2025-06-02T12:00:00Z", "2025-06-03T12:00:00Z", [1]),
        ("2025-06-02T14:00:00+02:00", None, [3, 2, 1]),
        ("2025-06-02T12:00:00.000001Z", None, [3, 2]),
        ("1d", None, [3, 2]),
        ("24h", None, [3, 2]),
        (None, "2d", [0]),
        (None, "2025-06-01", [0]),
    ):
        assert ids(ask(Filter(since=since, until=until))) == [day[n] for n in expected], (since, until)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "7", "d", "-1d", "2025-13-01", "2025-06-01T25:00Z", "99999999999d", "\ud800", "٧d"]
)
def test_what_is_no_time_is_refused(world: World, text: str) -> None:
    with pytest.raises(CallerError):
        world.questions().executions(Filter(since=text))


def test_an_unknown_site_is_refused_with_those_that_there_are(world: World, berlin: Site) -> None:
    with pytest.raises(CallerError) as caught:
        world.questions().executions(Filter(site="berlim"))
    assert "berlin" in caught.value.hint


def test_environments_and_labels_are_listed_only_when_asked_for(world: World, berlin: Site, munich: Site) -> None:
    environment = {"python": "3.11"}
    berlin.run("mnist", environment=md5("env"), uses=[md5("data")])
    berlin.record(t.environment_recorded(md5("env"), environment))
    berlin.record(t.usage(t.ARTIFACT_USED, world.new_execution(), md5("cat"), facts={"kind": "label"}))
    asked = world.questions()
    assert ids(asked.artifacts(), "content_id") == [md5("data")]
    assert ids(asked.artifacts(Filter(kind="label")), "content_id") == [md5("cat")]
    for filter_ in (Filter(kind="environment"), Filter(kind="environment", pipeline="mnist", site="berlin")):
        assert ids(asked.artifacts(filter_), "content_id") == [md5("env")]
    assert asked.artifacts(Filter(kind="environment", site="munich"))["items"] == []
    (shown,) = asked.artifacts(Filter(kind="environment"))["items"]
    assert shown["sites"] == ["berlin"]


def test_what_nobody_called_anything_is_a_dataset(world: World, berlin: Site) -> None:
    berlin.run(uses=[md5("data")])
    berlin.record(t.usage(t.ARTIFACT_USED, world.new_execution(), md5("odd"), facts={"kind": "other"}))
    asked = world.questions()
    assert ids(asked.artifacts(Filter(kind="dataset")), "content_id") == [md5("data")]
    assert ids(asked.artifacts(Filter(kind="other")), "content_id") == [md5("odd")]


# -- order and pages ---------------------------------------------------------------------------------------------------


def test_newest_come_first_and_what_has_no_start_last(world: World, berlin: Site) -> None:
    early, late = berlin.run(at=NOON_US), berlin.run(at=NOON_US + 9 * SECOND_US)
    middle, none = berlin.run(at=NOON_US + 5 * SECOND_US), world.new_execution()
    berlin.record(t.usage(t.ARTIFACT_USED, none, md5("x")))
    ask = world.questions().executions
    assert ids(ask()) == [id_text(run) for run in (late, middle, early, none)]
    assert ids(ask(page=Page(sort="started_at"))) == [id_text(run) for run in (early, middle, late, none)]


def test_sorting_by_parameters_and_metrics_puts_numbers_first_and_nothing_last(world: World, berlin: Site) -> None:
    values: list[Any] = [3, 1.5, "b", "a", None, NAN, True, float("inf"), -2]
    runs = [
        id_text(berlin.run(params={} if value is None else {"x": value}, metrics={"m": at}))
        for at, value in enumerate(values)
    ]
    ask = world.questions().executions
    up = [runs.index(id_) for id_ in ids(ask(page=Page(sort="params.x")))]
    assert up[:7] == [8, 6, 1, 0, 7, 3, 2] and set(up[7:]) == {4, 5}
    down = [runs.index(id_) for id_ in ids(ask(page=Page(sort="-params.x")))]
    assert down[:7] == [2, 3, 7, 0, 1, 6, 8] and set(down[7:]) == {4, 5}
    assert ids(ask(page=Page(sort="-metrics.m"))) == runs[::-1]
    assert ids({"items": all_pages(ask, sort="params.x", limit=2)}) == ids(ask(page=Page(sort="params.x")))
    assert ids({"items": all_pages(ask, sort="-params.x", limit=4)}) == ids(ask(page=Page(sort="-params.x")))


@pytest.mark.parametrize(
    "sort", ["started_at", "-finished_at", "status", "-kind", "team", "pipeline", "-stage", "name", "-site"]
)
def test_every_order_pages_through_all_without_loss_or_repeat(
    world: World, berlin: Site, munich: Site, sort: str
) -> None:
    for at in range(25):
        site = (berlin, munich)[at % 2]
        team = {} if at % 3 else {"team": f"t{at % 2}"}
        site.run(
            f"p{at % 3}",
            f"s{at % 2}",
            status=(None, "finished", "failed")[at % 3],
            facts={**team, "name": f"n{at % 4}"},
        )
    ask = world.questions().executions
    whole = ask(page=Page(sort=sort, limit=100))["items"]
    assert len(whole) == 25
    for limit in (1, 7, 25):
        assert all_pages(ask, sort=sort, limit=limit) == whole


def test_paging_neither_loses_nor_repeats_while_new_rows_arrive(world: World, berlin: Site, munich: Site) -> None:
    drafts = []
    for at in range(500):
        run = world.new_execution()
        drafts.append(t.execution_started(run, "mnist", "train", at=NOON_US + at // 3))
        drafts.append(t.usage(t.ARTIFACT_PRODUCED, run, md5(f"model {at}")))
        drafts.append(t.metrics_recorded(run, metrics={"a": at, "b": at}))
    berlin.record(*drafts)
    asked = world.questions()
    for ask, key, count in (
        (asked.executions, ("id",), 500),
        (asked.artifacts, ("content_id",), 500),
        (asked.metrics, ("execution", "name"), 1000),
    ):
        before = {tuple(item[k] for k in key) for item in all_pages(ask, limit=200)}
        assert len(before) >= count
        found, cursor = [], None
        while True:
            answer = ask(Filter(), Page(limit=37, cursor=cursor))
            found += [tuple(item[k] for k in key) for item in answer["items"]]
            cursor = answer["next"]
            munich.run(
                "other",
                "new",
                makes=[md5(f"new {len(found)} {key}")],
                metrics={"a": 1},
                at=NOON_US + DAY_US + len(found),
            )
            if cursor is None:
                break
        assert len(found) == len(set(found))
        assert before <= set(found)


def test_equal_times_do_not_confuse_pages(world: World, berlin: Site) -> None:
    runs = {id_text(berlin.run(at=NOON_US)) for _ in range(20)}
    found = ids({"items": all_pages(world.questions().executions, limit=3)})
    assert len(found) == 20 and set(found) == runs


@pytest.mark.parametrize("text", ["", "x", "e30", "bnVsbA", "W10", "WzEsMl0", "é", "[]", "A" * 5000, "\ud800"])
def test_a_cursor_that_is_none_is_refused(world: World, berlin: Site, text: str) -> None:
    asked = world.questions()
    for ask in (asked.executions, asked.artifacts, asked.pipelines, asked.metrics):
        with pytest.raises(CallerError):
            ask(page=Page(cursor=text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=6)
    )
)
def test_a_forged_cursor_is_refused_or_a_place(value: Any) -> None:
    import base64

    from cmf_graph.filters import SortKey, order, read_cursor, sorted_page

    for body in (value, [1, "executions", "-x", value, 5, None], [1, "executions", "-x", [0, value], 1, value]):
        text = base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")
        for sql in ("x", None):
            key = SortKey("x", sql, True)
            try:
                cursor = read_cursor(text, "executions", key)
            except CallerError:
                continue
            if sql is None:
                sorted_page([(1, "", order(1)), (2, "", order("a")), (3, "", None)], key, cursor, 5)


def test_a_cursor_of_another_list_or_order_is_refused(world: World, berlin: Site) -> None:
    for _ in range(3):
        berlin.run()
    asked = world.questions()
    cursor = asked.executions(page=Page(limit=1))["next"]
    with pytest.raises(CallerError):
        asked.artifacts(page=Page(cursor=cursor))
    with pytest.raises(CallerError):
        asked.executions(page=Page(sort="status", cursor=cursor))


@pytest.mark.parametrize(
    ("page", "word"),
    [
        (Page(sort="speed"), "sort"),
        (Page(limit=0), "page"),
        (Page(limit=10**9), "page"),
        (Page(sort="params."), "sort"),
    ],
)
def test_an_order_or_length_that_can_not_be_is_refused(world: World, page: Page, word: str) -> None:
    asked = world.questions()
    for ask in (asked.executions, asked.artifacts, asked.stages, asked.metrics):
        with pytest.raises(CallerError, match=word):
            ask(page=page)


def test_too_many_rows_to_sort_by_what_no_column_knows_are_refused(world: World, berlin: Site) -> None:
    berlin.record(*(t.execution_started(world.new_execution(), "mnist", "train") for _ in range(SORT_ROWS_MAX + 1)))
    with pytest.raises(CallerError) as caught:
        world.questions().executions(page=Page(sort="params.x"))
    assert "--pipeline" in caught.value.hint
    assert len(world.questions().executions(page=Page(sort="-status"))["items"]) == 50


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_one_item_for_each_execution_and_name(world: World, berlin: Site) -> None:
    one = berlin.run(metrics={"auc": 0.5, "loss": NAN}, at=NOON_US)
    two = berlin.run(at=NOON_US + SECOND_US)
    berlin.record(t.metrics_recorded(two, steps=[("auc", "", [1, 3, 2], [0.1, 0.3, 0.2], [0, 1, 2])]))
    berlin.run(at=NOON_US + 2 * SECOND_US)
    items = world.questions().metrics()["items"]
    assert [(i["execution"], i["name"], i["value"], i["step"]) for i in items] == [
        (id_text(two), "auc", 0.3, 3),
        (id_text(one), "auc", 0.5, None),
        (id_text(one), "loss", "NaN", None),
    ]
    assert items[0] | {"execution": 0} == {
        "execution": 0, "pipeline": "mnist", "stage": "train", "name": "auc", "value": 0.3, "step": 3, "site": "berlin",
    }  # fmt: skip


def test_metrics_are_selected_sorted_and_paged_by_their_own_fields(world: World, berlin: Site) -> None:
    for value in (3, 1, 2):
        berlin.run(metrics={"auc": value, "loss": -value})
    ask = world.questions().metrics
    assert ids(ask(Filter(), Page(sort="-value"), name="auc"), "value") == [3, 2, 1]
    assert ids(ask(page=Page(sort="value")), "value") == [-3, -2, -1, 1, 2, 3]
    assert [item["value"] for item in all_pages(ask, sort="-value", limit=1)] == [3, 2, 1, -1, -2, -3]
    assert len(all_pages(ask, limit=1)) == 6


def test_steps_are_given_on_demand(world: World, berlin: Site) -> None:
    run = berlin.run(status=None)
    berlin.record(t.metrics_recorded(run, steps=[("loss", "a", [1, 2], [0.5, NAN], [0, 1_000_000])]), at=NOON_US)
    (item,) = world.questions().metrics(steps=True)["items"]
    assert item["series"] == [
        {
            "name": "loss",
            "series": "a",
            "count": 2,
            "points": [
                {"step": 1, "value": 0.5, "at": "2025-06-01T12:00:00.000000Z"},
                {"step": 2, "value": "NaN", "at": "2025-06-01T12:00:01.000000Z"},
            ],
        }
    ]


# -- times -------------------------------------------------------------------------------------------------------------


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_a_time_that_is_shown_is_read_back_exactly(time_us: int) -> None:
    text = rfc3339(time_us)
    assert text is not None and len(text) == 27
    assert parse_time(text, 0) == time_us


@pytest.mark.parametrize("time_us", [2**62, -(2**62), 253_402_300_800_000_000])
def test_a_time_beyond_the_calendar_is_none(time_us: int) -> None:
    assert rfc3339(time_us) is None


def test_answers_are_json(world: World, berlin: Site) -> None:
    berlin.run(
        params={"nan": NAN, "inf": float("inf"), "bin": b"\xff", "deep": {"a": [NAN, {"b": b"\x00"}]}},
        metrics={"x": float("-inf")},
        facts={"name": [1], "host": {"a": NAN}, "git_commit": b"\x01"},
        at=NOON_US,
    )
    asked: Questions = world.questions()
    (item,) = json.loads(json.dumps(asked.executions(), allow_nan=False))["items"]
    assert item["params"] == {"nan": "NaN", "inf": "Infinity", "bin": "ff", "deep": {"a": ["NaN", {"b": "00"}]}}
    assert item["metrics"] == {"x": "-Infinity"}
    json.dumps([asked.show(item["id"]), asked.lineage(item["id"])], allow_nan=False)
