"""Executions: begun, found again, updated, ended.

Rules
- Beginning an execution ends the one before; what is logged to that one afterwards is recorded all the same.
- A reusable execution has an id that follows from the site's key, pipeline, stage and type: the same in every process,
  without asking anything. What it is given later goes on from what it had.
- Custom properties of an execution are its parameters.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import UUID, uuid5

import cmf_agent
from cmf_agent.cmflib.contexts import enter_stage, script_stem, stage_of
from cmf_agent.cmflib.endings import begun, end, is_begun_here, note_end_commit, open_runs
from cmf_agent.cmflib.entities import Context, Execution
from cmf_agent.cmflib.session import Session, code_at
from cmf_agent.current import current_run as innermost_run
from cmf_agent.current import leave
from cmf_agent.describing import checked_mapping
from cmf_agent.home import Home
from cmf_agent.identity import id_text, parse_execution_id
from cmf_agent.keys import read_signer
from cmf_agent.log import shared_log
from cmf_agent.recorder import say
from cmf_agent.recording import Recording
from cmf_agent.runs import Run
from cmf_agent.sources.host import mask_command
from cmf_protocol.errors import CallerError, StoreError

#: The namespace of the ids of reusable executions.
_REUSABLE = UUID("b3f1c9b4-2f0e-5d0a-9a55-7a1f0c2de4d6")


def create_execution(
    session: Session,
    execution_type: str,
    custom_properties: Mapping[str, object] | None,
    cmd: str | Sequence[str] | None,
    *,
    is_new: bool,
) -> Execution:
    """Begin an execution, or go on with the reusable one of this type, and end the one before."""
    params = checked_mapping(custom_properties, "custom_properties") or {}
    if not isinstance(execution_type, str) or not execution_type:
        raise CallerError(f"{execution_type!r} can't be the type of an execution", "give a text")
    with session.lock:
        context = session.context or enter_stage(session, script_stem(), None)
        pipeline, stage = stage_of(session, context.name)
        reused = None if is_new else reusable_id(session.home, pipeline, stage, execution_type)
        had = {} if reused is None else _custom_properties(session, reused)
        run = next((run for run in open_runs(session) if run.id == reused), None)
        code = code_at(session.home)
        if run is None:
            home = session.home.path if session.home else None
            run = Run(pipeline, stage, params, name=execution_type, execution_id=reused, home=home, command=_words(cmd))
            _begin(session, run, code)
        elif params:
            run.params(params)
        session.run = run
        session.execution = _entity(run, context, execution_type, {**had, **params}, _words(cmd), code)
        return session.execution


def _custom_properties(session: Session, execution_id: str) -> dict[str, Any]:
    """Return what a reusable execution was given before, as far as that can be read."""
    if session.execution is not None and session.execution.id == execution_id:
        return session.execution.custom_properties
    try:
        known = known_execution(session.home, execution_id)
    except StoreError as error:
        say(f"what {execution_id} was given before can't be read, the run goes on: {error}")
        return {}
    return known.custom_properties if known else {}


def _begin(session: Session, run: Run, code: Mapping[str, object]) -> None:
    with shared_log(session.home.log_path) if session.home else nullcontext():  # opened once for all of this
        for before in open_runs(session):
            end(session, before, code=code)
        # Only what was begun with `cmf.run` can be around it: another `Cmf` says nothing of this one.
        while (around := innermost_run()) is not None and is_begun_here(around):
            leave(around)
        run.start()
    begun(session, run)
    session.runs[run.id] = run


def _entity(
    run: Run,
    context: Context,
    execution_type: str,
    params: Mapping[str, object],
    command: list[str] | None,
    code: Mapping[str, object],
) -> Execution:
    properties = {
        "Execution_uuid": run.id,
        "Context_Type": context.name,
        "Context_ID": context.id,
        "Execution": str(mask_command(sys.argv if command is None else command)),
        "Execution_type_name": execution_type,
        "Pipeline_Type": run.pipeline,
        "Pipeline_id": run.pipeline,
        "Git_Repo": code.get("remote") or "",
        "Git_Start_Commit": code.get("commit") or "",
        "Git_End_Commit": "",
    }
    return Execution(run.id, execution_type, execution_type, properties, dict(params))


def _words(cmd: str | Sequence[str] | None) -> list[str] | None:
    if cmd is None:
        return None
    if not isinstance(cmd, str):
        return [str(word) for word in cmd]
    try:
        return shlex.split(cmd) or None
    except ValueError:  # no command line
        return [cmd]


def reusable_id(home: Home | None, pipeline: str, stage: str, execution_type: str) -> str:
    """Return the id of the reusable execution of this type at this site."""
    try:
        site = read_signer(home.key_path).public_key.hex() if home else ""
    except StoreError:  # a log that was brought back without its key
        site = ""
    return str(uuid5(_REUSABLE, json.dumps([site, pipeline, stage, execution_type])))


def current_run(session: Session) -> Recording:
    """Return the run of the current execution; begin one, named like the script, if there is none."""
    with session.lock:
        if session.run is None:
            create_execution(session, script_stem(), None, None, is_new=True)
        assert session.run is not None
        return session.run


def update_execution(
    session: Session, execution_id: object, custom_properties: Mapping[str, object] | None
) -> Execution:
    """Record parameters of an execution, and make it the current one."""
    given = checked_mapping(custom_properties, "custom_properties") or {}
    with session.lock:
        execution = set_execution(session, execution_id)
        if given and session.run is not None:
            session.run.params(given)
        execution.custom_properties.update(given)
        return execution


def set_execution(session: Session, given: Any) -> Execution:
    """Make an execution, given by itself or by its id, the current one; raise `CallerError` if nothing is known of it."""
    id_ = id_text(parse_execution_id(getattr(given, "id", given)))
    with session.lock:
        if session.execution is not None and session.execution.id == id_:
            return session.execution
        found = given if isinstance(given, Execution) else None
        run = session.runs.get(id_)
        if run is None:
            found = known_execution(session.home, id_) or found
            if found is None:
                raise CallerError(
                    f"nothing is known of the execution {id_}", "pull what it belongs to, or look into CmfQuery"
                )
            run = cmf_agent.join(id_, home=session.home.path if session.home else None)
        session.runs[id_] = session.run = run
        session.execution = (
            found or known_execution(session.home, id_) or Execution(id_, "", "", {"Execution_uuid": id_})
        )
        return session.execution


def known_execution(home: Home | None, execution_id: str) -> Execution | None:
    """Return an execution as the local view knows it."""
    if home is None:
        return None
    from cmf_agent.view import local_view

    with local_view(home) as graph:
        node_id = graph.node_id(("execution", parse_execution_id(execution_id)))
        state = None if node_id is None else graph.state(node_id)
    if state is None or state.value("stage") is None:
        return None
    pipeline, stage = state.value("stage")
    name = str(state.value("name") or "")
    context = f"{pipeline}/{stage}"
    properties = {
        "Execution_uuid": execution_id,
        "Context_Type": context,
        "Context_ID": context,
        "Execution": str(state.value("command") or ""),
        "Execution_type_name": name,
        "Pipeline_Type": pipeline,
        "Pipeline_id": pipeline,
        "Git_Repo": state.value("git_repo") or "",
        "Git_Start_Commit": state.value("git_commit") or "",
        "Git_End_Commit": state.value("Git_End_Commit", "properties") or "",
    }
    custom = {key: value for key, value in state.space("properties").items() if key != "Git_End_Commit"}
    return Execution(execution_id, name, name, properties, {**custom, **state.space("params")})


def finalize(session: Session, error: BaseException | None = None) -> None:
    """End the current execution, as failed if `error` ended it; of one that another process began, only record the commit."""
    with session.lock:
        run = session.run
        if run is None:
            return
        code = code_at(session.home)
        if not isinstance(run, Run):
            note_end_commit(run, code)
        for begun_here in open_runs(session):
            end(session, begun_here, error, code)
        if session.execution is not None:
            session.execution.properties["Git_End_Commit"] = code.get("commit") or ""
