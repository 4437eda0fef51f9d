"""Pipelines and stages as `CmfQuery` names them, and the ids by which it finds what is asked for.

Rules
- A pipeline's id is its name, a stage's `pipeline/stage`, an execution's its UUID, an artifact's its content id: texts. What the calls
  return may be given instead of its id.
- An id of the right form that nothing is known of finds nothing; what can't be an id at all is the caller's mistake.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from cmf_agent.identity import parse_execution_id
from cmf_graph.filters import normal_name
from cmf_graph.reading import Reading
from cmf_graph.schema import KIND_CODES, node_key
from cmf_protocol.errors import CallerError

#: What an import says of times, ms UTC, as properties.
CREATED, UPDATED = "original_create_time_since_epoch", "last_update_time_since_epoch"
_SCALARS = frozenset({str, int, float, bool, type(None)})
#: Ids in one query: SQLite takes 32,766 values.
_CHUNK = 5_000
#: In the batch that a projection folds, nodes have no order.
_FIRST = "FROM nodes n LEFT JOIN (SELECT {kind} AS node, min(started_us) AS at FROM executions GROUP BY 1) x ON x.node = n.id"
_IN_ORDER = "ORDER BY x.at IS NULL, x.at, n.key"


def id_of(given: Any) -> Any:
    """Return the id of what is given: of a thing that has one, that."""
    return getattr(given, "id", given)


def each_id(given: Any) -> list[Any]:
    """Return the ids of what is given, one thing or many, each once."""
    single = isinstance(given, str | bytes) or not isinstance(given, Iterable)
    return list(dict.fromkeys(id_of(each) for each in ([given] if single else given)))


def pipeline_numbers(reading: Reading) -> dict[str, int]:
    """Return the names of all pipelines and their numbers, in the order of their first executions."""
    sql = f"SELECT n.key, n.id {_FIRST.format(kind='pipeline')} WHERE n.kind = ?1 {_IN_ORDER}"
    return dict(reading.graph.rows(sql, (KIND_CODES["pipeline"],)))


def stage_numbers(reading: Reading, pipeline: str) -> dict[str, int]:
    """Return the names `pipeline/stage` of a pipeline's stages and their numbers, in the order of their first executions."""
    _, first = node_key(("stage", (pipeline_name(pipeline), "")))
    assert isinstance(first, bytes)
    sql = (
        f"SELECT n.key, n.id {_FIRST.format(kind='stage')} WHERE n.kind = ?1 AND n.key >= ?2 AND n.key < ?3 {_IN_ORDER}"
    )
    found = reading.graph.rows(sql, (KIND_CODES["stage"], first, first[:-1] + b"\1"))
    return {bytes(key).decode().replace("\0", "/", 1): number for key, number in found}


def pipeline_name(given: Any) -> str:
    """Return a pipeline's name as events hold it; raise `CallerError` for what is no name."""
    name = id_of(given)
    if not isinstance(name, str):
        raise CallerError(f"{given!r} can't name a pipeline", "give its name")
    return normal_name(name)


def stages_called(reading: Reading, name: Any) -> list[int]:
    """Return the numbers of the stages with this name `pipeline/stage`: pipelines and stages may have slashes, so there can be several."""
    text = id_of(name)
    if not isinstance(text, str):
        raise CallerError(f"{name!r} can't name a stage", "give its name, `pipeline/stage`")
    text = normal_name(text)
    slashes = [at for at, letter in enumerate(text) if letter == "/"]
    found = (reading.graph.node_id(("stage", (text[:at], text[at + 1 :]))) for at in slashes)
    return [number for number in found if number is not None]


def pipeline_number(reading: Reading, pipeline_id: Any) -> int | None:
    """Return the number of the pipeline with this id, None for no filter, 0 for an unknown one."""
    name = id_of(pipeline_id)
    if name is None:
        return None
    return (reading.graph.node_id(("pipeline", normal_name(name))) or 0) if isinstance(name, str) else 0


def execution_numbers(reading: Reading, given: Any) -> list[int]:
    """Return the numbers of the executions with these ids, one or many, in their order; raise `CallerError` for what is no id."""
    return _numbers(reading, "execution", [parse_execution_id(each) for each in each_id(given)])


def artifact_numbers(reading: Reading, given: Any) -> list[int]:
    """Return the numbers of the artifacts with these ids, one or many, in their order; raise `CallerError` for what is no id."""
    ids = each_id(given)
    for each in ids:
        if not isinstance(each, str):
            raise CallerError(f"{each!r} is not an artifact's id", "give a content id: `md5:…`")
    return list(dict.fromkeys(reading.aliases.canonical(number) for number in _numbers(reading, "artifact", ids)))


def _numbers(reading: Reading, kind: str, ids: Sequence[str | bytes]) -> list[int]:
    found: dict[str | bytes, int] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        sql = f"SELECT key, id FROM nodes WHERE kind = ? AND key IN ({marks})"
        found |= dict(reading.graph.rows(sql, (KIND_CODES[kind], *chunk)))
    return [found[each] for each in dict.fromkeys(ids) if each in found]


def plain(value: Any) -> Any:
    """Return a recorded value as Python's own: lists and dictionaries, bytes as hexadecimal digits."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.hex() if isinstance(value, bytes) else value
