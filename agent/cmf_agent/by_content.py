"""Edges to artifacts that are no file here: tables, and what is known by its content id alone."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cmf_agent.artifacts import Described
from cmf_agent.recorder import say
from cmf_agent.shape import note_lossy, shape
from cmf_agent.sources.host import mask_mapping
from cmf_agent.tables import Table
from cmf_graph.content.files import Content
from cmf_protocol.encoding import bend
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.events import Draft
from cmf_protocol.types import ARTIFACT_USED, usage

if TYPE_CHECKING:
    from cmf_agent.home import Home
    from cmf_agent.recording import Recording

_CONTENT_ID = re.compile(r"md5:[0-9a-f]{32}(\.dir)?|sha256:[0-9a-f]{64}")


def is_content_id(text: str) -> bool:
    """Tell if a text is a content id as artifacts have it here."""
    return _CONTENT_ID.fullmatch(text) is not None


def use_table(run: "Recording", type_: str, table: Table, described: Described) -> Content:
    """Record a table as used or produced, under its own kind and name where the caller says no other."""
    described.check()
    name = table.name if described.name is None else described.name
    facts = {"kind": described.kind or table.kind, "size": table.size}
    run._record(edge_draft(type_, run.execution, table.content_id, name, facts, described.properties))
    return table.content


def use_by_content_id(run: "Recording", content_id: str, described: Described) -> Content:
    """Record as used what is known here by its content id; raise `CallerError` if nothing is."""
    described.check()
    known = Content(content_id, None, 0, 1) if run.home is None else _known(run.home, content_id, strict=run.strict)
    facts = {} if described.kind is None else {"kind": described.kind}
    run._record(edge_draft(ARTIFACT_USED, run.execution, known.content_id, described.name, facts, described.properties))
    return known


def edge_draft(
    type_: str,
    execution: bytes,
    content_id: str,
    name: str | None,
    facts: Mapping[str, object],
    properties: Mapping[str, object] | None,
) -> Draft:
    """Draft the edge between an execution and an artifact that is no file here."""
    shaped = shape(facts=facts, properties=mask_mapping(properties or {}))
    bent, lossy = (None, {}) if name is None else bend(name, "name")
    draft = usage(
        type_,
        execution,
        content_id,
        name=bent,
        facts=shaped.space("facts"),
        properties=shaped.space("properties"),
    )
    return note_lossy(shaped.into(draft), lossy)


def _known(home: "Home", content_id: str, *, strict: bool) -> Content:
    """Return what the local view knows of a content id (or of another digest of it); where it can't be asked, take the caller's word."""
    from cmf_agent.view import local_view
    from cmf_graph.refs import find

    try:
        with local_view(home) as graph:
            found = [match.node_id for match in find(graph, f"artifact:{content_id}", sites={})]
            state = graph.state(found[0]) if len(found) == 1 and found[0] is not None else None
    except StoreError as error:
        if strict:
            raise
        say(f"it was not checked that {content_id} is known here: {error}")
        return Content(content_id, None, 0, 1)
    if state is None:
        raise CallerError(
            f"nothing is known here of {content_id}",
            "give the path of the file, or pull what it was recorded with first",
        )
    sha256 = next((other for other in state.aliases if other.startswith("sha256:")), None)
    size, files = state.value("size"), state.value("files")
    return Content(
        str(state.node[1]), sha256, size if isinstance(size, int) else 0, files if isinstance(files, int) else 1
    )
