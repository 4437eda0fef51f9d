"""Lineage: the closure over usage edges, up, down, so many steps."""

import tempfile
from pathlib import Path
from typing import Any

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.graphs import Site, World, id_text, md5

from cmf_protocol import types as t
from cmf_protocol.errors import CallerError

Edges = set[tuple[str, str, str]]


@pytest.fixture
def berlin(world: World) -> Site:
    return world.site("berlin")


def node_ids(lineage: dict[str, Any]) -> set[str]:
    return {node["id"] for node in lineage["nodes"]}


def edge_set(lineage: dict[str, Any]) -> Edges:
    return {(edge["source"], edge["target"], edge["type"]) for edge in lineage["edges"]}


def test_edges_lead_the_way_the_data_flows(world: World, berlin: Site) -> None:
    run = berlin.run(uses={"data.csv": md5("data")}, makes={"model.pkl": md5("model")})
    lineage = world.questions().lineage("model.pkl")
    assert lineage["root"] == md5("model") and lineage["root_type"] == "artifact"
    assert edge_set(lineage) == {(md5("data"), id_text(run), "used"), (id_text(run), md5("model"), "produced")}
    assert lineage["truncated"] == 0


def test_what_another_site_made_is_upstream_of_what_was_made_from_it(world: World, berlin: Site) -> None:
    munich = world.site("munich")
    made = berlin.run("p", "make", makes={"out/data.csv": md5("data")}, facts={"git_commit": "c0ffee", "name": "n"})
    used = munich.run("q", "use", uses={"in.csv": md5("data")}, makes={"model.pkl": md5("model")})
    nodes = {node["id"]: node for node in world.questions().lineage("model.pkl", up=True)["nodes"]}
    assert set(nodes) == {md5("model"), md5("data"), id_text(made), id_text(used)}
    assert nodes[md5("data")]["sites"] == ["berlin", "munich"]
    assert nodes[md5("data")]["names"] == ["in.csv", "out/data.csv"]
    assert (nodes[id_text(made)]["site"], nodes[id_text(made)]["git_commit"], nodes[id_text(made)]["label"]) == (
        "berlin", "c0ffee", "p/make",
    )  # fmt: skip
    assert nodes[id_text(used)]["site"] == "munich"


def test_up_and_down_are_two_walks(world: World, berlin: Site) -> None:
    """What a sibling made of the same input is neither upstream nor downstream."""
    berlin.run("p", "sibling", uses=[md5("data")], makes=[md5("other")])
    berlin.run("p", "train", uses=[md5("data")], makes=[md5("model")])
    asked = world.questions()
    assert md5("other") not in node_ids(asked.lineage(md5("model")))
    assert md5("other") in node_ids(asked.lineage(md5("data")))
    assert node_ids(asked.lineage(md5("data"), up=True)) == {md5("data")}


def test_depth_counts_edges(world: World, berlin: Site) -> None:
    for at in range(5):
        berlin.run(uses=[md5(f"{at}")], makes=[md5(f"{at + 1}")])
    asked = world.questions()
    for depth, count in ((0, 1), (1, 2), (2, 3), (9, 10), (99, 11)):
        assert len(asked.lineage(md5("5"), up=True, depth=depth)["nodes"]) == count
    assert len(asked.lineage(md5("5"), up=True)["nodes"]) == 11


def test_the_same_bytes_used_and_produced_are_two_edges_and_no_endless_walk(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[md5("state")], makes=[md5("state")])
    lineage = world.questions().lineage(md5("state"))
    assert edge_set(lineage) == {(md5("state"), id_text(run), "used"), (id_text(run), md5("state"), "produced")}


def test_a_pipeline_and_a_stage_begin_with_all_their_executions(world: World, berlin: Site) -> None:
    prepare = berlin.run("mnist", "prepare", makes=[md5("data")])
    train = berlin.run("mnist", "train", uses=[md5("data")], makes=[md5("model")])
    berlin.run("iris", "train", makes=[md5("iris")])
    asked = world.questions()
    pipeline = asked.lineage("mnist")
    assert node_ids(pipeline) == {id_text(prepare), id_text(train), md5("data"), md5("model")}
    assert set(pipeline["roots"]) == {id_text(prepare), id_text(train)}
    assert node_ids(asked.lineage("mnist/prepare", down=True)) == node_ids(pipeline)
    assert asked.lineage("mnist/train", up=True)["root"] == "mnist/train"


def test_an_event_begins_with_what_it_is_about(world: World, berlin: Site) -> None:
    run = berlin.run(uses=[md5("data")])
    used = next(e for e in berlin.events if e.header.type == t.ARTIFACT_USED)
    assert node_ids(world.questions().lineage(used.event_id.hex())) == {md5("data"), id_text(run)}


