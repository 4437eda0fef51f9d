"""The event types of version 1, one function each that drafts an event (protocol/README.md, section 3). Pure.

Rules
- A function takes canonical values (see `encoding.bend`) and checks names; it returns a `Draft` that the fold can read.
- Types are stable names: a type is never changed, only followed by a higher type version.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from cmf_protocol.encoding import Value
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft, Node, sorted_about

LOG_OPENED: Final = "log.opened"
PIPELINE_DESCRIBED: Final = "pipeline.described"
STAGE_DESCRIBED: Final = "stage.described"
EXECUTION_STARTED: Final = "execution.started"
EXECUTION_UPDATED: Final = "execution.updated"
EXECUTION_FINISHED: Final = "execution.finished"
ARTIFACT_USED: Final = "artifact.used"
ARTIFACT_PRODUCED: Final = "artifact.produced"
METRICS_RECORDED: Final = "metrics.recorded"
ENVIRONMENT_RECORDED: Final = "environment.recorded"
TAG_ADDED: Final = "tag.added"
TAG_REMOVED: Final = "tag.removed"
NOTE_ADDED: Final = "note.added"
RETRACTED: Final = "record.retracted"
UNRETRACTED: Final = "record.unretracted"
GAP_ACCEPTED: Final = "gap.accepted"
ARTIFACT_STORED: Final = "artifact.stored"
TABLE_RECORDED: Final = "table.recorded"
LABEL_ATTACHED: Final = "label.attached"
SLICE_RECORDED: Final = "slice.recorded"

STATUSES: Final = ("finished", "interrupted", "failed")
KINDS: Final = ("dataset", "model", "metrics", "slice", "label", "environment", "other")
EXECUTION_KINDS: Final = ("step", "deploy")
NAME_CHARS_MAX = 500
CONTENT_ID_CHARS_MAX = 500
EXECUTION_BYTES = 16

#: Where a location says that bytes can be found: a `.dvc` file, an entry of a dvc.lock, git itself, a DVC remote.
LOCATION_KINDS: Final = ("dvc", "dvc.lock", "git", "remote")

Values = Mapping[str, Value]
#: A column of a table: its name, and a value for each row.
Column = tuple[str, Sequence[Value]]
#: name, series, steps, values, µs offsets from the event's wall time
StepBlock = tuple[str, str, Sequence[int], Sequence[float], Sequence[int]]


def checked_name(name: str, what: str) -> str:
    """Return a pipeline's, stage's or tag's name in NFC; raise `CallerError` if it can't be one."""
    normal = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""  # which may be longer than the name
    if not 1 <= len(normal) <= NAME_CHARS_MAX or not normal.strip() or not _is_clean(normal):
        raise CallerError(f"{name!r} can't be the name of a {what}", f"a name has 1 to {NAME_CHARS_MAX} characters")
    return normal


def _is_clean(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def is_name(value: object) -> bool:
    """Tell if `value` can be a name; that it is NFC is the writer's duty, since readers know Unicode of different ages."""
    return type(value) is str and 1 <= len(value) <= NAME_CHARS_MAX


def is_content_id(value: object) -> bool:
    """Tell if `value` has the form `algorithm:digest`."""
    if type(value) is not str or len(value) > CONTENT_ID_CHARS_MAX:
        return False
    algorithm, colon, digest = value.partition(":")
    return bool(algorithm and colon and digest)


def artifact_node(content_id: str) -> Node:
    """Return the node of an artifact; raise `CallerError` if that is no content id."""
    if not is_content_id(content_id) or not _is_clean(content_id):
        raise CallerError(f"{content_id!r} is no content id", "a content id is an algorithm, a colon and a digest")
    return "artifact", content_id


def execution_node(execution: bytes) -> Node:
    """Return the node of an execution; raise `CallerError` if that is no UUID of 16 bytes."""
    if type(execution) is not bytes or len(execution) != EXECUTION_BYTES:
        raise CallerError(f"{execution!r} is no execution id", "an execution's id is a UUID, 16 bytes")
    return "execution", execution


def pipeline_node(pipeline: str) -> Node:
    """Return the node of a pipeline."""
    return "pipeline", checked_name(pipeline, "pipeline")


def stage_node(pipeline: str, stage: str) -> Node:
    """Return the node of a stage of a pipeline."""
    return "stage", (checked_name(pipeline, "pipeline"), checked_name(stage, "stage"))


def _body(**parts: Value) -> dict[str, Value]:
    """Leave out what is empty; a status or a text that is empty is none either."""
    return {key: value for key, value in parts.items() if value not in (None, {}, (), [])}


def log_opened(key: bytes, *, agent: str, succeeds: Values | None = None) -> Draft:
    """Draft a log's first event; `succeeds` as `signing.succession_claim` makes it."""
    return Draft(LOG_OPENED, (("key", key),), _body(agent=agent, succeeds=succeeds))


def pipeline_described(pipeline: str, properties: Values) -> Draft:
    """Draft properties of a pipeline."""
    return Draft(PIPELINE_DESCRIBED, (pipeline_node(pipeline),), _body(properties=properties))


def stage_described(pipeline: str, stage: str, properties: Values) -> Draft:
    """Draft properties of a stage."""
    return Draft(STAGE_DESCRIBED, (stage_node(pipeline, stage),), _body(properties=properties))


def execution_started(
    execution: bytes,
    pipeline: str,
    stage: str,
    *,
    environment: str | None = None,
    facts: Values | None = None,
    params: Values | None = None,
    properties: Values | None = None,
    at: int | None = None,
) -> Draft:
    """Draft the start of an execution (16-byte UUID) of a stage; `environment` is a content id, `at` µs UTC."""
    nodes: list[Node] = [execution_node(execution), stage_node(pipeline, stage)]
    if environment is not None:
        nodes.append(artifact_node(environment))
    body = _body(facts=facts, params=params, properties=properties, at=at)
    return Draft(EXECUTION_STARTED, sorted_about(nodes), body)


