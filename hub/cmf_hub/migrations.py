"""The schemas of registry and event store, as migrations of sqlite-utils.

Rules
- What was released is never changed, only followed by another migration.
- sqlite-utils takes a tenth of a second to import: a database says in its `user_version` that it is up to date, and then this module is
  not imported at all.
"""

import os

from sqlite_utils import Database, Migrations

from cmf_graph.database import Connection

REGISTRY = Migrations("registry")


@REGISTRY()
def m001_registry(db: Database) -> None:
    """The tables of the first release."""
    db.table("hub").create({"id": int, "hub_id": bytes, "login_seed": str, "signing_seed": bytes}, pk="id")
    db.table("sites").create(
        {
            "name": str,
            "login": str,
            "token_hash": bytes,
            "created_us": int,
            "revoked_us": int,
            "may_carry": int,
            "may_operate": int,
        },
        pk="name",
        not_null={"created_us"},
        defaults={"may_carry": 0, "may_operate": 0},
    )
    db.table("keys").create(
        {"key": bytes, "site": str, "bound_us": int}, pk="key", foreign_keys=[("site", "sites", "name")]
    )


STORE = Migrations("store")


@STORE()
def m001_store(db: Database) -> None:
    """The tables of the first release."""
    db.table("meta").create({"id": int, "incarnation": bytes}, pk="id")
    db.table("meta").insert({"id": 1, "incarnation": os.urandom(16)})
    db.table("logs").create(
        {"id": int, "log_id": bytes, "root": bytes, "key": bytes, "head_sequence": int, "head_id": bytes},
        pk="id",
        not_null={"log_id", "root", "key"},
    )
    db.table("logs").create_index(["root"], unique=True)
    db.table("logs").create_index(["log_id"])
    db.table("branches").create(
        {
            "id": int, "log": int, "parent": int, "parent_sequence": int, "first_sequence": int, "first_id": bytes,
            "head_sequence": int, "head_id": bytes, "head_wall_us": int,
        },
        pk="id",
        foreign_keys=[("log", "logs", "id")],
    )  # fmt: skip
    db.table("branches").create_index(["head_id"], unique=True)
    db.table("branches").create_index(["log", "head_sequence"])
    db.table("segments").create(
        {
            "id": int, "branch": int, "first_sequence": int, "last_sequence": int, "skip": int,
            "supplies": int,  # 1: it brought bodies of events that were held without them
            "last_id": bytes,  # null: it was stored for these bodies only, and brought no event
            "carrier": str, "arrived_us": int, "data": bytes,
        },
        pk="id",
        foreign_keys=[("branch", "branches", "id")],
    )  # fmt: skip
    db.table("segments").create_index(["branch", "first_sequence"])
    db.table("segments").create_index(["last_id"])
    db.table("withheld").create({"event_id": bytes}, pk="event_id")
    db.table("indexed_logs").create({"log_id": bytes}, pk="log_id")
    db.table("event_ids").create({"prefix": int, "segment": int}, pk=("prefix", "segment"))
    db.table("parked").create(
        {"id": int, "log_id": bytes, "first_sequence": int, "first_id": bytes, "previous": bytes, "key": bytes, "ready": int,
         "carrier": str, "site": str, "arrived_us": int, "size": int, "digest": bytes, "data": bytes},
        pk="id",
    )  # fmt: skip
    db.table("parked").create_index(["digest"], unique=True)
    db.table("parked").create_index(["log_id", "first_sequence"])
    db.table("parked").create_index(["previous"])
    db.table("parked").create_index(["first_id"])
    db.table("parked").create_index(["ready"])
    db.table("quarantine").create(
        {"id": int, "arrived_us": int, "carrier": str, "code": str, "message": str, "size": int, "digest": bytes,
         "data": bytes},
        pk="id",
    )  # fmt: skip
    db.table("quarantine").create_index(["digest"], unique=True)
    db.table("quarantine").create_index(["carrier"])
    db.table("gaps").create(
        {
            "event_id": bytes, "log_id": bytes, "before": bytes, "after": bytes, "key": bytes,
            "before_sequence": int, "before_key": bytes,  # null as long as that event is not held
        },
        pk="event_id",
    )  # fmt: skip
    db.table("gaps").create_index(["after", "key", "before_key", "before_sequence", "before"])
    db.table("gaps").create_index(["before"])
    db.table("holes").create(
        {
            "branch": int,
            "log_id": bytes,
            "sequence": int,
            "after": bytes,
            "previous": bytes,
            "key": bytes,
            "filled": int,
        },
        pk="branch",
        foreign_keys=[("branch", "branches", "id")],
    )
    for columns in (["log_id", "sequence"], ["after"], ["previous"], ["filled"]):
        db.table("holes").create_index(columns)
    db.table("branches").create_index(["parent"])
    db.table("contacts").create({"site": str, "last_us": int, "ahead_us": int, "left_us": int}, pk="site")


def apply(migrations: Migrations, connection: Connection, version: int) -> None:
    """Bring a database to `version`."""
    migrations.apply(Database(connection))
    connection.execute(f"PRAGMA user_version={version:d}")
