"""How nodes are written for people and in JSON."""

from cmf_agent.identity import id_text
from cmf_protocol.encoding import Value
from cmf_protocol.events import Node


def node_id_text(node: Node) -> str:
    """Return a node's id as text: an execution's as a UUID, a stage's as `pipeline/stage`, bytes in hexadecimal."""
    kind, id_ = node
    if kind == "execution" and isinstance(id_, bytes):
        return id_text(id_)
    return _flat(id_)


def _flat(id_: Value) -> str:
    if isinstance(id_, bytes):
        return id_.hex()
    if isinstance(id_, tuple | list):
        return "/".join(map(_flat, id_))
    return str(id_)


def describe_node(node: Node) -> str:
    """Return kind and id of a node, `stage mnist/train`."""
    return f"{node[0]} {node_id_text(node)}"
