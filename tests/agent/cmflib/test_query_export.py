"""The JSON of `cmf metadata export`, as `CmfQuery` writes it: its form, and what comes of reading it again."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.cmflib.query_projects import PARAMS, PIPELINE, Project, make_project

import cmf_agent as cmf
from cmf_agent.cmflib import CmfQuery
from cmf_agent.home import Home, future_home, init_home
from cmf_agent.ingest.importing import ingest_cmf

EXPORT = Path(__file__).parents[1] / "ingest" / "data" / "getting-started.cmf.json"
ARTIFACT_KEYS = [
    "type", "create_time_since_epoch", "custom_properties", "id", "last_update_time_since_epoch", "name",
    "properties", "type_id", "uri",
]  # fmt: skip
EXECUTION_KEYS = [
    "type", "name", "events", "create_time_since_epoch", "custom_properties", "id", "last_update_time_since_epoch",
    "properties", "type_id",
]  # fmt: skip
CONTEXT_KEYS = [
    "create_time_since_epoch", "custom_properties", "id", "last_update_time_since_epoch", "name", "properties",
    "type", "type_id",
]  # fmt: skip


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_project(tmp_path_factory.mktemp("export") / "project", patch)


@pytest.fixture
def query(mnist: Project) -> CmfQuery:
    return CmfQuery(mnist.folder / "mlmd")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Home:
    """Another site."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    made = future_home(folder)
    init_home(made)
    return made


def stages_of(text: str) -> dict[str, list[dict[str, Any]]]:
    return {s["name"]: s["executions"] for pipeline in json.loads(text)["Pipeline"] for s in pipeline["stages"]}


def test_the_form_is_the_peers(query: CmfQuery) -> None:
    (pipeline,) = json.loads(query.dumptojson(PIPELINE))["Pipeline"]
    assert list(pipeline) == ["stages", *CONTEXT_KEYS]
    assert (pipeline["name"], pipeline["type"], pipeline["properties"]) == (
        PIPELINE,
        "Parent_Context",
        {"Pipeline": PIPELINE},
    )
    prepare, train, _ = pipeline["stages"]
    assert list(prepare) == ["executions", *CONTEXT_KEYS]
    assert (prepare["name"], prepare["type"]) == ("mnist/Prepare", "Pipeline_Stage")
    assert prepare["custom_properties"] == {"owner": "ann"}
    execution = prepare["executions"][0]
    assert list(execution) == EXECUTION_KEYS
    assert (execution["type"], execution["name"]) == ("Prepare", "")
    assert execution["properties"]["Context_ID"] == prepare["id"]
    assert execution["properties"]["Pipeline_id"] == pipeline["id"]
    assert (train["executions"][0]["type"], train["executions"][0]["name"]) == ("mnist/Train", "Train-execution")
    events = [event for stage in pipeline["stages"] for each in stage["executions"] for event in each["events"]]
    assert [event["type"] for event in events] == [3, 3, 4, 3, 4, 4, 4, 3, 4]
    fixed = {event["artifact"]["type"]: sorted(event["artifact"]["properties"]) for event in events}
    assert all(list(event["artifact"]) == ARTIFACT_KEYS for event in events)
    assert fixed == {
        "Dataset": ["Commit", "git_repo", "url"],
        "Label": ["Commit", "git_repo", "url"],
        "Dataslice": ["Commit", "git_repo", "url"],
        "Step_Metrics": ["Commit", "url"],
        "Model": ["Commit", "model_framework", "model_name", "model_type", "url"],
        "Metrics": ["metrics_name"],
    }


def test_values_are_texts_and_numbers(query: CmfQuery, elsewhere: Home) -> None:
    custom = stages_of(query.dumptojson(PIPELINE))["mnist/Prepare"][0]["custom_properties"]
    expected = {key: value for key, value in PARAMS.items() if key not in ("sizes", "type")}
    assert custom == {**expected, "sizes": "[1, 2]", "user_type": "t", "Python_Env": custom["Python_Env"]}
    with cmf.run(pipeline="p", stage="s", params={"x": math.nan, "y": None, "z": 2**60}, home=elsewhere.path):
        pass
    text = CmfQuery(elsewhere.root).dumptojson("p")
    (execution,) = stages_of(text)["p/s"]
    assert {key: execution["custom_properties"][key] for key in "xyz"} == {"x": "NaN", "y": "None", "z": 2**60}


def test_one_execution_or_no_pipeline_can_be_asked_for(query: CmfQuery, mnist: Project) -> None:
    found = stages_of(query.dumptojson(PIPELINE, mnist.executions["Train"]))
    assert {stage: len(executions) for stage, executions in found.items()} == {
        "mnist/Prepare": 0, "mnist/Train": 1, "mnist/Evaluate": 0,
    }  # fmt: skip
    assert json.loads(query.dumptojson("nothing")) == {"Pipeline": []}