def execution_updated(
    execution: bytes,
    *,
    environment: str | None = None,
    facts: Values | None = None,
    params: Values | None = None,
    properties: Values | None = None,
) -> Draft:
    """Draft further values of an execution."""
    nodes: list[Node] = [execution_node(execution)]
    if environment is not None:
        nodes.append(artifact_node(environment))
    return Draft(EXECUTION_UPDATED, sorted_about(nodes), _body(facts=facts, params=params, properties=properties))


def execution_finished(
    execution: bytes,
    status: str,
    *,
    exit_code: int | None = None,
    error: Mapping[str, str] | None = None,
    at: int | None = None,
) -> Draft:
    """Draft the end of an execution: `status` is one of `STATUSES`, `error` has `type` and `message`."""
    if status not in STATUSES:
        raise CallerError(f"{status!r} is no status of an execution that ended", f"it is one of {', '.join(STATUSES)}")
    body = _body(status=status, exit_code=exit_code, error=error, at=at)
    return Draft(EXECUTION_FINISHED, (execution_node(execution),), body)


def usage(
    type_: str,
    execution: bytes,
    artifact: str,
    *,
    name: str | None = None,
    digests: Sequence[str] = (),
    facts: Values | None = None,
    properties: Values | None = None,
) -> Draft:
    """Draft a usage edge: `type_` is `ARTIFACT_USED` or `ARTIFACT_PRODUCED`, `digests` are other digests of the same bytes."""
    about: tuple[Node, ...] = (artifact_node(artifact), execution_node(execution))
    body = _body(name=name, digests=list(digests), facts=facts, properties=properties)
    return Draft(type_, about, body)


def metrics_recorded(execution: bytes, *, metrics: Values | None = None, steps: Sequence[StepBlock] = ()) -> Draft:
    """Draft metrics of an execution: `metrics` without steps, and column blocks with steps."""
    body = _body(metrics=metrics, steps=[list(b) for b in steps])
    return Draft(METRICS_RECORDED, (execution_node(execution),), body)


def environment_recorded(artifact: str, environment: Values, *, digests: Sequence[str] = ()) -> Draft:
    """Draft the content of an environment, whose content id is `artifact`."""
    body: dict[str, Value] = {"environment": environment}
    if digests:
        body["digests"] = list(digests)
    return Draft(ENVIRONMENT_RECORDED, (artifact_node(artifact),), body)


def tag_added(node: Node, tag: str) -> Draft:
    """Draft a tag on a node."""
    return Draft(TAG_ADDED, (node,), {"tag": checked_name(tag, "tag")})


def tag_removed(node: Node, tag: str, adds: Sequence[bytes]) -> Draft:
    """Draft the removal of a tag: `adds` are the ids of the `tag.added` events that the remover saw."""
    return Draft(TAG_REMOVED, (node,), {"adds": sorted(adds), "tag": checked_name(tag, "tag")})


def note_added(node: Node, text: str) -> Draft:
    """Draft a note on a node."""
    return Draft(NOTE_ADDED, (node,), {"text": text})


def retracted(about: tuple[Node, ...], reason: str, *, event: bytes | None = None) -> Draft:
    """Draft a retraction of `event`, whose `about` it repeats, or a dispute of the one node in `about`."""
    body: dict[str, Value] = {"reason": reason}
    if event is not None:
        body["event"] = event
    return Draft(RETRACTED, about, body)


def unretracted(about: tuple[Node, ...], retraction: bytes, *, reason: str | None = None) -> Draft:
    """Draft the withdrawal of the retraction with the event id `retraction`, whose `about` it repeats."""
    body: dict[str, Value] = {"retraction": retraction}
    if reason:
        body["reason"] = reason
    return Draft(UNRETRACTED, about, body)


def gap_accepted(key: bytes, log_id: bytes, before: bytes, after: bytes, *, reason: str | None = None) -> Draft:
    """Draft that what is missing between two events of `key`'s log is lost: `before` and `after` are the ids of these events."""
    body: dict[str, Value] = {"after": after, "before": before, "log": log_id}
    if reason:
        body["reason"] = reason
    return Draft(GAP_ACCEPTED, (("key", key),), body)


def artifact_stored(artifact: str, location: Mapping[str, str]) -> Draft:
    """Draft one place where an artifact's bytes can be found: `kind` is one of `LOCATION_KINDS`, the rest as section 3 says."""
    return Draft(ARTIFACT_STORED, (artifact_node(artifact),), {"location": dict(location)})


def table_recorded(artifact: str, columns: Sequence[Column], *, rows: int, first: int = 0) -> Draft:
    """Draft a block of a table, whose content id is `artifact`: `columns` from row `first` on, of `rows` in all."""
    body: dict[str, Value] = {"columns": [[name, list(values)] for name, values in columns], "rows": rows}
    if first:
        body["first"] = first
    return Draft(TABLE_RECORDED, (artifact_node(artifact),), body)


def label_attached(label: str, artifact: str) -> Draft:
    """Draft that the artifact `label` labels the other one."""
    return Draft(LABEL_ATTACHED, _both(label, artifact), {"label": label})


def slice_recorded(slice_: str, artifact: str) -> Draft:
    """Draft that the artifact `slice_` is a slice of the other one."""
    return Draft(SLICE_RECORDED, _both(slice_, artifact), {"slice": slice_})


def _both(part: str, whole: str) -> tuple[Node, ...]:
    if part == whole:
        raise CallerError(f"{part} can't be a part of itself", "name two artifacts")
    return sorted_about([artifact_node(part), artifact_node(whole)])
