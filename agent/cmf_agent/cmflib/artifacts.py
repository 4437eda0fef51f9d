"""Datasets, models, environments and labels: logged, found again, described further, linked.

Rules
- What is recorded as properties is what the caller says: `model_*`, `metrics_name`, `version`, `url`, and custom ones. The digest
  (`Commit`), the repository and where the bytes are follow from the artifact and are recorded with it anyway.
- Properties that are added later stand on an edge that exists already: nothing is used or produced by that.
- `labels`, `labels_uri` and `dataset_uri` are lists with commas; what is added to them joins what is there.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmf_agent.by_content import edge_draft, is_content_id
from cmf_agent.cmflib.entities import Artifact, artifact_entity, is_input, split_properties
from cmf_agent.cmflib.executions import current_run
from cmf_agent.cmflib.session import Edge, Session
from cmf_agent.describing import checked_mapping, checked_path
from cmf_agent.home import Home
from cmf_agent.identity import id_text
from cmf_protocol.errors import CallerError
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_USED, slice_recorded

if TYPE_CHECKING:
    from cmf_graph.graph import Graph
    from cmf_protocol.resolve import NodeState

PathLike = str | os.PathLike[str]

_LISTS = ("labels", "labels_uri", "dataset_uri")


def log_file(
    session: Session,
    path: PathLike,
    event: str,
    kind: str,
    custom_properties: Mapping[str, object] | None,
    fixed: Mapping[str, object] | None = None,
) -> Artifact:
    """Record the file or folder at `path` as input or output of the current execution; raise `CallerError` if it can't be read."""
    is_used = is_input(event)
    _refuse_address(checked_path(path), path)
    custom = checked_mapping(custom_properties, "custom_properties") or {}
    properties = {**custom, **(fixed or {})}
    run = current_run(session)
    content = (run.input if is_used else run.output)(path, kind, None, properties)
    name = session.name_of(path)
    artifact = artifact_entity(content.content_id, name, kind, properties, run.id)
    edge = Edge(ARTIFACT_USED if is_used else ARTIFACT_PRODUCED, run.execution, name, kind)
    return session.remember(_with_origin(session, artifact, path), edge, path)


def _refuse_address(path: Path, named: PathLike) -> None:
    if "://" in str(named) and not os.path.lexists(path):
        raise CallerError(
            f"{named} is an address, not a file here", "bring it here first (`dvc import-url`), and log the file"
        )


def log_label(session: Session, path: PathLike, of: object, custom_properties: Mapping[str, object] | None) -> Artifact:
    """Record the file at `path` as a label of the artifact that `of` names."""
    labelled = find_artifact(session, of)
    custom = checked_mapping(custom_properties, "custom_properties") or {}
    run = current_run(session)
    content = run.label(path, labelled.id, properties=custom)
    name = session.name_of(path)
    artifact = artifact_entity(content.content_id, name, "label", custom)
    artifact.custom_properties["dataset_uri"] = labelled.uri
    for key, value in (("labels", artifact.name), ("labels_uri", artifact.uri)):
        labelled.custom_properties[key] = _joined(labelled.custom_properties.get(key), value)
    edge = Edge(ARTIFACT_USED, run.execution, name, "label")
    return session.remember(_with_origin(session, artifact, path), edge, path)


def _with_origin(session: Session, artifact: Artifact, path: PathLike) -> Artifact:
    """Add what the peer's artifacts say of where they are from; it is shown only, and follows from what is recorded."""
    artifact.properties.setdefault("git_repo", session.remote())
    artifact.properties.setdefault("url", f"{session.pipeline}:{os.fspath(path)}")
    return artifact


# -- found again -------------------------------------------------------------------------------------------------------


def find_artifact(session: Session, named: object) -> Artifact:
    """Return the artifact that is named by itself, its id, its name, its digest, or the path of a file.

    What this `Cmf` has logged goes first, then what the local view knows. Raises `CallerError` if nothing is known of it.
    """
    id_ = getattr(named, "id", named)
    text = os.fspath(id_) if isinstance(id_, str | os.PathLike) else ""
    content_id = _content_id_in(text)
    with session.lock:
        at_path = session.at_path.get(os.path.abspath(text)) if text else None  # noqa: PTH100
        held = session.artifacts.get(content_id or at_path or "")
    found = held or _in_view(session.home, content_id, text)
    if found is None:
        raise CallerError(
            f"nothing is known of the artifact {named!r:.200}", "log it first, or give its id, its name or its path"
        )
    return found


