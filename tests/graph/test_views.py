"""Formats of a lineage: each is read back, whatever the names in it."""

import json
import re
from typing import Any
from xml.etree import ElementTree

import networkx
import pydot
import pytest
from tests.support.graphs import NOON_US, World, id_text, md5

from cmf_graph.tree import DEPTH_MAX
from cmf_graph.views import FORMATS, render, to_networkx
from cmf_protocol import types as t

HOSTILE = (
    'quote " and \\" backslash \\',
    "line\nbreak\r\nand\ttab",
    "</data><node id='x'/> & <!-- -->",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m\x9b2J",
    "\u202etxt.exe\u2066\u200f",
    "control \x01\x08\x7f\x85\ufffe\uffff",
    "`**md**` [link](javascript:alert(1)) %% #quot; ; --> end",
    "}; n0 -> n1 [label=evil]",
    "\U0001f600 naïve 日本語 עברית",
    "]]>",
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]")


@pytest.fixture
def hostile(world: World) -> dict[str, Any]:
    """Return a lineage all of whose names are hostile."""
    site = world.site("berlin")
    world.sites[site.key] = HOSTILE[0] + HOSTILE[3]
    for at, name in enumerate(HOSTILE):
        run = site.run(
            name,
            name,
            uses={name: md5("shared")},
            makes={f"{name}.out": md5(name)},
            facts={"name": name, "git_commit": name, "kind": name},
        )
        site.record(t.tag_added(("execution", run), name), t.tag_added(("artifact", md5(name)), f"{at}{name}"))
        site.record(t.usage(t.ARTIFACT_PRODUCED, run, f"x{at}:{name}", name=name, facts={"kind": name}))
    return world.questions().lineage(md5("shared"), down=True) | {"x": None}


def lineage_of(world: World) -> dict[str, Any]:
    berlin, munich = world.site("berlin"), world.site("munich")
    berlin.run("mnist", "prepare", uses={"raw.csv": md5("raw")}, makes={"train.csv": md5("train"), "test.csv": md5("test")},
               execution=b"\x01" * 16, at=NOON_US)  # fmt: skip
    munich.run("mnist", "train", uses={"train.csv": md5("train")}, makes={"model.pkl": md5("model")}, execution=b"\x02" * 16,
               at=NOON_US, facts={"git_commit": "3fa9c1e0000"})  # fmt: skip
    munich.run("mnist", "test", uses={"model.pkl": md5("model"), "test.csv": md5("test")}, makes={"report.json": md5("report")},
               status="failed", execution=b"\x03" * 16, at=NOON_US)  # fmt: skip
    berlin.record(t.tag_added(("artifact", md5("model")), "production"))
    return world.questions().lineage("report.json", up=True)


# -- tree --------------------------------------------------------------------------------------------------------------


def test_a_tree_reads_like_a_story(world: World) -> None:
    text = render(lineage_of(world), "tree")
    assert text.splitlines() == [
        f"report.json  md5:{md5('report')[4:12]}  dataset  munich",
        "└── produced by mnist/test  03030303-0303  failed  munich  2025-06-01 12:00",
        f"    ├── used model.pkl  md5:{md5('model')[4:12]}  dataset  munich  #production",
        "    │   └── produced by mnist/train  02020202-0202  finished  munich  git 3fa9c1e  2025-06-01 12:00",
        f"    │       └── used train.csv  md5:{md5('train')[4:12]}  dataset  berlin, munich",
        "    │           └── produced by mnist/prepare  01010101-0101  finished  berlin  2025-06-01 12:00",
        f"    │               └── used raw.csv  md5:{md5('raw')[4:12]}  dataset  berlin",
        f"    └── used test.csv  md5:{md5('test')[4:12]}  dataset  berlin, munich",
        "        └── produced by mnist/prepare  01010101-0101  finished  berlin  2025-06-01 12:00  (see above)",
    ]


def test_a_tree_of_both_directions_has_two_parts(world: World) -> None:
    lineage_of(world)
    lines = render(world.questions().lineage("train.csv"), "tree").splitlines()
    up, down = lines.index("upstream: what it came from"), lines.index("downstream: what came of it")
    assert lines[0].startswith("train.csv") and 0 < up < down
    assert "mnist/prepare" in lines[up + 1] and "used by mnist/train" in lines[down + 1]


def test_a_tree_of_a_pipeline_tells_every_node_once(world: World) -> None:
    lineage_of(world)
    lineage = world.questions().lineage("mnist")
    text = render(lineage, "tree")
    assert text.startswith("pipeline mnist  (3 executions)")
    for name in ("raw.csv", "train.csv", "test.csv", "report.json", "mnist/train", "mnist/prepare"):
        assert name in text
    assert len(text.splitlines()) == 1 + 1 + len(lineage["edges"])


