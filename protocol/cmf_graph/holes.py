"""Branches that begin beyond a hole, and the accepted gaps that say from where they go on.

Theory of operation: a hole is a branch whose first event names a previous one that is not held; it goes on from the event that the
nearest acceptance names (protocol/README.md, section 5). What arrives may change that: another acceptance, the event that one names, or
what was missing. There are few of either, so all are kept in memory.

Rules
- Where a branch goes on is the same function of the set of events, whatever the order in which they arrived.
- Any site can accept any gap any number of times: to note one costs the same however many there are.
- This finds out which branches go on from elsewhere; moving them is the projection's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cmf_graph.graph import EventRow, Graph
from cmf_protocol.events import Event
from cmf_protocol.gaps import Gap, goes_on_from

#: Branch and sequence of an event.
Place = tuple[int, int]


class Hole(NamedTuple):
    """A branch beyond a hole: its first event, the missing one before it, and the key that signed it, if that is known."""

    branch: int
    after: bytes
    sequence: int
    log_id: bytes
    previous: bytes
    key: bytes | None


class Holes:
    """The holes and accepted gaps of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._open: dict[bytes, Hole] = {}
        #: What holes begin or began after: what names such an event as previous may be held, even if that is the newest of its branch.
        self.by_previous: dict[bytes, list[Hole]] = {}
        self._gaps: dict[bytes, set[Gap]] = {}
        self._by_before: dict[bytes, list[Gap]] = {}
        self._news: list[Gap] = []
        for *fields, filled in graph.rows("SELECT branch, after, sequence, log_id, previous, key, filled FROM holes"):
            hole = Hole._make(fields)
            self._remember(hole)
            if filled:
                del self._open[hole.after]
        for row in graph.rows("SELECT log_id, before, after FROM gaps"):
            self._add(Gap._make(row))

    def _remember(self, hole: Hole) -> None:
        self._open[hole.after] = hole
        self.by_previous.setdefault(hole.previous, []).append(hole)

    def _add(self, gap: Gap) -> None:
        self._gaps.setdefault(gap.after, set()).add(gap)
        self._by_before.setdefault(gap.before, []).append(gap)

    def accept(self, gap: Gap) -> None:
        """Note what a folded `gap.accepted` says."""
        if gap not in self._gaps.get(gap.after, ()):
            self._graph.connection.execute("INSERT INTO gaps (log_id, before, after) VALUES (?, ?, ?)", gap)
            self._add(gap)
            self._news.append(gap)

    def begin(self, branch: int, first: Event, key: bytes | None) -> None:
        """Note that a branch begins beyond a hole."""
        header = first.header
        hole = Hole(branch, first.event_id, header.sequence, header.log_id, header.previous or b"", key)
        self._graph.connection.execute(
            "INSERT INTO holes (branch, after, sequence, log_id, previous, key) VALUES (?, ?, ?, ?, ?, ?)", hole
        )
        self._remember(hole)

    def place_before(self, after: bytes, sequence: int, log_id: bytes, key: bytes | None) -> Place | None:
        """Return where an event whose previous one is missing goes on from; None if no gap is accepted there.

        `key` signed the event: it goes on in a tree of that key. Where nobody knows it (None), all trees are trusted alike.
        """
        held = {}
        for gap in self._gaps.get(after, ()):
            row = self._graph.event(gap.before)
            if row is not None and gap.log_id == log_id and self._fits(row, log_id, key):
                held[row.header.sequence, row.event_id] = row.branch
        nearest = goes_on_from(sequence, held)
        return None if nearest is None else (held[nearest], nearest[0])

    def _fits(self, row: EventRow, log_id: bytes, key: bytes | None) -> bool:
        sql = "SELECT t.key FROM branches b JOIN trees t ON t.id = b.tree WHERE b.id = ?"
        return row.header.log_id == log_id and (key is None or self._graph.rows(sql, (row.branch,)) == [(key,)])

    def changed(self, new: Mapping[bytes, Place]) -> Iterator[tuple[int, Place]]:
        """Yield (branch, place) for each branch that may go on from elsewhere, now that these events are held and written."""
        for previous in self.by_previous.keys() & new.keys():
            row = self._graph.event(previous)
            for hole in self.by_previous[previous]:
                if row is None or row.header.sequence != hole.sequence - 1:
                    continue
                if self._fits(row, hole.log_id, hole.key):
                    self._graph.connection.execute("UPDATE holes SET filled = 1 WHERE branch = ?", (hole.branch,))
                    del self._open[hole.after]
                    yield hole.branch, new[previous]
        gaps = [gap for before in self._by_before.keys() & new.keys() for gap in self._by_before[before]]
        by_after: dict[bytes, list[Gap]] = {}
        for gap in gaps + self._news:
            by_after.setdefault(gap.after, []).append(gap)
        self._news.clear()
        for after in by_after.keys() & self._open.keys():
            place = self._nearer(self._open[after], by_after[after])
            if place is not None:
                yield self._open[after].branch, place

    def _nearer(self, hole: Hole, news: Sequence[Gap]) -> Place | None:
        """Return where a hole's branch goes on from, if what is new may be nearer than where it does now."""
        now = self._graph.rows("SELECT parent_sequence FROM branches WHERE id = ?", (hole.branch,))[0][0]
        rows = [self._graph.event(gap.before) for gap in news]
        if not any(row is not None and row.header.sequence >= now for row in rows):
            return None
        return self.place_before(hole.after, hole.sequence, hole.log_id, hole.key)
