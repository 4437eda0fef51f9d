"""Reads the JSON of `cmf metadata export`, which is also what the peer pushes.

Rules
- What is missing is empty; what has another form than it must have is refused, with the place where it stands.
- A list of pipelines, or of several exports, is read as one export.
- An artifact is written anew for every execution that used it: equal ones become one object, so that the memory stays near the text's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmf_agent.ingest.records import Artifact, Edge, Execution, History, Pipeline, Properties, Stage, whole_number
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError

_HINT = "give what `cmf metadata export` wrote, or the MLMD SQLite file"
_TYPES = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


def read_json(path: Path) -> History:
    """Return what the export at `path` holds; raise `CallerError` if it is none, `StoreError` if it can't be read."""
    with store_errors(path):
        data = path.read_bytes()
    try:
        document = json.loads(data)
    except UnicodeDecodeError as error:
        raise CallerError(f"{path} is neither JSON nor an SQLite file", _HINT) from error
    except RecursionError as error:
        raise CallerError(f"{path} is nested too deep for an export of cmf", _HINT) from error
    except json.JSONDecodeError as error:
        if not error.doc.lstrip().startswith(("{", "[")):
            raise CallerError(f"{path} is neither JSON nor an SQLite file", _HINT) from error
        place = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise CallerError(f"{path} is damaged or cut off: {place}; nothing was recorded", "export it again") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise CallerError(f"{path} holds a number that can't be read: {error}; nothing was recorded", _HINT) from error
    del data
    reader = _Reader(str(path))
    return History([reader.pipeline(found, where) for found, where in reader.pipelines(document)], {})


class _Reader:
    """Reads the parts of one document; `where` is the place of a part in it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._artifacts: dict[str, Artifact] = {}

    def pipelines(self, document: Any) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the pipelines of a document, of a list of documents, or of a list of pipelines."""
        for at, part in enumerate(document if isinstance(document, list) else [document]):
            where = f"entry {at + 1}" if isinstance(document, list) else "the document"
            if isinstance(part, dict) and "Pipeline" not in part and "stages" in part:
                yield part, where
                continue
            if not isinstance(part, dict) or "Pipeline" not in part:
                raise CallerError(f'{self._name} is no export of cmf: {where} has no "Pipeline"', _HINT)
            yield from self._items(part, "Pipeline", where)

    def pipeline(self, found: dict[str, Any], where: str) -> Pipeline:
        """Return a pipeline with all that belongs to it."""
        stages = [self._stage(stage, at) for stage, at in self._items(found, "stages", where)]
        return Pipeline(self._text(found, "name", where), *self._described(found, where), stages)

    def _stage(self, found: dict[str, Any], where: str) -> Stage:
        executions = [self._execution(execution, at) for execution, at in self._items(found, "executions", where)]
        return Stage(self._text(found, "name", where), *self._described(found, where), executions)

    def _execution(self, found: dict[str, Any], where: str) -> Execution:
        edges = [self._edge(edge, at) for edge, at in self._items(found, "events", where)]
        id_, type_, name = self._identified(found, where)
        return Execution(id_, type_, name, *self._described(found, where), edges)

    def _edge(self, found: dict[str, Any], where: str) -> Edge:
        artifact = found.get("artifact")
        if not isinstance(artifact, dict):
            raise self._wrong(artifact, f"the artifact of {where}", "an object")
        at_ms = whole_number(found.get("milliseconds_since_epoch"))
        return Edge(whole_number(found.get("type")), self._artifact(artifact, f"the artifact of {where}"), at_ms)

    def _artifact(self, found: dict[str, Any], where: str) -> Artifact:
        key = json.dumps(found, sort_keys=True)
        if key not in self._artifacts:
            id_, type_, name = self._identified(found, where)
            uri = self._text(found, "uri", where)
            self._artifacts[key] = Artifact(id_, type_, name, uri, *self._described(found, where))
        return self._artifacts[key]

    def _identified(self, found: dict[str, Any], where: str) -> tuple[int, str, str]:
        return whole_number(found.get("id")), self._text(found, "type", where), self._text(found, "name", where)

    def _described(self, found: dict[str, Any], where: str) -> tuple[Properties, Properties, int, int]:
        return (
            self._map(found, "properties", where),
            self._map(found, "custom_properties", where),
            whole_number(found.get("create_time_since_epoch")),
            whole_number(found.get("last_update_time_since_epoch")),
        )

    # -- forms ---------------------------------------------------------------------------------------------------------

    def _items(self, found: dict[str, Any], key: str, where: str) -> Iterator[tuple[dict[str, Any], str]]:
        items = found.get(key)
        if items is None:
            return
        if not isinstance(items, list):
            raise self._wrong(items, f"{key!r} of {where}", "a list")
        for at, item in enumerate(items):
            here = f"{key}[{at}]" if where == "the document" else f"{where} {key}[{at}]"
            if not isinstance(item, dict):
                raise self._wrong(item, here, "an object")
            yield item, here

    def _map(self, found: dict[str, Any], key: str, where: str) -> Properties:
        value = found.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(value, f"{key!r} of {where}", "an object")
        return value or {}

    def _text(self, found: dict[str, Any], key: str, where: str) -> str:
        value = found.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(value, f"{key!r} of {where}", "text")
        return value or ""

    def _wrong(self, value: object, where: str, expected: str) -> CallerError:
        return CallerError(
            f"{self._name}: {where} is {_TYPES.get(type(value), 'nothing')}, not {expected}; nothing was recorded",
            _HINT,
        )
