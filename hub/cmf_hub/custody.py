"""The event store: segments as they came, what is held of each log, what is parked and what is in quarantine.

Theory of operation: `receive` decides on a batch of segments and stores what is admitted in one transaction; when it returns, what it
confirms is on disk. A segment is kept as its signed bytes; events are found in it by decoding it, which only forks, overlaps and
questions about the past need, since a log's next segment follows the head of a branch. Where many branches of a log span one place,
decoding them all would let one site stop the hub: the ids of that log's events are then indexed, once.

A segment that came for its bodies only (`supplies`, without a `last_id`) is stored like others, for the projection to read, but holds
no place in a branch.

Rules
- One transaction holds decision, segment and watermark; nothing is confirmed that is not committed.
- Custody does not look into bodies: what can be authenticated and chained is stored.
- Parked and quarantined bytes are bounded; what falls out of either was never confirmed, so its sender still has it.
- Segments are decoded one at a time: compressed, a thousand fit where one decoded does.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.graph import no_collector
from cmf_graph.locks import waiting_lock
from cmf_protocol.admit import Admit, Duplicate, Parked, Place, Refused, Registry, Supply, admit
from cmf_protocol.errors import IntegrityError, PeerError
from cmf_protocol.events import Event, trusted_events
from cmf_protocol.segments import Segment, decode_segment, unpack_segment

logger = logging.getLogger("cmf_hub")

#: What one carrier may have parked, bytes of events: a site's day of backlog, and no more than a hundred carriers' worth of memory card.
PARKED_BYTES_MAX = 64 * 2**20
#: Parked segments taken in one transaction, so that others' segments need not wait for all of them.
READY_MAX = 256
QUARANTINE_ROWS_MAX = 1_000
QUARANTINE_BYTES_MAX = 64 * 2**20
#: One carrier's rubbish must not push out another's, which somebody may still want to look at.
QUARANTINE_CARRIER_ROWS_MAX = 200
QUARANTINE_CARRIER_BYTES_MAX = 16 * 2**20
#: Stored segments decoded to find one event; where more could hold it, the log's event ids are indexed.
SPANS_MAX = 8
#: Decoded segments whose event ids are remembered, for forks and overlaps.
_IDS_CACHE_MAX = 64
_LOOKUP_CHUNK = 500

#: The number of migrations of the event store.
SCHEMA_VERSION = 1

Confirmation = tuple[bytes, int, bytes]


@dataclass
class Answer:
    """What segments of one carrier (None: the operator) come to: to be published once they are committed."""

    carrier: str | None = None
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
        self._ids: OrderedDict[int, list[bytes]] = OrderedDict()
        with nullcontext() if self.name == ":memory:" else waiting_lock(Path(self.name + ".lock")):
            self._connection = connect(path)
            with store_errors(self.name):
                if self._connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                    from cmf_hub import migrations

                    migrations.apply(migrations.STORE, self._connection, SCHEMA_VERSION)

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
        """Decide on segments (carrier, bytes), store what is admitted, and take what waited for it, once all is on disk.

        Returns one answer for each segment, then one for each further carrier whose parked segments were taken. What waits and could be
        taken beyond `READY_MAX` segments is left for the next call (`has_ready`), which may bring nothing.
        """
        try:
            with no_collector(), transaction(self._connection, self.name):
                answers = [self._receive_one(carrier, data, now_us) for carrier, data in batch]
                self._take_ready(answers, now_us)
                self._touch({carrier for carrier, _ in batch if carrier is not None}, now_us)
        except BaseException:
            self._ids.clear()  # the numbers of segments that were not stored after all are given again
            raise
        return answers

    def _receive_one(self, carrier: str | None, data: bytes, now_us: int) -> Answer:
        answer = Answer(carrier)
        self._decide(data, answer, now_us)
        return answer

    def _decide(self, data: bytes, answer: Answer, now_us: int) -> bool:
        """Decide on a segment that the answer's carrier brought; return False if it still waits."""
        segment = _decoded(data)
        if isinstance(segment, Refused):
            answer.refused.append((b"", 0, b"", *segment))
            self._quarantine(answer.carrier, data, segment, now_us)
            return True
        statement = segment.statement
        decision = admit(segment, answer.carrier, self, self._registry)
        if isinstance(decision, Refused):
            self._quarantine(answer.carrier, data, decision, now_us)
            answer.refused.append((statement.log_id, statement.first_sequence, statement.last_id, *decision))
        elif isinstance(decision, Parked):
            if self._park(segment, answer.carrier, decision, now_us):
                answer.parked.append((statement.log_id, statement.first_sequence))
            return False
        else:
            self._keep(segment, decision, answer, now_us)
        return True

    def _keep(self, segment: Segment, decision: Admit | Duplicate | Supply, answer: Answer, now_us: int) -> None:
        statement = segment.statement
        answer.confirm(statement.log_id, statement.last_sequence, statement.last_id)
        if isinstance(decision, Admit):
            answer.admitted_events += len(segment.events) - decision.skip
            answer.duplicates += decision.skip
            self._store(segment, decision, answer.carrier, now_us)
            return
        answer.duplicates += len(segment.events)
        self._confirm_head(decision.place.branch, answer)
        if isinstance(decision, Supply):
            self._store_supply(segment, decision, answer.carrier, now_us)

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
        held = segment.events[: decision.skip]
        supplies = self.lacks_bodies(held)
        number = self._insert_segment(
            segment, (branch, new[0].header.sequence, decision.skip, supplies, statement.last_id, carrier, now_us)
        )
        if supplies:
            self._note_supplied(held)
        self._note_withheld(new)
        self._index_if_asked(number, statement.log_id, new)
        self._mark_ready(statement.log_id, new)
        last = new[-1]
        self._connection.execute(
            "UPDATE branches SET head_sequence = ?, head_id = ?, head_wall_us = ? WHERE id = ?",
            (last.header.sequence, last.event_id, last.header.wall_us, branch),
        )
        self._claim_head(branch, statement.head_sequence, statement.head_id)

    def _store_supply(self, segment: Segment, decision: Supply, carrier: str | None, now_us: int) -> None:
        """Store a segment of which all events are held, for its bodies."""
        row = (
            decision.place.branch,
            segment.statement.first_sequence,
            len(segment.events),
            True,
            None,
            carrier,
            now_us,
        )
        self._insert_segment(segment, row)
        self._note_supplied(segment.events)

    def _insert_segment(self, segment: Segment, row: Sequence[object]) -> int:
        return self._insert(
            "INSERT INTO segments (branch, first_sequence, skip, supplies, last_id, carrier, arrived_us, last_sequence, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, segment.statement.last_sequence, segment.data),
        )

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

    # -- bodies --------------------------------------------------------------------------------------------------------

    def lacks_bodies(self, events: Sequence[Event]) -> bool:
        """Tell if the body that one of these held events brings is not held."""
        if not self.rows("SELECT 1 FROM withheld LIMIT 1"):
            return False
        brought = [event.event_id for event in events if event.body is not None]
        return any(
            self.rows(f"SELECT 1 FROM withheld WHERE event_id IN ({_marks(chunk)}) LIMIT 1", chunk)
            for chunk in _chunks(brought)
        )

    def _note_withheld(self, new: Sequence[Event]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO withheld VALUES (?)", [(event.event_id,) for event in new if event.body is None]
        )

    def _note_supplied(self, held: Sequence[Event]) -> None:
        self._connection.executemany(
            "DELETE FROM withheld WHERE event_id = ?", [(event.event_id,) for event in held if event.body is not None]
        )

    # -- parked --------------------------------------------------------------------------------------------------------

    def _park(self, segment: Segment, carrier: str | None, decision: Parked, now_us: int) -> bool:
        """Keep a segment until the event before it is held; return False if its carrier has too much waiting: it keeps it then."""
        digest = sha256(segment.data).digest()
        if self.rows("SELECT 1 FROM parked WHERE digest = ?", (digest,)):
            return True
        size = sum(len(event.header_bytes) + len(event.body or b"") for event in segment.events)
        used = self.rows("SELECT coalesce(sum(size), 0) FROM parked WHERE carrier IS ?", (carrier,))[0][0]
        if used + size > PARKED_BYTES_MAX:
            return False
        statement = segment.statement
        self._connection.execute(
            "INSERT INTO parked (log_id, first_sequence, previous, key, ready, carrier, site, arrived_us, size, digest, data) "
            "VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            (
                statement.log_id, statement.first_sequence, statement.previous, statement.key, carrier, decision.site,
                now_us, size, digest, segment.data,
            ),
        )  # fmt: skip
        return True

    def _mark_ready(self, log_id: bytes, new: Sequence[Event]) -> None:
        """Let what waits for one of these events be taken; what waits for others costs nothing."""
        if not self.rows("SELECT 1 FROM parked WHERE log_id = ? LIMIT 1", (log_id,)):
            return
        for chunk in _chunks([event.event_id for event in new]):
            self._connection.execute(
                f"UPDATE parked SET ready = 1 WHERE previous IN ({_marks(chunk)}) AND log_id = ?", (*chunk, log_id)
            )

    def has_ready(self) -> bool:
        """Tell if something parked can be taken now: the next `receive` does."""
        return bool(self.rows("SELECT 1 FROM parked WHERE ready = 1 LIMIT 1"))

    def _take_ready(self, answers: list[Answer], now_us: int) -> None:
        """Decide on what waited for events that are held now, each answered to who brought it."""
        by_carrier = {answer.carrier: answer for answer in answers}
        for _ in range(READY_MAX):
            found = self.rows("SELECT id, carrier, data FROM parked WHERE ready = 1 LIMIT 1")
            if not found:
                return
            number, carrier, data = found[0]
            if carrier not in by_carrier:
                by_carrier[carrier] = Answer(carrier)
                answers.append(by_carrier[carrier])
            self._take_one(number, data, by_carrier[carrier], now_us)

    def _take_one(self, number: int, data: bytes, answer: Answer, now_us: int) -> None:
        self._connection.execute("UPDATE parked SET ready = 0 WHERE id = ?", (number,))
        try:
            decided = self._decide(data, answer, now_us)
        except PeerError as error:  # what is stored of its log is damaged: it goes on waiting, and hinders nobody
            logger.error("a parked segment could not be taken: %s %s", error, error.hint)
            return
        if decided:
            self._connection.execute("DELETE FROM parked WHERE id = ?", (number,))

    def first_parked(self, log_number: int) -> int | None:
        """Return the lowest first sequence of what is parked of a log by its own key; None if nothing is."""
        found: int | None = self.rows(
            "SELECT min(p.first_sequence) FROM logs l JOIN parked p ON p.log_id = l.log_id AND p.key = l.key WHERE l.id = ?",
            (log_number,),
        )[0][0]
        return found

    # -- quarantine ----------------------------------------------------------------------------------------------------

    def _quarantine(self, carrier: str | None, data: bytes, refusal: Refused, now_us: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO quarantine (arrived_us, carrier, code, message, size, digest, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now_us, carrier, refusal.code, refusal.message, len(data), sha256(data).digest(), data),
        )
        self._forget_oldest("carrier IS ?", (carrier,), QUARANTINE_CARRIER_ROWS_MAX, QUARANTINE_CARRIER_BYTES_MAX)
        self._forget_oldest("true", (), QUARANTINE_ROWS_MAX, QUARANTINE_BYTES_MAX)

    def _forget_oldest(self, which: str, values: Sequence[object], rows_max: int, bytes_max: int) -> None:
        """Delete the oldest quarantined rows until those that `which` names are within both bounds."""
        while True:
            count, size = self.rows(f"SELECT count(*), coalesce(sum(size), 0) FROM quarantine WHERE {which}", values)[0]
            if count <= rows_max and size <= bytes_max:
                return
            oldest = f"SELECT min(id) FROM quarantine WHERE {which}"
            self._connection.execute(f"DELETE FROM quarantine WHERE id = ({oldest})", values)

    # -- what admit asks -----------------------------------------------------------------------------------------------

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return where an event is held, or None."""
        end = self._find_end(event_id)
        if end is not None:
            branch, found, key, log = end
            return Place(branch, found, key) if (found, log) == (sequence, log_id) else None
        for segment, branch, first, key in self._candidates(log_id, sequence, event_id):
            if self._event_id(segment, sequence - first) == event_id:
                return Place(branch, sequence, key)
        return None

    def _find_end(self, event_id: bytes) -> tuple[int, int, bytes, bytes] | None:
        """Return (branch, sequence, key, log id) of an event that a branch or a stored segment ends with."""
        for sql in (
            "SELECT b.id, b.head_sequence, l.key, l.log_id FROM branches b JOIN logs l ON l.id = b.log WHERE b.head_id = ?",
            "SELECT b.id, s.last_sequence, l.key, l.log_id FROM segments s JOIN branches b ON b.id = s.branch "
            "JOIN logs l ON l.id = b.log WHERE s.last_id = ?",
        ):
            for row in self.rows(sql, (event_id,)):
                return row[0], row[1], row[2], row[3]
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

    def _index_if_asked(self, segment: int, log_id: bytes, new: Sequence[Event]) -> None:
        if self._is_indexed(log_id):
            self._index_segment(segment, [event.event_id for event in new])

    def _index_segment(self, segment: int, event_ids: Sequence[bytes]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO event_ids VALUES (?, ?)", [(_prefix(event_id), segment) for event_id in event_ids]
        )

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
        """Return (number, events to skip, bytes) of the stored segments after `position`, oldest first.

        Of one that supplies bodies nothing is to be skipped: who has its events takes the bodies that were missing.
        """
        return self.rows(
            "SELECT id, iif(supplies, 0, skip), data FROM segments WHERE id > ? ORDER BY id LIMIT ?", (position, limit)
        )

    def confirmations(self, log_id: bytes, points: Sequence[tuple[int, bytes]], key: bytes) -> list[Confirmation]:
        """Return what is held of a chain of which these are points, highest first: the highest point, and its branch's head.

        Nothing of a tree that belongs to another key than `key`.
        """
        for sequence, event_id in points:
            place = self.find(log_id, sequence, event_id)
            if place is not None and place.key == key:
                answer = Answer()
                answer.confirm(log_id, sequence, event_id)
                self._confirm_head(place.branch, answer)
                return list(answer.confirmed.values())
        return []

    def event_id_at(self, branch: int, sequence: int) -> bytes:
        """Return the id of the event at a sequence of a branch's own segments."""
        sql = "SELECT id, first_sequence FROM segments WHERE branch = ? AND first_sequence <= ? "
        sql += "AND last_id IS NOT NULL ORDER BY first_sequence DESC LIMIT 1"
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


