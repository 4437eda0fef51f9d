"""The event store: segments as they came, what is held of each log, and what is decided on what comes.

Theory of operation: `receive` decides on a batch of segments and stores what is admitted in one transaction; when it returns, what it
confirms is on disk. A segment is kept as its signed bytes, which `finding.py` looks into. What waits for others and what was refused is
kept in `waiting.py`; branches beyond an accepted gap are looked after in `holes.py`.

A segment that came for its bodies only (`supplies`, without a `last_id`) is stored like others, for the projection to read, but holds
no place in a branch. One that spans an accepted gap is stored once for each run of events that it brings.

Rules
- One transaction holds decision, segment and watermark; nothing is confirmed that is not committed.
- Custody does not look into bodies but those of accepted gaps: what can be authenticated and chained is stored.
- Segments are decoded one at a time: compressed, a thousand fit where one decoded does.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.graph import no_collector
from cmf_graph.locks import waiting_lock
from cmf_hub.finding import Finder, Run, run_of
from cmf_hub.holes import Holes
from cmf_hub.part import chunks, marks
from cmf_hub.waiting import ParkedSegments, Quarantine
from cmf_protocol.admit import Acceptance, Admit, Duplicate, Parked, Place, Refused, Registry, Supply, admit
from cmf_protocol.errors import PeerError
from cmf_protocol.events import Event
from cmf_protocol.segments import Segment, decode_segment

logger = logging.getLogger("cmf_hub")

#: Parked segments taken in one transaction, so that others' segments need not wait for all of them.
READY_MAX = 256
#: The number of migrations of the event store.
SCHEMA_VERSION = 1

Confirmation = tuple[bytes, int, bytes]


class Contact(NamedTuple):
    """A hello: who, with which key and when (µs), how far its clock is ahead (µs), the heads of its own logs, and if it goes for good."""

    site: str
    key: bytes
    now_us: int
    ahead_us: int
    heads: Sequence[Confirmation]
    leaving: bool = False


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
        with nullcontext() if self.name == ":memory:" else waiting_lock(Path(self.name + ".lock")):
            self._connection = connect(path)
            with store_errors(self.name):
                if self._connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                    from cmf_hub import migrations

                    migrations.apply(migrations.STORE, self._connection, SCHEMA_VERSION)
        self._finder = Finder(self._connection, self.name)
        self._holes = Holes(self._connection, self.name, self._finder)
        self.parked = ParkedSegments(self._connection, self.name)
        self._quarantine = Quarantine(self._connection, self.name)

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
            self._finder.forget()
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
            self._quarantine.keep(answer.carrier, data, segment, now_us)
            return True
        statement = segment.statement
        decision = admit(segment, answer.carrier, self, self._registry)
        before = answer.admitted_events
        while isinstance(decision, Admit) and decision.stop < len(segment.events):
            self._admit(segment, decision, answer, now_us)
            decision = admit(segment, answer.carrier, self, self._registry)
        if isinstance(decision, Refused):
            self._quarantine.keep(answer.carrier, data, decision, now_us)
            answer.refused.append((statement.log_id, statement.first_sequence, statement.last_id, *decision))
        elif isinstance(decision, Parked):
            if self.parked.park(segment, answer.carrier, decision.site, now_us):
                answer.parked.append((statement.log_id, statement.first_sequence))
            return False
        else:
            self._keep(segment, decision, answer, now_us)
            answer.duplicates += len(segment.events) - (answer.admitted_events - before)
        return True

    def _keep(self, segment: Segment, decision: Admit | Duplicate | Supply, answer: Answer, now_us: int) -> None:
        statement = segment.statement
        answer.confirm(statement.log_id, statement.last_sequence, statement.last_id)
        if isinstance(decision, Admit):
            self._admit(segment, decision, answer, now_us)
            return
        self._confirm_head(decision.place.branch, answer)
        if isinstance(decision, Supply):
            self._store_supply(segment, decision, answer.carrier, now_us)

    def _confirm_head(self, branch: int, answer: Answer) -> None:
        sql = "SELECT l.log_id, b.head_sequence, b.head_id FROM branches b JOIN logs l ON l.id = b.log WHERE b.id = ?"
        answer.confirm(*self.rows(sql, (branch,))[0])

    def _admit(self, segment: Segment, decision: Admit, answer: Answer, now_us: int) -> None:
        """Store the run of events that a decision admits."""
        statement, new = segment.statement, segment.events[decision.skip : decision.stop]
        branch = self._branch_for(segment, decision.parent, new[0])
        held = segment.events[: decision.skip]
        supplies = self.lacks_bodies(held)
        last = new[-1]
        row = (branch, new[0].header.sequence, last.header.sequence, decision.skip, supplies, last.event_id)
        number = self._insert_segment(segment, (*row, answer.carrier, now_us))
        if supplies:
            self._note_supplied(held)
        self._note_withheld(new)
        self._finder.note(number, statement.log_id, new)
        self._connection.execute(
            "UPDATE branches SET head_sequence = ?, head_id = ?, head_wall_us = ? WHERE id = ?",
            (last.header.sequence, last.event_id, last.header.wall_us, branch),
        )
        self._claim_head(branch, statement.head_sequence, statement.head_id)
        self._settle(new, [*held, *new] if supplies else new, statement.key)
        answer.admitted_events += len(new)

    def _store_supply(self, segment: Segment, decision: Supply, carrier: str | None, now_us: int) -> None:
        """Store a segment of which all events are held, for its bodies."""
        statement = segment.statement
        row = (
            decision.place.branch,
            statement.first_sequence,
            statement.last_sequence,
            len(segment.events),
            True,
            None,
        )
        self._insert_segment(segment, (*row, carrier, now_us))
        self._note_supplied(segment.events)
        self._settle((), segment.events, decision.place.key)

    def _settle(self, new: Sequence[Event], brought: Sequence[Event], key: bytes) -> None:
        """Let what waited for these events go on: they are held now, and the bodies that were brought of them."""
        if new:
            self.parked.wake_following(new[0].header.log_id, new)
        accepted = self._holes.accept(brought, key) | self._holes.arrive(new, key)
        if accepted:
            self.parked.wake_beginning(list(accepted))
        self._holes.settle(new, accepted)

    def _insert_segment(self, segment: Segment, row: Sequence[object]) -> int:
        return self._insert(
            "INSERT INTO segments (branch, first_sequence, last_sequence, skip, supplies, last_id, carrier, arrived_us, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, segment.data),
        )

    def _insert(self, sql: str, parameters: Sequence[object]) -> int:
        return int(self._connection.execute(sql, parameters).lastrowid or 0)

    def _branch_for(self, segment: Segment, parent: Place | None, first: Event) -> int:
        """Return the branch that goes on with an event: a new one, unless it follows the newest event of one."""
        if parent is None:
            log = self._insert(
                "INSERT INTO logs (log_id, root, key) VALUES (?, ?, ?)",
                (first.header.log_id, first.event_id, segment.statement.key),
            )
            return self._new_branch(log, None, first)
        log, head = self.rows("SELECT log, head_sequence FROM branches WHERE id = ?", (parent.branch,))[0]
        is_beyond_hole = parent.sequence < first.header.sequence - 1
        if head == parent.sequence and not is_beyond_hole:
            return parent.branch
        branch = self._new_branch(log, parent, first)
        if is_beyond_hole:
            self._holes.begin(branch, first, parent.key)
        return branch

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
            self.rows(f"SELECT 1 FROM withheld WHERE event_id IN ({marks(chunk)}) LIMIT 1", chunk)
            for chunk in chunks(brought)
        )

    def _note_withheld(self, new: Sequence[Event]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO withheld VALUES (?)", [(event.event_id,) for event in new if event.body is None]
        )

    def _note_supplied(self, held: Sequence[Event]) -> None:
        self._connection.executemany(
            "DELETE FROM withheld WHERE event_id = ?", [(event.event_id,) for event in held if event.body is not None]
        )

    # -- what waited ---------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Tell if something parked can be taken now: the next `receive` does."""
        return self.parked.has_ready()

    def reconsider_gaps(self) -> None:
        """Let what lies beyond accepted gaps be decided on anew: who may accept them has changed."""
        with transaction(self._connection, self.name):
            self.parked.wake_beginning(self._holes.every_after())

    def _take_ready(self, answers: list[Answer], now_us: int) -> None:
        """Decide on what waited for events that are held now, each answered to who brought it."""
        by_carrier = {answer.carrier: answer for answer in answers}
        for _ in range(READY_MAX):
            found = self.parked.next_ready()
            if found is None:
                return
            number, carrier, data = found
            if carrier not in by_carrier:
                by_carrier[carrier] = Answer(carrier)
                answers.append(by_carrier[carrier])
            self._take_one(number, data, by_carrier[carrier], now_us)

    def _take_one(self, number: int, data: bytes, answer: Answer, now_us: int) -> None:
        try:
            decided = self._decide(data, answer, now_us)
        except PeerError as error:  # what is stored of its log is damaged: it goes on waiting, and hinders nobody
            logger.error("a parked segment could not be taken: %s %s", error, error.hint)
            return
        if decided:
            self.parked.forget(number)

    # -- what admit asks -----------------------------------------------------------------------------------------------

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return where an event is held, or None."""
        return self._finder.find(log_id, sequence, event_id)

    def missing(self, events: Sequence[Event]) -> tuple[int, int]:
        """Return where the first run of these chained events that are not held begins and ends; both are their number if all are."""
        return self._finder.missing(events, self._holes.restarts(events))

    def acceptances(self, after: Event) -> list[Acceptance]:
        """Return what accepts a gap right before this event, as far as the event that it goes on from is held in the same log."""
        return self._holes.acceptances(after)

    # -- reading -------------------------------------------------------------------------------------------------------

    def last_segment(self) -> int:
        """Return the number of the newest stored segment; 0 if there is none."""
        return int(self.rows("SELECT coalesce(max(id), 0) FROM segments")[0][0])

    def segments_after(self, position: int, limit: int) -> list[tuple[int, int, int, bytes]]:
        """Return (number, events to skip, sequence of the last one, bytes) of the stored segments after `position`, oldest first.

        Of one that supplies bodies nothing is to be skipped: who has its events takes the bodies that were missing.
        """
        return self.rows(
            "SELECT id, iif(supplies, 0, skip), last_sequence, data FROM segments WHERE id > ? ORDER BY id LIMIT ?",
            (position, limit),
        )

    def confirmations(
        self, log_id: bytes, points: Sequence[tuple[int, bytes]], key: bytes | None
    ) -> list[Confirmation]:
        """Return what is held of a chain of which these are points, highest first: the highest point, and its branch's head.

        Nothing of a tree that belongs to another key than `key`, unless that is None: a carrier's.
        """
        for sequence, event_id in points:
            place = self.find(log_id, sequence, event_id)
            if place is not None and key in (None, place.key):
                answer = Answer()
                answer.confirm(log_id, sequence, event_id)
                self._confirm_head(place.branch, answer)
                return list(answer.confirmed.values())
        return []

    def event_id_at(self, branch: int, sequence: int) -> bytes:
        """Return the id of the event at a sequence of a branch's own segments."""
        return self._finder.event_id_at(branch, sequence)

    # -- contacts ------------------------------------------------------------------------------------------------------

    def _touch(self, sites: set[str], now_us: int) -> None:
        self._connection.executemany(
            "INSERT INTO contacts (site, last_us) VALUES (?, ?) ON CONFLICT (site) DO UPDATE SET last_us = excluded.last_us",
            [(site, now_us) for site in sorted(sites)],
        )

    def contacts(self, contacts: Sequence[Contact]) -> None:
        """Note, in one commit, that sites said hello."""
        with transaction(self._connection, self.name):
            for contact in contacts:
                self._connection.execute(
                    "INSERT INTO contacts (site, last_us, ahead_us, left_us) VALUES (?1, ?2, ?3, ?4) "
                    "ON CONFLICT (site) DO UPDATE SET last_us = ?2, ahead_us = ?3, left_us = ?4",
                    (contact.site, contact.now_us, contact.ahead_us, contact.now_us if contact.leaving else None),
                )
                self._connection.executemany(
                    "UPDATE logs SET head_sequence = ?2, head_id = ?3 WHERE log_id = ?1 AND key = ?4 "
                    "AND coalesce(head_sequence, 0) <= ?2",
                    [(*head, contact.key) for head in contact.heads],
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


def stored_runs(custody: Custody, position: int, limit: int) -> Iterator[tuple[int, Run]]:
    """Yield (number, run of events) of the stored segments after `position`."""
    for number, skip, last, data in custody.segments_after(position, limit):
        yield number, run_of(data, skip, last)
