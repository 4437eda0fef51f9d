"""One node as all events about it say (protocol/README.md, sections 8 and 9). Pure.

Theory of operation: every rule of the fold looks only at the events about one node (retractions repeat the `about` of their target), and
at which event is later than which. So a store keeps events by node, and a node is resolved from them when it is read.

Rules
- Nothing depends on the order in which statements come.
- *Later* is asked of `Chains`; sets of statements are reduced per branch first, so that the cost stays linear.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cmf_protocol import types as t
from cmf_protocol.encoding import Value, encode
from cmf_protocol.events import Node
from cmf_protocol.fold import ALWAYS_SAID, stated

_RANK = {"running": 0, "finished": 1, "interrupted": 2, "failed": 3}


class Said(NamedTuple):
    """One folded event about a node: where it stands in its log, and what it says."""

    branch: int
    sequence: int
    clock: int
    event_id: bytes
    wall_us: int
    type: str
    about: tuple[Node, ...]
    body: Mapping[str, Value]

    @property
    def tie(self) -> tuple[int, bytes]:
        """What decides between statements of which none is later."""
        return self.clock, self.event_id


@dataclass
class Chains:
    """Which event is later than which: branches (a store's numbers), what they go on from, and the trees that they are part of.

    `parents` maps a branch to (branch, sequence) of the event before its first, through proven successions too; `trees` maps a
    branch to its tree, `successions` a tree to the tree that it provably succeeds.
    """

    parents: dict[int, tuple[int, int]] = field(default_factory=dict)
    trees: dict[int, int] = field(default_factory=dict)
    successions: dict[int, int] = field(default_factory=dict)

    def before(self, branch: int) -> Iterator[tuple[int, int]]:
        """Yield (branch, sequence) down to which each branch below `branch` leads to it."""
        seen = {branch}
        place = self.parents.get(branch)
        while place is not None and place[0] not in seen:  # hostile successions could make a ring
            seen.add(place[0])
            yield place
            place = self.parents.get(place[0])

    def is_later(self, later: Said, earlier: Said) -> bool:
        """Tell if `later` is reached only through `earlier`."""
        if later.branch == earlier.branch:
            return later.sequence > earlier.sequence
        return any(b == earlier.branch and s >= earlier.sequence for b, s in self.before(later.branch))

    def predecessors(self, tree: int) -> Iterator[int]:
        """Yield the tree and those that it provably succeeds, the first one last."""
        seen: set[int] = set()
        current: int | None = tree
        while current is not None and current not in seen:
            seen.add(current)
            yield current
            current = self.successions.get(current)

    def first_tree(self, branch: int) -> int:
        """Return the tree at the beginning of the successions that lead to this branch."""
        return list(self.predecessors(self.trees[branch]))[-1]

    def latest(self, statements: Iterable[Said]) -> list[Said]:
        """Return the statements that no other of them is later than."""
        best: dict[int, Said] = {}
        for said in statements:
            known = best.get(said.branch)
            if known is None or said.sequence > known.sequence:
                best[said.branch] = said
        if len(best) == 1:
            return list(best.values())
        passed: dict[int, int] = {}
        for branch in best:
            for below, sequence in self.before(branch):
                passed[below] = max(passed.get(below, 0), sequence)
        return [said for branch, said in best.items() if said.sequence > passed.get(branch, 0)]


class Candidate(NamedTuple):
    """A value, its canonical bytes, and the event that states it."""

    value: Value
    canonical: bytes
    by: Said


class Resolved(NamedTuple):
    """One value as it is shown, with all candidates (several are a conflict), sorted by their canonical bytes."""

    shown: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def conflict(self) -> bool:
        """Whether sites or branches disagree."""
        return len(self.candidates) > 1


class Status(NamedTuple):
    """An execution's status: running, finished, interrupted or failed; times in µs UTC."""

    status: str
    at: int
    exit_code: int | None
    error: Mapping[str, str] | None
    by: Said


class Remark(NamedTuple):
    """A note (target None, text) or a dispute (of an event or, with target None, of the node; text is the reason)."""

    by: Said
    target: bytes | None
    text: str


@dataclass
class NodeState:
    """Everything that is said of one node."""

    node: Node
    values: dict[tuple[str, str], Resolved]
    tags: list[str]
    notes: list[Remark]
    disputes: list[Remark]
    used: list[str]
    produced: list[str]
    names: list[str]
    aliases: list[str]
    statuses: list[Status]
    started: int | None
    said: list[Said]

    def value(self, key: str, space: str = "facts") -> Value:
        """Return the shown value of a key, or None."""
        resolved = self.values.get((space, key))
        return None if resolved is None else resolved.shown.value

    def space(self, space: str) -> dict[str, Value]:
        """Return the shown values of a space, by key."""
        return {key: r.shown.value for (s, key), r in sorted(self.values.items()) if s == space}

    def steps(self, chains: Chains) -> "dict[tuple[str, str], dict[int, Resolved]]":
        """Return the step metrics, (name, series) → step → value."""
        return resolve_steps(self.said, chains)


def resolve(node: Node, statements: Iterable[Said], chains: Chains) -> NodeState:
    """Resolve a node from all folded events about it, in any order."""
    every = list(statements)
    disputes, unsaid = retractions(every, chains)
    said = [s for s in every if s.event_id not in unsaid]
    return NodeState(
        node=node,
        values=_resolve_values(node, said, chains),
        tags=_tags(said),
        notes=sorted((Remark(s, None, s.body["text"]) for s in said if s.type == t.NOTE_ADDED), key=_remark_key),
        disputes=disputes,
        used=_other_ends(node, said, t.ARTIFACT_USED),
        produced=_other_ends(node, said, t.ARTIFACT_PRODUCED),
        names=_names(node, said),
        aliases=_aliases(node, said),
        statuses=resolve_statuses(said, chains) if node[0] == "execution" else [],
        started=resolve_start(said, chains) if node[0] == "execution" else None,
        said=said,
    )


def _remark_key(remark: Remark) -> bytes:
    return remark.by.event_id


def retractions(statements: Sequence[Said], chains: Chains) -> tuple[list[Remark], set[bytes]]:
    """Return the disputes that stand, and the ids of the events that are unsaid."""
    by_id = {s.event_id: s for s in statements}
    withdrawn: set[bytes] = set()
    for s in statements:
        if s.type == t.UNRETRACTED:
            target = by_id.get(s.body["retraction"])
            if target is not None and target.type == t.RETRACTED and _reaches(s, target, chains):
                withdrawn.add(target.event_id)
    disputes, unsaid = [], set()
    for s in statements:
        if s.type != t.RETRACTED or s.event_id in withdrawn:
            continue
        event: bytes | None = s.body.get("event")
        target = None if event is None else by_id.get(event)
        if target is not None and target.type not in ALWAYS_SAID and _reaches(s, target, chains):
            unsaid.add(target.event_id)
        else:
            disputes.append(Remark(s, event, s.body["reason"]))
    return sorted(disputes, key=_remark_key), unsaid


def _reaches(later: Said, target: Said, chains: Chains) -> bool:
    return later.about == target.about and chains.is_later(later, target)


# -- values ----------------------------------------------------------------------------------------------------------


def _resolve_values(node: Node, said: Iterable[Said], chains: Chains) -> dict[tuple[str, str], Resolved]:
    by_key: dict[tuple[str, str], list[tuple[Said, Value]]] = {}
    for s in said:
        for space, key, value in stated(node, s.type, s.about, dict(s.body)):
            by_key.setdefault((space, key), []).append((s, value))
    return {key: resolve_value(found, chains) for key, found in by_key.items()}


def resolve_value(found: Sequence[tuple[Said, Value]], chains: Chains) -> Resolved:
    """Resolve the statements (event, value) of one key."""
    values = {s.event_id: value for s, value in found}
    latest = [s for s, _ in found] if len(found) == 1 else chains.latest(s for s, _ in found)
    candidates: dict[bytes, Candidate] = {}
    for s in sorted(latest, key=lambda s: s.tie):  # of equal values the highest event stays
        canonical = encode(values[s.event_id])
        candidates[canonical] = Candidate(values[s.event_id], canonical, s)
    shown = max(candidates.values(), key=lambda c: c.by.tie)
    return Resolved(shown, tuple(candidates[c] for c in sorted(candidates)))


def resolve_steps(said: Iterable[Said], chains: Chains) -> dict[tuple[str, str], dict[int, Resolved]]:
    """Resolve step metrics, (name, series) → step → value; within one branch only the latest statement of a step is looked at."""
    rows: dict[tuple[str, str], dict[int, dict[int, tuple[Said, Value]]]] = {}
    for s in sorted((s for s in said if s.type == t.METRICS_RECORDED), key=lambda s: s.sequence):
        for name, series, steps, values, _ in s.body.get("steps", ()):
            by_step = rows.setdefault((name, series), {})
            for step, value in zip(steps, values, strict=True):
                by_step.setdefault(step, {})[s.branch] = (s, value)
    return {
        key: {step: resolve_value(list(found.values()), chains) for step, found in sorted(by_step.items())}
        for key, by_step in rows.items()
    }


# -- sets ------------------------------------------------------------------------------------------------------------


def _tags(said: Sequence[Said]) -> list[str]:
    removed = {(s.body["tag"], add) for s in said if s.type == t.TAG_REMOVED for add in s.body["adds"]}
    return sorted({s.body["tag"] for s in said if s.type == t.TAG_ADDED and (s.body["tag"], s.event_id) not in removed})


def _other_ends(node: Node, said: Iterable[Said], type_: str) -> list[str]:
    if node[0] != "execution":
        return []
    return sorted({id_ for s in said if s.type == type_ for kind, id_ in s.about if kind == "artifact"})


def _names(node: Node, said: Iterable[Said]) -> list[str]:
    if node[0] != "artifact":
        return []
    return sorted({s.body["name"] for s in said if s.type in _USING and "name" in s.body})


_USING = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED))
_ALIASING = frozenset((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED, t.ENVIRONMENT_RECORDED))


