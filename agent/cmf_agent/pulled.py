"""What was pulled of other sites: what a hub told of their trees, and the events, in `.cmf/pulled.db`.

Theory of operation: events that some filter lists (`listings.py`) are kept by piece of a tree and sequence, and have a number,
by which the local view folds them; numbers only grow. When an event is dropped, or a piece stands elsewhere than was told (a
fork became known), the `generation` changes, and the view is made anew.

Rules
- What is kept was checked before (`pull_checks.py`).
- Everything but the filters can be thrown away and pulled again; it is, when another hub or another store answers.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmf_agent.pull_checks import Piece
from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.placing import Placement
from cmf_protocol.encoding import Value
from cmf_protocol.errors import IntegrityError, StoreError
from cmf_protocol.events import Event, trusted_header
from cmf_protocol.pull import ToldTree
from cmf_protocol.ranges import Ranges, of_sequences
from cmf_protocol.segments import Segment, encode_segment

VERSION = 1
_PAGE_ROWS = 1_000
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE filters (
  id INTEGER PRIMARY KEY AUTOINCREMENT, asked BLOB NOT NULL UNIQUE, told BLOB NOT NULL, subscribed INTEGER NOT NULL,
  prove INTEGER NOT NULL, as_of_us INTEGER, complete INTEGER NOT NULL DEFAULT 0, withheld BLOB
);
CREATE TABLE trees (
  root BLOB PRIMARY KEY, log_id BLOB NOT NULL, key BLOB NOT NULL, site TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE pieces (
  id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, root BLOB NOT NULL, parent BLOB, parent_sequence INTEGER,
  first_sequence INTEGER NOT NULL
);
CREATE INDEX pieces_by_parent ON pieces(parent);
CREATE TABLE listings (
  filter INTEGER, piece INTEGER, upto INTEGER NOT NULL, digest BLOB NOT NULL, ranges BLOB NOT NULL,
  here INTEGER NOT NULL, own INTEGER NOT NULL, PRIMARY KEY (filter, piece)
) WITHOUT ROWID;
CREATE TABLE events (
  piece INTEGER, sequence INTEGER, number INTEGER NOT NULL UNIQUE, event_id BLOB NOT NULL, header BLOB NOT NULL, body BLOB,
  proven INTEGER NOT NULL, PRIMARY KEY (piece, sequence)
);
CREATE INDEX events_by_id ON events(event_id);
CREATE INDEX events_bare ON events(piece, sequence) WHERE body IS NULL;
CREATE TABLE proofs (id BLOB PRIMARY KEY, key BLOB NOT NULL, data BLOB NOT NULL)
"""
_TOLD = ("listings", "events", "pieces", "trees", "proofs")


