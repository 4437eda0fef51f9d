"""The append-only log: gives events their place in the chain and makes them durable.

Rules
- When `append` returns, its events survive a crash of the machine; when it raises, none of them was recorded.
- Whoever appends queues on the lock file first. Within a process, threads that wait are served together, in one
  commit, by the first of them (group commit); each gets its own events, or its own error.
- The head is remembered. The insert itself checks that it still is the database's last event, and only if it is not is
  the head read again: another process may have appended, or opened a successor log, in which everyone goes on.
- After any failure the connection is thrown away and the next append opens a new one.
- Whoever opens the database looks first if the file was copied or put back (`place.py`), and whoever keeps it open looks
  again from time to time: then a successor log is opened, and nothing is appended to the log that may go on elsewhere.
- A fork waits for the append that is going on and closes the connection: SQLite's locks and its shared memory
  belong to a process, and a child with an open copy would damage the log by opening it.
- A signal handler that appends in the midst of an append of its own thread gets `TurnHeld`: it can't be waited for.
- The wall clock is read here and nowhere else in the agent (`now_us`).
"""

import gc
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import urandom
from pathlib import Path
from time import monotonic, time_ns

from cmf_agent.forking import FORK_WAIT_S, Forkable, renew_after_fork
from cmf_agent.home import Home
from cmf_agent.locking import QueueLock
from cmf_agent.place import reason_to_succeed
from cmf_agent.schema import SEQUENCE_BITS, open_database
from cmf_graph.database import Connection, store_errors
from cmf_protocol.errors import CallerError, CmfError, StoreError
from cmf_protocol.events import SALT_BYTES, Draft, Event, Head, decode_header, head_of, make_events

#: From this many events on, the cyclic garbage collector rests while they are made: they hold no cycles.
_BULK_FROM = 1_000

#: How long an open log is appended to before someone looks again where it lies, s; it takes some 60 µs.
LOOK_EVERY_S = 10.0

_new_tuple = tuple.__new__  # a NamedTuple's own constructor takes three times as long

_INSERT = "INSERT INTO events (position, event_id, header, body) VALUES (?, ?, ?, ?)"
#: ?5 is the id of the head that the event was chained to: if that is not the last event, there is no event id, which is refused.
_INSERT_NEXT = (
    "INSERT INTO events (position, event_id, header, body) VALUES "
    "(?1, CASE (SELECT event_id FROM events ORDER BY position DESC LIMIT 1) WHEN ?5 THEN ?2 END, ?3, ?4)"
)
_NEWEST_LOG = "SELECT id, log_id FROM logs ORDER BY id DESC LIMIT 1"
_HEAD = (
    "SELECT position, event_id, header FROM events WHERE position BETWEEN ? << 40 AND (? + 1 << 40) - 1 "
    "ORDER BY position DESC LIMIT 1"
)


def now_us() -> int:
    """Return the wall time, µs UTC."""
    return time_ns() // 1000