def test_a_limit_keeps_the_nearest_and_says_that_there_is_more(world: World, berlin: Site) -> None:
    for at in range(20):
        berlin.run(uses=[md5(f"{at}")], makes=[md5(f"{at + 1}"), md5(f"side {at}")])
    asked = world.questions()
    whole = asked.lineage(md5("0"))
    assert whole["truncated"] == 0 and len(whole["nodes"]) == 61
    for limit in (1, 2, 7, 60):
        part = asked.lineage(md5("0"), limit=limit)
        assert len(part["nodes"]) == limit and part["truncated"] > 0
        assert edge_set(part) < edge_set(whole)
        assert all(edge["source"] in node_ids(part) and edge["target"] in node_ids(part) for edge in part["edges"])
    assert asked.lineage(md5("0"), limit=61)["truncated"] == 0
    pipeline = asked.lineage("mnist", limit=5)
    assert len(pipeline["nodes"]) == 5 and pipeline["truncated"] >= 15


@pytest.mark.parametrize(("depth", "limit"), [(-1, 10), (None, 0), (None, -5), (None, 10**12)])
def test_impossible_bounds_are_refused(world: World, berlin: Site, depth: int | None, limit: int) -> None:
    berlin.run()
    with pytest.raises(CallerError):
        world.questions().lineage("mnist", depth=depth, limit=limit)


def test_tags_disputes_and_forks_are_seen_in_a_lineage(world: World, berlin: Site) -> None:
    run = berlin.run(makes={"model.pkl": md5("model")}, status=None, facts={"name": "old"})
    berlin.record(t.tag_added(("artifact", md5("model")), "production"), t.tag_added(("execution", run), "best"))
    copy = berlin.fork()
    berlin.record(t.execution_finished(run, "finished"))
    copy.record(t.execution_finished(run, "failed"), t.execution_updated(run, facts={"name": "new"}))
    nodes = {node["id"]: node for node in world.questions().lineage("model.pkl")["nodes"]}
    assert nodes[md5("model")]["tags"] == ["production"]
    execution = nodes[id_text(run)]
    assert (execution["tags"], execution["status"], execution["name"]) == (["best"], "failed", "new")


# -- against networkx --------------------------------------------------------------------------------------------------

_LINKS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=24)


def expected(
    links: list[tuple[int, int, bool]], root: str, up: bool, down: bool, depth: int | None
) -> tuple[set[str], Edges]:
    """Return the nodes and edges that two walks over a plain directed graph meet."""
    graph = networkx.MultiDiGraph()
    graph.add_node(root)
    for run, artifact, produced in links:
        ends = (f"r{run}", f"a{artifact}") if produced else (f"a{artifact}", f"r{run}")
        graph.add_edge(*ends, key="produced" if produced else "used")
    nodes: set[str] = set()
    edges: Edges = set()
    for wanted, walked, turned in ((up, graph.reverse(), True), (down, graph, False)):
        distances = networkx.single_source_shortest_path_length(walked, root, cutoff=depth) if wanted else {root: 0}
        nodes |= set(distances)
        for start, end, key in walked.edges(keys=True):
            if wanted and start in distances and (depth is None or distances[start] < depth):
                edges.add((end, start, key) if turned else (start, end, key))
    return nodes, edges


@given(_LINKS, st.integers(0, 11), st.booleans(), st.booleans(), st.none() | st.integers(0, 5), st.data())
def test_any_lineage_is_what_networkx_says(
    links: list[tuple[int, int, bool]], root: int, up: bool, down: bool, depth: int | None, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        sites = [world.site("berlin"), world.site("munich")]
        runs = {f"r{n}": bytes([n]) * 16 for n in range(6)}
        artifacts = {f"a{n}": md5(f"{n}") for n in range(6)}
        for run, artifact, produced in links:
            site = data.draw(st.sampled_from(sites))
            site.record(
                t.usage(
                    t.ARTIFACT_PRODUCED if produced else t.ARTIFACT_USED, runs[f"r{run}"], artifacts[f"a{artifact}"]
                )
            )
        name = f"r{root}" if root < 6 else f"a{root - 6}"
        both = up == down
        ids = {key: id_text(value) for key, value in runs.items()} | artifacts
        if not any(name in (f"r{run}", f"a{artifact}") for run, artifact, _ in links):
            with pytest.raises(CallerError):
                world.questions().lineage(ids[name])
        else:
            lineage = world.questions().lineage(ids[name], up=up, down=down, depth=depth)
            nodes, edges = expected(links, name, up or both, down or both, depth)
            assert node_ids(lineage) == {ids[n] for n in nodes}
            assert edge_set(lineage) == {(ids[a], ids[b], type_) for a, b, type_ in edges}
            assert len(lineage["edges"]) == len(edges)
        world.close()
