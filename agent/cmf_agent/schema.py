"""The tables of a log's database, and how they are made.

    logs          the logs of this site, the newest is the one appended to
    events        every event; position = log << 40 | sequence
    segments      every signature made: where the log was cut when it was sent
    hubs          what each hub said last
    deliveries    per hub and log: how far it was published (and where in which stream) and confirmed
    environments  which environments and tables a log holds already

Rules
- `events`, `segments` and `logs` only grow: triggers refuse UPDATE and DELETE.
- One number is the key of `events`, so that an append touches one B-tree: with a key of two columns, which takes
  a second one, a commit took 20 % longer.
- sqlite-utils is imported here and nowhere on the way of an append.
"""

from pathlib import Path

from cmf_graph.database import Connection, connect, transaction
from cmf_protocol.errors import StoreError

SEQUENCE_BITS = 40
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
#: The folder beside a log in which a lost one is brought back (`restoring.py`).
RESTORING = "restoring"

_GROW_ONLY = ("events", "segments", "logs")


def create_tables(connection: Connection, name: str) -> None:
    """Make all tables and triggers in the database called `name`, those that are there already left alone."""
    from sqlite_utils import Database

    with transaction(connection, name):
        database = Database(connection)
        database.create_table(
            "logs",
            {"id": int, "log_id": bytes, "key": bytes, "opened_us": int},
            pk="id",
            not_null={"log_id", "key", "opened_us"},
            if_not_exists=True,
        )
        database.create_table(
            "events",
            {"position": int, "event_id": bytes, "header": bytes, "body": bytes},
            pk="position",
            not_null={"event_id", "header"},
            if_not_exists=True,
        )
        database.create_table(
            "segments",
            {"log": int, "first": int, "last": int, "head": int, "statement": bytes, "signature": bytes},
            pk=("log", "first", "last", "head"),
            not_null={"statement", "signature"},
            if_not_exists=True,
        )
        database.create_table(
            "hubs",
            {"hub": bytes, "incarnation": bytes, "last_contact_us": int},
            pk="hub",
            if_not_exists=True,
        )
        database.create_table(
            "deliveries",
            {
                "hub": bytes, "log": int, "published": int, "stream_id": str, "stream_sequence": int,
                "confirmed": int, "confirmed_id": bytes,
            },
            pk=("hub", "log"),
            defaults={"published": 0, "confirmed": 0},
            if_not_exists=True,
        )  # fmt: skip
        database.create_table(
            "environments", {"log": int, "content_id": str}, pk=("log", "content_id"), if_not_exists=True
        )
        for table in _GROW_ONLY:
            for verb in ("UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TRIGGER IF NOT EXISTS {table}_refuse_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )


def open_database(path: Path) -> Connection:
    """Open the existing database of a log for writing; raise `StoreError` if it isn't there."""
    if not path.exists():
        raise missing_log(path)
    return connect(path)


def is_restoring(path: Path) -> bool:
    """Tell if the log that is to be at `path` is being brought back from a hub, and not there yet."""
    return path.with_name(RESTORING).exists() and not path.exists()


def missing_log(path: Path) -> StoreError:
    """Return the error for a log's database that is not there."""
    if is_restoring(path):
        return StoreError(
            f"{path} is not there yet: it is being brought back from the hub",
            "let `cmf-agent init --join FILE --restore` come to its end: run it again",
        )
    return StoreError(f"{path} is missing", "bring it back from a copy, or run `cmf-agent init` for a new log")