def _decoded(data: bytes) -> Segment | Refused:
    try:
        return decode_segment(data)
    except PeerError as error:
        return Refused("malformed", str(error))
    except MemoryError:  # says nothing about the segment
        raise
    except Exception as error:
        logger.exception("a segment could not be read: it goes to the quarantine, the others go on")
        return Refused("hub-error", f"this hub failed to read it: {type(error).__name__}: {error}")


def _prefix(event_id: bytes) -> int:
    """Return what an event is indexed by: 7 bytes make a positive integer of SQLite, and few events share them."""
    return int.from_bytes(event_id[:7], "big")


def _chunks(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(values), _LOOKUP_CHUNK):
        yield values[start : start + _LOOKUP_CHUNK]


def _marks(values: Sequence[bytes]) -> str:
    return ",".join("?" * len(values))


def events_of(data: bytes, skip: int) -> list[Event]:
    """Return the events of a stored segment, without the first `skip`."""
    statement, _, pairs = unpack_segment(data)
    return trusted_events(pairs[skip:], statement.last_id)


def stored_events(custody: Custody, position: int, limit: int) -> Iterator[tuple[int, list[Event]]]:
    """Yield (number, events) of the stored segments after `position`."""
    for number, skip, data in custody.segments_after(position, limit):
        yield number, events_of(data, skip)
