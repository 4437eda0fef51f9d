"""Makes a log: its tables, its first event, and where it goes on from.

Rules
- The first event and the row that names the log are one transaction: a log exists with its `log.opened`, or not.
- `place.json` is written before that transaction commits. Should it never commit, the file names a log that is missing, and the next
  append opens a successor again; the other way round a crash would leave two.
- A successor is opened under the log's lock, after looking once more: of several processes that find the log
  copied, one opens it.
"""

import os
from pathlib import Path

from cmf_agent.home import Home
from cmf_agent.keys import read_signer
from cmf_agent.log import now_us, read_head
from cmf_agent.place import place_here, reason_to_succeed, write_place
from cmf_agent.schema import SEQUENCE_BITS, create_tables
from cmf_agent.version import AGENT
from cmf_graph.database import Connection, connect, store_errors, transaction
from cmf_protocol.errors import IntegrityError, StoreError
from cmf_protocol.events import SALT_BYTES, Draft, Head, make_events
from cmf_protocol.signing import Signer, Succession, sign_succession
from cmf_protocol.types import log_opened

LOG_ID_BYTES = 16


def has_log(path: Path) -> bool:
    """Tell if the database at `path` is there and holds a log."""
    if not path.exists():
        return False
    connection = connect(path)
    try:
        with store_errors(path):
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'logs'")
            return bool(tables.fetchone()) and bool(connection.execute("SELECT 1 FROM logs").fetchone())
    finally:
        connection.close()


def open_first_log(home: Home) -> None:
    """Make the database of `home`, and in it a log that belongs to the signing key there.

    The caller holds the log's lock.
    """
    key = read_signer(home.key_path).public_key
    name = str(home.log_path)
    connection = connect(home.log_path)
    try:
        create_tables(connection, name)
        with transaction(connection, name):
            _insert_log(connection, home, os.urandom(LOG_ID_BYTES), key, log_opened(key, agent=AGENT))
    finally:
        connection.close()


def open_successor(connection: Connection, home: Home, signer: Signer, *, predecessor: Head, reason: str) -> bytes:
    """Open, in one transaction, a new log of the signer's key that goes on from `predecessor`; return its id.

    The succession is signed, and so proven, where the database knows the predecessor's log as one of the same key; else it is
    a claim (protocol/README.md, section 5). From then on everyone appends to the new log. The caller holds the log's lock.
    Raises `StoreError` if the disk or the database refuses.
    """
    if predecessor.event_id is None:
        raise IntegrityError(f"{home.log_path} holds a log without events", "see what is left: cmf-agent verify")
    log_id, key = os.urandom(LOG_ID_BYTES), signer.public_key
    with transaction(connection, str(home.log_path)):
        owner = connection.execute("SELECT key FROM logs WHERE log_id = ?", (predecessor.log_id,)).fetchone()
        place = predecessor.log_id, predecessor.sequence, predecessor.event_id
        if owner is not None and owner[0] == key:
            succession = sign_succession(signer, *place, reason, new_log_id=log_id, new_key=key)
        else:
            succession = Succession(*place, reason, None)
        _insert_log(connection, home, log_id, key, log_opened(key, agent=AGENT, succeeds=succession.body()))
    return log_id


def succeed_if_copied(connection: Connection, home: Home) -> None:
    """Open a successor if the log can't be gone on in; the caller holds the log's lock.

    Raises `StoreError` if the signing key is missing, for a log has to be signed.
    """
    reason = reason_to_succeed(home, connection)
    if reason is None:  # another process has just opened one
        return
    try:
        signer = read_signer(home.key_path)
    except StoreError as error:
        raise StoreError(
            f"{home.log_path} was copied or put back ({reason}), and a successor log can't be opened: {error}",
            f"bring the key back; or move {home.path} aside and begin anew with `cmf-agent init`",
        ) from error
    open_successor(connection, home, signer, predecessor=read_head(connection, home.log_path)[1], reason=reason)


def _insert_log(connection: Connection, home: Home, log_id: bytes, key: bytes, draft: Draft) -> None:
    """Put in a log that opens with `draft`, as the newest, and write its place; in the caller's transaction."""
    opened_us = now_us()
    event = make_events(Head(log_id, 0, None, None), [draft], os.urandom(SALT_BYTES), opened_us)[0]
    number = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM logs").fetchone()[0]
    connection.execute("INSERT INTO logs VALUES (?, ?, ?, ?)", (number, log_id, key, opened_us))
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?)",
        (number << SEQUENCE_BITS | 1, event.event_id, event.header_bytes, event.body),
    )
    write_place(home, place_here(home, log_id))
