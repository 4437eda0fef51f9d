"""The JSON of `cmf metadata export`, which is what the peer pushes, and what `cmf-agent ingest cmf` reads.

Rules
- Numbers (`id`, `type_id`) are this local view's own and mean nothing elsewhere; an imported execution keeps those in its properties.
- Only what the peer's form has a place for is in it: not an execution's status, nor its step metrics.
- Values are text, numbers, true or false; lists and maps are written as JSON in a text, what has no number (NaN) and None as texts. A
  custom key `type` is called `user_type`. An artifact stands under every execution that used or produced it.
- A reusable execution has its stage's name as type and a name, by which the peer knows it again; any other one has none.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from cmf_agent.cmflib.entities import PIPELINE_TYPE, STAGE_TYPE, Execution
from cmf_agent.cmflib.query_artifacts import Found, found_artifacts
from cmf_agent.cmflib.query_described import Described, described
from cmf_agent.cmflib.query_executions import FIXED, execution_of, executions_of_stages, is_imported, with_uuid
from cmf_agent.cmflib.query_lineage import uses_of_executions
from cmf_agent.cmflib.query_names import CREATED, UPDATED, pipeline_name, pipeline_numbers, plain, stage_numbers
from cmf_graph.items import text_of
from cmf_graph.reading import Reading, id_list
from cmf_graph.schema import unpack_event
from cmf_protocol.encoding import to_json
from cmf_protocol.events import trusted_header
from cmf_protocol.resolve import NodeState
from cmf_protocol.types import EXECUTION_BYTES

Record = dict[str, Any]

INPUT, OUTPUT = 3, 4
_US_PER_MS = 1_000
_FIRST_TYPE = 10
#: The UUIDs of reusable executions follow from what they are; all others are made of time or chance.
_REUSABLE_VERSION = 5
#: At the peer a model has no such property.
_NOT_OF_MODELS = "git_repo"
_HEADERS = " UNION ALL ".join(
    f"SELECT j.value, e.header_size, e.data FROM json_each(?1) j CROSS JOIN {table} x ON x.{column} = j.value "
    "CROSS JOIN events e ON e.id = x.event"
    for table, column in (("about", "node"), ("edges", "execution"))
)


class _Source(NamedTuple):
    """What some executions are, by their numbers."""

    described: Mapping[int, Described]
    said_ms: Mapping[int, tuple[int, int]]
    used: Mapping[int, Sequence[int]]
    produced: Mapping[int, Sequence[int]]
    artifacts: Mapping[int, Found]


def export(reading: Reading, pipeline: str | None, uuid: str | None = None, since_ms: int = 0) -> str:
    """Return one pipeline, or all, as JSON: only executions with this uuid, only what was said of since a time, ms UTC."""
    types: dict[str, int] = {}
    wanted = None if pipeline is None else pipeline_name(pipeline)
    records = [
        _pipeline(reading, name, number, uuid, since_ms, types)
        for name, number in pipeline_numbers(reading).items()
        if wanted in (None, name)
    ]
    kept = [record for record in records if not since_ms or record["stages"] or _is_since(record, since_ms)]
    return json.dumps({"Pipeline": kept}, allow_nan=False)


def _is_since(record: Record, since_ms: int) -> bool:
    return bool(record["last_update_time_since_epoch"] > since_ms)


def _pipeline(
    reading: Reading, name: str, number: int, uuid: str | None, since_ms: int, types: dict[str, int]
) -> Record:
    stages = stage_numbers(reading, name)
    members = {stage: executions_of_stages(reading, [stage]) for stage in stages.values()}
    states = reading.states([number, *stages.values()])
    own_type, stage_type = _type_id(types, PIPELINE_TYPE), _type_id(types, STAGE_TYPE)
    source = _source(reading, [each for found in members.values() for each in found], uuid, since_ms)
    records = []
    for stage, at in stages.items():
        found = [_execution(each, number, at, source, types) for each in members[at] if each in source.described]
        record = _context(at, stage, STAGE_TYPE, stage_type, states[at], _span(reading, "stage", at))
        if not since_ms or found or _is_since(record, since_ms):
            records.append({"executions": found} | record)
    context = _context(number, name, PIPELINE_TYPE, own_type, states[number], _span(reading, "pipeline", number))
    return {"stages": records} | context


def _span(reading: Reading, column: str, number: int) -> tuple[int, int] | None:
    """Return when the first execution of a pipeline or stage started and the last one ended, ms UTC; None if there is none."""
    sql = f"SELECT min(started_us), max(coalesce(finished_us, started_us)) FROM executions WHERE {column} = ?"
    first, last = reading.graph.rows(sql, (number,))[0]
    return None if first is None else (first // _US_PER_MS, last // _US_PER_MS)


def _source(reading: Reading, numbers: Sequence[int], uuid: str | None, since_ms: int) -> _Source:
    """Read those of the executions that are asked for, with what they used and produced."""
    said_ms = _said_ms(reading, numbers) if since_ms else {}
    recent = [number for number in numbers if not since_ms or said_ms[number][1] > since_ms]
    wanted = {
        number: found
        for number, found in described(reading, recent).items()
        if uuid is None or with_uuid([execution_of(found)], uuid)
    }
    uses: dict[bool, dict[int, list[int]]] = {False: {}, True: {}}
    for produced, by_execution in uses.items():
        for use in uses_of_executions(reading, wanted, produced=produced):
            by_execution.setdefault(use.execution, []).append(use.artifact)
    artifacts = dict.fromkeys(each for found in uses.values() for group in found.values() for each in group)
    return _Source(
        wanted,
        said_ms or _said_ms(reading, list(wanted)),
        uses[False],
        uses[True],
        found_artifacts(reading, list(artifacts)),
    )


def _said_ms(reading: Reading, executions: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return when these executions were first and last spoken of, ms UTC."""
    times: dict[int, list[int]] = {number: [] for number in executions}
    for number, header_size, data in reading.graph.rows(_HEADERS, (id_list(executions),)):
        times[number].append(trusted_header(unpack_event(header_size, data)[1]).wall_us // _US_PER_MS)
    return {number: (min(found, default=0), max(found, default=0)) for number, found in times.items()}


def _type_id(types: dict[str, int], name: str) -> int:
    return types.setdefault(name, _FIRST_TYPE + len(types))


# -- records -----------------------------------------------------------------------------------------------------------


#: The fixed property of each type of context: its own name.
_OWN_KEYS = {PIPELINE_TYPE: "Pipeline", STAGE_TYPE: STAGE_TYPE}


def _context(
    number: int, name: str, type_: str, type_id: int, state: NodeState, span: tuple[int, int] | None
) -> Record:
    """Return the record of a pipeline or a stage; `span` is when the first of its executions began and the last ended."""
    stated = {**state.space("properties"), **state.space("params")}
    times = [s.wall_us // _US_PER_MS for s in state.said] + list(span or ())
    created, updated = min(times, default=0), max(times, default=0)
    hidden = {_OWN_KEYS[type_]}
    if type(stated.get(CREATED)) is int:  # an import
        hidden |= {CREATED, UPDATED}
        created = stated[CREATED]
        updated = stated[UPDATED] if type(stated.get(UPDATED)) is int else created
    return {
        "create_time_since_epoch": created,
        "custom_properties": _custom({key: plain(value) for key, value in stated.items() if key not in hidden}),
        "id": number,
        "last_update_time_since_epoch": updated,
        "name": name,
        "properties": {_OWN_KEYS[type_]: name},
        "type": type_,
        "type_id": type_id,
    }


def _execution(number: int, pipeline: int, stage: int, source: _Source, types: dict[str, int]) -> Record:
    found = source.described[number]
    execution = execution_of(found)
    stated = {key: plain(found.properties[key]) for key in FIXED if key in found.properties}
    properties = {**execution.properties, "Context_ID": stage, "Pipeline_id": pipeline, **stated}
    type_, name = _type_and_name(found, execution)
    edges = ((INPUT, source.used), (OUTPUT, source.produced))
    first, last = source.said_ms[number]
    return {
        "type": type_,
        "name": name,
        "events": [
            {"type": edge, "artifact": _artifact(each, source.artifacts[each], types)}
            for edge, by_execution in edges
            for each in by_execution.get(number, ())
        ],
        "create_time_since_epoch": first if found.started is None else found.started // _US_PER_MS,
        "custom_properties": _custom(execution.custom_properties),
        "id": number,
        "last_update_time_since_epoch": _updated_ms(found) or last,
        "properties": {key: _value(value) for key, value in properties.items()},
        "type_id": _type_id(types, type_),
    }


def _updated_ms(found: Described) -> int | None:
    """Return when an imported execution was last updated, which is when it ended, if nothing else is said; None for others."""
    if not is_imported(found):
        return None
    stated = found.properties.get(UPDATED)
    return stated if type(stated) is int else None if found.ended is None else found.ended // _US_PER_MS


def _type_and_name(found: Described, execution: Execution) -> tuple[str, str]:
    """Return type and name as the peer has them."""
    stated = text_of(found.properties.get("execution_type"))
    if stated is not None and is_imported(found):
        return stated, execution.name
    if execution.name and _is_reusable(found.id):
        return str(execution.properties["Context_Type"]), execution.name
    return execution.type, ""


def _is_reusable(id_: bytes) -> bool:
    return len(id_) == EXECUTION_BYTES and UUID(bytes=id_).version == _REUSABLE_VERSION


def _artifact(number: int, found: Found, types: dict[str, int]) -> Record:
    artifact = found.artifact
    hidden = {_NOT_OF_MODELS} if artifact.type == "Model" else set()
    return {
        "type": artifact.type,
        "create_time_since_epoch": found.created_ms,
        "custom_properties": _custom(artifact.custom_properties),
        "id": number,
        "last_update_time_since_epoch": found.updated_ms,
        "name": artifact.name,
        "properties": {key: _value(value) for key, value in artifact.properties.items() if key not in hidden},
        "type_id": _type_id(types, artifact.type),
        "uri": artifact.uri,
    }


def _custom(values: Mapping[str, Any]) -> Record:
    return {("user_type" if key == "type" else key): _value(value) for key, value in values.items()}


def _value(value: Any) -> Any:
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | dict | tuple):
        return json.dumps(to_json(value), ensure_ascii=False)
    return str(to_json(value))