def _aliases(node: Node, said: Iterable[Said]) -> list[str]:
    if node[0] != "artifact":
        return []
    found = {digest for s in said if s.type in _ALIASING for digest in s.body.get("digests", ())}
    return sorted(found - {node[1]})


# -- status ----------------------------------------------------------------------------------------------------------


def _counting(said: Sequence[Said], chains: Chains) -> list[Said]:
    """Return started and finished events of trees that hold a started one, and of their proven successors."""
    holding = {chains.trees[s.branch] for s in said if s.type == t.EXECUTION_STARTED}
    return [
        s
        for s in said
        if s.type == t.EXECUTION_STARTED
        or (s.type == t.EXECUTION_FINISHED and not holding.isdisjoint(chains.predecessors(chains.trees[s.branch])))
    ]


def _by_first_tree(statements: Iterable[Said], chains: Chains, key: Callable[[Said], object]) -> list[Said]:
    """Return, for each first tree, the statement that holds there: the highest by `key`, then by clock and id; the shown one first."""
    groups: dict[int, list[Said]] = {}
    for s in chains.latest(statements):
        groups.setdefault(chains.first_tree(s.branch), []).append(s)
    holding = [max(group, key=lambda s: (key(s), s.tie)) for group in groups.values()]
    return sorted(holding, key=lambda s: s.tie, reverse=True)