def _content_id_in(text: str) -> str | None:
    """Return the content id that a text is, or that a name `path:hash` has in it."""
    if is_content_id(text):
        return text
    parts = text.split(":")
    return next((id_ for part in reversed(parts) if is_content_id(id_ := f"md5:{part}")), None)


def _in_view(home: Home | None, content_id: str | None, text: str) -> Artifact | None:
    if home is None or not text:
        return None
    from cmf_agent.view import local_view

    with local_view(home) as graph:
        node_id = _named_node(graph, text) if content_id is None else graph.node_id(("artifact", content_id))
        state = None if node_id is None else graph.state(node_id)
    return None if state is None else _entity_of(state)


def _named_node(graph: "Graph", name: str) -> int | None:
    """Return the newest artifact of a name."""
    found = graph.rows("SELECT node FROM artifact_names WHERE name = ?", (name,))
    return max((node for (node,) in found), key=lambda node: last_said(graph.state(node)), default=None)


def last_said(state: "NodeState") -> tuple[int, bytes]:
    """Return a key that grows with when something was last said of a node."""
    return max((s.tie for s in state.said), default=(0, b""))


def _entity_of(state: "NodeState") -> Artifact:
    content_id = str(state.node[1])
    name = state.names[0] if state.names else ""
    edges = sorted(
        (s for s in state.said if s.type in (ARTIFACT_PRODUCED, ARTIFACT_USED)), key=lambda s: (s.type, s.tie)
    )
    kind = str(state.value("kind") or "dataset")
    execution = id_text(edges[0].about[1][1]) if edges else ""
    return artifact_entity(content_id, name, kind, state.space("properties"), execution)


# -- described further -------------------------------------------------------------------------------------------------


def update_artifact(session: Session, artifact: Any, properties: Mapping[str, object]) -> None:
    """Record properties of an artifact, on an edge that it has; lists with commas grow, anything else is replaced."""
    given = dict(checked_mapping(properties, "custom_properties") or {})
    known = find_artifact(session, artifact)
    for key in _LISTS:
        if key in given:
            given[key] = _joined(known.custom_properties.get(key), given[key])
    edge = session.edges.get(known.id) or _edge_in_view(session.home, known)
    if edge is None:
        raise CallerError(f"no execution is known that used or produced {known.name}", "log it first")
    facts = {} if edge.kind is None else {"kind": edge.kind}
    session.record(edge_draft(edge.type, edge.execution, known.id, edge.name, facts, given))
    for entity in {id(known): known, id(artifact): artifact}.values():
        _merge(entity, given)
    session.remember(known, edge)


def _merge(entity: Any, given: Mapping[str, object]) -> None:
    if isinstance(entity, Artifact):
        fixed, custom = split_properties(entity.type, given)
        entity.properties.update(fixed)
        entity.custom_properties.update(custom)


def _edge_in_view(home: Home | None, artifact: Artifact) -> Edge | None:
    """Return the edge that was last said of the artifact."""
    if home is None:
        return None
    from cmf_agent.view import local_view

    with local_view(home) as graph:
        node_id = graph.node_id(("artifact", artifact.id))
        said = [] if node_id is None else graph.state(node_id).said
    edges = [s for s in said if s.type in (ARTIFACT_PRODUCED, ARTIFACT_USED)]
    found = max(edges, key=lambda s: s.tie, default=None)
    if found is None:
        return None
    return Edge(found.type, found.about[1][1], found.body.get("name"), found.body.get("facts", {}).get("kind"))


def add_url(session: Session, artifact: Any, url: str) -> None:
    """Record one more place in the list `url` of an artifact."""
    known = find_artifact(session, artifact)
    update_artifact(session, artifact, {"url": _joined(known.properties.get("url"), url)})


def put_artifact(session: Session, artifact: Artifact) -> None:
    """Record an artifact's properties as the object has them."""
    recorded = {key: value for key, value in artifact.properties.items() if key not in ("Commit", "git_repo", "url")}
    update_artifact(session, artifact, {**artifact.custom_properties, **recorded})


def link(session: Session, source: object, target: object) -> None:
    """Record that the artifact `target` was derived from `source`, as a slice is."""
    whole, part = find_artifact(session, source), find_artifact(session, target)
    session.record(slice_recorded(part.id, whole.id))


def _joined(there: object, more: object) -> str:
    """Return a list with commas, each entry once, in the order in which they came."""
    entries = [entry.strip() for text in (there, more) if text for entry in str(text).split(",")]
    return ",".join(dict.fromkeys(entry for entry in entries if entry))