class TurnHeld(StoreError):
    """The thread is in the midst of an append: a signal handler can't append before that has ended."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: an append of this thread was interrupted to append", "record outside signal handlers"
        )


class _Waiter:
    """What one call of `append` waits for."""

    __slots__ = ("done", "drafts", "error", "events")

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.drafts = drafts
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.done = False


class Log(Forkable):
    """The log in the database at `path`, which `home.init_home` made; opened when first used, closed by `close`.

    Any number of threads and processes may append; a forked child opens its own connection.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._home = Home(path.parent, path.parent)  # the root, unknown here, is not used
        self._lock = QueueLock(path.with_suffix(".lock"))
        self._turn = threading.RLock()  # so that a signal handler finds `_busy` instead of waiting for itself
        self._busy = False
        self._waiting: deque[_Waiter] = deque()
        self._connection: Connection | None = None
        self._turns_for_forks: list[bool] = []
        self._stranded: Connection | None = None
        self._base = 0
        self._head: Head | None = None
        self._look_at_s = 0.0
        renew_after_fork(self)

    def append(self, drafts: Sequence[Draft]) -> list[Event]:
        """Record `drafts`, all or none, and return their events, durable.

        Raises `StoreError` if the disk or the database refuses, `CallerError` for a draft that can't be an event.
        """
        if len(drafts) == 1 and not self._busy:
            with self._turn:  # `_alone` in place: it would take 1 µs
                if self._busy:
                    raise TurnHeld(self.path)
                self._busy = True
                try:
                    events = self._append_one(drafts)
                finally:
                    self._busy = False
            if events is not None:
                return events
        waiter = _Waiter(drafts)
        self._waiting.append(waiter)
        try:
            with self._alone():
                if not waiter.done:
                    self._serve()
        except TurnHeld:
            self._waiting.remove(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        if not waiter.done:  # it was taken along by an append that was interrupted at once
            raise _interrupted()
        return waiter.events

    def head(self) -> Head:
        """Return the newest event of the log that is appended to, as the database has it now."""
        with self._usable() as connection:
            return read_head(connection, self.path)[1]

    def holds_content(self, content_id: str) -> bool:
        """Tell if this log has recorded the content (an environment, a table) with that content id."""
        with self._usable() as connection:
            found = connection.execute(
                "SELECT 1 FROM environments WHERE log = (SELECT max(id) FROM logs) AND content_id = ?", (content_id,)
            )
            return found.fetchone() is not None

    def remember_content(self, content_id: str) -> None:
        """Note that this log has recorded that content; if this gets lost, it is recorded once more."""
        with self._usable() as connection, self._lock:
            connection.execute("INSERT OR IGNORE INTO environments SELECT max(id), ? FROM logs", (content_id,))

    def close(self) -> None:
        """Close the database; appending again opens it anew."""
        with suppress(TurnHeld), self._alone():  # what is being used stays open
            self._drop_connection()
            self._lock.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def before_fork(self) -> None:
        """Wait for the append that is going on, and close the connection."""
        got = self._turn.acquire(timeout=FORK_WAIT_S)
        self._turns_for_forks.append(got)
        if got and not self._busy:  # busy: a signal handler forks in the midst of an append
            with suppress(Exception):
                self._drop_connection()

    def after_fork_in_parent(self) -> None:
        """Let the other threads append."""
        if self._turns_for_forks and self._turns_for_forks.pop():
            self._turn.release()

    def after_fork(self) -> None:
        """Start afresh in a forked child."""
        self._turn, self._busy, self._turns_for_forks = threading.RLock(), False, []
        self._waiting = deque()
        # Should it be open after all, neither using nor closing it nor opening a second one is safe.
        self._stranded = self._stranded or self._connection
        self._connection = None
        self._head = None

    # -- one commit ------------------------------------------------------------------------------------------------

    def _append_one(self, drafts: Sequence[Draft]) -> list[Event] | None:
        """Record a single draft after the remembered head; return None, nothing recorded, if that is not how it stands.

        This is the way of nearly every event; each microsecond here was measured.
        """
        connection, head = self._connection, self._head
        if connection is None or head is None or monotonic() > self._look_at_s:
            return None
        try:
            with self._lock:
                events = make_events(head, drafts, urandom(SALT_BYTES), time_ns() // 1000)
                event_id, header, header_bytes, body = events[0]
                sequence = header[4]
                connection.execute(_INSERT_NEXT, (self._base + sequence, event_id, header_bytes, body, head[2]))
                self._head = _new_tuple(Head, (header[3], sequence, event_id, header[6]))
                return events
        except CallerError:
            raise
        except connection.IntegrityError:  # another process has appended, or opened a successor log
            return None
        except Exception as error:  # noqa: BLE001 - it leaves as ours
            self._drop_connection()
            failure = _as_store_error(self.path, error)
            raise failure from (None if failure is error else error)
        except BaseException:  # Ctrl-C
            self._drop_connection()
            self._lock.close()
            raise

    def _serve(self) -> None:
        """Commit what all threads wait for, and give each its result."""
        batch: list[_Waiter] = []
        try:
            while self._waiting:
                batch.append(self._waiting.popleft())
            connection = self._ready()
            with self._lock:
                self._commit_many(connection, batch)
        except Exception as error:  # noqa: BLE001 - every waiter gets it, and raises it
            _give_error(batch, _as_store_error(self.path, error))
            self._drop_connection()
            return
        except BaseException:  # Ctrl-C: this caller's own; the others were not recorded
            _give_error(batch, _interrupted())
            self._drop_connection()
            self._lock.close()
            raise
        for waiter in batch:
            waiter.done = True

    def _commit_many(self, connection: Connection, batch: list[_Waiter]) -> None:
        connection.execute("BEGIN IMMEDIATE")  # ended, should anything fail, by closing the connection
        base, head = read_head(connection, self.path)
        if self._head is not None and base + head.sequence < self._base + self._head.sequence:
            raise StoreError(f"{self.path}: an older copy was put back while it was open", "append again")
        self._base = base
        for waiter in batch:
            head = self._insert(connection, head, waiter)
        connection.execute("COMMIT")
        self._head = head

    def _insert(self, connection: Connection, head: Head, waiter: _Waiter) -> Head:
        """Insert one caller's events and return the new head; a draft that can't be an event is its caller's error."""
        try:
            with _without_gc(len(waiter.drafts) >= _BULK_FROM):
                waiter.events = made = make_events(
                    head, waiter.drafts, urandom(SALT_BYTES * len(waiter.drafts)), now_us()
                )
        except CallerError as error:
            waiter.error = error
            return head
        first = self._base + head.sequence + 1
        connection.executemany(_INSERT, ((first + at, e[0], e[2], e[3]) for at, e in enumerate(made)))
        return head_of(made[-1]) if made else head

    # -- the connection --------------------------------------------------------------------------------------------

    @contextmanager
    def _usable(self) -> Iterator[Connection]:
        """Lend the connection for a question; errors become ours."""
        with self._alone(), store_errors(self.path):
            yield self._ready()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other thread out, and this one's signal handlers, which get `TurnHeld`."""
        with self._turn:
            if self._busy:
                raise TurnHeld(self.path)
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

    def _ready(self) -> Connection:
        """Return the open database, in which the newest log can be gone on in."""
        if self._connection is not None:
            if monotonic() <= self._look_at_s:
                return self._connection
            if reason_to_succeed(self._home, self._connection) is not None:
                self._drop_connection()
        connection = self._connection or self._open()
        self._look_at_s = monotonic() + LOOK_EVERY_S
        return connection

    def _open(self) -> Connection:
        if self._stranded is not None:
            raise StoreError(
                f"{self.path} was in use when this process was forked", "start this process by spawn, not by fork"
            )
        self._head = None
        connection = open_database(self.path)
        try:
            if reason_to_succeed(self._home, connection) is not None:
                self._succeed(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _succeed(self, connection: Connection) -> None:
        from cmf_agent.opening import succeed_if_copied  # with it comes what signs

        with self._lock:
            succeed_if_copied(connection, self._home)

    def _drop_connection(self) -> None:
        connection, self._connection, self._head = self._connection, None, None
        if connection is not None:
            connection.close()


def _interrupted() -> StoreError:
    return StoreError("the append was interrupted", "append again")


def _as_store_error(path: Path, error: Exception) -> CmfError:
    """Return ours for whatever an append ended with, even for what nobody thought of."""
    try:
        with store_errors(path):
            raise error
    except CmfError as ours:
        return ours
    except Exception as other:  # noqa: BLE001 - such as MemoryError, sqlite3.InterfaceError
        return StoreError(f"{path}: {type(other).__name__}: {other}", "nothing was recorded by this call")


def _give_error(batch: list[_Waiter], error: CmfError) -> None:
    for waiter in batch:
        waiter.events = []
        waiter.error = error
        waiter.done = True


@contextmanager
def _without_gc(applies: bool) -> Iterator[None]:
    applies = applies and gc.isenabled()
    if applies:
        gc.disable()
    try:
        yield
    finally:
        if applies:
            gc.enable()


def read_head(connection: Connection, path: Path) -> tuple[int, Head]:
    """Return the position before its first event, and the head, of the log that is appended to."""
    row = connection.execute(_NEWEST_LOG).fetchone()
    if row is None:
        raise StoreError(f"{path} holds no log", "run `cmf-agent init` to finish making it")
    number, log_id = row
    newest = connection.execute(_HEAD, (number, number)).fetchone()
    base = number << SEQUENCE_BITS
    if newest is None:
        return base, Head(log_id, 0, None, None)
    return base, Head(log_id, newest[0] - base, newest[1], decode_header(newest[2]).clock)


# -- one log for all runs of a process -----------------------------------------------------------------------------


class _Lent(Forkable):
    """The logs in use in this process, each with the number of its users."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may ask for a log in the midst of it
        self.logs: dict[Path, tuple[Log, int]] = {}
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The child's users are the parent's, copied; the lock may have been held."""
        self.lock = threading.RLock()


_lent = _Lent()


@contextmanager
def shared_log(path: Path) -> Iterator[Log]:
    """Lend the process's one `Log` for `path`, so that all its threads commit together; the last user closes it."""
    with _lent.lock:
        log, users = _lent.logs.get(path) or (Log(path), 0)
        _lent.logs[path] = log, users + 1
    try:
        yield log
    finally:
        with _lent.lock:
            users = _lent.logs.get(path, (log, 1))[1] - 1
            if users > 0:
                _lent.logs[path] = log, users
            else:
                _lent.logs.pop(path, None)
        if users <= 0:
            log.close()
