"""Makes a log: its tables and its first event.

Rules
- The first event and the row that names the log are one transaction: a log exists with its `log.opened`, or not.
"""

import os
from pathlib import Path

from cmf_agent.home import Home
from cmf_agent.keys import read_signer
from cmf_agent.log import now_us
from cmf_agent.schema import SEQUENCE_BITS, create_tables
from cmf_agent.version import AGENT
from cmf_graph.database import connect, store_errors, transaction
from cmf_protocol.events import SALT_BYTES, Head, make_events
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
    log_id, opened_us = os.urandom(LOG_ID_BYTES), now_us()
    draft = log_opened(key, agent=AGENT)
    event = make_events(Head(log_id, 0, None, None), [draft], os.urandom(SALT_BYTES), opened_us)[0]
    name = str(home.log_path)
    connection = connect(home.log_path)
    try:
        create_tables(connection, name)
        with transaction(connection, name):
            connection.execute("INSERT INTO logs VALUES (1, ?, ?, ?)", (log_id, key, opened_us))
            position = 1 << SEQUENCE_BITS | 1
            connection.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?)", (position, event.event_id, event.header_bytes, event.body)
            )
    finally:
        connection.close()
