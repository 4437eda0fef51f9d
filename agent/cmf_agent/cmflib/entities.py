"""What the calls return: contexts, executions and artifacts as plain values, with the attributes that scripts read.

Rules
- `id` is our own id, a text: `pipeline/stage` of a stage, the UUID of an execution, the content id of an artifact.
- `name` has the peer's form: `pipeline/stage`, `path:hash`, of a model `path:hash:execution`.
- They are copies: changing one changes nothing that is recorded.
- A metrics artifact with a `metrics_name` is what `log_execution_metrics` made, one without is a step metrics table, one
  with a `version` a validation output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmf_protocol.errors import CallerError

Properties = Mapping[str, object]

PIPELINE_TYPE = "Parent_Context"
STAGE_TYPE = "Pipeline_Stage"

_ORIGIN = frozenset({"git_repo", "Commit", "url"})
#: The properties that a type has by itself; every other one is a custom property.
FIXED_PROPERTIES = {
    "Dataset": _ORIGIN,
    "Dataslice": _ORIGIN,
    "Environment": _ORIGIN,
    "Label": _ORIGIN,
    "Model": frozenset({"model_framework", "model_type", "model_name", "git_repo", "Commit", "url"}),
    "Metrics": frozenset({"metrics_name"}),
    "Step_Metrics": frozenset({"Commit", "url"}),
    "Validation_output": frozenset({"version"}),
}
_TYPES = {
    "dataset": "Dataset",
    "model": "Model",
    "slice": "Dataslice",
    "label": "Label",
    "environment": "Environment",
    "other": "Dataset",
}


@dataclass
class Context:
    """A pipeline, or one of its stages."""

    id: str
    name: str
    type: str
    properties: dict[str, Any] = field(default_factory=dict)
    custom_properties: dict[str, Any] = field(default_factory=dict)


@dataclass
class Execution:
    """An execution of a stage; `name` and `type` are its execution type."""

    id: str
    name: str
    type: str
    properties: dict[str, Any] = field(default_factory=dict)
    custom_properties: dict[str, Any] = field(default_factory=dict)


@dataclass
class Artifact:
    """An artifact; `uri` is its digest without the algorithm, for folders with `.dir` at its end."""

    id: str
    name: str
    type: str
    uri: str
    properties: dict[str, Any] = field(default_factory=dict)
    custom_properties: dict[str, Any] = field(default_factory=dict)


class UnknownEvent(CallerError, ValueError):
    """An `event` that is neither input nor output."""


def is_input(event: object) -> bool:
    """Tell if `event` is input, or else output, in upper or lower case; raise `UnknownEvent`, a ValueError, for anything else."""
    text = event.lower() if isinstance(event, str) else ""
    if text not in ("input", "output"):
        raise UnknownEvent(f"{event!r} is no event", 'it is "input" or "output"')
    return text == "input"


def stage_context(pipeline: str, stage: str, custom_properties: Properties | None = None) -> Context:
    """Return a stage as a context."""
    name = f"{pipeline}/{stage}"
    return Context(name, name, STAGE_TYPE, {STAGE_TYPE: name}, dict(custom_properties or {}))


def pipeline_context(pipeline: str, custom_properties: Properties | None = None) -> Context:
    """Return a pipeline as a context."""
    return Context(pipeline, pipeline, PIPELINE_TYPE, {"Pipeline": pipeline}, dict(custom_properties or {}))


def artifact_type(kind: str, properties: Properties) -> str:
    """Return the type name of an artifact of `kind` with these properties."""
    if kind == "metrics":
        return (
            "Metrics"
            if "metrics_name" in properties
            else "Validation_output"
            if "version" in properties
            else "Step_Metrics"
        )
    return _TYPES.get(kind, "Dataset")


def artifact_entity(content_id: str, name: str, kind: str, properties: Properties, execution: str = "") -> Artifact:
    """Return an artifact whose own name is `name`; `execution` is the id of the one that a model's or metrics' name ends with."""
    uri = content_id.partition(":")[2]
    type_ = artifact_type(kind, properties)
    full = f"{name}:{uri}" + (f":{execution}" if execution and type_ in ("Model", "Metrics", "Step_Metrics") else "")
    fixed, custom = split_properties(type_, properties)
    if "Commit" in FIXED_PROPERTIES[type_]:
        fixed["Commit"] = uri
    return Artifact(content_id, full, type_, uri, fixed, custom)


def split_properties(type_: str, properties: Properties) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those properties that a type has by itself, and the custom ones."""
    own = FIXED_PROPERTIES[type_]
    return (
        {key: value for key, value in properties.items() if key in own},
        {key: value for key, value in properties.items() if key not in own},
    )
