"""What an execution of the peer's says by itself: its id, facts, parameters, properties, its end. Pure.

Rules
- It is its `Execution_uuid`, of a list of several the first; where that is missing or none, an id made of what else identifies it.
- Its custom properties are parameters, its fixed ones properties, but for command, repository and commit, which are facts.
- The peer knows no status: an execution ended when it was last updated, as its state says where the database has one, else well. From the
  server, whose times are those of the import there, it ended when the last of what it produced was made.
"""

import ast
from collections.abc import Callable
from typing import Any
from uuid import UUID

from cmf_agent.ingest.mapped_artifacts import (
    LAST_UPDATE,
    ORIGINAL_TIME,
    created_ms,
    joined_properties,
    user_values,
    uuid_of,
)
from cmf_agent.ingest.records import EDGE_TYPES, STATES, Edge, Execution
from cmf_agent.sources.host import mask_command
from cmf_agent.sources.masking import clean_url
from cmf_protocol.events import Draft
from cmf_protocol.types import execution_finished

US_PER_MS = 1_000
#: Custom properties that are no parameters: the peer's own.
_NO_PARAMS = ("Python_Env", ORIGINAL_TIME)
#: Fixed properties that become the id or facts.
_REPO, _COMMIT, _COMMAND, _UUID = "Git_Repo", "Git_Start_Commit", "Execution", "Execution_uuid"
#: A command's words are read back from text only up to this length, characters.
_COMMAND_CHARS_MAX = 100_000
_STATUS = {"FAILED": "failed", "CANCELED": "interrupted"}
_UNFINISHED = ("NEW", "RUNNING")


def given_id(execution: Execution) -> bytes | None:
    """Return the first of an execution's uuids, or None if that is missing or none."""
    try:
        return UUID(str(execution.properties.get(_UUID) or "").partition(",")[0].strip()).bytes
    except ValueError:
        return None


def made_id(pipeline: str, stage: str, execution: Execution) -> bytes:
    """Return the id of an execution without a usable uuid."""
    return uuid_of([pipeline, stage, execution.type, execution.name, execution.id, created_ms(execution)]).bytes


def facts_of(execution: Execution) -> dict[str, Any]:
    """Return the facts of an execution, without secrets."""
    told = {key: value for key, value in execution.properties.items() if isinstance(value, str) and value}
    facts: dict[str, Any] = {"name": execution.name or execution.type, "kind": "step"}
    if _COMMAND in told:
        facts["command"] = mask_command(_words(told[_COMMAND]))
    if _REPO in told:
        facts["git_repo"] = clean_url(told[_REPO])
    if _COMMIT in told:
        facts["git_commit"] = told[_COMMIT]
    return {key: value for key, value in facts.items() if value}


def params_of(execution: Execution) -> dict[str, Any]:
    """Return the parameters of an execution."""
    return {key: value for key, value in user_values(execution.custom).items() if key not in _NO_PARAMS}


def properties_of(execution: Execution, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of an execution that are not among its `facts`."""
    told = (_REPO, _COMMIT, _COMMAND)
    fixed = {key: value for key, value in execution.properties.items() if key not in told or not isinstance(value, str)}
    own = {key: value for key, value in execution.custom.items() if key == "Python_Env"}
    found = joined_properties(fixed, own)
    if execution.type and execution.type != facts.get("name"):
        found["execution_type"] = execution.type
    if execution.updated_ms not in (0, created_ms(execution)):  # so that what was changed back is something new too
        found[LAST_UPDATE] = execution.updated_ms
    return found


def rest_of(execution: Execution, content_id: Callable[[Edge], str]) -> dict[str, Any]:
    """Return as properties what only the database tells of an execution."""
    rest: dict[str, Any] = {}
    times = {content_id(edge): edge.at_ms for edge in execution.edges if edge.at_ms}
    if times:
        rest["event_times"] = times
    if 0 < execution.state < len(STATES):
        rest["last_known_state"] = STATES[execution.state]
    if execution.contexts:
        rest["contexts"] = list(execution.contexts)
    return rest


def start_us(execution: Execution) -> int | None:
    """Return when an execution started, µs, or None if nothing tells."""
    return created_ms(execution) * US_PER_MS or None


def end_of(id_: bytes, execution: Execution) -> Draft | None:
    """Draft the end of an execution, or nothing if it is known to go on."""
    state = STATES[execution.state] if 0 <= execution.state < len(STATES) else ""
    if state in _UNFINISHED:
        return None
    started = created_ms(execution)
    if started == execution.created_ms:
        ended = execution.updated_ms
    else:  # the server's own times are those of the import there
        produced = [e.artifact for e in execution.edges if e.type in EDGE_TYPES and not EDGE_TYPES[e.type][1]]
        ended = max(map(created_ms, produced), default=started)
    return execution_finished(id_, _STATUS.get(state, "finished"), at=max(ended, started) * US_PER_MS or None)


def _words(text: str) -> list[str]:
    """Return the words of a command: the peer writes `str(sys.argv)`, or what the caller gave, which is one word."""
    try:
        words = ast.literal_eval(text) if text.startswith("[") and len(text) <= _COMMAND_CHARS_MAX else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        words = None
    return words if words and isinstance(words, list) and all(type(word) is str for word in words) else [text]
