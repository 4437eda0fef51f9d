"""A lineage (`Questions.lineage`) in the formats that people and other programs read.

Rules
- Names come from whoever recorded them: each format escapes what it must, so that no name can become markup, end a quoted text, or make
  the file unreadable. Text for people is `text.clean` first.
- Every function takes the answer of `Questions.lineage` and returns text; networkx is imported where a format needs it.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from cmf_graph.text import clean, short_content_id
from cmf_graph.tree import tree

Lineage = Mapping[str, Any]
#: What XML 1.0 can't hold in any spelling (section 2.2) or would alter, what a terminal would act on, and the backslash that marks these.
_NOT_XML = re.compile(
    r"[^\t\n\x20-\x5b\x5d-\x7e\xa0-\u200d\u2010-\u2027\u202f-\u2065\u2070-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_NOT_MERMAID = re.compile(r"[^\w .,/=+@()-]|[\r\n]")


def render(lineage: Lineage, format_: str) -> str:
    """Return a lineage in one of `FORMATS`."""
    return FORMATS[format_](lineage)


def as_json(lineage: Lineage) -> str:
    """Return the lineage as it is."""
    return json.dumps(lineage, indent=2)


def to_networkx(lineage: Lineage) -> Any:
    """Return a networkx `MultiDiGraph`: nodes and edges with their fields; an edge's key is its type."""
    import networkx

    graph = networkx.MultiDiGraph(root=lineage["root"], truncated=lineage["truncated"])
    for node in lineage["nodes"]:
        graph.add_node(node["id"], **{key: value for key, value in node.items() if key != "id"})
    for edge in lineage["edges"]:
        graph.add_edge(edge["source"], edge["target"], key=edge["type"], type=edge["type"])
    return graph


# -- GraphML -----------------------------------------------------------------------------------------------------------


def graphml(lineage: Lineage) -> str:
    """Return GraphML: lists joined by commas, nothing where there is no value; what XML can't hold is escaped as in JSON."""
    import networkx

    graph = networkx.MultiDiGraph()
    for node in lineage["nodes"]:
        graph.add_node(_xml(node["id"]), **_attributes(node, "id"))
    for edge in lineage["edges"]:
        graph.add_edge(_xml(edge["source"]), _xml(edge["target"]), key=edge["type"], type=edge["type"])
    return "\n".join(networkx.generate_graphml(graph))


def _attributes(item: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in item.items():
        if value is None or value == [] or key in left_out:
            continue
        if isinstance(value, bool | float):
            found[key] = value
        else:
            found[key] = _xml(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return found


def _xml(text: str) -> str:
    """Return text that XML can hold; no two texts become one."""
    return _NOT_XML.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", text)


# -- drawings ----------------------------------------------------------------------------------------------------------


def dot(lineage: Lineage) -> str:
    """Return a Graphviz graph: artifacts are notes, executions are boxes."""
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="Helvetica"];']
    numbers = {}
    for number, node in enumerate(lineage["nodes"]):
        numbers[node["id"]] = f"n{number}"
        shape = "note" if node["type"] == "artifact" else "box"
        style = "bold" if node["id"] in lineage["roots"] else "solid"
        label = "\\n".join(_dot(line) for line in _label_lines(node))
        lines.append(f'  n{number} [shape={shape}, style={style}, label="{label}", tooltip="{_dot(node["id"])}"];')
    for edge in lineage["edges"]:
        lines.append(f'  {numbers[edge["source"]]} -> {numbers[edge["target"]]} [label="{edge["type"]}"];')
    return "\n".join([*lines, "}"])


def _dot(text: object) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')


def mermaid(lineage: Lineage) -> str:
    """Return a Mermaid flowchart: artifacts are stadiums, executions are boxes."""
    lines = ["flowchart LR"]
    numbers = {}
    for number, node in enumerate(lineage["nodes"]):
        numbers[node["id"]] = f"n{number}"
        label = "<br/>".join(_mermaid(line) for line in _label_lines(node))
        lines.append(f'  n{number}(["{label}"])' if node["type"] == "artifact" else f'  n{number}["{label}"]')
    for edge in lineage["edges"]:
        lines.append(f"  {numbers[edge['source']]} -->|{edge['type']}| {numbers[edge['target']]}")
    return "\n".join(lines)


def _mermaid(text: object) -> str:
    return _NOT_MERMAID.sub(lambda found: f"#{ord(found[0])};", clean(text))


def _label_lines(node: Mapping[str, Any]) -> list[str]:
    if node["type"] == "artifact":
        return [node["label"], f"{short_content_id(node['id'])} {node['kind']}"]
    return [node["label"], " ".join(part for part in (node["status"], node["site"]) if part)]


FORMATS: Mapping[str, Callable[[Lineage], str]] = {
    "tree": tree,
    "json": as_json,
    "dot": dot,
    "mermaid": mermaid,
    "graphml": graphml,
}
