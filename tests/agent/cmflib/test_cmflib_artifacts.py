"""The calls of `Cmf` about artifacts: what they record, what they return, what they refuse."""

from pathlib import Path
from typing import Any

import pytest
from tests.agent.cmflib.states import edges_of, state_of
from tests.agent.helpers import of_type, only

from cmf_agent.cmflib import Cmf, CmfQuery
from cmf_agent.home import Home
from cmf_protocol.errors import CallerError
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_USED


def test_a_dataset_is_recorded_by_its_content_with_its_label(writer: Cmf, home: Home, data: Path) -> None:
    Path("labels.csv").write_text("3\n")
    dataset = writer.log_dataset("data.csv", "INPUT", {"rows": 1}, label="labels.csv", label_properties={"by": "me"})
    assert (dataset.type, dataset.id, dataset.name) == ("Dataset", f"md5:{dataset.uri}", f"data.csv:{dataset.uri}")
    assert dataset.properties["Commit"] == dataset.uri
    state = state_of(home, "artifact", dataset.id)
    assert (state.value("kind"), state.space("properties")) == ("dataset", {"rows": 1})
    label_id = next(about[1] for about in only(home, "label.attached")[0].about if about[1] != dataset.id)
    label = state_of(home, "artifact", label_id)
    assert (label.value("kind"), label.space("properties")) == ("label", {"by": "me"})
    assert [type_ for type_, _ in edges_of(home, dataset.id)] == [ARTIFACT_USED]


def test_a_model_has_what_describes_it_for_each_log(writer: Cmf, home: Home, data: Path) -> None:
    model = writer.log_model("data.csv", "output", "SKlearn", "forest", "forest:default", {"version": 2})
    assert model.type == "Model"
    assert writer.execution is not None
    assert model.name == f"data.csv:{model.uri}:{writer.execution.id}"
    assert model.properties["model_name"] == "forest:default"
    assert model.custom_properties == {"version": 2}
    later = writer.log_model("data.csv", "input", model_framework="torch")
    assert state_of(home, "artifact", later.id).value("model_framework", "properties") == "torch"


@pytest.mark.parametrize("event", ["inptu", "", None, 3])
def test_an_unknown_event_is_refused_and_nothing_recorded(writer: Cmf, home: Home, data: Path, event: Any) -> None:
    with pytest.raises(ValueError, match="is no event"):
        writer.log_dataset("data.csv", event)
    assert not of_type(home, "execution.started")


def test_a_file_that_is_not_there_raises(writer: Cmf, home: Home, data: Path) -> None:
    with pytest.raises(CallerError, match="missing"):
        writer.log_dataset("missing", "input")
    with pytest.raises(CallerError, match="nothing is known of the artifact 'data"):
        writer.log_label("data.csv", "data.csv")
    writer.log_dataset("data.csv", "output")
    with pytest.raises(CallerError, match="missing"):
        writer.log_label("missing", "data.csv")
    with pytest.raises(CallerError, match="missing"):
        writer.create_dataslice("s").add_data("missing")
    with pytest.raises(CallerError, match="has no files"):
        writer.create_dataslice("s").commit()
    with pytest.raises(CallerError, match="is an address"):
        writer.log_dataset("s3://bucket/key", "input")
    assert not of_type(home, "artifact.used")


def test_a_stage_and_an_execution_that_nobody_made_are_called_like_the_script(
    writer: Cmf, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["some/where/prepare.py", "x"])
    writer.log_dataset("data.csv", "input")
    assert writer.child_context is not None and writer.child_context.name == "mnist/prepare"
    assert writer.execution is not None and writer.execution.name == "prepare"


def test_an_environment_and_a_validation_have_their_types(writer: Cmf, home: Home) -> None:
    Path("env.txt").write_text("numpy==2\n")
    environment = writer.log_python_env("env.txt")
    outcome = writer.log_validation_output("v7", {"passed": True})
    assert (environment.type, outcome.type) == ("Environment", "Validation_output")
    assert outcome.properties == {"version": "v7"}
    assert state_of(home, "artifact", outcome.id).space("properties") == {"passed": True, "version": "v7"}