def _status_of(s: Said) -> str:
    return "running" if s.type == t.EXECUTION_STARTED else str(s.body["status"])


def resolve_statuses(said: Sequence[Said], chains: Chains) -> list[Status]:
    """Return an execution's status, the shown one first, then those of unrelated logs that differ."""
    counting = _counting(said, chains)
    if not counting:
        return []
    found: dict[str, Status] = {}
    for s in _by_first_tree(counting, chains, lambda s: _RANK[_status_of(s)]):
        status = _status_of(s)
        at = s.body.get("at", s.wall_us)
        ended = s.body if s.type == t.EXECUTION_FINISHED else {}  # elsewhere these keys are unknown ones, of any form
        found.setdefault(status, Status(status, at, ended.get("exit_code"), ended.get("error"), s))
    return list(found.values())


def resolve_start(said: Sequence[Said], chains: Chains) -> int | None:
    """Return when the execution started, µs UTC; None if no `started` event says it."""
    starts = [s for s in said if s.type == t.EXECUTION_STARTED]
    if not starts:
        return None
    shown = _by_first_tree(starts, chains, lambda _: 0)[0]
    return int(shown.body.get("at", shown.wall_us))


# -- digest ----------------------------------------------------------------------------------------------------------


def digest_row(state: NodeState, chains: Chains, logs: Sequence[tuple[bytes, bytes, bytes | None]] = ()) -> bytes:
    """Return a node's row of the digest; `logs` are a key's (log id, root event id, predecessor's event id if proven)."""
    row: dict[str, Value] = {
        "values": sorted(
            [space, key, [c.canonical for c in r.candidates], r.shown.canonical]
            for (space, key), r in state.values.items()
        ),
        "tags": state.tags,
        "notes": [[r.by.event_id, r.text] for r in state.notes],
        "disputes": [[r.by.event_id, r.target, r.text] for r in state.disputes],
        "used": state.used,
        "produced": state.produced,
        "status": _status_rows(state.statuses),
        "started": state.started,
        "steps": _step_rows(state.steps(chains)) if state.node[0] == "execution" else [],
        "names": state.names,
        "aliases": state.aliases,
        "logs": sorted(([log_id, root, before] for log_id, root, before in logs), key=encode),
    }
    kept = {key: value for key, value in row.items() if value not in (None, [])}
    return encode([encode(list(state.node)), kept])


def _status_rows(statuses: Sequence[Status]) -> list[bytes]:
    rows = [encode([s.status, s.at, s.exit_code, None if s.error is None else dict(s.error)]) for s in statuses]
    return rows[:1] + sorted(rows[1:])


def _step_rows(steps: Mapping[tuple[str, str], Mapping[int, Resolved]]) -> list[Value]:
    return [
        [
            name,
            series,
            [[step, [c.canonical for c in r.candidates], r.shown.canonical] for step, r in rows.items()],
        ]
        for (name, series), rows in sorted(steps.items())
    ]
