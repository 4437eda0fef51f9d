"""Tables that are artifacts: the same rows are the same artifact, in blocks that any site can put together again."""

from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import of_type, only

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.tables import BLOCK_BYTES_MAX, Rows, make_table, read_table, table_drafts
from cmf_agent.view import local_view
from cmf_graph.questions import Questions
from cmf_protocol.encoding import encode
from cmf_protocol.errors import CallerError


class Frame:
    """What a table asks of a pandas DataFrame."""

    def __init__(self, *columns: str) -> None:
        self.columns = columns

    def to_dict(self, orient: str) -> dict[str, list[int]]:
        assert orient == "list"
        return {"a": [1, 2], "b": [3, 4]}


SAME: list[Any] = [
    [{"a": 1, "b": 3}, {"a": 2, "b": 4}],
    ({"a": at, "b": at + 2} for at in (1, 2)),
    {"a": [1, 2], "b": (3, 4)},
    {"a": iter([1, 2]), "b": range(3, 5)},
    Frame("a", "b"),
]


@pytest.mark.parametrize("rows", SAME)
def test_however_rows_are_given_the_table_is_the_same(rows: Rows) -> None:
    table = make_table("metrics", "t", rows).table
    content = encode([["a", [1, 2]], ["b", [3, 4]]])
    assert table.content_id == "md5:" + md5(content).hexdigest()
    assert (table.size, table.rows) == (len(content), 2)
    assert table.records() == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_what_a_row_lacks_is_none_and_secrets_are_masked() -> None:
    odd = object()
    given: list[dict[str, object]] = [
        {"a": 1, "api_key": "x"},
        {"b": "password=hunter2", "api_key": None},
        {"b": odd, "a": 2**70},
    ]
    before = repr(given)
    made = make_table("metrics", "t", given)
    assert repr(given) == before
    assert made.table.columns == {
        "a": [1, None, str(2**70)],
        "api_key": ["***", None, None],
        "b": [None, "password=***", repr(odd)],
    }
    assert made.lossy == {"columns.a": "integer", "columns.b": "repr"}


@pytest.mark.parametrize("rows", [[], {}, {"a": []}])
def test_a_table_may_be_empty(home: Home, rows: Rows) -> None:
    with cmf.run("p", "s") as run:
        table = run.metrics_table("t", rows)
    assert table.records() == []
    assert only(home, "table.recorded")[1]["rows"] == 0


TWO_OF_A_NAME: list[Any] = [{1: [1], "1": [2]}, [{1: 1, "1": 2}], Frame("a", "a")]
WRONG: list[Any] = [{"a": [1], "b": [1, 2]}, {"a": "text"}, {"a": 1}, "text", 3, [1, 2], [[1]], [{"a": 1}, None]]


@pytest.mark.parametrize("rows", WRONG + TWO_OF_A_NAME)
def test_what_is_no_table_is_refused(home: Home, rows: Any) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError) as refused:
        run.metrics_table("t", rows)
    assert refused.value.hint
    assert not of_type(home, "artifact.produced")


@pytest.mark.parametrize("rows", [{"v": ["x" * 1000] * 5000}, {"v": ["x" * 300_000]}, {"v": range(5_000_000)}])
def test_what_is_too_large_is_refused_with_the_way_out(home: Home, rows: Rows) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="too large") as refused:
        run.metrics_table("t", rows)
    assert "run.output(file" in (refused.value.hint or "")
    assert not of_type(home, "artifact.produced")
    assert not of_type(home, "table.recorded")


def test_a_large_table_goes_in_blocks_and_comes_back_whole(home: Home) -> None:
    rows: Any = {
        "step": list(range(16_000)),
        "loss": [at / 7 for at in range(16_000)],
        "text": ["ä" * (at % 5) for at in range(16_000)],
    }
    with cmf.run("p", "s") as run:
        table = run.metrics_table("large", rows)
    blocks = of_type(home, "table.recorded")
    assert len(blocks) > 2
    assert [body.get("first", 0) for _, body in blocks] == sorted(body.get("first", 0) for _, body in blocks)
    assert all(len(encode(body["columns"])) <= BLOCK_BYTES_MAX for _, body in blocks)
    assert read_table(home, table.content_id) == table
    again = make_table("metrics", "other name", rows).table
    assert [draft.body for draft in table_drafts(again)] == [draft.body for draft in table_drafts(table)]


def test_a_table_is_recorded_once_per_log_and_its_edges_each_time(home: Home) -> None:
    for _ in range(2):
        with cmf.run("p", "s") as run:
            run.metrics_table("t", [{"a": 1}])
            run.metrics_table("t", [{"a": 1}], {"split": "test"})
    assert only(home, "table.recorded")
    edges = of_type(home, "artifact.produced")
    assert len(edges) == 4
    assert edges[0][1]["facts"] == {"kind": "metrics", "size": 6}
    assert edges[1][1]["properties"] == {"split": "test"}


def test_lineage_goes_through_a_metrics_table(home: Home) -> None:
    with cmf.run("p", "train") as run:
        table = run.metrics_table("scores", [{"a": 1}])
    with cmf.run("p", "choose") as run:
        content = run.input(table)
        run.input(table.content_id)
    assert content.content_id == table.content_id
    by_table, by_id = of_type(home, "artifact.used")
    assert by_table[1] == {"name": "scores", "facts": {"kind": "metrics", "size": table.size}}
    assert by_id[0].about == by_table[0].about
    with local_view(home) as graph:
        nodes = Questions(graph, {}).lineage("scores")["nodes"]
    assert sorted(node["label"] for node in nodes) == ["p/choose", "p/train", "scores"]


