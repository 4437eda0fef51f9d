"""What bundles of other sites brought here: their signed segments as they came, in `.cmf/brought.db`; the local view folds them.

Theory of operation: a segment's own signature says whose it is, and the chain where it stands: its first event is a root, or goes on from
an event that is here already. So nobody is asked or believed: a site is known by its key alone.

Rules
- Only what is authentic and goes on without a hole is kept; what waits for earlier events is not, and has to be brought again.
- Nothing is changed or removed; the same again changes nothing. Bodies that were withheld come with a later bundle.
- `id` is the file's own, random: a file that was removed and made anew is folded anew.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType

from cmf_graph.database import connect, store_errors, transaction
from cmf_protocol.errors import PeerError, StoreError
from cmf_protocol.events import Event, trusted_events
from cmf_protocol.segments import Segment, decode_segment, unpack_segment
from cmf_protocol.types import LOG_OPENED

VERSION = 1
_BATCH_SEGMENTS = 64
_SCHEMA = """
CREATE TABLE meta (id BLOB NOT NULL);
CREATE TABLE segments (
  id INTEGER PRIMARY KEY, log_id BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, last_id BLOB NOT NULL,
  key BLOB NOT NULL, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL
);
CREATE INDEX segments_by_end ON segments(last_id);
CREATE INDEX segments_by_log ON segments(log_id, first)
"""

#: Tells if an event (log id, sequence, event id) is one of this site's own logs.
IsOwn = Callable[[bytes, int, bytes], bool]


@dataclass
class Brought:
    """What became of a bundle's segments: kept, here already, this site's own; logs that lack what is before; what is not authentic."""

    segments: int = 0
    kept: int = 0
    events: int = 0
    duplicates: int = 0
    own: int = 0
    #: (log id, the lowest sequence that was brought): what is before it is not here
    waiting: dict[bytes, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


class BroughtSegments:
    """The database at `path`, made if it is missing; a context manager. For one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = connect(path)
        with store_errors(path):
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise StoreError(f"{path} was made by another version", "remove it, and import the bundles again")
            if version == 0:
                self._make()

    def _make(self) -> None:
        with transaction(self._connection, str(self._path)):
            if self._connection.execute("PRAGMA user_version").fetchone()[0]:  # another process was first
                return
            for statement in _SCHEMA.split(";\n"):
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO meta VALUES (?)", (os.urandom(16),))
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> "BroughtSegments":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    # -- taking --------------------------------------------------------------------------------------------------------

    def take(self, segments: Iterable[bytes], is_own: IsOwn, progress: Callable[[int], object]) -> Brought:
        """Keep what is authentic and goes on from what is here; `progress` gets the number of segments just done."""
        found, stream = Brought(), iter(segments)
        while batch := list(islice(stream, _BATCH_SEGMENTS)):
            with transaction(self._connection, str(self._path)):
                for data in batch:
                    self._take_one(data, is_own, found)
            found.segments += len(batch)
            progress(len(batch))
        return found

    def _take_one(self, data: bytes, is_own: IsOwn, found: Brought) -> None:
        try:
            segment = decode_segment(data)
        except PeerError as error:
            found.refused.append(str(error))
            return
        statement = segment.statement
        wrong = self._why_refused(segment)
        if wrong is not None:
            found.refused.append(f"log {statement.log_id.hex()} from event {statement.first_sequence} on: {wrong}")
        elif is_own(statement.log_id, statement.last_sequence, statement.last_id):
            found.own += 1
        elif self._rows("SELECT 1 FROM segments WHERE digest = ?", sha256(data).digest()):
            found.duplicates += 1
        elif (
            statement.previous is not None
            and self._key_of(statement.log_id, statement.first_sequence - 1, statement.previous) is None
        ):
            first = min(statement.first_sequence, found.waiting.get(statement.log_id, statement.first_sequence))
            found.waiting[statement.log_id] = first
        else:
            self._keep(segment, found)

    def _why_refused(self, segment: Segment) -> str | None:
        statement, root = segment.statement, segment.events[0].header
        if not segment.signature_holds():
            return "the signature does not verify with the key that the segment names"
        if statement.previous is None:
            opens = root.type == LOG_OPENED and root.about == (("key", statement.key),)
            return None if opens else "a log begins with log.opened, which names the key that signs the segment"
        key = self._key_of(statement.log_id, statement.first_sequence - 1, statement.previous)
        return None if key in (None, statement.key) else "the log that it continues belongs to another key"

    def _key_of(self, log_id: bytes, sequence: int, event_id: bytes) -> bytes | None:
        """Return the key of the log that holds an event here, None if none does."""
        for (key,) in self._rows("SELECT key FROM segments WHERE last_id = ?", event_id):
            return bytes(key)
        spanning = "SELECT key, data, first FROM segments WHERE log_id = ? AND first <= ? AND last >= ?"
        for key, data, first in self._rows(spanning, log_id, sequence, sequence):
            if _events(data)[sequence - first].event_id == event_id:
                return bytes(key)
        return None

    def _keep(self, segment: Segment, found: Brought) -> None:
        statement = segment.statement
        if not self._rows("SELECT 1 FROM segments WHERE last_id = ?", statement.last_id):
            found.events += len(segment.events)
        row = (
            statement.log_id, statement.first_sequence, statement.last_sequence, statement.last_id, statement.key,
            sha256(segment.data).digest(), segment.data,
        )  # fmt: skip
        self._connection.execute(
            "INSERT INTO segments (log_id, first, last, last_id, key, digest, data) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        )
        found.kept += 1

    # -- reading -------------------------------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The name under which a projection keeps how far it has read this file."""
        return f"brought:{self._rows('SELECT id FROM meta')[0][0].hex()}"

    def last_segment(self) -> int:
        """Return the number of the newest segment; 0 if there is none."""
        return int(self._rows("SELECT coalesce(max(id), 0) FROM segments")[0][0])

    def events(self, after: int, upto: int) -> Iterator[Event]:
        """Yield the events of the segments with numbers above `after` up to `upto`, each after the one before it in its log."""
        for number in range(after + 1, upto + 1):
            for (data,) in self._rows("SELECT data FROM segments WHERE id = ?", number):
                yield from _events(data)

    def _rows(self, sql: str, *parameters: object) -> list[tuple]:  # type: ignore[type-arg]
        with store_errors(self._path):
            return self._connection.execute(sql, parameters).fetchall()


def _events(data: bytes) -> list[Event]:
    statement, _, pairs = unpack_segment(data)
    return trusted_events(pairs, statement.last_id)
