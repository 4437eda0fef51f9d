"""Reads an MLMD SQLite file, the peer's local store, as `cmf_json` reads its export; ml-metadata is not needed.

Rules
- The file is never written, nor anything beside it: one that is in WAL mode, or has a journal beside it, is copied with that
  to a temporary folder and read there, so that what its writer committed last is seen too.
- Columns and tables differ by schema version (6 to 10 were seen): what is not there is empty.
- All is read in one transaction.
"""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cmf_agent.ingest.records import Artifact, Edge, Execution, History, Pipeline, Stage, whole_number
from cmf_graph.database import Connection, connect, store_errors
from cmf_protocol.errors import CallerError, IntegrityError

MAGIC = b"SQLite format 3\0"
_PIPELINE, _STAGE = "Parent_Context", "Pipeline_Stage"
_NEEDED = ("Type", "Artifact", "Execution", "Context", "Event", "Association", "ArtifactProperty", "ExecutionProperty")
_VALUES = ("int_value", "double_value", "string_value", "byte_value", "proto_value", "bool_value")
#: Where the header says how the file is written: 2 in WAL mode.
_WRITE_VERSION_AT, _WAL = 18, 2
_HINT = "give what `cmf metadata export` wrote, or the MLMD SQLite file"

Row = dict[str, Any]
Values = dict[int, tuple[dict[str, Any], dict[str, Any]]]


