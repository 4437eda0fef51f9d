"""What is not in the store: segments that wait for the events before them, and those that could not be authenticated.

Rules
- Both are bounded; what falls out of either was never confirmed, so its sender still has it.
- One carrier's rubbish must not push out another's, which somebody may still want to look at.
"""

from collections.abc import Sequence
from hashlib import sha256

from cmf_hub.part import Part, chunks, marks
from cmf_protocol.admit import Refused
from cmf_protocol.events import Event
from cmf_protocol.segments import Segment

#: What one carrier may have parked, bytes of events: a site's day of backlog, and no more than a hundred carriers' worth of memory card.
PARKED_BYTES_MAX = 64 * 2**20
QUARANTINE_ROWS_MAX = 1_000
QUARANTINE_BYTES_MAX = 64 * 2**20
QUARANTINE_CARRIER_ROWS_MAX = 200
QUARANTINE_CARRIER_BYTES_MAX = 16 * 2**20


class ParkedSegments(Part):
    """Segments beyond a hole. One is *ready* once what it waits for is there: then it is to be decided on anew."""

    def park(self, segment: Segment, carrier: str | None, site: str, now_us: int) -> bool:
        """Keep a segment until the event before it is held; return False if its carrier has too much waiting: it keeps it then."""
        digest = sha256(segment.data).digest()
        if self.rows("SELECT 1 FROM parked WHERE digest = ?", (digest,)):
            return True
        size = sum(event.size for event in segment.events)
        used = self.rows("SELECT coalesce(sum(size), 0) FROM parked WHERE carrier IS ?", (carrier,))[0][0]
        if used + size > PARKED_BYTES_MAX:
            return False
        statement = segment.statement
        self._connection.execute(
            "INSERT INTO parked (log_id, first_sequence, first_id, previous, key, ready, carrier, site, arrived_us, size, digest, data) "
            "VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
            (
                statement.log_id, statement.first_sequence, segment.events[0].event_id, statement.previous, statement.key,
                carrier, site, now_us, size, digest, segment.data,
            ),
        )  # fmt: skip
        return True

    def wake_following(self, log_id: bytes, new: Sequence[Event]) -> None:
        """Let what waits for one of these events be taken; what waits for others costs nothing."""
        if not self.rows("SELECT 1 FROM parked WHERE log_id = ? LIMIT 1", (log_id,)):
            return
        for chunk in chunks([event.event_id for event in new]):
            self._connection.execute(
                f"UPDATE parked SET ready = 1 WHERE previous IN ({marks(chunk)}) AND log_id = ?", (*chunk, log_id)
            )

    def wake_beginning(self, first_ids: Sequence[bytes]) -> None:
        """Let what begins with one of these events be taken: a gap before it is accepted."""
        for chunk in chunks(first_ids):
            self._connection.execute(f"UPDATE parked SET ready = 1 WHERE first_id IN ({marks(chunk)})", chunk)

    def has_ready(self) -> bool:
        """Tell if something can be taken now."""
        return bool(self.rows("SELECT 1 FROM parked WHERE ready = 1 LIMIT 1"))

    def next_ready(self) -> tuple[int, str | None, bytes] | None:
        """Return (number, carrier, bytes) of a segment that can be taken, and let it wait again; None if there is none."""
        found = self.rows("SELECT id, carrier, data FROM parked WHERE ready = 1 LIMIT 1")
        if not found:
            return None
        number, carrier, data = found[0]
        self._connection.execute("UPDATE parked SET ready = 0 WHERE id = ?", (number,))
        return number, carrier, data

    def forget(self, number: int) -> None:
        """Delete a segment that was decided on."""
        self._connection.execute("DELETE FROM parked WHERE id = ?", (number,))

    def first(self, log_number: int, low: int, high: int | None = None) -> tuple[int, bytes] | None:
        """Return (sequence, id) of the lowest first event, from `low` to `high`, of what waits of a log by its own key."""
        found = self.rows(
            "SELECT p.first_sequence, p.first_id FROM logs l JOIN parked p ON p.log_id = l.log_id AND p.key = l.key "
            "WHERE l.id = ? AND NOT p.ready AND p.first_sequence BETWEEN ? AND coalesce(?, 9223372036854775807) "
            "ORDER BY p.first_sequence LIMIT 1",
            (log_number, low, high),
        )
        return (found[0][0], found[0][1]) if found else None

    def without_root(self, key: bytes) -> list[tuple[bytes, int, bytes]]:
        """Return (log id, lowest first sequence, its id) of a key's logs of which parts wait and not even the root is held."""
        return self.rows(
            "SELECT p.log_id, min(p.first_sequence), p.first_id FROM parked p WHERE p.key = ?1 AND NOT EXISTS "
            "(SELECT 1 FROM logs l WHERE l.log_id = p.log_id AND l.key = ?1) GROUP BY p.log_id ORDER BY p.log_id",
            (key,),
        )


class Quarantine(Part):
    """Segments that were refused, with the reason, for whoever wants to look at them."""

    def keep(self, carrier: str | None, data: bytes, refusal: Refused, now_us: int) -> None:
        """Keep a refused segment, and forget the oldest ones beyond the bounds."""
        self._connection.execute(
            "INSERT OR REPLACE INTO quarantine (arrived_us, carrier, code, message, size, digest, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now_us, carrier, refusal.code, refusal.message, len(data), sha256(data).digest(), data),
        )
        self._forget_oldest("carrier IS ?", (carrier,), QUARANTINE_CARRIER_ROWS_MAX, QUARANTINE_CARRIER_BYTES_MAX)
        self._forget_oldest("true", (), QUARANTINE_ROWS_MAX, QUARANTINE_BYTES_MAX)

    def _forget_oldest(self, which: str, values: Sequence[object], rows_max: int, bytes_max: int) -> None:
        """Delete the oldest rows until those that `which` names are within both bounds."""
        while True:
            count, size = self.rows(f"SELECT count(*), coalesce(sum(size), 0) FROM quarantine WHERE {which}", values)[0]
            if count <= rows_max and size <= bytes_max:
                return
            oldest = f"SELECT min(id) FROM quarantine WHERE {which}"
            self._connection.execute(f"DELETE FROM quarantine WHERE id = ({oldest})", values)
