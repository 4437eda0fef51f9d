"""Resolved nodes as the items of answers: plain values with the field names that scripts rely on (design, section 6).

Rules
- Everything in an item can be written as JSON: bin is hex, special floats are text, times are RFC 3339 in UTC.
- What sites disagree about is in `conflicts`, what somebody disputes in `disputes`, with the site that says it.
- An artifact of which nobody stated a kind is shown as a dataset, an execution as a step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cmf_graph.aliases import claims, is_md5
from cmf_graph.filters import ARTIFACT_KIND_DEFAULT, EXECUTION_KIND_DEFAULT
from cmf_graph.reading import Reading
from cmf_graph.text import execution_text
from cmf_graph.times import rfc3339
from cmf_protocol import types as t
from cmf_protocol.encoding import Value, to_json
from cmf_protocol.resolve import NodeState, Remark, Said, resolve_value

Item = dict[str, Any]
#: (name, series) → (highest step, value there)
LastSteps = dict[tuple[str, str], tuple[int, Value]]
#: Points of one metric series that `show` gives: the last ones.
POINTS_MAX = 1_000
_SHA256 = "sha256:"


def text_of(value: Value) -> str | None:
    """Return a value that should be text, or None."""
    return value if isinstance(value, str) else None


def site_of(state: NodeState, reading: Reading) -> str | None:
    """Return the site that ran an execution: whose log its shown status is from, or else who spoke of it last."""
    if state.statuses:
        return reading.site(state.statuses[0].by.branch)
    latest = max(state.said, key=lambda s: s.tie, default=None)
    return None if latest is None else reading.site(latest.branch)


def stage_of(state: NodeState) -> tuple[str | None, str | None]:
    """Return an execution's pipeline and stage; (None, None) if nobody stated them, or what was stated is none."""
    stage = state.value("stage")
    if isinstance(stage, tuple) and len(stage) == 2 and isinstance(stage[0], str) and isinstance(stage[1], str):
        return stage
    return None, None


def remarks(found: Iterable[Remark], reading: Reading) -> list[Item]:
    """Return notes or disputes; `event` is the disputed event, null where it is the node."""
    return [
        {
            "event_id": r.by.event_id.hex(),
            "event": None if r.target is None else r.target.hex(),
            "text": r.text,
            "site": reading.site(r.by.branch),
            "at": rfc3339(r.by.wall_us),
        }
        for r in found
    ]


def conflicts(state: NodeState, reading: Reading) -> list[Item]:
    """Return what is stated differently by statements of which none is later; the value that is shown comes first."""
    found = []
    for (space, key), resolved in sorted(state.values.items()):
        if resolved.conflict:
            ordered = sorted(resolved.candidates, key=lambda c: c.by.tie, reverse=True)
            values = [_candidate(to_json(c.value), c.by, reading) for c in ordered]
            found.append({"space": space, "key": key, "values": values})
    if len(state.statuses) > 1:
        values = [_candidate(s.status, s.by, reading) for s in state.statuses]
        found.append({"space": "status", "key": "status", "values": values})
    return found


def _candidate(value: Value, by: Said, reading: Reading) -> Item:
    return {"value": value, "site": reading.site(by.branch), "event_id": by.event_id.hex()}


def described_fields(state: NodeState, reading: Reading) -> Item:
    """Return the fields that every kind of node has."""
    return {
        "properties": to_json(state.space("properties")),
        "tags": state.tags,
        "disputes": remarks(state.disputes, reading),
        "conflicts": conflicts(state, reading),
    }


# -- executions --------------------------------------------------------------------------------------------------------


def last_steps(state: NodeState, reading: Reading) -> LastSteps:
    """Return the value at the highest step of each series, looking closely only at the events that hold that step."""
    highest: dict[tuple[str, str], tuple[int, list[tuple[Said, Value]]]] = {}
    for s in state.said:
        if s.type != t.METRICS_RECORDED:
            continue
        for name, series, steps, values, _ in s.body.get("steps", ()):
            step = max(steps)
            best, found = highest.get((name, series), (step, []))
            if step < best:
                continue
            if step > best:
                found = []
            at = len(steps) - 1 - steps[::-1].index(step)  # the last place counts
            if found and found[-1][0] is s:
                found.pop()
            highest[name, series] = step, [*found, (s, values[at])]
    return {
        key: (step, resolve_value(found, reading.chains).shown.value) for key, (step, found) in sorted(highest.items())
    }


def metrics_of(state: NodeState, reading: Reading) -> dict[str, tuple[Value, int | None]]:
    """Return name → (value, step): values stated without steps, and for other names the value at the highest step of any series.

    An agent states the last value of a series without its step too: where it is the one at the highest step, that is its step.
    """
    found: dict[str, tuple[Value, int | None]] = {}
    for (name, _), (step, value) in last_steps(state, reading).items():
        known = found.get(name)
        if known is None or step > (known[1] or 0):
            found[name] = value, step
    for name, value in state.space("metrics").items():
        known = found.get(name)
        found[name] = value, known[1] if known is not None and to_json(known[0]) == to_json(value) else None
    return dict(sorted(found.items()))


