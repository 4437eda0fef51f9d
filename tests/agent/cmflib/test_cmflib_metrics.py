"""The calls of `Cmf` about metrics and slices: tables that are artifacts."""

from pathlib import Path

import pytest
from tests.agent.cmflib.states import edges_of, execution_state, state_of
from tests.agent.helpers import of_type, only

import cmf_agent as cmf
from cmf_agent.cmflib import Cmf
from cmf_agent.cmflib.entities import Artifact
from cmf_agent.home import Home
from cmf_agent.identity import parse_execution_id
from cmf_agent.view import local_view
from cmf_protocol.errors import CallerError
from cmf_protocol.types import ARTIFACT_PRODUCED

# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_of_an_execution_are_numbers_of_it_and_an_artifact(writer: Cmf, home: Home) -> None:
    made = writer.log_execution_metrics("scores", {"auc": 0.5, "n": 3, "note": "good", "ok": True})
    assert writer.execution is not None
    assert execution_state(home, writer.execution.id).space("metrics") == {"auc": 0.5, "n": 3}
    assert (made.type, made.properties) == ("Metrics", {"metrics_name": "scores"})
    assert cmf.read_table(home, made.id).records() == [{"auc": 0.5, "n": 3, "note": "good", "ok": True}]


def test_step_metrics_are_recorded_before_they_are_committed(writer: Cmf, home: Home) -> None:
    for loss in (3, 2.5):
        writer.log_metric("training", {"loss": loss, "phase": "warm"})
    writer.log_metric("validation", {"loss": 9})
    made = writer.commit_metrics("training")
    assert made.type == "Step_Metrics"
    assert cmf.read_table(home, made.id).records() == [
        {"SequenceNumber": 1, "loss": 3, "phase": "warm"},
        {"SequenceNumber": 2, "loss": 2.5, "phase": "warm"},
    ]
    writer.finalize()
    assert writer.execution is not None
    with local_view(home) as graph:
        node = graph.node_id(("execution", parse_execution_id(writer.execution.id)))
        assert node is not None
        steps = graph.state(node).steps(graph.chains())
    found = {series: {step: r.shown.value for step, r in points.items()} for (_, series), points in steps.items()}
    assert found == {"training": {1: 3, 2: 2.5}, "validation": {1: 9}}
    with pytest.raises(CallerError, match="no metrics 'other'"):
        writer.commit_metrics("other")


def test_metrics_that_are_too_many_for_a_table_become_a_file(
    writer: Cmf, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmf_agent.cmflib.metrics._CELLS_MAX", 5)
    for loss in (3, 2, 1):
        writer.log_metric("a/b", {"loss": loss})
    made = writer.commit_metrics("a/b")
    assert writer.execution is not None
    path = home.root / "cmf_artifacts" / writer.execution.id / "metrics" / "a_b.csv"
    assert path.read_text() == "SequenceNumber,loss\n1,3\n2,2\n3,1\n"
    assert made.type == "Step_Metrics"
    assert state_of(home, "artifact", made.id).value("kind") == "metrics"


# -- slices ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sliced(writer: Cmf, project: Path) -> tuple[Cmf, Artifact, Artifact]:
    """A writer that has logged a folder and a slice of it."""
    (project / "raw").mkdir()
    for number in range(4):
        (project / "raw" / f"{number}.txt").write_text(f"text {number}")
    whole = writer.log_dataset("raw", "input")
    made: Cmf.DataSlice = writer.create_dataslice("slice-1")
    for number in (1, 2):
        made.add_data(f"raw/{number}.txt", {"key1": number})
    return writer, whole, made.commit({"purpose": "test"})


def test_a_slice_is_a_part_of_the_dataset_that_its_files_lie_in(
    sliced: tuple[Cmf, Artifact, Artifact], home: Home
) -> None:
    _, whole, part = sliced
    assert part.type == "Dataslice"
    assert {id_ for _, id_ in only(home, "slice.recorded")[0].about} == {whole.id, part.id}
    assert state_of(home, "artifact", part.id).space("properties") == {"purpose": "test"}
    assert [type_ for type_, _ in edges_of(home, part.id)] == [ARTIFACT_PRODUCED]


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_slice_is_read_and_updated(sliced: tuple[Cmf, Artifact, Artifact], home: Home, is_elsewhere: bool) -> None:
    writer, whole, first = sliced
    if is_elsewhere:  # which has to ask the local view
        writer.finalize()
        writer = Cmf(pipeline_name="elsewhere")
    frame = writer.read_dataslice("slice-1")
    assert frame.index.name == "Path"
    assert list(frame.index) == ["raw/1.txt", "raw/2.txt"]
    assert list(frame["key1"]) == [1, 2]
    assert all(len(str(digest)) == 32 for digest in frame["hash"])

    Path("raw/1.txt").unlink()  # an update reads no files
    new = writer.update_dataslice("slice-1", "raw/1.txt", {"key1": "one", "key2": 0})
    assert new.id != first.id
    changed = writer.read_dataslice("slice-1")
    assert dict(changed.loc["raw/1.txt", ["key1", "key2"]]) == {"key1": "one", "key2": 0}
    assert list(changed["hash"]) == list(frame["hash"])
    links = [{id_ for _, id_ in header.about} for header, _ in of_type(home, "slice.recorded")]
    assert {whole.id, new.id} in links
    with pytest.raises(CallerError, match="not in the slice"):
        writer.update_dataslice("slice-1", "raw/3.txt", {})
    with pytest.raises(CallerError, match="no slice 'other'"):
        writer.read_dataslice("other")
    writer.finalize()
