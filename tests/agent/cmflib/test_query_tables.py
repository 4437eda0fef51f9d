"""Step metrics and slices, read back as DataFrames."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.cmflib.query_projects import Project, make_project

import cmf_agent as cmf
from cmf_agent.cmflib import CmfQuery
from cmf_agent.home import Home
from cmf_agent.identity import new_execution_id
from cmf_agent.log import shared_log
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_project(tmp_path_factory.mktemp("tables") / "project", patch)


@pytest.fixture
def query(mnist: Project) -> CmfQuery:
    return CmfQuery(mnist.folder / "mlmd")


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_committed_metrics_are_a_row_for_each_step(query: CmfQuery, mnist: Project) -> None:
    for name in ("training", mnist.artifacts["training"]):
        found = query.get_metrics(name)
        assert found is not None
        assert (found.index.name, list(found.index)) == ("SequenceNumber", [1, 2, 3])
        assert found.to_dict("list") == {"loss": [1.0, 1 / 2, 1 / 3], "note": ["x"] * 3}


def test_metrics_that_nobody_committed_are_not_lost(query: CmfQuery) -> None:
    found = query.get_metrics("unfinished")
    assert found is not None
    assert (found.index.name, list(found.index)) == ("SequenceNumber", [1, 2])
    assert list(found["loss"]) == [4.0, 3.0]
    assert found["accuracy"].isna().tolist() == [True, False]


def test_the_newest_execution_has_the_metrics_of_a_name(home: Home) -> None:
    query = CmfQuery()
    for at in (5, 9, 7):
        execution = new_execution_id()
        start = t.execution_started(execution, "p", "s", at=at)
        with shared_log(home.log_path) as log:
            log.append([start, t.metrics_recorded(execution, steps=[("loss", "training", [1], [float(at)], [0])])])
        assert query.get_pipeline_names() == ["p"], "each is folded by itself"
    found = query.get_metrics("training")
    assert found is not None
    assert list(found["loss"]) == [9.0]


def test_metrics_of_an_unknown_name_are_none(query: CmfQuery, mnist: Project) -> None:
    assert query.get_metrics("nothing") is None
    assert query.get_metrics(mnist.artifacts["model.pkl"]) is None


def test_our_own_metrics_tables_are_read_too(home: Home) -> None:
    with cmf.run(pipeline="p", stage="s") as run:
        run.metric("loss", 0.5, step=7)
        run.metrics_table("curve")
    found = CmfQuery().get_metrics("curve")
    assert found is not None
    assert (found.index.name, list(found.index), list(found["loss"])) == ("step", [7], [0.5])


def test_a_file_of_metrics_is_read_only_as_it_was_recorded(project: Path, home: Home) -> None:
    path = project / "curve.csv"
    path.write_text("SequenceNumber,loss\n1,0.5\n2,0.25\n")
    with cmf.run(pipeline="p", stage="s") as run:
        run.output(path, kind="metrics")
    query = CmfQuery()
    found = query.get_metrics("curve.csv")
    assert found is not None
    assert found["loss"].to_dict() == {1: 0.5, 2: 0.25}
    path.write_text("SequenceNumber,loss\n1,0.9\n")
    with pytest.raises(CallerError, match="has changed since"):
        query.get_metrics("curve.csv")
    path.unlink()
    with pytest.raises(CallerError, match="not here"):
        query.get_metrics("curve.csv")


# -- slices ------------------------------------------------------------------------------------------------------------


def test_a_slice_has_a_row_for_each_file(query: CmfQuery, mnist: Project) -> None:
    for name in ("part", mnist.artifacts["part"], "cmf_artifacts/some-uuid/dataslice/part"):
        found = query.read_dataslice(name)
        assert (found.index.name, list(found.index)) == ("Path", ["raw.csv", "train.csv"])
        assert list(found["weight"]) == [1, 2]
        raw = query.get_artifact(mnist.artifacts["raw.csv"])
        assert raw is not None
        assert found["hash"].iloc[0] == raw["uri"][0]


def test_what_is_no_slice_is_refused(query: CmfQuery, mnist: Project) -> None:
    for name in ("nothing", mnist.artifacts["model.pkl"]):
        with pytest.raises(CallerError, match="neither a slice"):
            query.read_dataslice(name)
    with pytest.raises(CallerError, match=r"parquet|pyarrow"):
        query.read_dataslice(mnist.folder / "raw.csv")
