"""The schemas of registry and event store, as migrations of sqlite-utils.

Rules
- What was released is never changed, only followed by another migration.
- sqlite-utils takes a tenth of a second to import: a database says in its `user_version` that it is up to date, and then this module is
  not imported at all.
"""

from sqlite_utils import Database, Migrations

from cmf_graph.database import Connection

REGISTRY = Migrations("registry")


@REGISTRY()
def m001_registry(db: Database) -> None:
    """The tables of the first release."""
    db.table("hub").create({"id": int, "hub_id": bytes, "login_seed": str}, pk="id")
    db.table("sites").create(
        {"name": str, "login": str, "token_hash": bytes, "created_us": int, "revoked_us": int, "may_carry": int},
        pk="name",
        not_null={"created_us"},
        defaults={"may_carry": 0},
    )
    db.table("keys").create(
        {"key": bytes, "site": str, "bound_us": int}, pk="key", foreign_keys=[("site", "sites", "name")]
    )


STORE = Migrations("store")


@STORE()
def m001_store(db: Database) -> None:
    """The tables of the first release."""
    db.table("meta").create({"id": int, "incarnation": bytes}, pk="id")
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
    db.table("branches").create_index(["log"])
    db.table("segments").create(
        {
            "id": int, "branch": int, "first_sequence": int, "last_sequence": int, "skip": int,
            "carrier": str, "arrived_us": int, "data": bytes,
        },
        pk="id",
        foreign_keys=[("branch", "branches", "id")],
    )  # fmt: skip
    db.table("segments").create_index(["branch", "first_sequence"])
    db.table("parked").create(
        {"id": int, "log_id": bytes, "first_sequence": int, "previous": bytes, "carrier": str, "site": str,
         "arrived_us": int, "size": int, "digest": bytes, "data": bytes},
        pk="id",
    )  # fmt: skip
    db.table("parked").create_index(["digest"], unique=True)
    db.table("parked").create_index(["log_id", "first_sequence"])
    db.table("quarantine").create(
        {"id": int, "arrived_us": int, "carrier": str, "code": str, "message": str, "size": int, "digest": bytes,
         "data": bytes},
        pk="id",
    )  # fmt: skip
    db.table("quarantine").create_index(["digest"], unique=True)
    db.table("contacts").create({"site": str, "last_us": int, "ahead_us": int}, pk="site")


def apply(migrations: Migrations, connection: Connection, version: int) -> None:
    """Bring a database to `version`."""
    migrations.apply(Database(connection))
    connection.execute(f"PRAGMA user_version={version:d}")