def execution_items(states: Mapping[int, NodeState], reading: Reading) -> list[Item]:
    """Return these executions as items."""
    content_ids = {reading.aliases.content_id(id_) for s in states.values() for id_ in (*s.used, *s.produced)}
    artifacts = reading.artifacts(content_ids)
    names = reading.names(node_id for node_id, _ in artifacts.values())
    labels = {
        content_id: (next(iter(names.get(node_id, ())), None), kind or ARTIFACT_KIND_DEFAULT)
        for content_id, (node_id, kind) in artifacts.items()
    }
    return [_execution_item(state, labels, reading) for state in states.values()]


def _execution_item(state: NodeState, labels: Mapping[str, tuple[str | None, str]], reading: Reading) -> Item:
    pipeline, stage = stage_of(state)
    status = state.statuses[0] if state.statuses else None
    ended = status is not None and status.status != "running"
    facts = {key: to_json(value) for key, value in state.space("facts").items()}
    return {
        "id": execution_text(state.node[1]),
        "pipeline": pipeline,
        "stage": stage,
        "name": facts.get("name"),
        "kind": text_of(facts.get("kind")) or EXECUTION_KIND_DEFAULT,
        "status": None if status is None else status.status,
        "site": site_of(state, reading),
        **{key: facts.get(key) for key in ("actor", "user", "team", "host")},
        "started_at": rfc3339(state.started),
        "finished_at": rfc3339(status.at) if status is not None and ended else None,
        "params": to_json(state.space("params")),
        "metrics": {name: to_json(value) for name, (value, _) in metrics_of(state, reading).items()},
        **{key: facts.get(key) for key in ("git_commit", "git_branch", "git_dirty", "git_repo", "command")},
        "exit_code": None if status is None else status.exit_code,
        "error": None if status is None or status.error is None else dict(status.error),
        "environment": facts.get("environment"),
        "inputs": _usages(state, t.ARTIFACT_USED, labels, reading),
        "outputs": _usages(state, t.ARTIFACT_PRODUCED, labels, reading),
        **described_fields(state, reading),
    }


def _usages(state: NodeState, type_: str, labels: Mapping[str, tuple[str | None, str]], reading: Reading) -> list[Item]:
    """Return what an execution used or produced: each content under each name that the execution knew it by."""
    named: dict[str, set[str]] = {}
    for s in state.said:
        if s.type == type_:
            own = named.setdefault(reading.aliases.content_id(s.about[0][1]), set())
            if "name" in s.body:
                own.add(s.body["name"])
    found: list[Item] = []
    for content_id, own in named.items():
        label, kind = labels.get(content_id, (None, ARTIFACT_KIND_DEFAULT))
        names: list[str | None] = [*sorted(own)] or [label]
        found += [{"content_id": content_id, "name": name, "kind": kind} for name in names]
    return sorted(found, key=lambda usage: (usage["name"] or "", usage["content_id"]))


def metric_steps(state: NodeState, reading: Reading) -> list[Item]:
    """Return each series of an execution with its last points; `at` is when the point was recorded."""
    offsets: dict[tuple[bytes, str, str, int], int] = {}
    for s in state.said:
        if s.type == t.METRICS_RECORDED:
            for name, series, steps, _, block_offsets in s.body.get("steps", ()):
                offsets.update(
                    ((s.event_id, name, series, step), us) for step, us in zip(steps, block_offsets, strict=True)
                )
    found = []
    for (name, series), by_step in sorted(state.steps(reading.chains).items()):
        points = []
        for step, resolved in list(by_step.items())[-POINTS_MAX:]:
            by = resolved.shown.by
            at = rfc3339(by.wall_us + offsets[by.event_id, name, series, step])
            point = {"step": step, "value": to_json(resolved.shown.value), "at": at}
            if resolved.conflict:
                point["values"] = [to_json(c.value) for c in resolved.candidates]
            points.append(point)
        found.append({"name": name, "series": series, "count": len(by_step), "points": points})
    return found


# -- artifacts ---------------------------------------------------------------------------------------------------------


def artifact_items(states: Mapping[int, NodeState], reading: Reading) -> list[Item]:
    """Return these artifacts as items."""
    sites = reading.artifact_sites(states)
    owners = reading.aliases.with_members(states)
    nodes = reading.nodes(owners)
    digests: dict[int, list[str]] = {node_id: [] for node_id in states}
    for member, owner in owners.items():
        digests[owner].append(nodes[member][1])
    for node_id, state in states.items():
        own = digests[node_id][0]
        digests[node_id] = [own, *sorted({*digests[node_id][1:], *state.aliases} - {own})]
    others = {digest for found in digests.values() for digest in found if not is_md5(digest)}
    claimed = claims(reading.graph, others)
    return [
        _artifact_item(state, digests[node_id], sites[node_id], claimed, reading) for node_id, state in states.items()
    ]


def _artifact_item(
    state: NodeState, digests: list[str], sites: list[str], claimed: Mapping[str, list[str]], reading: Reading
) -> Item:
    ambiguous = [{"digest": d, "claimed_by": claimed[d]} for d in digests if len(claimed.get(d, ())) > 1]
    several = is_md5(digests[0]) and sum(digest.startswith(_SHA256) for digest in digests) > 1
    size = state.value("size")
    return {
        "content_id": digests[0],
        "digests": digests,
        "kind": text_of(state.value("kind")) or ARTIFACT_KIND_DEFAULT,
        "names": state.names,
        "size": size if type(size) is int else None,
        "sites": sites,
        **described_fields(state, reading),
        "ambiguous": ambiguous,
        "flags": ["several sha256 of one md5"] if several else [],
    }
