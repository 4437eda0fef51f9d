"""A lineage as indented text for people.

    model.pkl  md5:20f35e63  model  munich
    └── produced by mnist/train  0197a3c1-22f0  finished  munich  git 3fa9c1e  2025-06-01 12:00
        └── used data/train.csv  md5:61b3a8fa  dataset  berlin, munich
            └── produced by mnist/prepare  …

Rules
- One line for each way into a node; what follows from it is told the first time, later it is `(see above)`.
- Of several roots (a pipeline) it begins with those that nothing leads to, so that each node is reached; cycles begin anywhere.
- Depth first with a stack of its own: a chain may be longer than Python's recursion.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmf_graph.text import SHORT_COMMIT_CHARS, SHORT_EXECUTION_CHARS, clean, short_content_id, shorter

Lineage = Mapping[str, Any]
Item = Mapping[str, Any]
#: Deeper lines would be mostly blank; what is left out is said, and every other format has it.
DEPTH_MAX = 100
_NAME_CHARS_MAX = 120
_SITES_SHOWN = 3
_VERBS = {
    ("up", "produced"): "produced by",
    ("up", "used"): "used",
    ("down", "produced"): "produced",
    ("down", "used"): "used by",
}
_HEADINGS = {"up": "upstream: what it came from", "down": "downstream: what came of it"}


class _Branch(NamedTuple):
    """A line to come: the way to a node, whether others follow it on its level, and the indentation of the level."""

    verb: str
    node: str
    last: bool
    indent: str
    depth: int


def tree(lineage: Lineage) -> str:
    """Return the lineage as a tree."""
    nodes = {node["id"]: node for node in lineage["nodes"]}
    begin = _from_root if len(lineage["roots"]) == 1 else _from_many
    lines = begin(lineage, nodes)
    if lineage["truncated"]:
        lines.append(f"… at least {lineage['truncated']:,} more nodes were left out: raise --limit, or set --depth")
    return "\n".join(lines)


def _from_root(lineage: Lineage, nodes: Mapping[str, Item]) -> list[str]:
    root = lineage["roots"][0]
    lines = [line_of(nodes[root])]
    directions = ("up", "down") if lineage["direction"] == "both" else (lineage["direction"],)
    for direction in directions:
        children = _children(lineage, nodes, direction)
        below = list(_below(root, nodes, children, {root}))
        if len(directions) > 1 and below:
            lines.append(_HEADINGS[direction])
        lines += below
    return lines if len(lines) > 1 else [*lines, f"(nothing {_nothing(lineage['direction'])} is known here)"]


def _nothing(direction: str) -> str:
    return {"up": "upstream", "down": "downstream", "both": "up- or downstream"}[direction]


def _from_many(lineage: Lineage, nodes: Mapping[str, Item]) -> list[str]:
    direction = "up" if lineage["direction"] == "up" else "down"
    children = _children(lineage, nodes, direction)
    reached = {node for ways in children.values() for _, node in ways}
    lines = [f"{lineage['root_type']} {clean(lineage['root'])}  ({len(lineage['roots'])} executions)"]
    told: set[str] = set()
    for node in [*_by_age(nodes, set(nodes) - reached), *_by_age(nodes, reached)]:
        if node not in told:
            told.add(node)
            lines += [line_of(nodes[node]), *_below(node, nodes, children, told)]
    return lines


def _by_age(nodes: Mapping[str, Item], ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda id_: _age(nodes[id_]))


def _age(node: Item) -> tuple[str, str, str]:
    return node.get("started_at") or "", node["label"], node["id"]


def _children(lineage: Lineage, nodes: Mapping[str, Item], direction: str) -> Mapping[str, Sequence[tuple[str, str]]]:
    """Return node → the nodes one step away in that direction, each with the word for the step."""
    found: dict[str, list[tuple[str, str]]] = {}
    for edge in lineage["edges"]:
        start, end = (edge["target"], edge["source"]) if direction == "up" else (edge["source"], edge["target"])
        found.setdefault(start, []).append((_VERBS[direction, edge["type"]], end))
    for ways in found.values():
        ways.sort(key=lambda way: _age(nodes[way[1]]))
    return found


def _below(
    root: str, nodes: Mapping[str, Item], children: Mapping[str, Sequence[tuple[str, str]]], told: set[str]
) -> Iterator[str]:
    waiting = _branches(children.get(root, ()), "", 1)
    while waiting:
        branch = waiting.pop()
        known = branch.node in told
        told.add(branch.node)
        corner, beyond = ("└── ", "    ") if branch.last else ("├── ", "│   ")
        ways = children.get(branch.node, ())
        note = "  (see above)" if known and ways else ""
        yield f"{branch.indent}{corner}{branch.verb} {line_of(nodes[branch.node])}{note}"
        if known or not ways:
            continue
        if branch.depth >= DEPTH_MAX:
            yield f"{branch.indent}{beyond}└── … deeper than {DEPTH_MAX} steps: --format json has the rest"
            continue
        waiting += _branches(ways, branch.indent + beyond, branch.depth + 1)


def _branches(ways: Sequence[tuple[str, str]], indent: str, depth: int) -> list[_Branch]:
    """Return the branches of a level, the first one on top of the stack."""
    return [_Branch(verb, node, at == 0, indent, depth) for at, (verb, node) in enumerate(reversed(ways))]


def line_of(node: Item) -> str:
    """Return a node on one line."""
    parts = _artifact(node) if node["type"] == "artifact" else _execution(node)
    parts += [f"#{shorter(tag, 40)}" for tag in node["tags"]]
    if node["disputed"]:
        parts.append("(disputed)")
    if node.get("incomplete"):
        parts.append("(incomplete)")
    return "  ".join(part for part in parts if part)


def _artifact(node: Item) -> list[str]:
    more = len(node["names"]) - 1
    name = shorter(node["label"], _NAME_CHARS_MAX) + (f" (+{more} names)" if more > 0 else "")
    sites = [clean(site) for site in node["sites"][:_SITES_SHOWN]]
    if len(node["sites"]) > _SITES_SHOWN:
        sites.append(f"+{len(node['sites']) - _SITES_SHOWN}")
    short = short_content_id(node["id"])
    return [name, short if short != name else "", clean(node["kind"]), ", ".join(sites)]


def _execution(node: Item) -> list[str]:
    commit = node["git_commit"]
    started = (node["started_at"] or "")[:16].replace("T", " ")
    return [
        shorter(node["label"], _NAME_CHARS_MAX),
        f"“{shorter(node['name'], 60)}”" if node["name"] else "",
        node["id"][:SHORT_EXECUTION_CHARS],
        (node["status"] or "") + (" (sites disagree)" if node["status_conflict"] else ""),
        clean(node["site"] or ""),
        f"git {shorter(commit, SHORT_COMMIT_CHARS + 1).rstrip('…')[:SHORT_COMMIT_CHARS]}" if commit else "",
        started,
    ]