def is_sqlite(path: Path) -> bool:
    """Tell if the file at `path` begins as SQLite files do; raise `StoreError` if it can't be read."""
    with store_errors(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_mlmd(path: Path) -> History:
    """Return what the database at `path` holds.

    Raises `CallerError` if it is another program's, `IntegrityError` if it is damaged, `StoreError` if it can't be read.
    """
    try:
        with _opened(path) as connection, store_errors(path):
            connection.execute("BEGIN")
            found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            missing = [name for name in _NEEDED if name not in found]
            if missing:
                raise CallerError(f"{path} is an SQLite file, but no MLMD store: it has no table {missing[0]}", _HINT)
            return _Store(connection).history()
    except IntegrityError as error:
        hint = "nothing was recorded: is it still being written? end what writes it and try again, or bring back a copy"
        raise IntegrityError(str(error), hint) from error


@contextmanager
def _opened(path: Path) -> Iterator[Connection]:
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    with store_errors(path):
        with path.open("rb") as file:
            header = file.read(_WRITE_VERSION_AT + 1)
        needs_copy = header[_WRITE_VERSION_AT:] == bytes([_WAL]) or any(other.exists() for other in beside)
    with tempfile.TemporaryDirectory(prefix="cmf-ingest-") as folder:
        place = path
        if needs_copy:
            place = Path(folder) / path.name
            with store_errors(path):
                for other in (path, *beside):
                    if other.exists():
                        shutil.copyfile(other, place.with_name(other.name))
        with closing(connect(place, read_only=not needs_copy)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            yield connection


class _Store:
    """The tables of one database, put together."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._types: dict[int, str] = {row["id"]: row["name"] for row in self._rows("Type")}
        self._artifacts = self._all_artifacts()
        self._named: set[int] = set()
        self._lost: dict[str, list[str]] = defaultdict(list)

    def history(self) -> History:
        """Return everything."""
        contexts = {row["id"]: row for row in self._rows("Context")}
        values = self._values("ContextProperty", "context_id")
        executions, others = self._executions(contexts)
        unused = self._unused()
        parents = {row["context_id"]: row["parent_context_id"] for row in self._rows("ParentContext")}
        pipelines: dict[str, Pipeline] = {}
        for id_, row in contexts.items():
            if self._type(row) == _PIPELINE:
                pipelines[row["name"]] = Pipeline(row["name"], *values.get(id_, ({}, {})), *_times(row), [])
        for id_, row in contexts.items():
            if self._type(row) != _STAGE:
                continue
            parent = contexts.get(parents.get(id_, 0))
            pipeline = parent["name"] if parent else row["name"].partition("/")[0]
            stage = Stage(
                row["name"],
                *values.get(id_, ({}, {})),
                *_times(row),
                executions.get(id_, []),
                tuple(unused.pop(id_, ())),
            )
            _of(pipelines, pipeline).stages.append(stage)
        for execution in others:
            self._place(pipelines, execution)
        self._lost["artifacts that no execution and no stage names"] = [
            a.name or a.uri for some in unused.values() for a in some
        ]
        return History(list(pipelines.values()), {what: names for what, names in self._lost.items() if names})

    def _place(self, pipelines: dict[str, Pipeline], execution: Execution) -> None:
        """Put an execution that is associated with no stage where its properties say that it belongs."""
        pipeline = str(execution.properties.get("Pipeline_Type") or "mlmd")
        name = str(execution.properties.get("Context_Type") or f"{pipeline}/{execution.type or 'execution'}")
        stages = _of(pipelines, pipeline).stages
        stage = next((stage for stage in stages if stage.name == name), None)
        if stage is None:
            stages.append(stage := Stage(name, {}, {}, 0, 0, []))
        stage.executions.append(execution)

    def _executions(self, contexts: dict[int, Row]) -> tuple[dict[int, list[Execution]], list[Execution]]:
        """Return the executions of each stage, and those of none."""
        values = self._values("ExecutionProperty", "execution_id")
        edges = self._edges()
        stages: dict[int, list[int]] = defaultdict(list)
        elsewhere: dict[int, list[str]] = defaultdict(list)
        for row in self._rows("Association"):
            context = contexts.get(row["context_id"], {})
            if self._type(context) == _STAGE:
                stages[row["execution_id"]].append(row["context_id"])
            elif context:
                elsewhere[row["execution_id"]].append(f"{self._type(context)}: {context['name']}")
        found: dict[int, list[Execution]] = defaultdict(list)
        others = []
        for row in self._rows("Execution"):
            id_ = row["id"]
            execution = Execution(
                id_, self._type(row), row.get("name") or "", *values.get(id_, ({}, {})), *_times(row), edges.get(id_, []),
                row.get("last_known_state") or 0, tuple(elsewhere.get(id_, ())),
            )  # fmt: skip
            for stage in stages[id_]:
                found[stage].append(execution)
            if not stages[id_]:
                others.append(execution)
        return found, others

    def _edges(self) -> dict[int, list[Edge]]:
        """Return the edges of each execution."""
        paths: dict[int, str] = {}
        for row in self._rows("EventPath"):
            if row.get("step_key"):
                paths.setdefault(row["event_id"], row["step_key"])
        found: dict[int, list[Edge]] = defaultdict(list)
        for row in self._rows("Event"):
            artifact = self._artifacts.get(row["artifact_id"])
            if artifact is None:
                self._lost["usage edges whose artifact is missing"].append(f"execution {row['execution_id']}")
                continue
            self._named.add(artifact.id)
            at_ms, path = whole_number(row.get("milliseconds_since_epoch")), paths.get(row.get("id", 0), "")
            found[row["execution_id"]].append(Edge(row["type"] or 0, artifact, at_ms, path))
        return found

    def _all_artifacts(self) -> dict[int, Artifact]:
        values = self._values("ArtifactProperty", "artifact_id")
        return {
            row["id"]: Artifact(
                row["id"], self._type(row), row.get("name") or "", row.get("uri") or "",
                *values.get(row["id"], ({}, {})), *_times(row),
            )
            for row in self._rows("Artifact")
        }  # fmt: skip

    def _unused(self) -> dict[int, list[Artifact]]:
        """Return the artifacts that no execution names, by the context that does; 0 for none."""
        unused = {id_: artifact for id_, artifact in self._artifacts.items() if id_ not in self._named}
        found: dict[int, list[Artifact]] = defaultdict(list)
        for row in self._rows("Attribution"):
            artifact = unused.pop(row["artifact_id"], None)
            if artifact is not None:
                found[row["context_id"]].append(artifact)
        found[0] += unused.values()
        return found

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _type(self, row: Row) -> str:
        return self._types.get(row.get("type_id", 0), "")

    def _rows(self, table: str) -> Iterator[Row]:
        """Yield the rows of a table as they were made, column → value; none if this schema has no such table."""
        columns = [row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")]
        if columns:
            for row in self._connection.execute(f"SELECT * FROM {table} ORDER BY rowid"):
                yield dict(zip(columns, row, strict=True))

    def _values(self, table: str, owner: str) -> Values:
        """Return the properties and the custom properties of each owner."""
        found: Values = {}
        for row in self._rows(table):
            properties, custom = found.setdefault(row[owner], ({}, {}))
            (custom if row["is_custom_property"] else properties)[row["name"]] = _value(row)
        return found


def _value(row: Row) -> Any:
    column = next((column for column in _VALUES if row.get(column) is not None), None)
    value = None if column is None else row[column]
    return bool(value) if column == "bool_value" else value


def _times(row: Row) -> tuple[int, int]:
    return whole_number(row.get("create_time_since_epoch")), whole_number(row.get("last_update_time_since_epoch"))


def _of(pipelines: dict[str, Pipeline], name: str) -> Pipeline:
    return pipelines.setdefault(name, Pipeline(name, {}, {}, 0, 0, []))
