"""What is not yet confirmed, and how far each hub is: the agent's side of delivery.

Rules
- Published (handed to NATS) and confirmed (committed by the hub) are different, and kept per hub and log.
- A confirmation counts only where this log's own event at that sequence has that id. It never moves backwards,
  unless the hub itself turned out to hold less (`reset`).
- `status` opens an outbox: what only pushing needs is imported by the method that needs it.
- Every signature made is kept, before what it signs is sent: a range is sent again only with the ends it had. The newest event of that
  time is noted beside the database too (`place.note_pushed`): an older copy that is put back has lost its signatures as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmf_agent.home import Home
from cmf_agent.locking import QueueLock
from cmf_agent.place import note_pushed
from cmf_agent.reading import StoredEvent
from cmf_agent.schema import SEQUENCE_BITS, SEQUENCE_MASK, open_database
from cmf_graph.database import connect, store_errors, transaction
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_protocol.chains import Mark
    from cmf_protocol.segments import Statement

#: What one call of `after` returns unless told: four full segments.
AFTER_ROWS = 4_000


class Cut(NamedTuple):
    """A segment that was signed: its statement and signature."""

    statement: "Statement"
    signature: bytes


class Contact(NamedTuple):
    """What a hub said last: its store's incarnation, and when (µs UTC by this site's clock)."""

    incarnation: bytes
    last_contact_us: int


class Outbox:
    """The delivery state in the log's database at `path`; opened at once, a context manager. For one thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._connection = connect(path, read_only=True) if read_only else open_database(path)
        self._lock = QueueLock(path.with_suffix(".lock"))
        self._numbers: dict[bytes, int] = {}

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
        self._lock.close()

    # -- what is to be sent ----------------------------------------------------------------------------------------

    def logs(self) -> list[bytes]:
        """Return the ids of all logs, the one that is appended to last."""
        with store_errors(self._path):
            return [row[0] for row in self._connection.execute("SELECT log_id FROM logs ORDER BY id")]

    def version(self) -> int:
        """Return a number that is another one as soon as somebody else's commit can be read here (sqlite.org: PRAGMA data_version)."""
        with store_errors(self._path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def head(self, log_id: bytes) -> tuple[int, bytes]:
        """Return sequence and event id of a log's newest event."""
        newest = self._events(log_id, 0, "DESC", 1)[0]
        return newest.sequence, newest.event_id

    def event_id(self, log_id: bytes, sequence: int) -> bytes | None:
        """Return the id of a log's event at `sequence`, None beyond its head."""
        position = (self._number(log_id) << SEQUENCE_BITS) + sequence
        if not 1 <= sequence <= SEQUENCE_MASK:
            return None
        with store_errors(self._path):
            row = self._connection.execute("SELECT event_id FROM events WHERE position = ?", (position,)).fetchone()
        return bytes(row[0]) if row else None

    def after(self, log_id: bytes, sequence: int, limit: int = AFTER_ROWS) -> list[StoredEvent]:
        """Return up to `limit` events of a log that follow `sequence`, in order."""
        return self._events(log_id, sequence, "ASC", limit)

    def sizes_after(self, log_id: bytes, sequence: int, limit: int) -> list[int]:
        """Return the sizes (bytes of header and body) of up to `limit` events that follow `sequence`, in order."""
        rows = self._rows("length(header) + coalesce(length(body), 0)", log_id, sequence, limit)
        return [row[0] for row in rows]

    def pairs(self, log_id: bytes, first: int, last: int) -> list[tuple[bytes, bytes | None]]:
        """Return (header bytes, body bytes or None) of the events from `first` to `last`."""
        return self._rows("header, body", log_id, first - 1, last - first + 1)

    def _rows(self, columns: str, log_id: bytes, after: int, limit: int) -> list[tuple[Any, ...]]:
        base = self._number(log_id) << SEQUENCE_BITS
        with store_errors(self._path):
            return self._connection.execute(
                f"SELECT {columns} FROM events WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
                (base + after, base + SEQUENCE_MASK, limit),
            ).fetchall()

    def _events(self, log_id: bytes, after: int, order: str, limit: int) -> list[StoredEvent]:
        base = self._number(log_id) << SEQUENCE_BITS
        with store_errors(self._path):
            rows = self._connection.execute(
                "SELECT position, event_id, header, body FROM events WHERE position > ? AND position <= ? "
                f"ORDER BY position {order} LIMIT ?",
                (base + after, base + SEQUENCE_MASK, limit),
            )
            return [StoredEvent(row[0] - base, row[1], row[2], row[3]) for row in rows]

    # -- signatures ------------------------------------------------------------------------------------------------

    def cuts(self, log_id: bytes, after: int = 0, limit: int = -1) -> list[Cut]:
        """Return the segments signed of a log that end beyond the sequence `after`, in the order of their events; -1: all."""
        from cmf_protocol.encoding import decode
        from cmf_protocol.segments import SEGMENT_EVENTS_MAX, Statement

        with store_errors(self._path):
            rows = self._connection.execute(  # `first` is indexed, and no segment is longer than that
                "SELECT statement, signature FROM segments WHERE log = ? AND first > ? AND last > ? "
                "ORDER BY first, last, head LIMIT ?",
                (self._number(log_id), after - SEGMENT_EVENTS_MAX, after, limit),
            ).fetchall()
        return [Cut(Statement._make(decode(statement)), signature) for statement, signature in rows]

    def record_cuts(self, cuts: Sequence[Cut]) -> None:
        """Keep signatures that were made, durably, before their segments are sent."""
        from cmf_protocol.encoding import encode

        rows = [
            (
                self._number(statement.log_id),
                statement.first_sequence,
                statement.last_sequence,
                statement.head_sequence,
                encode(list(statement)),
                signature,
            )
            for statement, signature in cuts
        ]
        with self._lock, transaction(self._connection, str(self._path)):
            self._connection.executemany("INSERT OR IGNORE INTO segments VALUES (?, ?, ?, ?, ?, ?)", rows)
        heads = {statement.log_id: statement for statement, _ in cuts}
        for log_id, statement in heads.items():  # the head, so that it is written once for all cuts of a push
            note_pushed(Home(self._path.parent, self._path.parent), log_id, statement.head_sequence, statement.head_id)

    # -- how far each hub is ---------------------------------------------------------------------------------------

    def published(self, hub: bytes, log_id: bytes) -> int:
        """Return the highest sequence of a log that was handed over to that hub's NATS; 0 for none."""
        row = self._delivery(hub, log_id)
        return int(row[0]) if row else 0

    def mark(self, hub: bytes, log_id: bytes) -> "Mark | None":
        """Return up to where, and where to, a log was published to that hub; None if that is not known."""
        from cmf_protocol.chains import Mark

        row = self._delivery(hub, log_id)
        return Mark(row[0], row[3], row[4]) if row and row[3] is not None else None

    def record_progress(
        self, hub: bytes, confirmed: Mapping[bytes, tuple[int, bytes]], marks: Mapping[bytes, "Mark"]
    ) -> None:
        """Note, in one commit, what that hub has confirmed (sequence, event id) and been given of these logs.

        The caller has checked that the confirmations are about these logs' own chains. They never lower what was confirmed.
        """
        if not confirmed and not marks:
            return
        with self._lock, transaction(self._connection, str(self._path)):
            for log_id, (sequence, event_id) in confirmed.items():
                self._ensure_delivery(hub, log_id)
                self._connection.execute(
                    "UPDATE deliveries SET confirmed = ?1, confirmed_id = ?2, published = max(published, ?1) "
                    "WHERE hub = ?3 AND log = ?4 AND confirmed < ?1",
                    (sequence, event_id, hub, self._number(log_id)),
                )
            for log_id, mark in marks.items():
                self._ensure_delivery(hub, log_id)
                self._connection.execute(
                    "UPDATE deliveries SET published = ?, stream_id = ?, stream_sequence = ? WHERE hub = ? AND log = ?",
                    (*mark, hub, self._number(log_id)),
                )

    def confirmed(self, hub: bytes, log_id: bytes) -> tuple[int, bytes] | None:
        """Return sequence and event id up to which that hub holds a log; None for nothing."""
        row = self._delivery(hub, log_id)
        return (int(row[1]), row[2]) if row and row[1] else None

    def record_confirmed(
        self, hub: bytes, log_id: bytes, sequence: int, event_id: bytes, *, reset: bool = False
    ) -> bool:
        """Note a confirmation; return False, with nothing changed, if it is not about this log's own chain.

        It never lowers what was confirmed, unless `reset` says that the hub holds less than it did.
        """
        if self.event_id(log_id, sequence) != event_id:
            return False
        with self._lock, transaction(self._connection, str(self._path)):
            self._ensure_delivery(hub, log_id)
            self._connection.execute(
                "UPDATE deliveries SET confirmed = ?, confirmed_id = ? WHERE hub = ? AND log = ?"
                + ("" if reset else f" AND confirmed < {sequence:d}"),
                (sequence, event_id, hub, self._number(log_id)),
            )
        return True

    def forget_confirmed(self, hub: bytes, log_id: bytes) -> None:
        """Note that the hub holds nothing of a log any more: what it had is gone, all is sent again."""
        with self._lock, transaction(self._connection, str(self._path)):
            self._ensure_delivery(hub, log_id)
            self._connection.execute(
                "UPDATE deliveries SET confirmed = 0, confirmed_id = NULL WHERE hub = ? AND log = ?",
                (hub, self._number(log_id)),
            )

    def contact(self, hub: bytes) -> Contact | None:
        """Return what that hub said last, None if it was never reached."""
        with store_errors(self._path):
            row = self._connection.execute(
                "SELECT incarnation, last_contact_us FROM hubs WHERE hub = ?", (hub,)
            ).fetchone()
        return Contact(*row) if row else None

    def record_contact(self, hub: bytes, incarnation: bytes) -> None:
        """Note that the hub answered just now, from a store of that incarnation."""
        from cmf_agent.log import now_us

        with self._lock, transaction(self._connection, str(self._path)):
            self._connection.execute("INSERT OR REPLACE INTO hubs VALUES (?, ?, ?)", (hub, incarnation, now_us()))

    def _delivery(self, hub: bytes, log_id: bytes) -> tuple[int, int, bytes, str | None, int] | None:
        with store_errors(self._path):
            found: tuple[int, int, bytes, str | None, int] | None = self._connection.execute(
                "SELECT published, confirmed, confirmed_id, stream_id, stream_sequence FROM deliveries WHERE hub = ? AND log = ?",
                (hub, self._number(log_id)),
            ).fetchone()
        return found

    def _ensure_delivery(self, hub: bytes, log_id: bytes) -> None:
        self._connection.execute(
            "INSERT OR IGNORE INTO deliveries (hub, log) VALUES (?, ?)", (hub, self._number(log_id))
        )

    def _number(self, log_id: bytes) -> int:
        number = self._numbers.get(log_id)
        if number is None:
            with store_errors(self._path):
                row = self._connection.execute("SELECT id FROM logs WHERE log_id = ?", (log_id,)).fetchone()
            if row is None:
                raise CallerError(f"log {log_id.hex()} is not one of this site")
            number = self._numbers[log_id] = int(row[0])
        return number
