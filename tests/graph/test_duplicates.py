"""Contents that exist more than once; and what `show` tells of an artifact's bytes, labels, slices and table."""

from collections import defaultdict
from hashlib import md5 as md5_of
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.graphs import Site, World, md5

from cmf_graph import reading as reading_module
from cmf_graph.filters import Filter, Page
from cmf_graph.output import print_thing
from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.errors import CallerError
from cmf_protocol.resolve import Said


def use(
    site: Site, name: str | None, content_id: str, size: int | None = None, *, pipeline: str = "mnist", kind: str = ""
) -> bytes:
    """Record that a run at a site used a content."""
    run = site.run(pipeline)
    facts: dict[str, Any] = {"size": size} if size is not None else {}
    if kind:
        facts["kind"] = kind
    site.record(t.usage(t.ARTIFACT_USED, run, content_id, name=name, facts=facts))
    return run


def copies(answer: dict[str, Any]) -> dict[str, tuple[int, int | None]]:
    """Return content id → (copies, bytes saved)."""
    return {item["content_id"]: (item["copies"], item["bytes_saved"]) for item in answer["items"]}


def test_a_copy_is_a_name_at_a_site(world: World) -> None:
    berlin, munich = world.site("berlin"), world.site("munich")
    for site, name, content, size in (
        (berlin, "data.csv", "shared", 100), (munich, "data.csv", "shared", 100), (munich, "old.csv", "shared", 100),
        (berlin, "data.csv", "shared", 100),  # used again: no other copy
        (berlin, "a.csv", "twice", 7), (berlin, "b.csv", "twice", 7),
        (berlin, "only.csv", "once", 1000),
        (berlin, None, "unnamed", 5), (munich, None, "unnamed", 5),
        (berlin, "x", "unsized", None), (munich, "x", "unsized", None),
    ):  # fmt: skip
        use(site, name, md5(content), size)
    answer = world.questions().duplicates()
    assert copies(answer) == {
        md5("shared"): (3, 200), md5("twice"): (2, 7), md5("unnamed"): (2, 5), md5("unsized"): (2, None),
    }  # fmt: skip
    assert [item["content_id"] for item in answer["items"]] == [
        md5("shared"),
        md5("twice"),
        md5("unnamed"),
        md5("unsized"),
    ]
    assert answer["total"] == {"contents": 4, "copies": 9, "bytes_saved": 212}
    first = answer["items"][0]
    assert first["places"] == [
        {"site": "berlin", "names": ["data.csv"]},
        {"site": "munich", "names": ["data.csv", "old.csv"]},
    ]
    assert (first["names"], first["sites"], first["size"]) == (["data.csv", "old.csv"], ["berlin", "munich"], 100)


