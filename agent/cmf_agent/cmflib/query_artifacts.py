"""Artifacts as `CmfQuery` returns them.

Rules
- A name has the peer's form, `path:hash`, and of models and metrics `path:hash:execution`; an imported artifact keeps the name and the
  uri that it had.
- `Commit` is the digest; `git_repo` and `url` follow from where the bytes are, or else from the execution that made it. Labels stand in
  `labels`, `labels_uri` and `dataset_uri`, lists with commas, whoever attached them.
- Times are ms UTC: when something was first and last said of it here, or what an import says.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cmf_agent.cmflib.entities import FIXED_PROPERTIES, Artifact, artifact_entity, split_properties
from cmf_agent.cmflib.frames import custom_columns, frame
from cmf_agent.cmflib.query_described import described
from cmf_agent.cmflib.query_names import CREATED, UPDATED, plain
from cmf_graph.items import text_of
from cmf_graph.reading import Reading, id_list
from cmf_graph.text import execution_text
from cmf_protocol.resolve import NodeState

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "id", "type", "uri", "name", "create_time_since_epoch", "last_update_time_since_epoch", "git_repo", "Commit", "url",
)  # fmt: skip
#: What an import says of an artifact beside the user's properties; `CREATED` tells that it is one.
_TYPE, _URI, ORIGINAL_NAME, _FIXED = "artifact_type", "uri", "original_name", "fixed_properties"
_OF_IMPORTS = frozenset({CREATED, UPDATED, _TYPE, _URI, ORIGINAL_NAME, _FIXED})
_US_PER_MS = 1_000
_FIRST_USES = (
    "SELECT artifact, execution, pipeline FROM (SELECT j.value AS artifact, x.execution, e.pipeline, row_number() OVER "
    "(PARTITION BY j.value ORDER BY x.produced DESC, e.started_us IS NULL, e.started_us, x.execution) AS place "
    "FROM json_each(?) j CROSS JOIN edges x ON x.artifact = j.value JOIN executions e ON e.node = x.execution WHERE x.said = 1) "
    "WHERE place = 1"
)


class Found(NamedTuple):
    """An artifact with when it was first and last spoken of, ms UTC."""

    artifact: Artifact
    created_ms: int
    updated_ms: int


class _Origin(NamedTuple):
    """The execution that made an artifact, or else used it, first: its id, its pipeline, its repository."""

    execution: str = ""
    pipeline: str = ""
    git_repo: str = ""


_NOWHERE = _Origin()


# -- described ---------------------------------------------------------------------------------------------------------


def found_artifacts(reading: Reading, numbers: Sequence[int]) -> dict[int, Found]:
    """Return these artifacts, in their order."""
    states = reading.states(numbers)
    origins = _origins(reading, states)
    named = _label_names(reading, states)
    return {number: _found(state, origins.get(number, _NOWHERE), named, reading) for number, state in states.items()}


def _found(state: NodeState, origin: _Origin, named: Mapping[str, tuple[str, str]], reading: Reading) -> Found:
    content_id = reading.aliases.content_id(state.node[1])
    properties = {key: plain(value) for key, value in state.space("properties").items()}
    is_imported = CREATED in properties
    noted = {key: properties.pop(key) for key in _OF_IMPORTS & properties.keys()} if is_imported else {}
    name = state.names[0] if state.names else content_id.partition(":")[0]
    kind = text_of(state.value("kind")) or "dataset"
    artifact = artifact_entity(content_id, name, kind, properties, origin.execution)
    if is_imported:
        artifact = _original(artifact, name, noted, properties)
    _add_origin(artifact, origin, state)
    _add_labels(artifact, state, named)
    times = [said.wall_us // _US_PER_MS for said in state.said]
    created, updated = _number(noted.get(CREATED)), _number(noted.get(UPDATED))
    return Found(artifact, created or min(times, default=0), updated or created or max(times, default=0))


def _number(value: object) -> int:
    return value if type(value) is int else 0


def _original(artifact: Artifact, name: str, noted: Mapping[str, Any], properties: Mapping[str, Any]) -> Artifact:
    """Return an imported artifact with the type, the name, the uri and the fixed properties that it had."""
    type_, uri = str(noted.get(_TYPE) or artifact.type), str(noted.get(_URI) or artifact.uri)
    fixed, custom = split_properties(type_ if type_ in FIXED_PROPERTIES else "Dataset", properties)
    taken = noted.get(_FIXED)
    if isinstance(taken, dict):  # a custom property has the same name: both stand
        custom |= {key: properties[key] for key in taken if key in properties}
        fixed |= taken
    if "Commit" in FIXED_PROPERTIES.get(type_, ()):
        fixed.setdefault("Commit", artifact.uri)
    return Artifact(artifact.id, str(noted.get(ORIGINAL_NAME) or f"{name}:{uri}"), type_, uri, fixed, custom)


def _add_origin(artifact: Artifact, origin: _Origin, state: NodeState) -> None:
    """Add `git_repo` and `url`, where nobody stated them."""
    places = [place for place in state.space("locations").values() if isinstance(place, dict)]
    repos = [repo for place in places if (repo := text_of(place.get("repo")))]
    remotes = [url for place in places if place.get("kind") == "remote" and (url := text_of(place.get("url")))]
    prefix = f"{origin.pipeline}:" if origin.pipeline else ""
    own = FIXED_PROPERTIES.get(artifact.type, frozenset())
    if "git_repo" in own:
        artifact.properties.setdefault("git_repo", (repos or [origin.git_repo])[0])
    if "url" in own:
        urls = [f"{prefix}{url}" for url in dict.fromkeys(remotes or state.names[:1])]
        artifact.properties.setdefault("url", ",".join(urls))


# -- where it is from --------------------------------------------------------------------------------------------------


def _origins(reading: Reading, numbers: Iterable[int]) -> dict[int, _Origin]:
    firsts = _first_uses(reading, numbers)
    pipelines = reading.nodes({pipeline for _, pipeline in firsts.values() if pipeline is not None})
    executions = described(reading, sorted({execution for execution, _ in firsts.values()}))
    return {
        number: _Origin(
            execution_text(executions[execution].id),
            "" if pipeline is None else str(pipelines[pipeline][1]),
            text_of(executions[execution].facts.get("git_repo")) or "",
        )
        for number, (execution, pipeline) in firsts.items()
    }


def _first_uses(reading: Reading, numbers: Iterable[int]) -> dict[int, tuple[int, int | None]]:
    """Return the execution that produced each artifact first, or else used it first, and its pipeline, by their numbers."""
    owners = reading.aliases.with_members(numbers)
    found: dict[int, tuple[int, int | None]] = {}
    for member, execution, pipeline in reading.graph.rows(_FIRST_USES, (id_list(owners),)):
        if owners[member] == member or owners[member] not in found:
            found[owners[member]] = execution, pipeline
    return found


# -- labels ------------------------------------------------------------------------------------------------------------


def _label_names(reading: Reading, states: Mapping[int, NodeState]) -> dict[str, tuple[str, str]]:
    """Return (own name, digest) of every artifact that labels one of these or is labelled by one, by content id."""
    others = {key for state in states.values() for space in ("labels", "label_of") for key in state.space(space)}
    numbers = {content_id: number for content_id, (number, _) in reading.artifacts(others).items()}
    names = reading.names(numbers.values())
    return {
        content_id: (next(iter(names.get(numbers.get(content_id, 0), ())), ""), content_id.partition(":")[2])
        for content_id in others
    }


def _add_labels(artifact: Artifact, state: NodeState, named: Mapping[str, tuple[str, str]]) -> None:
    labels = [named[content_id] for content_id in state.space("labels")]
    labelled = [named[content_id] for content_id in state.space("label_of")]
    for key, values in (
        ("labels", [name for name, _ in labels]),
        ("labels_uri", [f"{name}:{digest}" for name, digest in labels]),
        ("dataset_uri", [digest for _, digest in labelled]),
    ):
        stated = str(artifact.custom_properties.get(key) or "").split(",")
        joined = dict.fromkeys(entry.strip() for entry in (*stated, *values) if entry.strip())
        if values:
            artifact.custom_properties[key] = ",".join(joined)


# -- frames ------------------------------------------------------------------------------------------------------------


def artifact_row(found: Found) -> dict[str, Any]:
    """Return an artifact as a row."""
    artifact = found.artifact
    return {
        "id": artifact.id,
        "type": artifact.type,
        "uri": artifact.uri,
        "name": artifact.name,
        "create_time_since_epoch": found.created_ms,
        "last_update_time_since_epoch": found.updated_ms,
        **artifact.properties,
        **custom_columns(artifact.custom_properties),
    }


def artifact_frame(reading: Reading, numbers: Sequence[int]) -> "pd.DataFrame":
    """Return artifacts as a DataFrame, in their order."""
    return frame([artifact_row(found) for found in found_artifacts(reading, numbers).values()], COLUMNS)


def usage_frame(reading: Reading, usages: Sequence[tuple[int, bool]]) -> "pd.DataFrame":
    """Return (artifact's number, whether it was produced) of an execution as a DataFrame with the column `event`."""
    found = found_artifacts(reading, list(dict.fromkeys(number for number, _ in usages)))
    rows = [{"event": "OUTPUT" if produced else "INPUT", **artifact_row(found[number])} for number, produced in usages]
    return frame(rows, ("event", *COLUMNS))


# -- lists -------------------------------------------------------------------------------------------------------------


def all_artifacts(reading: Reading) -> list[Artifact]:
    """Return all artifacts, the oldest first; those that are one with another one are that one."""
    merged = reading.aliases.merged
    numbers = [node for (node,) in reading.graph.rows("SELECT node FROM artifacts") if node not in merged]
    found = found_artifacts(reading, numbers).values()
    return [each.artifact for each in sorted(found, key=lambda found: (found.created_ms, found.artifact.name))]


def artifacts_of_pipeline(reading: Reading, pipeline: int) -> list[int]:
    """Return the numbers of the artifacts that the executions of a pipeline used or produced, in the order in which that was recorded."""
    sql = (
        "SELECT x.artifact, min(x.event) FROM executions e JOIN edges x ON x.execution = e.node "
        "WHERE e.pipeline = ? AND x.said = 1 GROUP BY 1 ORDER BY 2"
    )
    rows = reading.graph.rows(sql, (pipeline,))
    return list(dict.fromkeys(reading.aliases.canonical(number) for number, _ in rows))


def without_types(reading: Reading, numbers: Sequence[int], types: Iterable[str]) -> list[int]:
    """Return those of the artifacts that are of none of these types."""
    hidden = set(types)
    return [number for number, found in found_artifacts(reading, numbers).items() if found.artifact.type not in hidden]
