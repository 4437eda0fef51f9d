"""Reads a log: which logs there are, their events, in order or newest first.

Rules
- Through a connection of its own that can't write; a reader never makes a writer wait.
- Events come as they are stored; only headers are decoded, bodies by who needs them.
- Counting needs no decoder: `status` does not import one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cmf_agent.schema import SEQUENCE_BITS, missing_log
from cmf_graph.database import connect, store_errors

if TYPE_CHECKING:
    from cmf_protocol.events import Event, Header

_PAGE_ROWS = 1_000


class LogRow(NamedTuple):
    """One of the site's logs; `head_sequence` is also the number of its events."""

    number: int
    log_id: bytes
    key: bytes
    opened_us: int
    head_sequence: int


class StoredEvent(NamedTuple):
    """An event's bytes, as they are sent; `body` is None where it is withheld."""

    sequence: int
    event_id: bytes
    header_bytes: bytes
    body: bytes | None

    @property
    def header(self) -> "Header":
        """The header, decoded anew each time; its hashes are not checked."""
        from cmf_protocol.events import decode_header

        return decode_header(self.header_bytes)

    def decoded(self) -> "Event":
        """Return the event with its header decoded, its hashes not checked."""
        from cmf_protocol.events import Event

        return Event(self.event_id, self.header, self.header_bytes, self.body)


class LogReader:
    """The logs in the database at `path`; opened at once, a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise missing_log(path)
        self._connection = connect(path, read_only=True)

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def logs(self) -> list[LogRow]:
        """Return all logs, the one that is appended to last."""
        with store_errors(self._path):
            rows = self._connection.execute("SELECT id, log_id, key, opened_us FROM logs ORDER BY id").fetchall()
            return [LogRow(row[0], row[1], row[2], row[3], self._head_sequence(row[0])) for row in rows]

    def _head_sequence(self, number: int) -> int:
        base = number << SEQUENCE_BITS
        newest = self._connection.execute(
            "SELECT max(position) FROM events WHERE position > ? AND position < ?", (base, base + (1 << SEQUENCE_BITS))
        ).fetchone()[0]
        return int(newest) - base if newest is not None else 0

    def events(self, number: int, *, after: int = 0) -> Iterator[StoredEvent]:
        """Yield the events of a log with sequences above `after`, in order."""
        base = number << SEQUENCE_BITS
        return self._pages(base, base + after, ">", "ASC")

    def newest(self, number: int, *, before: int = 1 << SEQUENCE_BITS) -> Iterator[StoredEvent]:
        """Yield the events of a log with sequences below `before`, newest first."""
        base = number << SEQUENCE_BITS
        return self._pages(base, base + before, "<", "DESC")

    def all_events(self) -> Iterator[StoredEvent]:
        """Yield the events of all logs, oldest log first."""
        for log in self.logs():
            yield from self.events(log.number)

    def _pages(self, base: int, position: int, sign: str, order: str) -> Iterator[StoredEvent]:
        """Page, so that no read transaction stays open while the caller thinks: it would keep the WAL growing.

        The casts are for a log that someone altered: what was put there may be no bytes.
        """
        end = base + (1 << SEQUENCE_BITS)
        query = (
            "SELECT position, CAST(event_id AS BLOB), CAST(header AS BLOB), CAST(body AS BLOB) FROM events "
            f"WHERE position > ? AND position < ? AND position {sign} ? ORDER BY position {order} LIMIT ?"
        )
        while True:
            with store_errors(self._path):
                rows = self._connection.execute(query, (base, end, position, _PAGE_ROWS)).fetchall()
            for row in rows:
                yield StoredEvent(row[0] - base, row[1], row[2], row[3])
            if len(rows) < _PAGE_ROWS:
                return
            position = rows[-1][0]

    def problems_of_file(self) -> list[str]:
        """Return what SQLite's own check of the database finds wrong."""
        with store_errors(self._path):
            found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def signed_cuts(self, number: int) -> list[tuple[bytes, bytes]]:
        """Return (canonical statement, signature) of every segment signed of a log."""
        with store_errors(self._path):
            return self._connection.execute(
                "SELECT statement, signature FROM segments WHERE log = ? ORDER BY first, last, head", (number,)
            ).fetchall()
