"""An event store and a registry in memory, as far as admit asks them: the ports `Held` and `Registry`, kept as plainly as can be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cmf_protocol.admit import Admit, Decision, Enrolled, Place, Supply, admit
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

    def held_prefix(self, events: Sequence[Event]) -> int:
        count = 0
        while count < len(events) and events[count].event_id in self.events:
            count += 1
        return count

    def lacks_bodies(self, events: Sequence[Event]) -> bool:
        return any(event.body is not None and self.events[event.event_id].body is None for event in events)

    def supply(self, events: Sequence[Event]) -> None:
        """Take the bodies that these held events bring."""
        self.events.update({event.event_id: event for event in events if event.body is not None})

    def store(self, segment: Segment, decision: Admit) -> None:
        """Store what a decision admits; complain if it does not go on from where the decision says."""
        parent = decision.parent
        fresh = segment.events[decision.skip :]
        assert fresh, "nothing is left to store"
        self.supply(segment.events[: decision.skip])
        for event in fresh:
            assert event.event_id not in self.events, "stored twice"
            previous = event.header.previous
            assert (parent is None) == (previous is None)
            assert previous is None or self.places[previous] == parent
            taken = any(each.header.previous == previous for each in self.events.values())
            branch = len(self.events) + 1 if taken or parent is None else parent.branch
            parent = Place(branch, event.header.sequence, segment.statement.key)
            self.events[event.event_id] = event
            self.places[event.event_id] = parent

    def receive(self, segment: Segment, carrier: str | None, registry: "MemoryRegistry") -> Decision:
        """Decide and, where admitted, store."""
        decision = admit(segment, carrier, self, registry)
        if isinstance(decision, Admit):
            self.store(segment, decision)
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
