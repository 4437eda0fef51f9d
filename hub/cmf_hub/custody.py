"""The event store: segments as they came, what is held of each log, what is parked and what is in quarantine.

Theory of operation: `receive` decides on a batch of segments and stores what is admitted in one transaction; when it returns, what it
confirms is on disk. A segment is kept as its signed bytes; events are found in it by decoding it, which only forks, overlaps and
questions about the past need, since a log's next segment follows the head of a branch.

Rules
- One transaction holds decision, segment and watermark; nothing is confirmed that is not committed.
- Custody does not look into bodies: what can be authenticated and chained is stored.
- Parked and quarantined bytes are bounded; what falls out of either was never confirmed, so its sender still has it.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.graph import no_collector
from cmf_protocol.admit import Admit, Duplicate, Parked, Place, Refused, Registry, admit
from cmf_protocol.errors import IntegrityError, PeerError
from cmf_protocol.events import Event, trusted_events
from cmf_protocol.segments import Segment, decode_segment, unpack_segment

logger = logging.getLogger("cmf_hub")

#: What one carrier may have parked: a site's day of backlog, and no more than a hundred carriers' worth of memory card.
PARKED_BYTES_MAX = 64 * 2**20
QUARANTINE_ROWS_MAX = 1_000
QUARANTINE_BYTES_MAX = 64 * 2**20
#: Decoded segments whose event ids are remembered, for forks and overlaps.
_IDS_CACHE_MAX = 64

#: The number of migrations of the event store.
SCHEMA_VERSION = 1

Confirmation = tuple[bytes, int, bytes]


@dataclass
class Answer:
    """What a batch comes to, for one carrier: to be published once the batch is committed."""

    confirmed: dict[tuple[bytes, bytes], Confirmation] = field(default_factory=dict)
    refused: list[tuple[bytes, int, bytes, str, str]] = field(default_factory=list)
    parked: list[tuple[bytes, int]] = field(default_factory=list)
    admitted_events: int = 0
    duplicates: int = 0

    def confirm(self, log_id: bytes, sequence: int, event_id: bytes) -> None:
        """Note that this event and its ancestors are stored."""
        self.confirmed[log_id, event_id] = (log_id, sequence, event_id)


class Custody:
    """The event store of a hub; calls from several threads must not overlap."""

    def __init__(self, path: Path | str, registry: Registry) -> None:
        self.name = str(path)
        self._registry = registry
        self._connection = connect(path)
        self._ids: OrderedDict[int, list[bytes]] = OrderedDict()
        with store_errors(self.name):
            if self._connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                from cmf_hub import migrations

                migrations.apply(migrations.STORE, self._connection, SCHEMA_VERSION)
                self._connection.execute("INSERT OR IGNORE INTO meta VALUES (1, ?)", (os.urandom(16),))

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """Return the rows of a query."""
        with store_errors(self.name):
            return self._connection.execute(sql, parameters).fetchall()

    @property
    def incarnation(self) -> bytes:
        """The id (16 bytes) of this store, new whenever one is made."""
        found: bytes = self.rows("SELECT incarnation FROM meta")[0][0]
        return found

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything read in the block be of one moment."""
        with store_errors(self.name):
            self._connection.execute("BEGIN")
            try:
                self._connection.execute("SELECT 1 FROM meta").fetchone()  # from here on
                yield
            finally:
                self._connection.execute("COMMIT")

    # -- receiving -----------------------------------------------------------------------------------------------------

    def receive(self, batch: Sequence[tuple[str | None, bytes]], now_us: int) -> list[Answer]:
        """Decide on segments (carrier, bytes) and store what is admitted; return one answer for each, once all is on disk."""
        try:
            with no_collector(), transaction(self._connection, self.name):
                decoded = [_decoded(data) for _, data in batch]
                answers = [
                    self._receive_one(carrier, data, segment, now_us)
                    for (carrier, data), segment in zip(batch, decoded, strict=True)
                ]
                self._touch({carrier for carrier, _ in batch if carrier is not None}, now_us)
        except BaseException:
            self._ids.clear()  # the numbers of segments that were not stored after all are given again
            raise
        return answers

    def _receive_one(self, carrier: str | None, data: bytes, segment: Segment | PeerError, now_us: int) -> Answer:
        answer = Answer()
        if isinstance(segment, PeerError):
            answer.refused.append((b"", 0, b"", "malformed", str(segment)))
            self._quarantine(carrier, data, Refused("malformed", str(segment)), now_us)
        else:
            self._decide(segment, carrier, answer, now_us)
        return answer

    def _decide(self, segment: Segment, carrier: str | None, answer: Answer, now_us: int) -> None:
        """Decide on a segment, and then on what waited for it; a refusal is answered to who brought what is refused."""
        asking = carrier
        queue = [(segment, carrier)]
        while queue:
            segment, carrier = queue.pop(0)
            decision = admit(segment, carrier, self, self._registry)
            statement = segment.statement
            if isinstance(decision, Refused):
                self._quarantine(carrier, segment.data, decision, now_us)
                if carrier == asking:
                    answer.refused.append((statement.log_id, statement.first_sequence, statement.last_id, *decision))
            elif isinstance(decision, Parked):
                self._park(segment, carrier, decision, now_us)
                answer.parked.append((statement.log_id, statement.first_sequence))
            else:
                self._keep(segment, decision, carrier, answer, now_us)
                queue += self._take_parked(segment)

    def _keep(
        self, segment: Segment, decision: Admit | Duplicate, carrier: str | None, answer: Answer, now_us: int
    ) -> None:
        statement = segment.statement
        answer.confirm(statement.log_id, statement.last_sequence, statement.last_id)
        if isinstance(decision, Duplicate):
            answer.duplicates += len(segment.events)
            self._confirm_head(decision.place.branch, answer)
            return
        answer.admitted_events += len(segment.events) - decision.skip
        answer.duplicates += decision.skip
        self._store(segment, decision, carrier, now_us)

    def _confirm_head(self, branch: int, answer: Answer) -> None:
        sql = "SELECT l.log_id, b.head_sequence, b.head_id FROM branches b JOIN logs l ON l.id = b.log WHERE b.id = ?"
        answer.confirm(*self.rows(sql, (branch,))[0])

    def _store(self, segment: Segment, decision: Admit, carrier: str | None, now_us: int) -> None:
        statement, new = segment.statement, segment.events[decision.skip :]
        if decision.parent is None:
            log = self._insert(
                "INSERT INTO logs (log_id, root, key) VALUES (?, ?, ?)",
                (statement.log_id, new[0].event_id, statement.key),
            )
            branch = self._new_branch(log, None, new[0])
        else:
            branch = self._branch_after(decision.parent, new[0])
        self._connection.execute(
            "INSERT INTO segments (branch, first_sequence, last_sequence, skip, carrier, arrived_us, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (branch, new[0].header.sequence, statement.last_sequence, decision.skip, carrier, now_us, segment.data),
        )
        last = new[-1]
        self._connection.execute(
            "UPDATE branches SET head_sequence = ?, head_id = ?, head_wall_us = ? WHERE id = ?",
            (last.header.sequence, last.event_id, last.header.wall_us, branch),
        )
        self._claim_head(branch, statement.head_sequence, statement.head_id)

    def _insert(self, sql: str, parameters: Sequence[object]) -> int:
        return int(self._connection.execute(sql, parameters).lastrowid or 0)

    def _branch_after(self, place: Place, first: Event) -> int:
        log, head = self.rows("SELECT log, head_sequence FROM branches WHERE id = ?", (place.branch,))[0]
        return place.branch if head == place.sequence else self._new_branch(log, place, first)

    def _new_branch(self, log: int, parent: Place | None, first: Event) -> int:
        below, sequence = (None, None) if parent is None else (parent.branch, parent.sequence)
        header = first.header
        return self._insert(
            "INSERT INTO branches (log, parent, parent_sequence, first_sequence, first_id, head_sequence, head_id, head_wall_us) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (log, below, sequence, header.sequence, first.event_id, header.sequence, first.event_id, header.wall_us),
        )

    def _claim_head(self, branch: int, sequence: int, event_id: bytes) -> None:
        self._connection.execute(
            "UPDATE logs SET head_sequence = ?1, head_id = ?2 WHERE id = (SELECT log FROM branches WHERE id = ?3) "
            "AND coalesce(head_sequence, 0) <= ?1",
            (sequence, event_id, branch),
        )

    # -- parked --------------------------------------------------------------------------------------------------------

    def _park(self, segment: Segment, carrier: str | None, decision: Parked, now_us: int) -> None:
        used = self.rows("SELECT coalesce(sum(size), 0) FROM parked WHERE carrier IS ?", (carrier,))[0][0]
        if used + len(segment.data) > PARKED_BYTES_MAX:
            return  # not confirmed: its sender keeps it
        self._connection.execute(
            "INSERT OR IGNORE INTO parked (log_id, first_sequence, previous, carrier, site, arrived_us, size, digest, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                segment.statement.log_id, segment.statement.first_sequence, segment.statement.previous, carrier,
                decision.site, now_us, len(segment.data), sha256(segment.data).digest(), segment.data,
            ),
        )  # fmt: skip

    def _take_parked(self, held: Segment) -> list[tuple[Segment, str | None]]:
        """Take what waited for one of the events of a segment that is held now; what waits for others costs nothing."""
        first, last = held.statement.first_sequence, held.statement.last_sequence
        waiting = self.rows(
            "SELECT id, first_sequence, previous, carrier FROM parked WHERE log_id = ? AND first_sequence > ? "
            "AND first_sequence <= ? ORDER BY first_sequence",
            (held.statement.log_id, first, last + 1),
        )
        taken = []
        for id_, sequence, previous, carrier in waiting:
            if held.events[sequence - 1 - first].event_id == previous:
                data = self.rows("SELECT data FROM parked WHERE id = ?", (id_,))[0][0]
                self._connection.execute("DELETE FROM parked WHERE id = ?", (id_,))
                taken.append((decode_segment(data), carrier))
        return taken

    # -- quarantine ----------------------------------------------------------------------------------------------------

    def _quarantine(self, carrier: str | None, data: bytes, refusal: Refused, now_us: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO quarantine (arrived_us, carrier, code, message, size, digest, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now_us, carrier, refusal.code, refusal.message, len(data), sha256(data).digest(), data),
        )
        while True:
            count, size = self.rows("SELECT count(*), coalesce(sum(size), 0) FROM quarantine")[0]
            if count <= QUARANTINE_ROWS_MAX and size <= QUARANTINE_BYTES_MAX:
                return
            self._connection.execute("DELETE FROM quarantine WHERE id = (SELECT min(id) FROM quarantine)")

    # -- what admit asks -----------------------------------------------------------------------------------------------

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return where an event is held, or None."""
        head = self.rows(
            "SELECT b.id, b.head_sequence, l.key, l.log_id FROM branches b JOIN logs l ON l.id = b.log WHERE b.head_id = ?",
            (event_id,),
        )
        if head:
            branch, found, key, log = head[0]
            return Place(branch, found, key) if (found, log) == (sequence, log_id) else None
        spans = self.rows(
            "SELECT s.id, s.branch, s.first_sequence, l.key FROM logs l JOIN branches b ON b.log = l.id JOIN segments s "
            "ON s.branch = b.id WHERE l.log_id = ? AND s.first_sequence <= ? AND s.last_sequence >= ?",
            (log_id, sequence, sequence),
        )
        for segment, branch, first, key in spans:
            if self._event_id(segment, sequence - first) == event_id:
                return Place(branch, sequence, key)
        return None

    def held_prefix(self, events: Sequence[Event]) -> int:
        """Return how many of these chained events, from the first on, are held."""
        low, high = 0, len(events)
        while low < high:  # if one is held, so are all before it
            middle = (low + high) // 2
            header = events[middle].header
            if self.find(header.log_id, header.sequence, events[middle].event_id) is None:
                high = middle
            else:
                low = middle + 1
        return low

    def _event_id(self, segment: int, at: int) -> bytes:
        """Return the id of the event at a place, from 0 on, among those that a segment brought."""
        ids = self._event_ids(segment)
        if at >= len(ids):
            raise IntegrityError(f"{self.name}: segment {segment} lacks events", "see cmf-hub verify")
        return ids[at]

    def _event_ids(self, segment: int) -> list[bytes]:
        ids: list[bytes] | None = self._ids.get(segment)
        if ids is None:
            data, skip = self.rows("SELECT data, skip FROM segments WHERE id = ?", (segment,))[0]
            ids = [event.event_id for event in events_of(data, skip)]
            self._ids[segment] = ids
            if len(self._ids) > _IDS_CACHE_MAX:
                self._ids.popitem(last=False)
        return ids

    # -- reading -------------------------------------------------------------------------------------------------------

    def last_segment(self) -> int:
        """Return the number of the newest stored segment; 0 if there is none."""
        return int(self.rows("SELECT coalesce(max(id), 0) FROM segments")[0][0])

    def segments_after(self, position: int, limit: int) -> list[tuple[int, int, bytes]]:
        """Return (number, events to skip, bytes) of the stored segments after `position`, oldest first."""
        return self.rows("SELECT id, skip, data FROM segments WHERE id > ? ORDER BY id LIMIT ?", (position, limit))

    def confirmations(self, log_id: bytes, points: Sequence[tuple[int, bytes]]) -> list[Confirmation]:
        """Return what is held of a chain of which these are points, highest first: the highest point, and its branch's head."""
        for sequence, event_id in points:
            place = self.find(log_id, sequence, event_id)
            if place is not None:
                answer = Answer()
                answer.confirm(log_id, sequence, event_id)
                self._confirm_head(place.branch, answer)
                return list(answer.confirmed.values())
        return []

    def event_id_at(self, branch: int, sequence: int) -> bytes:
        """Return the id of the event at a sequence of a branch's own segments."""
        sql = "SELECT id, first_sequence FROM segments WHERE branch = ? AND first_sequence <= ? ORDER BY first_sequence DESC LIMIT 1"
        rows = self.rows(sql, (branch, sequence))
        if not rows:
            raise IntegrityError(f"{self.name}: branch {branch} lacks event {sequence}", "see cmf-hub verify")
        segment, first = rows[0]
        return self._event_id(segment, sequence - first)

    # -- contacts ------------------------------------------------------------------------------------------------------

    def _touch(self, sites: set[str], now_us: int) -> None:
        self._connection.executemany(
            "INSERT INTO contacts (site, last_us) VALUES (?, ?) ON CONFLICT (site) DO UPDATE SET last_us = excluded.last_us",
            [(site, now_us) for site in sorted(sites)],
        )

    def contact(self, site: str, key: bytes, now_us: int, ahead_us: int, heads: Sequence[Confirmation]) -> None:
        """Note that a site spoke, how far its clock is ahead (µs), and the newest events (log id, sequence, id) of its own logs."""
        with transaction(self._connection, self.name):
            self._connection.execute(
                "INSERT INTO contacts VALUES (?1, ?2, ?3) ON CONFLICT (site) DO UPDATE SET last_us = ?2, ahead_us = ?3",
                (site, now_us, ahead_us),
            )
            self._connection.executemany(
                "UPDATE logs SET head_sequence = ?2, head_id = ?3 WHERE log_id = ?1 AND key = ?4 "
                "AND coalesce(head_sequence, 0) <= ?2",
                [(*head, key) for head in heads],
            )


def _decoded(data: bytes) -> Segment | PeerError:
    try:
        return decode_segment(data)
    except PeerError as error:
        return error
    except Exception as error:
        logger.exception("a segment could not be read: it goes to the quarantine, the others go on")
        return PeerError(f"this hub failed to read it: {type(error).__name__}: {error}")


def events_of(data: bytes, skip: int) -> list[Event]:
    """Return the events of a stored segment, without those that were held before it came."""
    statement, _, pairs = unpack_segment(data)
    return trusted_events(pairs[skip:], statement.last_id)


def stored_events(custody: Custody, position: int, limit: int) -> Iterator[tuple[int, list[Event]]]:
    """Yield (number, events) of the stored segments after `position`."""
    for number, skip, data in custody.segments_after(position, limit):
        yield number, events_of(data, skip)
