"""The edges between executions and artifacts, and what is said of artifacts along with them, as drafts of events. Pure.

Rules
- All edges to one content say the same of it, so that no edge contradicts another.
- A table's blocks, a place where bytes are, and what labels what are said once for each content.
- The numbers of metrics are also those of the execution that produced them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from cmf_agent.by_content import edge_draft
from cmf_agent.ingest import mapped_artifacts as artifacts
from cmf_agent.ingest.records import EDGE_TYPES, INPUT, OUTPUT, Artifact, Edge, Execution, History
from cmf_agent.ingest.unmapped import Unmapped
from cmf_agent.shape import shape
from cmf_agent.tables import table_drafts
from cmf_protocol import types as t
from cmf_protocol.encoding import INTEGER_MAX
from cmf_protocol.events import Draft

_OTHER_TYPES = EDGE_TYPES.keys() - {INPUT, OUTPUT}


class Edges:
    """The edges of one file, and which of them were drafted; `pipelines` are the names of all its pipelines."""

    def __init__(self, history: History, pipelines: Sequence[str], unmapped: Unmapped) -> None:
        self._artifacts = artifacts.Artifacts(_artifacts_of(history))
        self._pipelines = sorted(pipelines, key=len, reverse=True)  # of two names, the longer one is meant
        self._unmapped = unmapped
        self._kinds: dict[str, str] = {}
        self._edges: set[tuple[str, bytes, str]] = set()
        self._told: set[str] = set()
        self._bodies: dict[tuple[str, str], dict[str, Any]] = {}

    def counts(self) -> tuple[int, int, int]:
        """Return how many artifacts, edges, and artifacts that are metrics were drafted."""
        return len(self._kinds), len(self._edges), sum(kind == "metrics" for kind in self._kinds.values())

    def content_id(self, edge: Edge) -> str:
        """Return the content id of an edge's artifact."""
        return self._artifacts.content(edge.artifact).content_id

    def drafts(self, id_: bytes, edge: Edge) -> Iterator[Draft]:
        """Yield what an edge of the execution `id_` says; nothing if its type tells no direction."""
        if edge.type not in EDGE_TYPES:
            return
        artifact, content = edge.artifact, self._artifacts.content(edge.artifact)
        _, is_used = EDGE_TYPES[edge.type]
        if content.content_id not in self._kinds:
            self._kinds[content.content_id] = self._artifacts.shared[content.content_id].kind
            self._note(artifact, content)
            if content.table is not None:
                yield from table_drafts(content.table)
        type_ = t.ARTIFACT_USED if is_used else t.ARTIFACT_PRODUCED
        self._edges.add((type_, id_, content.content_id))
        yield self._edge(type_, id_, edge, content)
        yield from self._of_artifact(artifact, content.content_id)
        if artifact.type == "Metrics" and not is_used:
            yield from _metrics(id_, artifact)

    def properties(self, execution: Execution) -> dict[str, Any]:
        """Return as properties what has no place at the edges of an execution, nor at their artifacts."""
        types = {
            self.content_id(edge): _edge_type(edge) for edge in execution.edges if edge.type not in (INPUT, OUTPUT)
        }
        directed = [_edge_type(edge) for edge in execution.edges if edge.type in _OTHER_TYPES]
        if directed:
            kept = "recorded as used or produced; the type under the execution's property event_types"
            what = "usage edges of other types than INPUT and OUTPUT"
            self._unmapped.note_all(what, kept, sorted(set(directed)), len(directed))
        others = self._other_artifacts(execution)
        return ({"event_types": types} if types else {}) | ({"artifacts": others} if others else {})

    def _other_artifacts(self, execution: Execution) -> dict[str, list[dict[str, Any]]]:
        """Return what this execution's artifacts say differently than others of the same content, and those without an edge."""
        found: dict[str, list[dict[str, Any]]] = {}
        for edge in execution.edges:
            content_id = self.content_id(edge)
            shared = self._artifacts.shared[content_id]
            said = {} if shared.is_of_one else artifacts.differences(edge.artifact, shared)
            if edge.type not in EDGE_TYPES:
                said = {"name": edge.artifact.name, "type": edge.artifact.type} | artifacts.artifact_properties(
                    edge.artifact
                )
                kept = "the execution's properties event_types and artifacts; no edge is recorded"
                self._unmapped.note("usage edges of an unknown type", kept, artifacts.own_name(edge.artifact))
            elif said:
                kept = "one artifact with the properties of the latest; the others' under the property artifacts of their executions"
                self._unmapped.note(
                    "artifacts of one content that are described differently", kept, artifacts.own_name(edge.artifact)
                )
            if said and said not in found.setdefault(content_id, []):
                found[content_id].append(said)
        return {content_id: said for content_id, said in found.items() if said}

    def _edge(self, type_: str, id_: bytes, edge: Edge, content: artifacts.Content) -> Draft:
        """Draft an edge; all edges to one content, under one name, have one body."""
        name = artifacts.own_name(edge.artifact, edge.path)
        made = self._bodies.get((content.content_id, name))
        if made is None:
            shared = self._artifacts.shared[content.content_id]
            facts = {"kind": shared.kind} | ({"size": content.table.size} if content.table else {})
            draft = edge_draft(type_, id_, content.content_id, name, facts, shared.properties)
            made = self._bodies[content.content_id, name] = draft.body
        return t.usage(type_, id_, content.content_id)._replace(body=made)

    def _of_artifact(self, artifact: Artifact, content_id: str) -> Iterator[Draft]:
        """Yield what is said of an artifact alone: where its bytes are, what labels it."""
        for url in artifacts.remotes_of(artifact, self._pipelines):
            yield from self._once(t.artifact_stored(content_id, {"kind": "remote", "url": url}), f"{content_id} {url}")
        for label, labelled in self._artifacts.labelled(artifact):
            yield from self._once(t.label_attached(label, labelled), f"{label} {labelled}")

    def _once(self, draft: Draft, key: str) -> Iterator[Draft]:
        if key not in self._told:
            self._told.add(key)
            yield draft

    def _note(self, artifact: Artifact, content: artifacts.Content) -> None:
        if artifact.type not in artifacts.KINDS:
            kept = "the kind other, the type under the artifact's property artifact_type"
            self._unmapped.note("artifacts of types that are no kind here", kept, artifact.type or "(none)")
        if content.is_named_by_peer:
            kept = "an artifact named after the peer's uri, which is no digest of its bytes"
            self._unmapped.note("artifacts without a digest", kept, artifacts.own_name(artifact))


def _metrics(id_: bytes, artifact: Artifact) -> Iterator[Draft]:
    """Yield the metrics of an execution that an artifact holds: those of its values that are numbers."""
    values = artifacts.metric_values(artifact)
    numbers = {
        key: value
        for key, value in values.items()
        if type(value) is float or (type(value) is int and abs(value) <= INTEGER_MAX)
    }
    if numbers:
        shaped = shape(metrics=numbers)
        yield shaped.into(t.metrics_recorded(id_, metrics=shaped.space("metrics")))


def _artifacts_of(history: History) -> Iterator[Artifact]:
    for pipeline in history.pipelines:
        for stage in pipeline.stages:
            for execution in stage.executions:
                for edge in execution.edges:
                    yield edge.artifact


def _edge_type(edge: Edge) -> str:
    return EDGE_TYPES[edge.type][0] if edge.type in EDGE_TYPES else f"UNKNOWN ({edge.type})"