def test_without_rows_a_table_holds_the_steps_so_far(home: Home) -> None:
    with cmf.run("p", "s") as run:
        run.metric("plain", 1)
        for step in range(3):
            run.metric("loss", 1 / (step + 1), step=step)
        run.metric("loss", 5, step=2, series="val")
        run.metric("loss[val]", 8, step=0)
        run.metric("step", 9, step=2)
        run.metric("machine/memory_bytes", 1, step=70)
        cmf.join(run.id).metric("loss", 6, step=4, series="w")
        table = run.metrics_table("curves")
    assert table.columns == {
        "step": [0, 1, 2, 4],
        "loss": [1.0, 0.5, 1 / 3, None],
        "loss[val]": [None, None, 5, None],
        "loss[w]": [None, None, None, 6],
        "loss[val][]": [8, None, None, None],
        "step[]": [None, None, 9, None],
    }


def test_without_a_home_tables_are_made_and_nothing_is_recorded(project: Path) -> None:
    Path("f").write_text("x")
    with cmf.run("p", "s") as run:
        run.metric("loss", 1, step=1)
        assert run.metrics_table("t").columns == {"step": []}
        assert run.metrics_table("t", [{"a": 1}]).rows == 1
        assert run.slice("s", ["f"], of="f").rows == 1
        run.label("f", of="md5:" + "0" * 32)
        run.input("md5:" + "0" * 32)


def test_a_view_that_cannot_be_read_costs_the_table_only(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.view_path.mkdir()
    with cmf.run("p", "s") as run:
        run.metric("loss", 1, step=1)
        assert run.metrics_table("t").rows == 0
    assert "'t' was NOT recorded" in capsys.readouterr().err
    assert not of_type(home, "artifact.produced")
    assert only(home, "execution.finished")[1]["status"] == "finished"


# -- slices, labels, content ids ---------------------------------------------------------------------------------------


def test_a_slice_lists_its_files_and_names_what_it_is_of(home: Home) -> None:
    Path("data").mkdir()
    for name in "ba":
        (Path("data") / name).write_text(name)
    with cmf.run("p", "s") as run:
        whole = run.input("data")
        plain = run.slice("plain", ["data/b", Path("data/a"), "data/b"], of="data")
        told = run.slice("told", {"data/b": {"split": "test"}, "data/a": None}, of=[whole.content_id, "data"])
        assert run.slice("plain", ["data/b", "./data/a", Path("data/a").absolute()]) == plain
    ids = ["md5:" + md5(name.encode()).hexdigest() for name in "ab"]
    assert plain.columns == {"path": ["data/a", "data/b"], "content_id": ids}
    assert told.records()[1] == {"path": "data/b", "content_id": ids[1], "split": "test"}
    assert (
        read_table(home, told.content_id)
        == told
        == read_table(home.path, told.content_id)
        == read_table(None, told.content_id)
    )
    for (header, body), table in zip(of_type(home, "slice.recorded"), (plain, told), strict=True):
        assert set(header.about) == {("artifact", table.content_id), ("artifact", whole.content_id)}
        assert body == {"slice": table.content_id}


def test_a_slice_refuses_what_is_not_there_and_columns_that_it_has(home: Home) -> None:
    Path("f").write_text("x")
    wrong: list[Any] = [["missing"], [3], {"f": {"path": 1}}, [""], {"f": "train"}, None, 3, b"f"]
    with cmf.run("p", "s") as run:
        for rows in wrong:
            with pytest.raises(CallerError):
                run.slice("s", rows)
        with pytest.raises(CallerError, match="names no files"):
            run.slice("s", ["f"], of=3)  # type: ignore[arg-type]
    assert not of_type(home, "artifact.produced")


def test_a_label_is_used_and_attached_to_what_it_labels(home: Home) -> None:
    Path("labels.csv").write_text("0\n")
    Path("data.csv").write_text("x\n")
    with cmf.run("p", "s") as run:
        data = run.input("data.csv")
        label = run.label("labels.csv", of=data, properties={"classes": 2})
        with pytest.raises(CallerError, match="has to label something"):
            run.label("labels.csv", of=[])
        with pytest.raises(CallerError, match="part of itself"):
            run.label("labels.csv", of="labels.csv")
    used = of_type(home, "artifact.used")[1][1]
    assert (used["facts"]["kind"], used["properties"]) == ("label", {"classes": 2})
    header, body = only(home, "label.attached")
    assert set(header.about) == {("artifact", data.content_id), ("artifact", label.content_id)}
    assert body == {"label": label.content_id}


def test_a_content_id_is_an_input_if_it_is_known_and_no_file(home: Home) -> None:
    Path("f").write_text("x")
    with cmf.run("p", "s") as run:
        made = run.output("f")
        assert run.input(made.content_id, name="by id") == made
        assert made.sha256 is not None
        assert run.input(made.sha256, name="by its other digest") == made
        Path(made.content_id).write_text("a file of that name")
        assert run.input(made.content_id) != made
        unknown = "md5:" + "0" * 32
        with pytest.raises(CallerError, match="nothing is known here"):
            run.input(unknown)
    assert [body.get("name") for _, body in of_type(home, "artifact.used")] == [
        "by id",
        "by its other digest",
        made.content_id,
    ]
    assert {header.about[0] for header, _ in of_type(home, "artifact.used")[:2]} == {("artifact", made.content_id)}


def test_reading_a_table_that_is_not_known_says_the_way_out(home: Home) -> None:
    Path("f").write_text("x")
    with cmf.run("p", "s") as run:
        content = run.output("f")
    for content_id in (content.content_id, "md5:" + "0" * 32):
        with pytest.raises(CallerError, match="no table") as refused:
            read_table(home, content_id)
        assert "pull" in (refused.value.hint or "")