def test_only_what_was_said_since_is_extracted(query: CmfQuery, mnist: Project) -> None:
    assert query.extract_to_json(0) == query.dumptojson(PIPELINE)
    train = stages_of(query.extract_to_json(0))["mnist/Train"][0]
    since = train["create_time_since_epoch"] - 1
    assert mnist.executions["Evaluate"] in query.extract_to_json(since)
    later = stages_of(query.extract_to_json(train["last_update_time_since_epoch"]))
    assert list(later) == ["mnist/Evaluate"]
    assert json.loads(query.extract_to_json(2**50)) == {"Pipeline": []}


def test_what_is_read_elsewhere_is_the_same(query: CmfQuery, mnist: Project, elsewhere: Home) -> None:
    file = elsewhere.root / "export.json"
    file.write_text(query.dumptojson(PIPELINE))
    done = ingest_cmf(elsewhere, file)
    assert (done.counts.executions, done.counts.edges) == (3, 9)
    there = CmfQuery(elsewhere.root)
    environments = {name for name in query.get_all_artifacts() if name.startswith("md5:")}
    assert set(there.get_all_artifacts()) == set(query.get_all_artifacts()) - environments
    for stage in query.get_pipeline_stages(PIPELINE):
        here = query.get_all_executions_in_stage(stage)
        found = there.get_all_executions_in_stage(stage).drop(columns="custom_properties_sizes", errors="ignore")
        assert found.equals(here.drop(columns="custom_properties_sizes", errors="ignore"))
    for execution in mnist.executions.values():
        own, read = (each.get_all_artifacts_for_execution(execution) for each in (query, there))
        assert read.astype(object).fillna("").to_dict("list") == own.astype(object).fillna("").to_dict("list")
    assert ingest_cmf(elsewhere, file).events.recorded == 0
    again = without_numbers(json.loads(there.dumptojson(PIPELINE)))
    assert again == without_numbers(json.loads(query.dumptojson(PIPELINE)))


def test_an_export_of_the_peers_comes_out_as_it_went_in(elsewhere: Home) -> None:
    ingest_cmf(elsewhere, EXPORT)
    query = CmfQuery(elsewhere.root)
    (name,) = query.get_pipeline_names()
    assert without_numbers(json.loads(query.dumptojson(name))) == without_numbers(json.loads(EXPORT.read_text()))
    for artifact in query.get_all_artifacts():
        found = query.get_artifact(artifact)
        assert found is not None
        assert list(found["name"]) == [artifact]


def test_what_executions_used_and_made_keeps_the_order_of_the_file(elsewhere: Home) -> None:
    export = json.loads(EXPORT.read_text())
    runs = [run for stage in export["Pipeline"][0]["stages"] for run in stage["executions"]]
    for event in (event for run in runs for event in run["events"]):
        event["artifact"] |= {"create_time_since_epoch": 1, "id": 100 - event["artifact"]["id"]}
    file = elsewhere.root / "export.json"
    file.write_text(json.dumps(export))
    ingest_cmf(elsewhere, file)
    again = json.loads(CmfQuery(elsewhere.root).dumptojson("Test-env"))
    for before, after in zip(
        runs, (run for s in again["Pipeline"][0]["stages"] for run in s["executions"]), strict=True
    ):
        assert [e["artifact"]["name"] for e in after["events"]] == [e["artifact"]["name"] for e in before["events"]]


def test_a_fixed_and_a_custom_property_of_one_name_both_stand(elsewhere: Home) -> None:
    export = json.loads(EXPORT.read_text())
    artifact = export["Pipeline"][0]["stages"][0]["executions"][0]["events"][1]["artifact"]
    export["Pipeline"][0]["stages"] = export["Pipeline"][0]["stages"][:1]
    artifact["custom_properties"]["url"] = "my own"
    file = elsewhere.root / "export.json"
    file.write_text(json.dumps(export))
    ingest_cmf(elsewhere, file)
    assert without_numbers(json.loads(CmfQuery(elsewhere.root).extract_to_json(0))) == without_numbers(export)


def without_numbers(found: Any) -> Any:
    """Return an export without what is a store's own (numbers of rows) or has no meaning (the order in lists)."""
    if isinstance(found, dict):
        return {key: without_numbers(value) for key, value in found.items() if key not in ("id", "type_id")}
    if isinstance(found, list):
        return sorted((without_numbers(each) for each in found), key=lambda each: json.dumps(each, sort_keys=True))
    return found
