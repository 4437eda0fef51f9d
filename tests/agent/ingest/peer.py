"""The peer's files, made for tests: the real export of its getting-started pipeline, changed ones, and MLMD SQLite files of the same.

document = export()                                  # a fresh copy, to be changed
path = written(document, tmp_path / "export.json")
store = mlmd_store(document, tmp_path / "mlmd")      # what the peer's database has of it
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

_REAL = Path(__file__).parent / "data" / "getting-started.cmf.json"

Document = dict[str, Any]

#: As ml_metadata makes them (schema version 10), without indexes; `{…}` is what older versions lack.
_VALUES = (
    "int_value INT, double_value DOUBLE, string_value TEXT{, byte_value BLOB, proto_value BLOB, bool_value BOOLEAN}"
)
_TIMES = "create_time_since_epoch INT NOT NULL DEFAULT 0, last_update_time_since_epoch INT NOT NULL DEFAULT 0"
_TABLES = {
    "MLMDEnv": "schema_version INTEGER PRIMARY KEY",
    "Type": "id INTEGER PRIMARY KEY AUTOINCREMENT, name VARCHAR(255) NOT NULL, version VARCHAR(255), type_kind TINYINT(1) NOT NULL",
    "Artifact": "id INTEGER PRIMARY KEY AUTOINCREMENT, type_id INT NOT NULL, uri TEXT, state INT, name VARCHAR(255)"
    f"{{, external_id VARCHAR(255) UNIQUE}}, {_TIMES}, UNIQUE(type_id, name)",
    "ArtifactProperty": f"artifact_id INT NOT NULL, name VARCHAR(255) NOT NULL, is_custom_property TINYINT(1) NOT NULL, {_VALUES}",
    "Execution": "id INTEGER PRIMARY KEY AUTOINCREMENT, type_id INT NOT NULL, last_known_state INT, name VARCHAR(255)"
    f"{{, external_id VARCHAR(255) UNIQUE}}, {_TIMES}",
    "ExecutionProperty": f"execution_id INT NOT NULL, name VARCHAR(255) NOT NULL, is_custom_property TINYINT(1) NOT NULL, {_VALUES}",
    "Context": f"id INTEGER PRIMARY KEY AUTOINCREMENT, type_id INT NOT NULL, name VARCHAR(255) NOT NULL, {_TIMES}",
    "ContextProperty": f"context_id INT NOT NULL, name VARCHAR(255) NOT NULL, is_custom_property TINYINT(1) NOT NULL, {_VALUES}",
    "ParentContext": "context_id INT NOT NULL, parent_context_id INT NOT NULL, PRIMARY KEY (context_id, parent_context_id)",
    "Event": "id INTEGER PRIMARY KEY AUTOINCREMENT, artifact_id INT NOT NULL, execution_id INT NOT NULL, type INT NOT NULL, "
    "milliseconds_since_epoch INT",
    "EventPath": "event_id INT NOT NULL, is_index_step TINYINT(1) NOT NULL, step_index INT, step_key TEXT",
    "Association": "id INTEGER PRIMARY KEY AUTOINCREMENT, context_id INT NOT NULL, execution_id INT NOT NULL",
    "Attribution": "id INTEGER PRIMARY KEY AUTOINCREMENT, context_id INT NOT NULL, artifact_id INT NOT NULL",
}
_KINDS = {"Execution": 0, "Artifact": 1, "Context": 2}


def export() -> Document:
    """Return the real export of the getting-started pipeline, as `cmf metadata export` wrote it."""
    document: Document = json.loads(_REAL.read_text(encoding="utf-8"))
    return document


def written(document: object, path: Path) -> Path:
    """Write a document as JSON and return its path."""
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return path


def executions(document: Document) -> Iterator[dict[str, Any]]:
    """Yield the executions of a document."""
    for pipeline in document["Pipeline"]:
        for stage in pipeline["stages"]:
            yield from stage["executions"]


def artifacts(document: Document, type_: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the artifacts of a document, once for each edge; of one type if it is given."""
    for execution in executions(document):
        for event in execution["events"]:
            if type_ in (None, event["artifact"]["type"]):
                yield event["artifact"]


def mlmd_store(document: Document, path: Path, *, version: int = 10) -> Path:
    """Make the MLMD SQLite file of which `document` is the export; versions below 10 lack columns."""
    with closing(sqlite3.connect(path)) as connection:
        for table, columns in _TABLES.items():
            here = re.sub(r"\{(.*?)\}", r"\1" if version >= 10 else "", columns)
            connection.execute(f"CREATE TABLE {table} ({here})")
        connection.execute("INSERT INTO MLMDEnv VALUES (?)", (version,))
        _Store(connection).add(document)
        connection.commit()
    return path


class _Store:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._types: dict[tuple[str, str], int] = {}
        self._artifacts: set[int] = set()

    def add(self, document: Document) -> None:
        for pipeline in document["Pipeline"]:
            self._record("Context", pipeline)
            for stage in pipeline["stages"]:
                self._record("Context", stage)
                self._insert("ParentContext", context_id=stage["id"], parent_context_id=pipeline["id"])
                for execution in stage["executions"]:
                    self._execution(stage["id"], execution)

    def _execution(self, stage: int, execution: dict[str, Any]) -> None:
        self._record("Execution", execution)
        self._insert("Association", context_id=stage, execution_id=execution["id"])
        for event in execution["events"]:
            artifact = event["artifact"]
            if artifact["id"] not in self._artifacts:
                self._artifacts.add(artifact["id"])
                self._record("Artifact", artifact)
                self._insert("Attribution", context_id=stage, artifact_id=artifact["id"])
            self._insert("Event", artifact_id=artifact["id"], execution_id=execution["id"], type=event["type"])

    def _record(self, table: str, found: dict[str, Any]) -> None:
        columns = ("id", "name", "create_time_since_epoch", "last_update_time_since_epoch")
        row = {column: found[column] for column in columns if found.get(column) not in (None, "")}
        if table == "Artifact":
            row["uri"] = found["uri"]
        self._insert(table, type_id=self._type(table, found["type"]), **row)
        for is_custom, key in enumerate(("properties", "custom_properties")):
            for name, value in found[key].items():
                column = {int: "int_value", float: "double_value", bool: "bool_value"}.get(type(value), "string_value")
                owner = {f"{table.lower()}_id": found["id"]}
                self._insert(f"{table}Property", **owner, name=name, is_custom_property=is_custom, **{column: value})

    def _type(self, table: str, name: str) -> int:
        if (table, name) not in self._types:
            self._types[table, name] = self._insert("Type", name=name, type_kind=_KINDS[table])
        return self._types[table, name]

    def _insert(self, table: str, **row: Any) -> int:
        marks = ", ".join("?" * len(row))
        sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"
        return self._connection.execute(sql, list(row.values())).lastrowid or 0