def test_filters_select_contents_and_pages_come_one_after_the_other(world: World) -> None:
    berlin, munich = world.site("berlin"), world.site("munich")
    for n in range(5):
        use(berlin, "data", md5(str(n)), 10 * n, pipeline="p" if n % 2 else "q")
        use(munich, "data", md5(str(n)), 10 * n, pipeline="r")
    use(berlin, "e", md5("e"), kind="environment")
    use(munich, "e", md5("e"), kind="environment")
    asked = world.questions()
    assert copies(asked.duplicates(Filter(pipeline="p"))) == {md5("3"): (2, 30), md5("1"): (2, 10)}
    assert copies(asked.duplicates(Filter(kind="environment"))) == {md5("e"): (2, None)}
    found, cursor = [], None
    while True:
        answer = asked.duplicates(Filter(), Page("size", 2, cursor))
        assert answer["total"]["contents"] == 5, "a page is of the whole"
        found += [item["size"] for item in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert found == [0, 10, 20, 30, 40]
    with pytest.raises(CallerError, match="nothing to sort by"):
        asked.duplicates(Filter(), Page("params.lr"))


def test_what_is_retracted_is_no_copy_and_a_sha256_is_its_md5(world: World) -> None:
    berlin, munich = world.site("berlin"), world.site("munich")
    other = f"sha256:{'a' * 64}"
    run = berlin.run()
    berlin.record(t.usage(t.ARTIFACT_USED, run, md5("one"), name="one.csv", digests=[other], facts={"size": 9}))
    use(munich, "one.csv", other)
    use(berlin, "two.csv", md5("two"), 3)
    wrong = berlin.record(t.usage(t.ARTIFACT_PRODUCED, run, md5("two"), name="copy.csv"))[0]
    assert copies(world.questions().duplicates()) == {md5("one"): (2, 9), md5("two"): (2, 3)}
    berlin.record(t.retracted(wrong.header.about, "a mistake", event=wrong.event_id))
    assert copies(world.questions().duplicates()) == {md5("one"): (2, 9)}


_USE = st.tuples(
    st.integers(0, 2), st.sampled_from(["a", "b", None]), st.sampled_from(["u", "v", "w"]), st.integers(0, 9)
)


@settings(max_examples=20)
@given(st.lists(_USE, max_size=12))
def test_the_counts_are_those_of_a_plain_count(tmp_path_factory: pytest.TempPathFactory, uses: list[Any]) -> None:
    world = World(tmp_path_factory.mktemp("graph"))
    sites = [world.site(name) for name in ("x", "y", "z")]
    places: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for site, name, content, _ in uses:
        use(sites[site], name, md5(content), 4)
        places[md5(content)][site] |= {name} if name else set()
    counted = {id_: sum(max(1, len(names)) for names in at.values()) for id_, at in places.items()}
    answer = world.questions().duplicates()
    assert copies(answer) == {id_: (count, 4 * (count - 1)) for id_, count in counted.items() if count > 1}
    world.close()


# -- show --------------------------------------------------------------------------------------------------------------


def record_table(site: Site, columns: list[tuple[str, list[Any]]], block: int) -> str:
    """Record a table in blocks of so many rows; return its content id."""
    rows = len(columns[0][1])
    content_id = "md5:" + md5_of(encode([list(column) for column in columns])).hexdigest()
    site.record(t.usage(t.ARTIFACT_PRODUCED, site.run(), content_id, name="scores", facts={"kind": "metrics"}))
    for first in range(0, rows, block):
        part = [(name, values[first : first + block]) for name, values in columns]
        site.record(t.table_recorded(content_id, part, rows=rows, first=first))
    return content_id


def test_show_tells_where_the_bytes_are_and_prefers_places_with_a_commit(world: World) -> None:
    berlin = world.site("berlin")
    use(berlin, "data.csv", md5("data"), 4)
    place = {"kind": "dvc", "path": "data.csv.dvc", "blob": "b1"}
    berlin.record(
        t.artifact_stored(md5("data"), place),
        t.artifact_stored(md5("data"), place | {"commit": "c1"}),
        t.artifact_stored(md5("data"), {"kind": "git", "path": "data.csv", "blob": "b2"}),
        t.artifact_stored(md5("data"), {"kind": "remote", "url": "s3://bucket/x"}),
    )
    assert world.questions().show("data.csv")["locations"] == [
        place | {"commit": "c1"},
        {"kind": "git", "path": "data.csv", "blob": "b2"},
        {"kind": "remote", "url": "s3://bucket/x"},
    ]


def test_show_tells_labels_slices_and_the_first_rows_of_a_table(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    berlin = world.site("berlin")
    use(berlin, "data.csv", md5("data"), 4)
    use(berlin, "labels.csv", md5("labels"), 4, kind="label")
    use(berlin, "part", md5("part"), 4, kind="slice")
    berlin.record(t.label_attached(md5("labels"), md5("data")), t.slice_recorded(md5("part"), md5("data")))
    table = record_table(berlin, [("step", list(range(250))), ("content_id", [0.5] * 250), ("b", [b"\x01"] * 250)], 60)
    asked = world.questions()
    shown = asked.show("data.csv")
    assert shown["labels"] == [{"content_id": md5("labels"), "name": "labels.csv", "kind": "label"}]
    assert shown["slices"] == [{"content_id": md5("part"), "name": "part", "kind": "slice"}]
    assert (shown["label_of"], shown["slice_of"], shown["table"]) == ([], [], None)
    assert asked.show("labels.csv")["label_of"][0]["content_id"] == md5("data")
    assert asked.show("part")["slice_of"][0]["content_id"] == md5("data")
    shown = asked.show(table)
    assert shown["table"]["columns"] == ["step", "content_id", "b"]
    assert (shown["table"]["rows"], len(shown["table"]["records"])) == (250, 100)
    assert shown["table"]["records"][99] == {"step": 99, "content_id": 0.5, "b": "01"}
    print_thing(shown)
    printed = capsys.readouterr().out.splitlines()
    assert "table (250 rows, the first 100):" in printed
    assert "  7\t0.5\t01" in printed


def test_a_list_of_artifacts_decodes_no_block_of_a_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    berlin = world.site("berlin")
    table = record_table(berlin, [("x", list(range(1000)))], 100)
    read: list[str] = []
    said = reading_module._said

    def spy(branch: int, header_size: int, data: bytes) -> Said:
        found = said(branch, header_size, data)
        read.append(found.type)
        return found

    monkeypatch.setattr(reading_module, "_said", spy)
    asked = world.questions()
    assert [item["content_id"] for item in asked.artifacts()["items"]] == [table]
    assert asked.artifacts(page=Page(sort="size"))["items"][0]["kind"] == "metrics"
    assert t.TABLE_RECORDED not in read
    assert asked.show(table)["table"]["rows"] == 1000
    assert t.TABLE_RECORDED in read


def test_a_retracted_block_of_a_table_is_not_told_as_a_dispute_by_a_list(world: World) -> None:
    berlin = world.site("berlin")
    table = record_table(berlin, [("x", [1, 2])], 2)
    block = next(event for event in berlin.events if event.header.type == t.TABLE_RECORDED)
    berlin.record(t.retracted(block.header.about, "wrong", event=block.event_id))
    (item,) = world.questions().artifacts()["items"]
    assert (item["content_id"], item["disputes"]) == (table, [])


def test_the_verb_lists_duplicates_and_says_what_is_saved(world: World, tmp_path: Path) -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    import typer
    from typer.testing import CliRunner

    from cmf_graph.commands import add_query_commands
    from cmf_graph.questions import Questions

    @contextmanager
    def questions() -> Iterator[Questions]:
        yield world.questions()

    for site in (world.site("berlin"), world.site("munich")):
        use(site, "data.csv", md5("data"), 1000)
    app = typer.Typer()
    add_query_commands(app, questions)
    done = CliRunner().invoke(app, ["duplicates"])
    assert done.exit_code == 0, done.output
    assert f"data.csv\t{md5('data')}\tdataset\t2\t1000\t1000\tberlin, munich" in done.stdout
    assert "1 content, 2 copies: kept once each, they take 1,000 bytes less" in done.stderr
