"""Executions and artifacts by the few fields that many of them are shown with: nodes of a lineage, users of an artifact.

Theory of operation: resolving ten thousand nodes takes a second. So what the columns say is read from the columns, and the facts that are
in no column come from the bodies of an execution's `started` and `updated` events, the last one counting. That is right where one branch
alone speaks of an execution and nothing of it is retracted (its row is not `mixed`); every other execution, and every node with tags or
disputes, is resolved.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from cmf_graph.filters import ARTIFACT_KIND_DEFAULT, EXECUTION_KIND_DEFAULT
from cmf_graph.items import Item, site_of, stage_of, text_of
from cmf_graph.reading import Reading, id_list, type_is
from cmf_graph.schema import KIND_CODES, node_of, unpack_event
from cmf_graph.text import execution_text, short_content_id
from cmf_graph.times import rfc3339
from cmf_protocol import types as t
from cmf_protocol.encoding import to_json
from cmf_protocol.events import trusted_body
from cmf_protocol.resolve import NodeState

_FACTS = ("name", "git_commit")
_REMARKS = (t.TAG_ADDED, t.RETRACTED)
_EXECUTIONS = (
    "SELECT x.node, n.key, s.key, x.kind, x.status, x.started_us, x.finished_us, x.branch, x.mixed "
    "FROM json_each(?) j CROSS JOIN executions x ON x.node = j.value CROSS JOIN nodes n ON n.id = x.node "
    "LEFT JOIN nodes s ON s.id = x.stage"
)
_BODIES = (
    f"SELECT a.node, {type_is(*_REMARKS)}, e.header_size, e.data FROM json_each(?) j CROSS JOIN about a ON a.node = j.value "
    f"CROSS JOIN events e ON e.id = a.event WHERE {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED, *_REMARKS)} "
    "ORDER BY a.node, e.sequence"
)
_REMARKED = (
    "SELECT DISTINCT a.node FROM json_each(?) j CROSS JOIN about a ON a.node = j.value "
    f"CROSS JOIN events e ON e.id = a.event WHERE {type_is(*_REMARKS)}"
)


def execution_summaries(node_ids: Sequence[int], reading: Reading) -> dict[int, Item]:
    """Return what a lineage shows of these executions."""
    facts: dict[int, dict[str, Any]] = {}
    remarked = set()
    for node_id, is_remark, header_size, data in reading.graph.rows(_BODIES, (id_list(node_ids),)):
        if is_remark:
            remarked.add(node_id)
        else:
            stated = trusted_body(unpack_event(header_size, data)[2] or b"").get("facts", {})
            facts.setdefault(node_id, {}).update((key, stated[key]) for key in _FACTS if key in stated)
    found = {}
    for node_id, key, stage, kind, status, start, end, branch, mixed in reading.graph.rows(
        _EXECUTIONS, (id_list(node_ids),)
    ):
        place = (None, None) if stage is None else node_of(KIND_CODES["stage"], stage)[1]
        if mixed or branch is None:
            remarked.add(node_id)
        found[node_id] = _execution(
            key, place, kind, status, (start, end), reading.site(branch), facts.get(node_id, {})
        )
    for node_id, state in reading.states(sorted(remarked)).items():
        found[node_id] = _resolved_execution(state, reading)
    return found


def _execution(
    key: bytes,
    place: tuple[str | None, str | None],
    kind: str | None,
    status: str | None,
    times_us: tuple[int | None, int | None],
    site: str | None,
    facts: dict[str, Any],
) -> Item:
    pipeline, stage = place
    id_ = execution_text(key)
    return {
        "id": id_,
        "type": "execution",
        "label": f"{pipeline}/{stage}" if pipeline else text_of(facts.get("name")) or id_,
        "kind": kind or EXECUTION_KIND_DEFAULT,
        "status": status,
        "pipeline": pipeline,
        "stage": stage,
        "name": to_json(facts.get("name")),
        "site": site,
        "started_at": rfc3339(times_us[0]),
        "finished_at": rfc3339(times_us[1]),
        "git_commit": to_json(facts.get("git_commit")),
        "tags": [],
        "disputed": False,
        "status_conflict": False,
    }


def _resolved_execution(state: NodeState, reading: Reading) -> Item:
    status = state.statuses[0] if state.statuses else None
    ended = status is not None and status.status != "running"
    times_us = state.started, status.at if status is not None and ended else None
    item = _execution(
        state.node[1],
        stage_of(state),
        text_of(state.value("kind")),
        None if status is None else status.status,
        times_us,
        site_of(state, reading),
        {key: state.value(key) for key in _FACTS},
    )
    return item | _remarks(state) | {"status_conflict": len(state.statuses) > 1}


def artifact_summaries(node_ids: Sequence[int], reading: Reading) -> dict[int, Item]:
    """Return what a lineage shows of these artifacts."""
    names, sites = reading.names(node_ids), reading.artifact_sites(node_ids)
    sql = (
        "SELECT a.node, n.key, a.kind FROM json_each(?) j CROSS JOIN artifacts a ON a.node = j.value "
        "CROSS JOIN nodes n ON n.id = a.node"
    )
    found = {}
    for node_id, key, kind in reading.graph.rows(sql, (id_list(node_ids),)):
        own = names.get(node_id, [])
        found[node_id] = {
            "id": key,
            "type": "artifact",
            "label": own[0] if own else short_content_id(key),
            "kind": kind or ARTIFACT_KIND_DEFAULT,
            "names": own,
            "sites": sites[node_id],
            "tags": [],
            "disputed": False,
        }
    owners = reading.aliases.with_members(node_ids)
    remarked = {owners[node] for (node,) in reading.graph.rows(_REMARKED, (id_list(owners),))}
    remarked |= {owner for member, owner in owners.items() if member != owner}
    for node_id, state in reading.states(sorted(remarked), tables=False).items():
        found[node_id] |= _remarks(state)
        found[node_id]["kind"] = text_of(state.value("kind")) or ARTIFACT_KIND_DEFAULT
    return found


def _remarks(state: NodeState) -> Item:
    return {"tags": state.tags, "disputed": bool(state.disputes)}


def in_order(summaries: Iterable[Item]) -> list[Item]:
    """Return executions newest first, those without a start last."""
    return sorted(summaries, key=lambda item: (item["started_at"] or "", item["id"]), reverse=True)
