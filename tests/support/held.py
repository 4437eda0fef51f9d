"""An event store and a registry in memory, as far as admit asks them: the ports `Held` and `Registry`, kept as plainly as can be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support import second_decoder as second

from cmf_protocol.admit import Acceptance, Admit, Decision, Enrolled, Place, Supply, admit
from cmf_protocol.events import Event
from cmf_protocol.segments import Segment


@dataclass
class MemoryHeld:
    """Events by id; a branch is numbered when it begins."""

    events: dict[bytes, Event] = field(default_factory=dict)
    places: dict[bytes, Place] = field(default_factory=dict)

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        event = self.events.get(event_id)
        if event is None or (event.header.log_id, event.header.sequence) != (log_id, sequence):
            return None
        return self.places[event_id]

    def missing(self, events: Sequence[Event]) -> tuple[int, int]:
        there = [event.event_id in self.events for event in events]
        if all(there):
            return len(events), len(events)
        start = there.index(False)
        return start, there.index(True, start) if any(there[start:]) else len(events)

    def acceptances(self, after: Event) -> list[Acceptance]:
        found = []
        for event in self.events.values():
            said = second.folded_body(second.read_event(event.header_bytes, event.body))
            if event.header.type != "gap.accepted" or said is None or said["after"] != after.event_id:
                continue
            before = self.events.get(said["before"])
            if before is not None and before.header.log_id == after.header.log_id == said["log"]:
                key = self.places[event.event_id].key
                found.append(Acceptance(before.event_id, self.places[before.event_id], key))
        return found

    def lacks_bodies(self, events: Sequence[Event]) -> bool:
        return any(event.body is not None and self.events[event.event_id].body is None for event in events)

    def supply(self, events: Sequence[Event]) -> None:
        """Take the bodies that these held events bring."""
        self.events.update({event.event_id: event for event in events if event.body is not None})

    def store(self, segment: Segment, decision: Admit) -> None:
        """Store what a decision admits; complain if it does not go on from where the decision says."""
        parent = decision.parent
        fresh = segment.events[decision.skip : decision.stop]
        assert fresh, "nothing is left to store"
        self.supply(segment.events[: decision.skip])
        for event in fresh:
            assert event.event_id not in self.events, "stored twice"
            previous = event.header.previous
            assert (parent is None) == (previous is None)
            place = self.places.get(previous or b"")
            assert place in (parent, None)
            beyond_gap = place is None and parent is not None
            assert not beyond_gap or self.acceptances(event)
            taken = beyond_gap or any(each.header.previous == previous for each in self.events.values())
            branch = len(self.events) + 1 if taken or parent is None else parent.branch
            parent = Place(branch, event.header.sequence, segment.statement.key)
            self.events[event.event_id] = event
            self.places[event.event_id] = parent

    def receive(self, segment: Segment, carrier: str | None, registry: "MemoryRegistry") -> Decision:
        """Decide and, where admitted, store; return the first decision."""
        decision = admit(segment, carrier, self, registry)
        if isinstance(decision, Admit):
            self.store(segment, decision)
            if decision.stop < len(segment.events):
                self.receive(segment, carrier, registry)
        if isinstance(decision, Supply):
            self.supply(segment.events)
        return decision


@dataclass
class MemoryRegistry:
    """Keys bound to sites, and who may carry others' logs (the operator, None, may)."""

    sites: dict[bytes, Enrolled] = field(default_factory=dict)
    carriers: set[str] = field(default_factory=set)

    def site_of(self, key: bytes) -> Enrolled | None:
        return self.sites.get(key)

    def may_carry(self, carrier: str | None, site: str) -> bool:
        return carrier is None or carrier == site or carrier in self.carriers
