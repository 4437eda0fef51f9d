"""Drafts an execution's start: what it was given, and the facts of where and how it runs."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from cmf_agent.facts import Environment, start_facts
from cmf_agent.home import Home
from cmf_agent.identity import parse_execution_id
from cmf_agent.recorder import say
from cmf_agent.settings import Settings, load_settings
from cmf_agent.shape import shape
from cmf_agent.sources.host import mask_mapping
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.events import Draft
from cmf_protocol.types import execution_started


class Given(NamedTuple):
    """What the caller said a run begins with; `command` is what runs if that is not this process."""

    pipeline: str
    stage: str
    params: Mapping[str, object]
    properties: Mapping[str, object]
    name: str | None
    kind: str
    command: list[str] | None


def start_drafts(
    execution: bytes, given: Given, home: Home, *, parent: bytes | None, strict: bool
) -> tuple[Environment, Draft]:
    """Return the environment and the draft of the start of an execution that is nested in `parent`."""
    settings = _settings(home, strict=strict)
    facts: dict[str, object] = {"kind": given.kind}
    if given.name is not None:
        facts["name"] = given.name
    found, environment = start_facts(home.root, settings, given.command)
    facts |= found
    if parent is not None and parent != execution:
        facts["parent"] = parent
    shaped = shape(facts=facts, params=mask_mapping(given.params), properties=mask_mapping(given.properties))
    draft = execution_started(
        execution,
        given.pipeline,
        given.stage,
        environment=environment.content_id,
        facts=shaped.space("facts"),
        params=shaped.space("params"),
        properties=shaped.space("properties"),
    )
    return environment, shaped.into(draft)


def execution_of_process() -> bytes | None:
    """Return the execution that `cmf-agent run` started this process for."""
    try:
        return parse_execution_id(os.environ["CMF_EXECUTION"])
    except (KeyError, CallerError):
        return None


def _settings(home: Home, *, strict: bool) -> Settings:
    try:
        return load_settings(home.config_path)
    except CmfError as error:
        if strict:
            raise
        say(f"the configuration is not used: {error}")
        return Settings()
