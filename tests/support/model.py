"""A plain model of what a set of events means: sections 8 and 9 of protocol/README.md, naive on purpose.

    model = Model(events)          # any order, repetitions allowed; each event's previous one is in the set, or a gap is accepted
    Model(events, signers)         # event id → key that signed it: what decides where an event beyond a gap may go on
    model.digest()                 # 32 bytes, as every store of these events must say
    model.events_digest()          # 32 bytes
    model.unfolded                 # how many events have no effect
    model.nodes(), model.edges()   # {(kind, id)}, {(execution, "used" | "produced", content id)}
    model.values(node)             # {(space, key): Choice(candidates, shown)}; candidates are canonical bytes
    model.steps(execution)         # {(name, series, step): Choice}
    model.statuses(execution)      # [(status, at, exit code, error)], the shown one first
    model.tags(node), .names(id), .aliases(id), .notes(node), .disputes(node), .started(execution), .logs(key)
    model.row(node)                # the node's row of the digest; `first_difference(model, rows)` names a row that differs

Rules
- Nothing of `cmf_protocol` but the bytes of `Event` is used: reading and writing are the second decoder's.
- *Later* is an explicit set of ancestors for each event, made by walking previous ids, accepted gaps and proven successions.
- Quadratic and worse: for some hundred events.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

from tests.support import second_decoder as second

from cmf_protocol.events import Event

Node = tuple[str, Any]
RANKS = ("running", "finished", "interrupted", "failed")
_SPACES_BY_TYPE = {
    "pipeline.described": ("facts", "params", "properties"),
    "stage.described": ("facts", "params", "properties"),
    "execution.started": ("facts", "params", "properties"),
    "execution.updated": ("facts", "params", "properties"),
    "artifact.used": ("facts", "properties"),
    "artifact.produced": ("facts", "properties"),
    "metrics.recorded": ("metrics",),
}
_VALUES_OF: dict[str, tuple[str, ...]] = {
    "pipeline": ("pipeline.described",),
    "stage": ("stage.described",),
    "execution": ("execution.started", "execution.updated", "metrics.recorded"),
    "artifact": (
        "artifact.used",
        "artifact.produced",
        "environment.recorded",
        "artifact.stored",
        "table.recorded",
        "label.attached",
        "slice.recorded",
    ),
}


class Choice(NamedTuple):
    """The values that remain, as sorted canonical bytes, and the one that is shown."""

    candidates: tuple[bytes, ...]
    shown: bytes


class Fact(NamedTuple):
    """One folded event."""

    event: second.SecondEvent
    about: tuple[Node, ...]
    body: dict[str, Any]

    @property
    def id(self) -> bytes:
        return self.event.event_id

    @property
    def type(self) -> str:
        return self.event.type

    @property
    def tie(self) -> tuple[int, bytes]:
        return self.event.clock, self.event.event_id


def as_node(entry: Any) -> Node:
    """Return an entry of `about` as a tuple that can be a key."""
    kind, id_ = entry
    return kind, tuple(id_) if isinstance(id_, list) else id_


class Model:
    """What a set of events means."""

    def __init__(self, events: Iterable[Event], signers: Mapping[bytes, bytes] | None = None) -> None:
        self.signers = signers
        self.stored: dict[bytes, second.SecondEvent] = {}
        for event in events:
            read = second.read_event(event.header_bytes, event.body)
            self.stored[read.event_id] = read
        self.facts: dict[bytes, Fact] = {}
        for id_, event_ in self.stored.items():
            body = second.folded_body(event_)
            if body is not None:
                self.facts[id_] = Fact(event_, tuple(as_node(entry) for entry in event_.about), body)
        for event_ in self.stored.values():
            assert event_.previous is None or self.before(event_.event_id), "the event before one is missing"

    @property
    def unfolded(self) -> int:
        return len(self.stored) - len(self.facts)

    # -- chains (section 5) --------------------------------------------------------------------------------------------

    def before(self, id_: bytes) -> bytes | None:
        """Return the event before this one; None before a root."""
        event = self.stored[id_]
        previous = self.stored.get(event.previous or b"")
        if previous is not None and (previous.log_id, previous.sequence + 1) == (event.log_id, event.sequence):
            return previous.event_id
        accepted = [place for place in self._accepted.get(id_, []) if self._may_go_on(place[1], id_)]
        return max(accepted, default=(0, None))[1]

    @cached_property
    def _accepted(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """Return, for each event before which a gap is accepted, those (sequence, id) that may stand before it."""
        found: dict[bytes, list[tuple[int, bytes]]] = {}
        for fact in self.facts.values():
            if fact.type != "gap.accepted":
                continue
            before, after = self.stored.get(fact.body["before"]), self.stored.get(fact.body["after"])
            if before is None or after is None or not fact.body["log"] == before.log_id == after.log_id:
                continue
            if before.sequence + 2 <= after.sequence:
                found.setdefault(after.event_id, []).append((before.sequence, before.event_id))
        return found

    def _may_go_on(self, before: bytes, after: bytes) -> bool:
        """Tell if `before` is in a tree of the key that signed `after`; who doesn't know who signed trusts every tree."""
        return self.signers is None or self.key(self.root(before)) == self.signers[after]

    def root(self, id_: bytes) -> bytes:
        """Return the root's id of the tree that holds this event."""
        while (before := self.before(id_)) is not None:
            id_ = before
        return id_

    def key(self, root: bytes) -> bytes | None:
        """Return the key that a tree belongs to."""
        kind, id_ = self.stored[root].about[0]
        return id_ if kind == "key" else None

    @cached_property
    def successions(self) -> dict[bytes, bytes]:
        """Return root → the predecessor's event from which it provably goes on."""
        found = {}
        for fact in self.facts.values():
            succeeds = fact.body.get("succeeds")
            if fact.type != "log.opened" or fact.event.sequence != 1 or succeeds is None:
                continue
            target = self.stored.get(succeeds["event"])
            if target is None or (target.log_id, target.sequence) != (succeeds["log"], succeeds["sequence"]):
                continue
            old_key, new_key = self.key(self.root(target.event_id)), self.key(fact.id)
            if old_key is None or new_key is None:
                continue
            if second.succession_holds(fact.event.log_id, new_key, succeeds, old_key):
                found[fact.id] = target.event_id
        return found

    @cached_property
    def ancestors(self) -> dict[bytes, set[bytes]]:
        """Return event → all events that it is later than."""
        return {id_: set(self._walk(id_)) for id_ in self.stored}

    def _walk(self, id_: bytes) -> Iterator[bytes]:
        while (before := self.before(id_) or self.successions.get(id_)) is not None:
            yield before
            id_ = before

    def is_later(self, later: bytes, earlier: bytes) -> bool:
        return earlier in self.ancestors[later]

    def _tree_line(self, id_: bytes) -> list[bytes]:
        """Return the roots of the event's tree and of those that it provably succeeds, the first tree last."""
        line = [self.root(id_)]
        while line[-1] in self.successions:
            line.append(self.root(self.successions[line[-1]]))
        return line

    # -- said (section 8) ----------------------------------------------------------------------------------------------

    @cached_property
    def _withdrawn(self) -> set[bytes]:
        found = set()
        for fact in self.facts.values():
            if fact.type == "record.unretracted":
                target = self.facts.get(fact.body["retraction"])
                if target and target.type == "record.retracted" and self._reaches(fact, target):
                    found.add(target.id)
        return found

    def _reaches(self, later: Fact, target: Fact) -> bool:
        return later.about == target.about and self.is_later(later.id, target.id)

    def _unsays(self, fact: Fact) -> bytes | None:
        target = self.facts.get(fact.body.get("event", b""))
        if target is None or target.type in ("log.opened", "record.retracted", "record.unretracted", "gap.accepted"):
            return None
        return target.id if self._reaches(fact, target) else None

    @cached_property
    def _retractions(self) -> list[Fact]:
        facts = self.facts.values()
        return [fact for fact in facts if fact.type == "record.retracted" and fact.id not in self._withdrawn]

    @cached_property
    def unsaid(self) -> set[bytes]:
        """Return the ids of the events that count as not said."""
        return {target for fact in self._retractions if (target := self._unsays(fact)) is not None}

    def _about(self, node: Node, *types: str) -> list[Fact]:
        """Return the said events about a node, of these types or of all."""
        return [
            fact
            for fact in self.facts.values()
            if node in fact.about and fact.id not in self.unsaid and (not types or fact.type in types)
        ]

    # -- the graph -----------------------------------------------------------------------------------------------------

    def nodes(self) -> set[Node]:
        found = {node for fact in self.facts.values() for node in fact.about}
        return found | {("pipeline", id_[0]) for kind, id_ in found if kind == "stage"}

    def edges(self) -> set[tuple[bytes, str, str]]:
        found = set()
        for fact in self.facts.values():
            if fact.id not in self.unsaid and fact.type in ("artifact.used", "artifact.produced"):
                ids = dict(fact.about)
                found.add((ids["execution"], fact.type.removeprefix("artifact."), ids["artifact"]))
        return found

    def names(self, artifact: str) -> list[str]:
        facts = self._about(("artifact", artifact), "artifact.used", "artifact.produced")
        return sorted({fact.body["name"] for fact in facts if "name" in fact.body})

    def aliases(self, artifact: str) -> list[str]:
        facts = self._about(("artifact", artifact), "artifact.used", "artifact.produced", "environment.recorded")
        return sorted({digest for fact in facts for digest in fact.body.get("digests", [])} - {artifact})

    def tags(self, node: Node) -> list[str]:
        removed = {(f.body["tag"], add) for f in self._about(node, "tag.removed") for add in f.body["adds"]}
        return sorted({f.body["tag"] for f in self._about(node, "tag.added") if (f.body["tag"], f.id) not in removed})

    def notes(self, node: Node) -> list[tuple[bytes, str]]:
        return sorted((fact.id, fact.body["text"]) for fact in self._about(node, "note.added"))

    def disputes(self, node: Node) -> list[tuple[bytes, bytes | None, str]]:
        found = [fact for fact in self._retractions if node in fact.about and self._unsays(fact) is None]
        return sorted((fact.id, fact.body.get("event"), fact.body["reason"]) for fact in found)

    def logs(self, key: bytes) -> list[tuple[bytes, bytes, bytes | None]]:
        roots = [f for f in self.facts.values() if f.type == "log.opened" and f.event.sequence == 1]
        mine = [fact for fact in roots if fact.about == (("key", key),)]
        return sorted((fact.event.log_id, fact.id, self.successions.get(fact.id)) for fact in mine)

    # -- values --------------------------------------------------------------------------------------------------------

    def _stated(self, node: Node, fact: Fact) -> dict[tuple[str, str], Any]:
        if fact.type not in _VALUES_OF.get(node[0], ()):
            return {}
        spaces = _SPACES_BY_TYPE.get(fact.type, ())
        found = {(space, key): value for space in spaces for key, value in fact.body.get(space, {}).items()}
        if fact.type == "environment.recorded":
            found["facts", "kind"] = "environment"
            found["facts", "environment"] = fact.body["environment"]
        if fact.type == "artifact.stored":
            location = fact.body["location"]
            found["locations", sha256(second.write_value(location)).hexdigest()[:32]] = location
        if fact.type == "table.recorded":
            found["facts", "columns"] = [name for name, _ in fact.body["columns"]]
            found["facts", "rows"] = fact.body["rows"]
            found["table", str(fact.body.get("first", 0)).rjust(19, "0")] = fact.body["columns"]
        if fact.type in ("label.attached", "slice.recorded"):
            word = fact.type.split(".")[0]
            (other,) = [id_ for _, id_ in fact.about if id_ != node[1]]
            found[f"{word}_of" if fact.body[word] == node[1] else f"{word}s", other] = True
        if fact.type in ("execution.started", "execution.updated"):
            for kind, id_ in fact.about:
                if kind in ("artifact", "stage"):
                    found["facts", "environment" if kind == "artifact" else "stage"] = id_
        return found

    def _remaining(self, facts: list[Fact]) -> list[Fact]:
        return [fact for fact in facts if not any(self.is_later(other.id, fact.id) for other in facts)]

    def _choice(self, found: list[tuple[Fact, Any]]) -> Choice:
        remaining = self._remaining([fact for fact, _ in found])
        values = sorted((fact.tie, second.write_value(value)) for fact, value in found if fact in remaining)
        return Choice(tuple(sorted({value for _, value in values})), values[-1][1])

    def values(self, node: Node) -> dict[tuple[str, str], Choice]:
        found: dict[tuple[str, str], list[tuple[Fact, Any]]] = {}
        for fact in self._about(node):
            for key, value in self._stated(node, fact).items():
                found.setdefault(key, []).append((fact, value))
        return {key: self._choice(statements) for key, statements in found.items()}

    def steps(self, execution: bytes) -> dict[tuple[str, str, int], Choice]:
        found: dict[tuple[str, str, int], list[tuple[Fact, Any]]] = {}
        for fact in self._about(("execution", execution), "metrics.recorded"):
            stated = {}
            for name, series, steps, values, _ in fact.body.get("steps", []):
                for step, value in zip(steps, values, strict=True):
                    stated[name, series, step] = value
            for key, value in stated.items():
                found.setdefault(key, []).append((fact, value))
        return {key: self._choice(statements) for key, statements in found.items()}

    # -- status --------------------------------------------------------------------------------------------------------

    def _counting(self, execution: bytes, *types: str) -> list[Fact]:
        facts = self._about(("execution", execution), *types)
        holding = {self.root(f.id) for f in self._about(("execution", execution), "execution.started")}
        return [fact for fact in facts if holding & set(self._tree_line(fact.id))]

    def _by_first_tree(self, facts: list[Fact]) -> list[Fact]:
        """Return what holds in each first tree, the highest (clock, event id) first."""
        groups: dict[bytes, list[Fact]] = {}
        for fact in self._remaining(facts):
            groups.setdefault(self._tree_line(fact.id)[-1], []).append(fact)
        holding = [max(group, key=lambda f: (RANKS.index(self._status(f)), f.tie)) for group in groups.values()]
        return sorted(holding, key=lambda fact: fact.tie, reverse=True)

    @staticmethod
    def _status(fact: Fact) -> str:
        return "running" if fact.type == "execution.started" else str(fact.body["status"])

    def statuses(self, execution: bytes) -> list[tuple[str, int, int | None, dict[str, str] | None]]:
        found: dict[str, tuple[str, int, int | None, dict[str, str] | None]] = {}
        for fact in self._by_first_tree(self._counting(execution, "execution.started", "execution.finished")):
            status = self._status(fact)
            if status not in found:
                finished = fact.body if fact.type == "execution.finished" else {}
                at = fact.body.get("at", fact.event.wall_us)
                found[status] = (status, at, finished.get("exit_code"), finished.get("error"))
        return list(found.values())

    def started(self, execution: bytes) -> int | None:
        facts = self._by_first_tree(self._counting(execution, "execution.started"))
        return facts[0].body.get("at", facts[0].event.wall_us) if facts else None

    # -- digests (section 9) -------------------------------------------------------------------------------------------

    def row(self, node: Node) -> bytes:
        """Return the node's row of the digest."""
        kind, id_ = node
        parts: dict[str, Any] = {
            "values": [[*key, list(c.candidates), c.shown] for key, c in sorted(self.values(node).items())],
            "tags": self.tags(node),
            "notes": self.notes(node),
            "disputes": self.disputes(node),
        }
        if kind == "execution":
            parts["used"] = sorted(artifact for e, type_, artifact in self.edges() if (e, type_) == (id_, "used"))
            parts["produced"] = sorted(a for e, type_, a in self.edges() if (e, type_) == (id_, "produced"))
            statuses = [second.write_value(status) for status in self.statuses(id_)]
            parts["status"] = statuses[:1] + sorted(statuses[1:])
            parts["started"] = self.started(id_)
            parts["steps"] = self._step_rows(id_)
        elif kind == "artifact":
            parts["names"] = self.names(id_)
            parts["aliases"] = self.aliases(id_)
        elif kind == "key":
            parts["logs"] = self.logs(id_)
        kept = {key: value for key, value in parts.items() if value is not None and value != []}
        return second.write_value([second.write_value([kind, id_]), kept])

    def _step_rows(self, execution: bytes) -> list[Any]:
        rows: dict[tuple[str, str], list[Any]] = {}
        for (name, series, step), choice in sorted(self.steps(execution).items()):
            rows.setdefault((name, series), []).append([step, list(choice.candidates), choice.shown])
        return [[name, series, found] for (name, series), found in rows.items()]

    def rows(self) -> list[bytes]:
        """Return all rows, sorted."""
        return sorted(self.row(node) for node in self.nodes())

    def digest(self) -> bytes:
        return sha256(b"".join(self.rows())).digest()

    def events_digest(self) -> bytes:
        return second.events_digest(list(self.stored))


def first_difference(model: Model, rows: Iterable[bytes]) -> str | None:
    """Return the first row that a store (its rows of the digest, in any order) and the model don't share, readable; None if equal."""
    theirs, ours = set(rows), set(model.rows())
    for whose, row in [("only the store", row) for row in sorted(theirs - ours)] + [
        ("only the model", row) for row in sorted(ours - theirs)
    ]:
        node, parts = second.read_value(row)
        return f"{whose} has {second.read_value(node)}: {parts}"
    return None
