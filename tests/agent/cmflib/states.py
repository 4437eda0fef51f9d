"""What is recorded of one execution or artifact, for tests."""

from typing import Any

from cmf_agent.home import Home
from cmf_agent.identity import parse_execution_id
from cmf_agent.view import local_view
from cmf_protocol.resolve import NodeState
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_USED


def state_of(home: Home, kind: str, id_: Any) -> NodeState:
    with local_view(home) as graph:
        node = graph.node_id((kind, id_))
        assert node is not None, (kind, id_)
        return graph.state(node)


def execution_state(home: Home, id_: str) -> NodeState:
    return state_of(home, "execution", parse_execution_id(id_))


def edges_of(home: Home, content_id: str) -> set[tuple[str, bytes]]:
    """Each (type, execution) that used or produced an artifact."""
    said = state_of(home, "artifact", content_id).said
    return {(s.type, s.about[1][1]) for s in said if s.type in (ARTIFACT_USED, ARTIFACT_PRODUCED)}
