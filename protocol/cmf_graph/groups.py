"""Pipelines and stages as items, with counts over their executions."""

from collections.abc import Mapping

from cmf_graph.items import Item, described_fields
from cmf_graph.reading import Reading, id_list
from cmf_protocol.resolve import NodeState


def group_items(states: Mapping[int, NodeState], reading: Reading) -> list[Item]:
    """Return these nodes, all pipelines or all stages, as items; `executions` and `artifacts` are counts."""
    column = next((state.node[0] for state in states.values()), "pipeline")
    source, values = _executions_of(column, states, reading)
    executions, sites = _count_executions(f"x.{column}", source, values, reading)
    artifacts = _count_artifacts(f"x.{column}", source, values, reading)
    return [
        {
            **_name(state),
            "executions": executions.get(node_id, 0),
            "artifacts": artifacts.get(node_id, 0),
            "sites": sorted(sites.get(node_id, ())),
            **described_fields(state, reading),
        }
        for node_id, state in states.items()
    ]


def _name(state: NodeState) -> Item:
    kind, id_ = state.node
    return {"name": id_} if kind == "pipeline" else {"name": id_[1], "pipeline": id_[0]}


def _executions_of(column: str, states: Mapping[int, NodeState], reading: Reading) -> tuple[str, list[str]]:
    """Return SQL, with its values, whose rows `x` are the executions of these pipelines or stages, found by the index on pipelines."""
    source = "json_each(?) p CROSS JOIN executions x ON x.pipeline = p.value"
    if column == "pipeline":
        return source, [id_list(states)]
    pipelines = {reading.graph.node_id(("pipeline", state.node[1][0])) or 0 for state in states.values()}
    return f"{source} AND x.stage IN (SELECT value FROM json_each(?))", [id_list(pipelines), id_list(states)]


def _count_executions(
    group: str, source: str, values: list[str], reading: Reading
) -> tuple[Mapping[int, int], Mapping[int, set[str]]]:
    counts: dict[int, int] = {}
    sites: dict[int, set[str]] = {}
    sql = f"SELECT {group}, x.branch, count(*) FROM {source} GROUP BY {group}, x.branch"
    for node_id, branch, count in reading.graph.rows(sql, values):
        counts[node_id] = counts.get(node_id, 0) + count
        if (site := reading.site(branch)) is not None:
            sites.setdefault(node_id, set()).add(site)
    return counts, sites


def _count_artifacts(group: str, source: str, values: list[str], reading: Reading) -> Mapping[int, int]:
    used = f"FROM {source} CROSS JOIN edges e ON e.execution = x.node WHERE e.said = 1"
    if not reading.aliases.merged:
        return dict(reading.graph.rows(f"SELECT {group}, count(DISTINCT e.artifact) {used} GROUP BY {group}", values))
    found: dict[int, set[int]] = {}
    for node_id, artifact in reading.graph.rows(f"SELECT DISTINCT {group}, e.artifact {used}", values):
        found.setdefault(node_id, set()).add(reading.aliases.canonical(artifact))
    return {node_id: len(artifacts) for node_id, artifacts in found.items()}
