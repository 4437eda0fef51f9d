"""Stages, and pipelines: made, described, found by their names.

Rules
- A stage is [pipeline, stage]; its name is `pipeline/stage`. What was never named is called like the script, a pipeline like the folder.
- A stage without properties is recorded with its first execution.
"""

from collections.abc import Mapping
from pathlib import Path

from cmf_agent.cmflib.entities import PIPELINE_TYPE, Context, pipeline_context, stage_context
from cmf_agent.cmflib.session import Session
from cmf_agent.describing import checked_mapping, description
from cmf_protocol.types import stage_node


def enter_stage(session: Session, stage: str, custom_properties: Mapping[str, object] | None) -> Context:
    """Make `stage` the current one, and record what is said of it."""
    _, (pipeline, stage) = stage_node(session.pipeline, stage)
    given = checked_mapping(custom_properties, "custom_properties") or {}
    if given:
        session.record(description(pipeline, stage, given))
    session.context = stage_context(pipeline, stage, given)
    return session.context


def update_context(
    session: Session, type_name: str, name: str, custom_properties: Mapping[str, object] | None
) -> Context:
    """Record properties of the stage, or pipeline, called `name`."""
    given = checked_mapping(custom_properties, "custom_properties") or {}
    if type_name == PIPELINE_TYPE:
        pipeline, stage = name, None
        context = pipeline_context(name, given)
    else:
        pipeline, stage = stage_of(session, name)
        context = stage_context(pipeline, stage, given)
    if given:
        session.record(description(pipeline, stage, given))
    if session.context is not None and session.context.name == context.name:
        context.custom_properties = {**session.context.custom_properties, **given}
        session.context = context
    return context


def stage_of(session: Session, name: str) -> tuple[str, str]:
    """Return pipeline and stage of a name `pipeline/stage`; a bare name is a stage of the session's own pipeline."""
    own = f"{session.pipeline}/"
    if name.startswith(own) and len(name) > len(own):
        return session.pipeline, name[len(own) :]
    pipeline, slash, stage = name.partition("/")
    return (pipeline, stage) if slash and pipeline and stage else (session.pipeline, name)


def script_stem() -> str:
    """Return what a stage is called that nobody named: like the script."""
    from cmf_agent.sources.script import script_name

    return script_name()


def working_folder_name() -> str:
    """Return what a pipeline is called that nobody named: like the folder."""
    return Path.cwd().name or "pipeline"
