"""The tables of a graph, and how nodes are named in them.

Rules
- A graph is a projection: disposable, written only by `projection.py` and its parts, rebuilt when `FOLD_VERSION` or `SCHEMA_VERSION`
  changes, never migrated.
- `events` keeps what was folded, `about` and `edges` find the events about a node; values are resolved when a node is
  read. `executions` and `artifacts` hold the few columns that lists filter and sort by.
- An event is one blob: its id, its header (`header_size` bytes), `0x01` and its body, or `0x00`. Three blobs took
  more than twice as long to insert. `event_ids` finds it by the first 7 bytes of its id.
- `placed` names the branches that hold pieces of trees as somebody told them (`placing.py`).
- `holes` are the branches whose first event's previous one was missing: they go on from what the nearest of the accepted `gaps` names,
  until what was missing has come (`filled`).
- Usage events are found through `edges` alone: they have no row in `about`.
"""

from typing import Final

from cmf_graph.database import Connection, transaction
from cmf_protocol.events import Node
from cmf_protocol.fold import FOLD_VERSION

SCHEMA_VERSION: Final = 2
KIND_CODES: Final = {"pipeline": 1, "stage": 2, "execution": 3, "artifact": 4, "key": 5}
KIND_NAMES: Final = {code: kind for kind, code in KIND_CODES.items()}

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE trees (
  id INTEGER PRIMARY KEY, log_id BLOB NOT NULL, root BLOB NOT NULL UNIQUE, key BLOB NOT NULL,
  claim_event BLOB, claim BLOB, predecessor INTEGER REFERENCES trees(id), folded INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE branches (
  id INTEGER PRIMARY KEY, tree INTEGER NOT NULL REFERENCES trees(id), parent INTEGER, parent_sequence INTEGER,
  first_sequence INTEGER NOT NULL, head_sequence INTEGER NOT NULL, head_id BLOB NOT NULL UNIQUE
);
CREATE TABLE placed (name BLOB PRIMARY KEY, branch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE holes (
  branch INTEGER PRIMARY KEY, after BLOB NOT NULL, sequence INTEGER NOT NULL, log_id BLOB NOT NULL, previous BLOB NOT NULL,
  key BLOB, filled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE gaps (after BLOB, before BLOB, log_id BLOB, PRIMARY KEY (after, before, log_id)) WITHOUT ROWID;
CREATE TABLE events (
  id INTEGER PRIMARY KEY, branch INTEGER NOT NULL, sequence INTEGER NOT NULL, header_size INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE event_ids (prefix INTEGER, event INTEGER, PRIMARY KEY (prefix, event)) WITHOUT ROWID;
CREATE TABLE unfolded (event INTEGER PRIMARY KEY, type TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE nodes (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, key NOT NULL, UNIQUE (kind, key));
CREATE TABLE about (node INTEGER, event INTEGER, PRIMARY KEY (node, event)) WITHOUT ROWID;
CREATE TABLE edges (
  execution INTEGER, artifact INTEGER, produced INTEGER, event INTEGER, said INTEGER NOT NULL DEFAULT 1,
  PRIMARY KEY (execution, artifact, produced, event)
) WITHOUT ROWID;
CREATE INDEX edges_by_artifact ON edges(artifact, produced, execution, said);
CREATE TABLE executions (
  node INTEGER PRIMARY KEY, pipeline INTEGER, stage INTEGER, kind TEXT, team TEXT, status TEXT,
  started_us INTEGER, finished_us INTEGER, branch INTEGER, mixed INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX executions_by_start ON executions(started_us);
CREATE INDEX executions_by_pipeline ON executions(pipeline, stage, started_us);
CREATE TABLE artifacts (node INTEGER PRIMARY KEY, kind TEXT);
CREATE TABLE artifact_names (name TEXT, node INTEGER, PRIMARY KEY (name, node)) WITHOUT ROWID;
CREATE INDEX artifact_names_by_node ON artifact_names(node, name);
CREATE TABLE aliases (digest TEXT, node INTEGER, PRIMARY KEY (digest, node)) WITHOUT ROWID;
CREATE INDEX aliases_by_node ON aliases(node, digest);
"""


def create(connection: Connection, name: str) -> None:
    """Make the tables in an empty database; do nothing if this version's are there."""
    if version(connection) == (SCHEMA_VERSION, FOLD_VERSION):
        return
    with transaction(connection, name):
        for statement in _SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)", [("schema_version", SCHEMA_VERSION), ("fold_version", FOLD_VERSION)]
        )


def version(connection: Connection) -> tuple[int, int] | None:
    """Return (schema version, fold version) of a graph, or None if it has no tables yet."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return None
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('schema_version', 'fold_version')"))
    return int(found.get("schema_version", 0)), int(found.get("fold_version", 0))


def node_key(node: Node) -> tuple[int, str | bytes]:
    """Return a node's kind code and key as the tables hold them; a stage's key is pipeline, zero byte, stage."""
    kind, id_ = node
    if kind == "stage":
        return KIND_CODES[kind], f"{id_[0]}\0{id_[1]}".encode()
    return KIND_CODES[kind], id_


def node_of(kind: int, key: str | bytes) -> Node:
    """Return the node of a row of `nodes`."""
    name = KIND_NAMES[kind]
    if name == "stage":
        pipeline, _, stage = bytes(key).decode().partition("\0")  # type: ignore[arg-type]
        return name, (pipeline, stage)
    return name, key


def id_prefix(event_id: bytes) -> int:
    """Return the number by which `event_ids` finds an event: the first 7 bytes of its id."""
    return int.from_bytes(event_id[:7], "big")


def pack_event(event_id: bytes, header: bytes, body: bytes | None) -> bytes:
    """Return the blob of an event."""
    return event_id + header + (b"\0" if body is None else b"\1" + body)


def unpack_event(header_size: int, data: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return (event id, header bytes, body bytes or None) of the blob of an event."""
    end = 32 + header_size
    return data[:32], data[32:end], None if data[end] == 0 else data[end + 1 :]