def test_a_tree_of_what_nothing_is_known_about_says_so(world: World) -> None:
    lineage_of(world)
    assert "nothing downstream is known" in render(world.questions().lineage("report.json", down=True), "tree")


def test_a_cycle_ends_in_a_tree(world: World) -> None:
    berlin = world.site("berlin")
    berlin.run(uses={"state": md5("state")}, makes={"state": md5("state")})
    for ref in ("state", "mnist"):
        text = render(world.questions().lineage(ref), "tree")
        assert "(see above)" in text and len(text.splitlines()) < 12


def test_a_very_deep_tree_is_cut_and_says_so(world: World) -> None:
    berlin = world.site("berlin")
    drafts = []
    for at in range(1_500):
        run = world.new_execution()
        drafts += [t.usage(t.ARTIFACT_USED, run, md5(f"{at}")), t.usage(t.ARTIFACT_PRODUCED, run, md5(f"{at + 1}"))]
    berlin.record(*drafts)
    lineage = world.questions().lineage(md5("1500"), up=True)
    assert len(lineage["nodes"]) == 3_001
    lines = render(lineage, "tree").splitlines()
    assert len(lines) == DEPTH_MAX + 2 and "deeper than" in lines[-1]
    for format_ in ("json", "dot", "mermaid", "graphml"):
        render(lineage, format_)


def test_a_tree_says_what_was_left_out(world: World) -> None:
    lineage_of(world)
    assert "at least 2 more" in render(world.questions().lineage("report.json", up=True, limit=2), "tree")


# -- every format, hostile names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_no_name_drives_a_terminal(hostile: dict[str, Any], format_: str) -> None:
    assert not _CONTROL.search(render(hostile, format_))


def test_a_tree_has_a_line_for_each_way_whatever_the_names(hostile: dict[str, Any]) -> None:
    assert len(render(hostile, "tree").splitlines()) == 1 + len(hostile["edges"])


def test_json_is_the_answer_itself(hostile: dict[str, Any]) -> None:
    assert json.loads(render(hostile, "json")) == hostile


def test_graphml_is_read_back_by_networkx(hostile: dict[str, Any]) -> None:
    text = render(hostile, "graphml")
    ElementTree.fromstring(text)
    graph = networkx.parse_graphml(text, force_multigraph=True)
    assert len(graph) == len(hostile["nodes"]) and graph.number_of_edges() == len(hostile["edges"])
    plain = {node["id"] for node in hostile["nodes"] if node["id"].startswith("md5:") or node["type"] == "execution"}
    assert plain < set(graph)
    artifact = graph.nodes[md5("shared")]
    assert artifact["type"] == "artifact" and artifact["disputed"] is False
    assert {data["type"] for _, _, data in graph.edges(data=True)} == {"used", "produced"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pyparsing", "ignore::DeprecationWarning:pydot")
def test_dot_is_read_back_by_pydot(hostile: dict[str, Any]) -> None:
    graphs = pydot.graph_from_dot_data(render(hostile, "dot"))
    assert graphs is not None
    (graph,) = graphs
    nodes = [node for node in graph.get_nodes() if re.fullmatch(r"n\d+", node.get_name())]
    assert len(nodes) == len(hostile["nodes"])
    assert len(graph.get_edges()) == len(hostile["edges"])


def test_mermaid_has_one_plain_line_for_each_node_and_edge(hostile: dict[str, Any]) -> None:
    first, *lines = render(hostile, "mermaid").splitlines()
    assert first == "flowchart LR"
    nodes = [line for line in lines if re.fullmatch(r'  n\d+(\["[^"]*"\]|\(\["[^"]*"\]\))', line)]
    edges = [line for line in lines if re.fullmatch(r"  n\d+ -->\|(used|produced)\| n\d+", line)]
    assert (len(nodes), len(edges)) == (len(hostile["nodes"]), len(hostile["edges"]))
    assert len(lines) == len(nodes) + len(edges)
    labels = "".join(re.findall(r'"([^"]*)"', "\n".join(nodes)))
    assert not set("<>`[]{}") & set(labels.replace("<br/>", ""))


def test_a_networkx_graph_holds_nodes_and_edges_with_their_fields(world: World) -> None:
    graph = to_networkx(lineage_of(world))
    assert networkx.has_path(graph, md5("raw"), md5("report"))
    assert graph.nodes[id_text(b"\x03" * 16)]["status"] == "failed"
    assert graph.graph == {"root": md5("report"), "truncated": 0}