@pytest.mark.parametrize("by", ["id", "name", "path", "uri", "object"])
def test_an_artifact_is_found_again_by_anything_that_names_it(writer: Cmf, data: Path, by: str) -> None:
    dataset = writer.log_dataset("data.csv", "output", {"a": 1})
    named: Any = {"path": "data.csv", "object": dataset}.get(by) or getattr(dataset, by)
    for other in (writer, Cmf(pipeline_name="elsewhere")):  # which has logged nothing: it asks the local view
        found = other.get_artifact(named)
        assert (found.id, found.name, found.type) == (dataset.id, dataset.name, dataset.type)
        assert found.custom_properties == {"a": 1}
    with pytest.raises(CallerError, match="nothing is known"):
        writer.get_artifact("md5:" + 32 * "0")


def test_what_is_logged_again_keeps_the_properties_that_it_had(writer: Cmf, data: Path) -> None:
    writer.log_dataset("data.csv", "input", {"a": 1, "b": 1})
    assert writer.log_dataset("data.csv", "input", {"b": 2}).custom_properties == {"a": 1, "b": 2}
    assert writer.get_artifact("data.csv").custom_properties == {"a": 1, "b": 2}


def test_what_is_returned_is_what_a_query_shows(writer: Cmf, home: Home, data: Path) -> None:
    context = writer.create_context("Train")
    execution = writer.create_execution("Train-execution", {"lr": 0.5})
    made = [
        writer.log_dataset("data.csv", "input", {"a": 1}),
        writer.log_execution_metrics("scores", {"auc": 0.5}),
        writer.log_validation_output("v1", {"ok": 1}),
    ]
    writer.log_metric("training", {"loss": 1})
    made.append(writer.commit_metrics("training"))
    writer.finalize()
    query = CmfQuery()
    assert query.get_pipeline_stages("mnist") == [context.name]
    (found,) = query.get_all_exe_in_stage(context.name)
    assert (found.id, found.name) == (execution.id, execution.name)
    assert execution.properties.items() <= {**found.properties, "Execution": execution.properties["Execution"]}.items()
    for artifact in made:
        frame = query.get_artifact(artifact.name)
        assert frame is not None
        row = frame.iloc[0]
        assert (row["id"], row["name"], row["type"]) == (artifact.id, artifact.name, artifact.type)
        for key, value in artifact.custom_properties.items():
            assert row[f"custom_properties_{key}"] == value


def test_properties_added_later_use_or_produce_nothing(writer: Cmf, home: Home, data: Path) -> None:
    dataset = writer.log_dataset("data.csv", "output", {"a": 1, "labels": "x"})
    other = Cmf(pipeline_name="elsewhere")
    other.create_execution("other")
    other.update_existing_artifact(dataset, {"a": 2, "labels": "y"})
    other.update_existing_artifact(dataset, {"labels": "y"})
    writer.update_dataset_url(dataset, "s3://b/x")
    assert writer.update_model_url([dataset], "s3://b/xy") == [dataset]
    other.finalize()
    state = state_of(home, "artifact", dataset.id)
    assert state.space("properties")["a"] == 2
    assert state.space("properties")["labels"] == "x,y"
    assert str(state.space("properties")["url"]).endswith("s3://b/x,s3://b/xy")
    assert [type_ for type_, _ in edges_of(home, dataset.id)] == [ARTIFACT_PRODUCED]
    assert dataset.custom_properties["a"] == 2


def test_an_artifact_can_be_put_as_it_is_changed(writer: Cmf, home: Home, data: Path) -> None:
    model = writer.log_model("data.csv", "output")
    model.properties["model_name"], model.custom_properties["tuned"] = "better", True
    writer.update_model_output(model)
    properties = state_of(home, "artifact", model.id).space("properties")
    assert (properties["model_name"], properties["tuned"]) == ("better", True)


def test_artifacts_are_linked_without_any_graph_database(writer: Cmf, home: Home, data: Path) -> None:
    Path("part.csv").write_text("1\n")
    whole, part = writer.log_dataset("data.csv", "input"), writer.log_dataset("part.csv", "output")
    writer.link_artifacts(whole, part)
    header, body = only(home, "slice.recorded")
    assert body["slice"] == part.id
    assert {id_ for _, id_ in header.about} == {whole.id, part.id}
