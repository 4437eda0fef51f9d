"""What the peer's records say here: pipelines, stages, executions and usage edges as drafts of events. Pure.

Rules
- What has no place of its own is kept as a property, and told in `Mapped.unmapped` with where it is.
- The drafts follow from the file alone: same file, same drafts, in the same order. Edges keep the file's order; stages and executions
  are in that of their creation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cmf_agent.describing import description
from cmf_agent.identity import id_text
from cmf_agent.ingest import mapped_artifacts as artifacts
from cmf_agent.ingest import mapped_executions as executions
from cmf_agent.ingest.mapped_edges import Edges
from cmf_agent.ingest.records import Execution, History, Pipeline, Stage
from cmf_agent.ingest.unmapped import Unmapped
from cmf_agent.shape import shape
from cmf_agent.sources.host import mask_mapping
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft


class Counts(NamedTuple):
    """How many of each there are in what is imported."""

    pipelines: int
    stages: int
    executions: int
    artifacts: int
    edges: int
    metrics: int


class Mapped(NamedTuple):
    """The drafts of all events, what they are about, and what had no place of its own."""

    drafts: list[Draft]
    counts: Counts
    unmapped: Unmapped


def map_history(history: History, only: Sequence[str] = ()) -> Mapped:
    """Return what a file says; of the pipelines named in `only`, if any are.

    Raises `CallerError` for a name that can't be one, and for a pipeline that is not in the file.
    """
    mapper = _Mapper(history)
    names = [pipeline_name(pipeline) for pipeline in history.pipelines]
    for name in only:
        if name not in names:
            raise CallerError(f"there is no pipeline {name!r} in the file", f"there are: {', '.join(names) or 'none'}")
    for pipeline in history.pipelines:
        if not only or pipeline_name(pipeline) in only:
            mapper.add_pipeline(pipeline)
    return Mapped(mapper.drafts, mapper.counts(), mapper.unmapped)


def pipeline_name(pipeline: Pipeline) -> str:
    """Return what a pipeline is called."""
    return pipeline.name or str(pipeline.properties.get("Pipeline") or "")


def stage_name(pipeline: str, stage: Stage) -> str:
    """Return a stage's name without its pipeline's."""
    name = stage.name or str(stage.properties.get("Pipeline_Stage") or "")
    return name.removeprefix(f"{pipeline}/") or name


class _Mapper:
    """Collects the drafts of one file."""

    def __init__(self, history: History) -> None:
        self.drafts: list[Draft] = []
        self.unmapped = Unmapped()
        for what, names in history.lost.items():
            self.unmapped.note_all(what, "nowhere", names)
        self._edges = Edges(history, [pipeline_name(pipeline) for pipeline in history.pipelines], self.unmapped)
        self._started: dict[bytes, Draft] = {}
        self._nodes: set[tuple[str, ...]] = set()

    def counts(self) -> Counts:
        """Return how many of each were added."""
        pipelines, stages = (sum(len(node) == length for node in self._nodes) for length in (1, 2))
        return Counts(pipelines, stages, len(self._started), *self._edges.counts())

    # -- pipelines and stages ------------------------------------------------------------------------------------------

    def add_pipeline(self, pipeline: Pipeline) -> None:
        """Draft a pipeline with all that belongs to it."""
        name = pipeline_name(pipeline)
        if not name:
            raise CallerError("a pipeline in the file has no name; nothing was recorded", "export it again")
        self._nodes.add((name,))
        self.drafts.append(description(name, None, _described(pipeline)))
        for stage in sorted(pipeline.stages, key=artifacts.created_ms):
            self._add_stage(name, stage)

    def _add_stage(self, pipeline: str, stage: Stage) -> None:
        name = stage_name(pipeline, stage)
        if not name:
            name = "(unnamed)"
            self.unmapped.note("stages without a name", "the stage (unnamed)", pipeline)
        self._nodes.add((pipeline, name))
        self.drafts.append(description(pipeline, name, _described(stage)))
        if stage.unused:
            unused = [
                {"name": a.name, "type": a.type, "uri": a.uri} | artifacts.artifact_properties(a) for a in stage.unused
            ]
            self.drafts.append(description(pipeline, name, {"unused_artifacts": unused}))
            kept = "the stage's property unused_artifacts"
            self.unmapped.note_all("artifacts that no execution used or produced", kept, [a.name for a in stage.unused])
        for execution in sorted(stage.executions, key=artifacts.created_ms):
            self._add_execution(pipeline, name, execution)

    # -- executions ----------------------------------------------------------------------------------------------------

    def _add_execution(self, pipeline: str, stage: str, execution: Execution) -> None:
        id_ = self._execution_id(pipeline, stage, execution)
        start = self._start(id_, pipeline, stage, execution)
        before = self._started.setdefault(id_, start)
        if before is start:
            self.drafts.append(start)
        elif before != start:
            self._add_again(id_, start, f"{pipeline}/{stage}")
        for edge in execution.edges:
            self.drafts += self._edges.drafts(id_, edge)
        self._add_rest(id_, execution)
        end = executions.end_of(id_, execution)
        if end is not None:
            self.drafts.append(end)

    def _add_again(self, id_: bytes, again: Draft, stage: str) -> None:
        """Draft what another record of an execution says, without moving it to that one's stage."""
        said = {space: again.body[space] for space in ("facts", "params", "properties") if space in again.body}
        said["properties"] = {**said.get("properties", {}), "also_recorded_in": stage}
        self.drafts.append(t.execution_updated(id_, **said))
        where = "the first one's stage, and the property also_recorded_in"
        self.unmapped.note("executions that are recorded more than once, differently", where, id_text(id_))

    def _execution_id(self, pipeline: str, stage: str, execution: Execution) -> bytes:
        id_ = executions.given_id(execution)
        if id_ is None:
            id_ = executions.made_id(pipeline, stage, execution)
            kept = "an id made of pipeline, stage, type, name, number and time"
            self.unmapped.note("executions without a usable Execution_uuid", kept, id_text(id_))
        return id_

    def _start(self, id_: bytes, pipeline: str, stage: str, execution: Execution) -> Draft:
        facts = executions.facts_of(execution)
        properties = executions.properties_of(execution, facts) | self._edges.properties(execution)
        shaped = shape(
            facts=facts, params=mask_mapping(executions.params_of(execution)), properties=mask_mapping(properties)
        )
        environments = {self._edges.content_id(edge) for edge in execution.edges if edge.artifact.type == "Environment"}
        return shaped.into(
            t.execution_started(
                id_,
                pipeline,
                stage,
                environment=environments.pop() if len(environments) == 1 else None,
                facts=shaped.space("facts"),
                params=shaped.space("params"),
                properties=shaped.space("properties"),
                at=executions.start_us(execution),
            )
        )

    def _add_rest(self, id_: bytes, execution: Execution) -> None:
        """Draft what only the database tells by itself, so that export and database say the same otherwise."""
        rest = executions.rest_of(execution, self._edges.content_id)
        if execution.contexts:
            kept = "the property contexts of their executions"
            self.unmapped.note_all("contexts that are no pipeline and no stage", kept, execution.contexts)
        if rest:
            shaped = shape(properties=mask_mapping(rest))
            self.drafts.append(shaped.into(t.execution_updated(id_, properties=shaped.space("properties"))))


def _described(record: Pipeline | Stage) -> dict[str, Any]:
    return artifacts.joined_properties(
        record.properties, artifacts.user_values(record.custom)
    ) | artifacts.time_properties(record)