class Pulled:
    """The database at `path`, made if it is missing; a context manager. For one thread."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._connection = connect(path)
        version = self.rows("PRAGMA user_version")[0][0]
        if version not in (0, VERSION):
            raise StoreError(f"{path} was made by another version", "remove it, subscribe again and pull")
        if version == 0:
            self._make()

    def _make(self) -> None:
        with self.writing():
            if self.rows("PRAGMA user_version")[0][0] == VERSION:  # another process was first
                return
            for statement in _SCHEMA.split(";\n"):
                self.write(statement)
            self.set("next_number", 1)
            self.renew()
            self.write(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> "Pulled":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # -- rows ----------------------------------------------------------------------------------------------------------

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with store_errors(self.name):
            return self._connection.execute(sql, parameters).fetchall()

    def stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query, however many there are."""
        with store_errors(self.name):
            yield from self._connection.execute(sql)

    def write(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Run a statement in the caller's transaction and return how many rows it changed."""
        with store_errors(self.name):
            return self._connection.execute(sql, parameters).rowcount

    def writing(self) -> AbstractContextManager[None]:
        """Run a block in one transaction: all of it, or nothing."""
        return transaction(self._connection, self.name)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let everything read in the block be of one moment."""
        self.write("BEGIN")
        try:
            yield
        finally:
            self.write("COMMIT")

    def get(self, key: str) -> Any:
        """Return what is noted under a key, None if nothing is."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", (key,))
        return found[0][0] if found else None

    def set(self, key: str, value: Value) -> None:
        """Note a value in the caller's transaction."""
        self.write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- generation ----------------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Another number whenever what was kept is no longer, or stands elsewhere; never 0."""
        return int(self.get("generation"))

    def renew(self) -> None:
        """Let the view be made anew."""
        self.set("generation", int.from_bytes(os.urandom(7), "big") + 1)

    def hub(self) -> bytes | None:
        """Return the id of the hub that told; None before any has."""
        found: bytes | None = self.get("hub")
        return found

    def count_of_another(self, hub: bytes, incarnation: bytes) -> int:
        """Return how many events another store told than this one: `come_from` drops them."""
        if (self.get("hub"), self.get("incarnation")) == (hub, incarnation):
            return 0
        return int(self.rows("SELECT count(*) FROM events")[0][0])

    def come_from(self, hub: bytes, incarnation: bytes) -> bool:
        """Note which store of which hub tells; of another one nothing that was told before is kept: tell if that was so."""
        before = (self.get("hub"), self.get("incarnation"))
        if before == (hub, incarnation):
            return False
        self.forget_told()
        self.write("UPDATE filters SET complete = 0")
        self.set("hub", hub)
        self.set("incarnation", incarnation)
        return before != (None, None)

    def forget_told(self) -> None:
        """Forget all that a hub told, in the caller's transaction."""
        for table in _TOLD:
            self.write(f"DELETE FROM {table}")
        self.renew()

    # -- pieces --------------------------------------------------------------------------------------------------------

    def pieces(self) -> dict[bytes, Piece]:
        """Return all pieces by name."""
        sql = (
            "SELECT p.id, p.name, p.root, p.parent, p.parent_sequence, p.first_sequence, t.log_id, t.key "
            "FROM pieces p JOIN trees t ON t.root = p.root"
        )
        return {row[1]: Piece._make(row) for row in self.rows(sql)}

    def trees(self) -> dict[bytes, ToldTree]:
        """Return the trees that were told, by root."""
        return {row[0]: ToldTree._make(row) for row in self.rows("SELECT root, log_id, key, site FROM trees")}

    def structure(self) -> dict[bytes, Placement]:
        """Return where the pieces stand, as the fold needs it."""
        return {
            name: Placement(p.root, p.parent, p.parent_sequence, p.first_sequence) for name, p in self.pieces().items()
        }

    def sites(self) -> dict[bytes, str]:
        """Return signing key → site, as told."""
        return dict(self.rows("SELECT key, site FROM trees"))

    # -- events --------------------------------------------------------------------------------------------------------

    def held(self, piece: int, after: int = 0, *, proven: bool = False) -> Ranges:
        """Return the sequences above `after` that are held of a piece; with `proven` those that are proven."""
        which = "AND proven" if proven else ""
        sql = f"SELECT sequence FROM events WHERE piece = ? AND sequence > ? {which}"
        return of_sequences(sequence for (sequence,) in self.rows(sql, (piece, after)))

    def bare(self) -> dict[int, Ranges]:
        """Return the sequences that are held without their bodies, by piece."""
        found: dict[int, list[int]] = {}
        for piece, sequence in self.rows("SELECT piece, sequence FROM events WHERE body IS NULL"):
            found.setdefault(piece, []).append(sequence)
        return {piece: of_sequences(sequences) for piece, sequences in found.items()}

    def put(self, found: Iterable[tuple[Piece, Event]], *, proven: bool = False) -> int:
        """Keep checked events, in the caller's transaction, and return how many were not held.

        Raises `IntegrityError` if another event is held there.
        """
        events = list(found)
        first = int(self.get("next_number"))
        rows = [
            (piece.id, event.header.sequence, number, event.event_id, event.header_bytes, event.body, int(proven))
            for number, (piece, event) in enumerate(events, first)
        ]
        with store_errors(self.name):
            sql = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
            new = self._connection.executemany(sql, rows).rowcount
        if new < len(rows):
            for number, (piece, event) in enumerate(events, first):
                self._put_again(piece, event, number, proven=proven)
        self.set("next_number", first + len(rows))
        return int(new)

    def _put_again(self, piece: Piece, event: Event, number: int, *, proven: bool) -> None:
        """Complete what is held of an event."""
        place = (piece.id, event.header.sequence)
        sql = "SELECT event_id, body IS NULL FROM events WHERE piece = ? AND sequence = ?"
        event_id, is_bare = self.rows(sql, place)[0]
        if event_id != event.event_id:
            raise IntegrityError(
                f"event {place[1]} of log {piece.log_id.hex()} is another one than the hub told before",
                "cmf-agent unsubscribe --all --forget, then subscribe again",
            )
        if is_bare and event.body is not None:  # its body was withheld: it is folded now
            sql = "UPDATE events SET body = ?, number = ? WHERE piece = ? AND sequence = ?"
            self.write(sql, (event.body, number, *place))
        if proven:
            self.write("UPDATE events SET proven = 1 WHERE piece = ? AND sequence = ?", place)

    def put_proof(self, segment: Segment) -> None:
        """Keep a segment's statement, signature and headers, in the caller's transaction."""
        headers = [(event.header_bytes, None) for event in segment.events]
        data = encode_segment(segment.statement, segment.signature, headers)
        self.write(
            "INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", (sha256(data).digest(), segment.statement.key, data)
        )

    def drop(self, piece: int, ranges: Ranges) -> bool:
        """Forget events of a piece, in the caller's transaction; tell if there were any."""
        sql = "DELETE FROM events WHERE piece = ? AND sequence BETWEEN ? AND ?"
        dropped = sum(self.write(sql, (piece, first, last)) for first, last in ranges)
        if dropped:
            self.renew()
        return bool(dropped)

    # -- for the view --------------------------------------------------------------------------------------------------

    def upto(self) -> int:
        """Return the highest number of an event; 0 for none."""
        return int(self.rows("SELECT coalesce(max(number), 0) FROM events")[0][0])

    def roots(self) -> list[tuple[bytes, Event]]:
        """Return (piece, event) of the trees' first events."""
        sql = (
            "SELECT r.name, e.event_id, e.header, e.body FROM pieces r "
            "JOIN events e ON e.piece = r.id AND e.sequence = 1 WHERE r.name = r.root"
        )
        return [(row[0], _event(row[1:])) for row in self.rows(sql)]

    def events(self, after: int, upto: int) -> Iterator[tuple[bytes, Event]]:
        """Yield (piece, event) of those with numbers above `after` up to `upto`, by number."""
        sql = (
            "SELECT e.number, p.name, e.event_id, e.header, e.body FROM events e JOIN pieces p ON p.id = e.piece "
            "WHERE e.number > ? AND e.number <= ? ORDER BY e.number LIMIT ?"
        )
        while rows := self.rows(sql, (after, upto, _PAGE_ROWS)):
            for row in rows:
                yield row[1], _event(row[2:])
            after = rows[-1][0]

    def told(self, event_ids: Iterable[bytes]) -> dict[bytes, bool]:
        """Return, of these events, those that were pulled, and whether they are proven."""
        found: dict[bytes, bool] = {}
        for event_id in event_ids:
            for (proven,) in self.rows("SELECT proven FROM events WHERE event_id = ?", (event_id,)):
                found[event_id] = bool(proven) or found.get(event_id, False)
        return found


def _event(row: Sequence[Any]) -> Event:
    event_id, header, body = row
    return Event(event_id, trusted_header(header), header, body)
