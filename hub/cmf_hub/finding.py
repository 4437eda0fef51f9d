"""Where an event is held: its branch and sequence, found in the stored segments.

Theory of operation: events are found in a segment by decoding it, which only forks, overlaps and questions about the past need, since a
log's next segment follows the head of a branch. Where many branches of a log span one place, decoding them all would let one site stop the
hub: the ids of that log's events are then indexed, once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from cmf_graph.database import Connection, transaction
from cmf_hub.part import Part
from cmf_protocol.admit import Place
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event, trusted_events
from cmf_protocol.segments import unpack_segment

#: Stored segments decoded to find one event; where more could hold it, the log's event ids are indexed.
SPANS_MAX = 8
#: Decoded segments whose event ids are remembered, for forks and overlaps.
_IDS_CACHE_MAX = 64


class Finder(Part):
    """Finds events in the store."""

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(connection, name)
        self._ids: OrderedDict[int, list[bytes]] = OrderedDict()

    def forget(self) -> None:
        """Forget what was remembered: the numbers of segments that were not stored after all are given again."""
        self._ids.clear()

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return where an event is held, or None."""
        end = self._find_end(event_id)
        if end is not None:
            place, log = end
            return place if (place.sequence, log) == (sequence, log_id) else None
        for segment, branch, first, key in self._candidates(log_id, sequence, event_id):
            if self._event_id(segment, sequence - first) == event_id:
                return Place(branch, sequence, key)
        return None

    def find_by_id(self, log_id: bytes, event_id: bytes) -> Place | None:
        """Return where an event of a log is held, whatever its sequence, or None; the log's ids are indexed for it if need be."""
        end = self._find_end(event_id)
        if end is not None:
            return end[0] if end[1] == log_id else None
        if not self._is_indexed(log_id):
            self._index(log_id)
        for segment, branch, first, key in self.rows(
            "SELECT s.id, b.id, s.first_sequence, l.key FROM event_ids e JOIN segments s ON s.id = e.segment "
            "JOIN branches b ON b.id = s.branch JOIN logs l ON l.id = b.log WHERE e.prefix = ? AND l.log_id = ?",
            (_prefix(event_id), log_id),
        ):
            ids = self._event_ids(segment)
            if event_id in ids:
                return Place(branch, first + ids.index(event_id), key)
        return None

    def _find_end(self, event_id: bytes) -> tuple[Place, bytes] | None:
        """Return place and log id of an event that a branch or a stored segment ends with."""
        for sql in (
            "SELECT b.id, b.head_sequence, l.key, l.log_id FROM branches b JOIN logs l ON l.id = b.log WHERE b.head_id = ?",
            "SELECT b.id, s.last_sequence, l.key, l.log_id FROM segments s JOIN branches b ON b.id = s.branch "
            "JOIN logs l ON l.id = b.log WHERE s.last_id = ?",
        ):
            for *place, log_id in self.rows(sql, (event_id,)):
                return Place._make(place), log_id
        return None

    def _candidates(self, log_id: bytes, sequence: int, event_id: bytes) -> list[tuple[int, int, int, bytes]]:
        """Return (segment, branch, first sequence, key) of the few stored segments that may hold an event."""
        if not self._is_indexed(log_id):
            found = self.rows(
                "SELECT s.id, b.id, s.first_sequence, l.key FROM logs l JOIN branches b ON b.log = l.id AND b.head_sequence >= ?2 "
                "JOIN segments s ON s.id = (SELECT id FROM segments WHERE branch = b.id AND first_sequence <= ?2 "
                "AND last_id IS NOT NULL ORDER BY first_sequence DESC LIMIT 1) WHERE l.log_id = ?1 LIMIT ?3",
                (log_id, sequence, SPANS_MAX + 1),
            )
            if len(found) <= SPANS_MAX:
                return found
            self._index(log_id)
        return self.rows(
            "SELECT s.id, b.id, s.first_sequence, l.key FROM event_ids e JOIN segments s ON s.id = e.segment "
            "JOIN branches b ON b.id = s.branch JOIN logs l ON l.id = b.log "
            "WHERE e.prefix = ?3 AND l.log_id = ?1 AND s.first_sequence <= ?2 AND s.last_sequence >= ?2",
            (log_id, sequence, _prefix(event_id)),
        )

    # -- the index -----------------------------------------------------------------------------------------------------

    def _is_indexed(self, log_id: bytes) -> bool:
        return bool(self.rows("SELECT 1 FROM indexed_logs WHERE log_id = ?", (log_id,)))

    def _index(self, log_id: bytes) -> None:
        """Index the ids of the events that are held of a log."""
        with nullcontext() if self._connection.in_transaction else transaction(self._connection, self.name):
            segments = self.rows(
                "SELECT s.id FROM logs l JOIN branches b ON b.log = l.id JOIN segments s ON s.branch = b.id "
                "WHERE l.log_id = ? AND s.last_id IS NOT NULL",
                (log_id,),
            )
            for (segment,) in segments:
                self._index_segment(segment, self._event_ids(segment))
            self._connection.execute("INSERT OR IGNORE INTO indexed_logs VALUES (?)", (log_id,))

    def note(self, segment: int, log_id: bytes, new: Sequence[Event]) -> None:
        """Index what a new segment brought, if its log is indexed."""
        if self._is_indexed(log_id):
            self._index_segment(segment, [event.event_id for event in new])

    def _index_segment(self, segment: int, event_ids: Sequence[bytes]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO event_ids VALUES (?, ?)", [(_prefix(event_id), segment) for event_id in event_ids]
        )

    # -- what of a chain is held ---------------------------------------------------------------------------------------

    def missing(self, events: Sequence[Event], restarts: Sequence[int]) -> tuple[int, int]:
        """Return where the first run of chained events that are not held begins and ends.

        `restarts` are the places in them, ascending, at which an event is held whether or not those before it are.
        """
        start = 0
        for stop in (*restarts, len(events)):
            held = start + self._held_prefix(events[start:stop])
            if held < stop:
                return held, stop
            start = stop
        return start, start

    def _held_prefix(self, events: Sequence[Event]) -> int:
        """Return how many of these, from the first on, are held: if one is, so are all before it."""
        if self._is_held(events[-1]):
            return len(events)
        if not self._is_held(events[0]):
            return 0
        low, high = 1, len(events) - 1
        while low < high:
            middle = (low + high) // 2
            if self._is_held(events[middle]):
                low = middle + 1
            else:
                high = middle
        return low

    def _is_held(self, event: Event) -> bool:
        return self.find(event.header.log_id, event.header.sequence, event.event_id) is not None

    # -- ids -----------------------------------------------------------------------------------------------------------

    def event_id_at(self, branch: int, sequence: int) -> bytes:
        """Return the id of the event at a sequence of a branch's own segments."""
        sql = "SELECT id, first_sequence FROM segments WHERE branch = ? AND first_sequence <= ? "
        sql += "AND last_id IS NOT NULL ORDER BY first_sequence DESC LIMIT 1"
        rows = self.rows(sql, (branch, sequence))
        if not rows:
            raise IntegrityError(f"{self.name}: branch {branch} lacks event {sequence}", "see cmf-hub verify")
        segment, first = rows[0]
        return self._event_id(segment, sequence - first)

    def _event_id(self, segment: int, at: int) -> bytes:
        """Return the id of the event at a place, from 0 on, among those that a segment brought."""
        ids = self._event_ids(segment)
        if at >= len(ids):
            raise IntegrityError(f"{self.name}: segment {segment} lacks events", "see cmf-hub verify")
        return ids[at]

    def _event_ids(self, segment: int) -> list[bytes]:
        ids: list[bytes] | None = self._ids.get(segment)
        if ids is None:
            data, skip, last = self.rows("SELECT data, skip, last_sequence FROM segments WHERE id = ?", (segment,))[0]
            ids = [event.event_id for event in run_of(data, skip, last).events]
            self._ids[segment] = ids
            if len(self._ids) > _IDS_CACHE_MAX:
                self._ids.popitem(last=False)
        return ids


def _prefix(event_id: bytes) -> int:
    """Return what an event is indexed by: 7 bytes make a positive integer of SQLite, and few events share them."""
    return int.from_bytes(event_id[:7], "big")


class Run(NamedTuple):
    """Consecutive events that a stored segment brought, and the key that signed it."""

    events: list[Event]
    key: bytes


def run_of(data: bytes, skip: int, last_sequence: int) -> Run:
    """Return the events of a stored segment, without the first `skip`, up to a sequence."""
    statement, _, pairs = unpack_segment(data)
    events = trusted_events(pairs, statement.last_id)
    return Run(events[skip : last_sequence - statement.first_sequence + 1], statement.key)
