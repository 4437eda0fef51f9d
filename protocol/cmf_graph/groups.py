"""Pipelines and stages as items, with counts over their executions."""

from collections.abc import Iterable, Mapping

from cmf_graph.items import Item, described_fields
from cmf_graph.reading import Reading, id_list
from cmf_protocol.resolve import NodeState


def group_items(node_ids: Iterable[int], reading: Reading) -> list[Item]:
    """Return these nodes, all pipelines or all stages, as items; `executions` and `artifacts` are counts."""
    states = reading.states(list(node_ids))
    column = next((state.node[0] for state in states.values()), "pipeline")
    executions, sites = _executions(column, states, reading)
    artifacts = _artifacts(column, states, reading)
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


def _executions(
    column: str, node_ids: Iterable[int], reading: Reading
) -> tuple[Mapping[int, int], Mapping[int, set[str]]]:
    sql = (
        f"SELECT x.{column}, x.branch, count(*) FROM json_each(?) j CROSS JOIN executions x ON x.{column} = j.value "
        f"GROUP BY x.{column}, x.branch"
    )
    counts: dict[int, int] = {}
    sites: dict[int, set[str]] = {}
    for node_id, branch, count in reading.graph.rows(sql, (id_list(node_ids),)):
        counts[node_id] = counts.get(node_id, 0) + count
        if (site := reading.site(branch)) is not None:
            sites.setdefault(node_id, set()).add(site)
    return counts, sites


def _artifacts(column: str, node_ids: Iterable[int], reading: Reading) -> Mapping[int, int]:
    used = (
        f"FROM json_each(?) j CROSS JOIN executions x ON x.{column} = j.value "
        "CROSS JOIN edges e ON e.execution = x.node WHERE e.said = 1"
    )
    if not reading.aliases.merged:
        sql = f"SELECT x.{column}, count(DISTINCT e.artifact) {used} GROUP BY x.{column}"
        return dict(reading.graph.rows(sql, (id_list(node_ids),)))
    found: dict[int, set[int]] = {}
    for node_id, artifact in reading.graph.rows(f"SELECT DISTINCT x.{column}, e.artifact {used}", (id_list(node_ids),)):
        found.setdefault(node_id, set()).add(reading.aliases.canonical(artifact))
    return {node_id: len(artifacts) for node_id, artifacts in found.items()}
