"""Which execution a lock state is: one that was ingested, one that its stage recorded of itself, or a new one.

Rules
- A state that was ingested is not said anew: what is added is what was not known then, as the commit that it came into.
- Where the command of a stage records itself (`cmf.run` or `cmf-agent run` under the same pipeline and stage), that execution is the one:
  it produced all outputs of the state, and neither its parameters nor what it read by the same name contradict it. What the lock says
  beyond it is added to it; what it said itself is never said otherwise. Of several the latest is taken.
- A run of another pipeline or stage that produced all the outputs is another execution; that it is there is told.
- An execution that was ingested from another state (a UUID of version 8) never counts as recorded.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from cmf_agent.ingest.dvc_bytes import Files
from cmf_agent.ingest.dvc_drafts import (
    LockState,
    code_facts,
    finished,
    metrics_draft,
    metrics_of,
    started,
    usage_drafts,
)
from cmf_agent.ingest.dvc_stages import INGESTED_VERSION
from cmf_agent.shape import shape
from cmf_agent.sources.host import mask_mapping
from cmf_graph.graph import Graph
from cmf_protocol.encoding import encode
from cmf_protocol.events import Draft, Node
from cmf_protocol.resolve import NodeState
from cmf_protocol.types import (
    ARTIFACT_PRODUCED,
    ARTIFACT_STORED,
    ARTIFACT_USED,
    EXECUTION_STARTED,
    execution_updated,
    stage_node,
)

#: `new` and `known` are the lock's own executions, `recorded` is one that the stage recorded of itself.
Standing = Literal["new", "known", "recorded"]


class Told(NamedTuple):
    """What is to be said of a lock state, and of which execution."""

    execution: bytes
    standing: Standing
    drafts: list[Draft]
    notes: tuple[str, ...] = ()


def tell(graph: Graph, pipeline: str, state: LockState, files: Files) -> Told:
    """Return what a lock state says that is not known of its execution."""
    execution = state.stage.execution(pipeline)
    known = _state(graph, ("execution", execution))
    if known is not None and _is_started(known):
        return Told(execution, "known", list(_additions(graph, known, state, files)))
    producers = producers_of_all(graph, state)
    recorded = recorded_execution(producers, pipeline, state)
    if recorded is not None:
        return Told(recorded.node[1], "recorded", list(_additions(graph, recorded, state, files)))
    numbers = metrics_of(state, files)
    drafts = [
        started(state, execution, pipeline, files.repo),
        *usage_drafts(state, execution, files),
        *([metrics_draft(execution, numbers)] if numbers else []),
        finished(state, execution),
    ]
    return Told(execution, "new", drafts, tuple(_same_outputs(producers, pipeline, state)))


def _state(graph: Graph, node: Node) -> NodeState | None:
    node_id = graph.node_id(node)
    return None if node_id is None else graph.state(node_id, node)


def _is_started(state: NodeState) -> bool:
    return any(said.type == EXECUTION_STARTED for said in state.said)


# -- what is added to an execution that is there -----------------------------------------------------------------------


def _additions(graph: Graph, known: NodeState, state: LockState, files: Files) -> Iterator[Draft]:
    execution: bytes = known.node[1]
    updated = _updated(known, execution, state, files)
    if updated is not None:
        yield updated
    is_ingested = _is_ingested(execution)
    for draft in usage_drafts(state, execution, files):
        is_said = (
            _has_place(graph, draft)
            if draft.type == ARTIFACT_STORED
            else _has_edge(known, draft, by_content=not is_ingested)
        )
        if not is_said:
            yield draft
    if is_ingested and all(status.status == "running" for status in known.statuses):  # a crash cut the end off
        yield finished(state, execution)
    stated = known.space("metrics")
    numbers = {name: value for name, value in metrics_of(state, files).items() if name not in stated}
    if numbers:
        yield metrics_draft(execution, numbers)


def _has_place(graph: Graph, draft: Draft) -> bool:
    """Tell if a commit is known already that has the content at this place: a state that comes back has several."""
    stored = _state(graph, draft.about[0])
    wanted = draft.body["location"]
    return stored is not None and any(
        said.type == ARTIFACT_STORED
        and "commit" in said.body["location"]
        and all(said.body["location"].get(key) == wanted.get(key) for key in ("kind", "path", "repo"))
        for said in stored.said
    )


def _has_edge(known: NodeState, draft: Draft, *, by_content: bool) -> bool:
    """Tell if an edge to this content is said already: `by_content` in any words, else only under its true digest."""
    artifact = draft.about[0][1]
    for said in known.said:
        if said.type == draft.type:
            if by_content and artifact in (said.about[0][1], *said.body.get("digests", ())):
                return True
            if artifact in said.body.get("digests", ()):
                return True
    return False


def _updated(known: NodeState, execution: bytes, state: LockState, files: Files) -> Draft | None:
    said: dict[str, Mapping[str, object]] = {
        "facts": code_facts(state, files.repo) if known.value("git_commit") is None else {},
        "params": mask_mapping(state.stage.params),
        "properties": mask_mapping(state.stage.properties),
    }
    missing = {
        space: {k: v for k, v in values.items() if (space, k) not in known.values} for space, values in said.items()
    }
    if not any(missing.values()):
        return None
    shaped = shape(**missing)
    facts, params, properties = (shaped.space(space) for space in missing)
    return shaped.into(execution_updated(execution, facts=facts, params=params, properties=properties))


# -- executions that stages recorded of themselves ---------------------------------------------------------------------


def producers_of_all(graph: Graph, state: LockState) -> list[NodeState]:
    """Return the executions that were recorded, not ingested, and that produced all outputs of this state; none if it has none."""
    produced = {out.content_id for out in state.stage.outs if out.content_id is not None}
    if not produced:
        return []
    first = graph.node_id(("artifact", min(produced)))
    rows = graph.events_about(first) if first is not None else []
    producers = {
        node
        for row in rows
        if row.header.type == ARTIFACT_PRODUCED
        for node in row.header.about
        if node[0] == "execution"
    }
    found = [known for node in producers if not _is_ingested(node[1]) and (known := _state(graph, node)) is not None]
    return [known for known in found if produced <= set(known.produced)]


def recorded_execution(producers: Iterable[NodeState], pipeline: str, state: LockState) -> NodeState | None:
    """Return the latest of the executions that the stage itself recorded and that this state of the lock came of, None if none did."""
    fitting = [known for known in producers if _fits(known, pipeline, state)]
    return max(fitting, key=lambda known: (known.started or 0, known.node[1]), default=None)


def _is_ingested(execution: bytes) -> bool:
    return execution[6] >> 4 == INGESTED_VERSION


def _same_outputs(producers: Iterable[NodeState], pipeline: str, state: LockState) -> Iterator[str]:
    """Tell of the latest run of another name that made the same outputs."""
    others = [known for known in producers if not _stages(known) & _own_stages(pipeline, state)]
    latest = max(others, key=lambda known: (known.started or 0, known.node[1]), default=None)
    for _, (named, stage) in sorted(_stages(latest))[:1] if latest is not None else ():
        yield (
            f"a run of {named}/{stage} recorded the same outputs: they are two executions, since this one is of "
            f"{pipeline}/{state.stage.stage} (-p and the names of stages make them one)"
        )


def _stages(known: NodeState) -> set[Node]:
    """Return the stages that an execution is said to be of."""
    return {node for said in known.said if said.type == EXECUTION_STARTED for node in said.about if node[0] == "stage"}


def _own_stages(pipeline: str, state: LockState) -> set[Node]:
    return {stage_node(pipeline, state.stage.stage), stage_node(pipeline, state.stage.name)}


def _fits(known: NodeState, pipeline: str, state: LockState) -> bool:
    if _stages(known).isdisjoint(_own_stages(pipeline, state)):
        return False
    stated, said = known.space("params"), shape(params=mask_mapping(state.stage.params)).space("params")
    if any(encode(stated[name]) != encode(value) for name, value in said.items() if name in stated):
        return False
    used = {dep.name: dep.content_id for dep in state.stage.deps}
    return all(used.get(name, id_) == id_ for name, id_ in _used(known))


def _used(known: NodeState) -> Iterator[tuple[str, str]]:
    """Yield name and content id of what an execution used."""
    for said in known.said:
        if said.type == ARTIFACT_USED and "name" in said.body:
            yield said.body["name"], said.about[0][1]
