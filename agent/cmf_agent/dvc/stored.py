"""What this site has told of where bytes are (`.cmf/locations.db`), so that it is told once, and a commit when there is one.

Rules
- A location is told once per log. One without a commit is looked at again, at the start and the end of a run and before a push: if HEAD
  then has that very blob at that path, the location is told again, with the commit.
- It is a memory, not a record: if the file is lost or damaged, locations are told once more. Nothing here hurts a run or a push.
- The file is opened for each question: nothing is open when the process forks. It is not synced to disk; what turns out to be no database
  is begun anew.
- Nothing is asked of git while nothing waits, or HEAD (read without a process) has not moved.
"""

# os.path: the working trees are kept relative to `.cmf`, so that a project that was moved finds its own.
# ruff: noqa: PTH118

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

from cmf_agent.dvc.git_objects import head_commit, read_head
from cmf_agent.dvc.locations import Location, remote_url
from cmf_agent.home import Home
from cmf_agent.log import shared_log
from cmf_agent.recorder import say
from cmf_graph.database import Connection, connect, store_errors, transaction
from cmf_protocol.errors import CmfError, IntegrityError
from cmf_protocol.events import Draft, Event
from cmf_protocol.types import artifact_stored

_BUSY_TIMEOUT_MS = 2_000
_WAITING = "commit_id IS NULL AND top IS NOT NULL"
_SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS told (
        log BLOB NOT NULL, artifact TEXT NOT NULL, place TEXT NOT NULL,
        commit_id TEXT, top TEXT, path TEXT, looked TEXT,
        PRIMARY KEY (log, artifact, place)
    ) WITHOUT ROWID
    """,
    f"CREATE INDEX IF NOT EXISTS waiting ON told (log, top, looked) WHERE {_WAITING}",
)
_FIND = "SELECT 1 FROM told WHERE log = ? AND artifact = ? AND place = ?"
_REMEMBER = """
INSERT INTO told (log, artifact, place, commit_id, top, path) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET commit_id = coalesce(commit_id, excluded.commit_id)
"""

Record = Callable[[Sequence[Draft]], list[Event]]


class _Waiting(NamedTuple):
    """A location that was told without a commit."""

    artifact: str
    place: str
    path: str


class Telling(NamedTuple):
    """One location of an artifact that is to be told, with the commit that holds it, if one does."""

    artifact: str
    location: Location
    commit: str | None

    def draft(self) -> Draft:
        """Return the draft of its `artifact.stored` event."""
        return _draft(self.artifact, self.location.said, self.location.top, self.commit)


def to_tell(home: Home, artifact: str, location: Location, *, is_new: bool) -> Telling | None:
    """Return what is to be recorded of a location, None if that has been told; `is_new` if no commit can hold it yet."""
    if _is_told(home, artifact, location):
        return None
    commit = None if is_new or location.top is None else _commit_of(location)
    return Telling(artifact, location, commit)


def remember(home: Home, log_id: bytes, telling: Telling) -> None:
    """Note what the log has told; without a commit it waits for one."""
    location = telling.location
    top = None if location.top is None else os.path.relpath(location.top, home.path)
    row = (log_id, telling.artifact, _text(location.said), telling.commit, top, location.git_path)
    with _quietly(home), _opened(home) as connection, transaction(connection, str(home.locations_path)):
        connection.execute(_REMEMBER, row)


def tell_commits(home: Home, record: Record | None = None) -> int:
    """Record the commits that have come to hold what was told without one, and return how many; without `record` in the log itself."""
    if not home.locations_path.exists():
        return 0
    told = 0
    with _quietly(home):
        log_id = _log_id(home)
        with _opened(home) as connection:
            found = connection.execute(f"SELECT DISTINCT top, looked FROM told WHERE log = ? AND {_WAITING}", (log_id,))
            looked = [(str(top), commit) for top, commit in found.fetchall()]
        heads = {top: _head_of(home, top) for top, _ in looked}
        for top in dict.fromkeys(top for top, commit in looked if heads[top] not in (None, commit)):
            told += _tell_of(home, log_id, top, record or _appending(home))
    return told


def _head_of(home: Home, top: str) -> str | None:
    folder = _folder(home, top)
    return head_commit(folder) if os.path.isdir(folder) else None  # noqa: PTH112


def _folder(home: Home, top: str) -> str:
    return os.path.normpath(os.path.join(home.path, top))


def _tell_of(home: Home, log_id: bytes, top: str, record: Record) -> int:
    """Look at what waits for a commit of the working tree at `top`, whose HEAD has moved."""
    with _opened(home) as connection:
        found = connection.execute(
            f"SELECT artifact, place, path FROM told WHERE log = ? AND top = ? AND {_WAITING}", (log_id, top)
        )
        waiting = [_Waiting(*row) for row in found.fetchall()]
    folder = _folder(home, top)
    head = read_head(folder, sorted({item.path for item in waiting}))
    if head.commit is None:
        return 0
    drafts, committed = [], []
    for item in waiting:
        said = json.loads(item.place)
        if head.blobs.get(item.path) == said["blob"]:
            drafts.append(_draft(item.artifact, said, folder, head.commit))
            committed.append((head.commit, log_id, item.artifact, item.place))
    if drafts and not record(drafts):
        return 0
    with _opened(home) as connection, transaction(connection, str(home.locations_path)):
        connection.executemany(
            "UPDATE told SET looked = ? WHERE log = ? AND artifact = ? AND place = ?",
            [(head.commit, log_id, item.artifact, item.place) for item in waiting],
        )
        connection.executemany("UPDATE told SET commit_id = ? WHERE log = ? AND artifact = ? AND place = ?", committed)
    return len(drafts)


def _is_told(home: Home, artifact: str, location: Location) -> bool:
    is_told = False
    if home.locations_path.exists():
        with _quietly(home), _opened(home) as connection:
            asked = (_log_id(home), artifact, _text(location.said))
            is_told = connection.execute(_FIND, asked).fetchone() is not None
    return is_told


def _draft(artifact: str, said: Mapping[str, str], top: str | None, commit: str | None) -> Draft:
    url = remote_url(top) if top is not None else None
    return artifact_stored(
        artifact, {**said, **({"repo": url} if url else {}), **({"commit": commit} if commit else {})}
    )


def _commit_of(location: Location) -> str | None:
    assert location.top is not None
    head = read_head(location.top, [location.git_path])
    return head.commit if head.blobs.get(location.git_path) == location.said["blob"] else None


def _appending(home: Home) -> Record:
    def append(drafts: Sequence[Draft]) -> list[Event]:
        with shared_log(home.log_path) as log:
            return log.append(drafts)

    return append


def _log_id(home: Home) -> bytes:
    with shared_log(home.log_path) as log:
        return log.head().log_id


def _text(said: Mapping[str, str]) -> str:
    return json.dumps(said, sort_keys=True)


@contextmanager
def _opened(home: Home) -> Iterator[Connection]:
    path = home.locations_path
    with closing(connect(path)) as connection, store_errors(path):
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA synchronous=OFF")
        for statement in _SCHEMA:
            connection.execute(statement)
        yield connection


@contextmanager
def _quietly(home: Home) -> Iterator[None]:
    try:
        yield
    except CmfError as error:
        say(f"where bytes are may be told once more: {home.locations_path}: {error}")
        if isinstance(error, IntegrityError):
            for ending in ("", "-wal", "-shm"):
                with suppress(OSError):
                    home.locations_path.with_name(home.locations_path.name + ending).unlink()
