"""Finds what a REF on the command line names, over the local view.

Rules
- The graph's own rules (`cmf_graph.refs`) say what fits; several that fit are an error that lists them.
- What is recorded elsewhere can be spoken of too: a whole content id or execution id need not be known here, and a file
  that exists is its content.
"""

import re
from pathlib import Path

from cmf_agent.home import Home
from cmf_agent.identity import parse_execution_id
from cmf_agent.view import local_view
from cmf_graph.content.files import hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_graph.graph import EventRow
from cmf_graph.refs import find, resolve_one
from cmf_graph.schema import KIND_CODES
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Node

Target = Node | EventRow

_CONTENT_ID = re.compile(r"md5:[0-9a-f]{32}(\.dir)?|sha256:[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def resolve_ref(home: Home, ref: str) -> Target:
    """Return the node or the event that `ref` names; raise `CallerError` if that is none, or several."""

    def hash_file(path: Path) -> str:
        with DigestMemory(home.digests_path) as memory:
            return hash_path(path, memory=memory).content_id

    if _CONTENT_ID.fullmatch(ref.lower()):
        return "artifact", ref.lower()
    if _UUID.fullmatch(ref.lower()):
        return "execution", parse_execution_id(ref)
    with local_view(home) as graph:
        if not find(graph, ref, sites={}) and "\0" not in ref and Path(ref).exists():
            return "artifact", hash_file(Path(ref))
        match = resolve_one(graph, ref, sites={}, hash_file=hash_file)
        if match.node is not None:
            return match.node
        event = graph.event(match.event_id or b"")
    if event is None:
        raise CallerError(f"the event {match.id} is not held here", "name one that `cmf-agent log` lists")
    return event


def events_about(home: Home, node: Node, types: tuple[str, ...]) -> list[EventRow]:
    """Return the events of these types, recorded here or pulled, that are about `node`, each branch's in order."""
    with local_view(home) as graph:
        node_id = graph.node_id(node) if node[0] in KIND_CODES else None
        rows = [] if node_id is None else graph.events_about(node_id)
    found = (row for row in rows if row.header.type in types and node in row.header.about)
    return sorted(found, key=lambda row: (row.branch, row.header.sequence))
