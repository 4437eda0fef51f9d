"""Accepted gaps, and the branches that begin beyond one: from where they go on (protocol/README.md, section 5).

Theory of operation: the graph has the same rule, over the same events in the same order, so that custody's branches have the graph's
numbers, parents and trees. What arrives may let a branch go on from elsewhere: another acceptance, the event that one names, or what was
missing.

Rules
- Of bodies custody reads these alone; whether an acceptance counts here is `admit`'s to say, which asks the registry.
- A branch never comes to stand in a tree of another key than the one that signed it.
- Any site can say that any gap is accepted, as often as it likes: what that costs does not grow with how often it was said.
"""

from collections.abc import Iterable, Sequence

from cmf_graph.database import Connection
from cmf_hub.finding import Finder
from cmf_hub.part import Part, chunks, marks
from cmf_protocol.admit import Acceptance, Place
from cmf_protocol.events import Event
from cmf_protocol.fold import Unfolded, read
from cmf_protocol.gaps import Gap, goes_on_from
from cmf_protocol.types import GAP_ACCEPTED


class Holes(Part):
    """The accepted gaps of a store, and its branches beyond them."""

    def __init__(self, connection: Connection, name: str, finder: Finder) -> None:
        super().__init__(connection, name)
        self._finder = finder

    # -- what admit asks -----------------------------------------------------------------------------------------------

    def acceptances(self, after: Event) -> list[Acceptance]:
        """Return what accepts a gap right before this event: of each key the nearest event, in each key's trees, that is held."""
        sql = "SELECT DISTINCT key, before_key FROM gaps WHERE after = ? AND before_key IS NOT NULL"
        found = []
        for key, before_key in self.rows(sql, (after.event_id,)):
            nearest = self._nearest(after.header.log_id, after.header.sequence, after.event_id, before_key, key)
            if nearest is not None:
                found.append(Acceptance(*nearest, key))
        return found

    def _nearest(
        self, log_id: bytes, sequence: int, after: bytes, before_key: bytes, key: bytes | None = None
    ) -> tuple[bytes, Place] | None:
        """Return (id, place) of the nearest event in trees of `before_key` that an acceptance, one of `key` or any, names."""
        rows = self.rows(
            "SELECT before_sequence, before FROM gaps WHERE after = ? AND key = coalesce(?, key) AND before_key = ? "
            "AND log_id = ? AND before_sequence <= ? ORDER BY before_sequence DESC, before DESC LIMIT 1",
            (after, key, before_key, log_id, sequence - 2),
        )
        nearest = goes_on_from(sequence, [(found, event_id) for found, event_id in rows])
        place = None if nearest is None else self._finder.find(log_id, *nearest)
        return None if nearest is None or place is None else (nearest[1], place)

    def restarts(self, events: Sequence[Event]) -> list[int]:
        """Return the places in chained events at which a branch begins beyond a hole, or what was one."""
        first = events[0].header
        rows = self.rows(
            "SELECT sequence, after FROM holes WHERE log_id = ? AND sequence BETWEEN ? AND ? ORDER BY sequence",
            (first.log_id, first.sequence + 1, events[-1].header.sequence),
        )
        at = {(sequence, after): sequence - first.sequence for sequence, after in rows}
        return [place for (_, after), place in at.items() if events[place].event_id == after]

    # -- what arrives --------------------------------------------------------------------------------------------------

    def begin(self, branch: int, first: Event, key: bytes) -> None:
        """Note that a branch begins beyond a hole."""
        header = first.header
        self._connection.execute(
            "INSERT INTO holes (branch, log_id, sequence, after, previous, key, filled) VALUES (?, ?, ?, ?, ?, ?, 0)",
            (branch, header.log_id, header.sequence, first.event_id, header.previous, key),
        )

    def accept(self, brought: Iterable[Event], key: bytes) -> set[bytes]:
        """Note the gaps that events of a tree of `key` accept; return the first event after each."""
        found = set()
        for event in brought:
            if event.header.type != GAP_ACCEPTED:
                continue
            said = read(event.header, event.body)
            if not isinstance(said, Unfolded):
                gap = Gap.from_body(said)
                place = self._finder.find_by_id(gap.log_id, gap.before)
                named = (None, None) if place is None else (place.sequence, place.key)
                self._connection.execute(
                    "INSERT OR IGNORE INTO gaps (event_id, log_id, before, after, key, before_sequence, before_key) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (event.event_id, *gap, key, *named),
                )
                found.add(gap.after)
        return found

    def arrive(self, new: Sequence[Event], key: bytes) -> set[bytes]:
        """Note that events of a tree of `key` are held now; return the first events after the accepted gaps that they stand before."""
        found: set[bytes] = set()
        if not new or not self.rows("SELECT 1 FROM gaps LIMIT 1"):
            return found
        sequences = {event.event_id: event.header.sequence for event in new}
        log_id = new[0].header.log_id
        for chunk in chunks(list(sequences)):
            sql = f"SELECT event_id, before, after FROM gaps WHERE before IN ({marks(chunk)}) AND log_id = ?"
            for event_id, before, after in self.rows(sql, (*chunk, log_id)):
                self._connection.execute(
                    "UPDATE gaps SET before_sequence = ?, before_key = ? WHERE event_id = ?",
                    (sequences[before], key, event_id),
                )
                found.add(after)
        return found

    def every_after(self) -> list[bytes]:
        """Return the first events after all accepted gaps."""
        return [after for (after,) in self.rows("SELECT DISTINCT after FROM gaps")]

    def settle(self, new: Sequence[Event], afters: Iterable[bytes]) -> None:
        """Let branches go on from what is held now: from the missing event itself, or from where another acceptance says."""
        if not self.rows("SELECT 1 FROM holes WHERE NOT filled LIMIT 1"):
            return
        for chunk in chunks([event.event_id for event in new]):
            sql = f"SELECT branch, log_id, sequence, previous, key FROM holes WHERE previous IN ({marks(chunk)}) AND NOT filled"
            for branch, log_id, sequence, previous, key in self.rows(sql, chunk):
                place = self._finder.find(log_id, sequence - 1, previous)
                if place is not None and place.key == key:
                    self._connection.execute("UPDATE holes SET filled = 1 WHERE branch = ?", (branch,))
                    self._move(branch, place)
        for after in afters:
            sql = "SELECT branch, log_id, sequence, key FROM holes WHERE after = ? AND NOT filled"
            for branch, log_id, sequence, key in self.rows(sql, (after,)):
                nearest = self._nearest(log_id, sequence, after, key)
                if nearest is not None:
                    self._move(branch, nearest[1])

    def _move(self, branch: int, place: Place) -> None:
        self._connection.execute(
            "UPDATE branches SET parent = ?, parent_sequence = ? WHERE id = ?", (place.branch, place.sequence, branch)
        )
        above = "WITH RECURSIVE a(id) AS (SELECT ?1 UNION SELECT b.id FROM branches b JOIN a ON b.parent = a.id) "
        self._connection.execute(
            f"{above} UPDATE branches SET log = (SELECT log FROM branches WHERE id = ?2) WHERE id IN a",
            (branch, place.branch),
        )
