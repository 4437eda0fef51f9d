"""What the peer's files hold, as both of their readers return it: pipelines, stages, executions, usage edges, artifacts.

Rules
- Values are as the file has them; what they mean is decided in `mapping.py`.
- Times are ms UTC, 0 where the file names none. Numbers of rows (`id`) are the file's own and mean nothing elsewhere.
- An artifact that several edges name is one object.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Properties = Mapping[str, Any]

#: The types of usage edges that say a direction (ml_metadata's `Event.Type`), and if they mean that the artifact was used.
EDGE_TYPES = {
    1: ("DECLARED_OUTPUT", False),
    2: ("DECLARED_INPUT", True),
    3: ("INPUT", True),
    4: ("OUTPUT", False),
    5: ("INTERNAL_INPUT", True),
    6: ("INTERNAL_OUTPUT", False),
    7: ("PENDING_OUTPUT", False),
}
INPUT, OUTPUT = 3, 4
#: The states of an execution (ml_metadata's `Execution.State`), by number.
STATES = ("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")


class Artifact(NamedTuple):
    """An artifact; `uri` is its digest, or a uuid where it has no content of its own."""

    id: int
    type: str
    name: str
    uri: str
    properties: Properties
    custom: Properties
    created_ms: int
    updated_ms: int


class Edge(NamedTuple):
    """That an execution used or produced an artifact; only the database tells when (`at_ms`), and under which name (`path`)."""

    type: int
    artifact: Artifact
    at_ms: int = 0
    path: str = ""


class Execution(NamedTuple):
    """A run; `state` (an index into `STATES`) and `contexts`, other ones than stages, only the database tells."""

    id: int
    type: str
    name: str
    properties: Properties
    custom: Properties
    created_ms: int
    updated_ms: int
    edges: list[Edge]
    state: int = 0
    contexts: tuple[str, ...] = ()


class Stage(NamedTuple):
    """A stage, by its name `pipeline/stage`; `unused` are artifacts that it names and no execution."""

    name: str
    properties: Properties
    custom: Properties
    created_ms: int
    updated_ms: int
    executions: list[Execution]
    unused: tuple[Artifact, ...] = ()


class Pipeline(NamedTuple):
    """A pipeline."""

    name: str
    properties: Properties
    custom: Properties
    created_ms: int
    updated_ms: int
    stages: list[Stage]


class History(NamedTuple):
    """What a file holds; `lost` names what stands in it and belongs to no pipeline, kind → names."""

    pipelines: list[Pipeline]
    lost: Mapping[str, list[str]]


def whole_number(value: object) -> int:
    """Return a number of ms or of a row, which may be written as text; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return 0
    return number if 0 < number < 2**63 // 1000 else 0
