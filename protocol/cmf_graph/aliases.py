"""Which artifacts are one: alias claims, resolved when they are read, in one step (protocol/README.md, section 8).

Rules
- A claim names one md5 and one other digest, whichever of the two is the node that it is about. A digest claimed of exactly one md5 is
  that md5's node, if there is such a node; of several it stays its own.
- Two md5 nodes are never one. Nothing is written: another claim may undo this tomorrow.
"""

import json
from collections.abc import Iterable

from cmf_graph.graph import Graph
from cmf_graph.schema import KIND_CODES

_ARTIFACT = KIND_CODES["artifact"]
MD5_FIRST, MD5_BEYOND = "md5:", "md5;"

_CLAIMS = """
SELECT c.digest, m.key FROM json_each(?1) j CROSS JOIN aliases c ON c.digest = j.value CROSS JOIN nodes m ON m.id = c.node
WHERE m.key >= 'md5:' AND m.key < 'md5;' AND NOT (c.digest >= 'md5:' AND c.digest < 'md5;')
UNION
SELECT o.key, c.digest FROM json_each(?1) j CROSS JOIN nodes o ON o.kind = 4 AND o.key = j.value
CROSS JOIN aliases c ON c.node = o.id
WHERE c.digest >= 'md5:' AND c.digest < 'md5;' AND NOT (o.key >= 'md5:' AND o.key < 'md5;')
ORDER BY 1, 2
"""


def is_md5(content_id: str) -> bool:
    """Tell if a content id is the md5 by which nodes are joined; `md5-dos2unix` is not."""
    return content_id.startswith(MD5_FIRST)


def claims(graph: Graph, digests: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each of these digests that is claimed of an md5, all md5 that it is claimed of."""
    found: dict[str, list[str]] = {}
    for digest, md5 in graph.rows(_CLAIMS, (json.dumps(list(digests)),)):
        found.setdefault(digest, []).append(md5)
    return found


class Aliases:
    """The artifacts without md5 of a graph that are another node; read whole, since imports alone bring such artifacts."""

    def __init__(self, graph: Graph) -> None:
        self._canonical: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._content_ids: dict[str, str] = {}
        others: dict[str, int] = dict(
            graph.rows(
                "SELECT key, id FROM nodes WHERE kind = ?1 AND key < ?2 UNION ALL "
                "SELECT key, id FROM nodes WHERE kind = ?1 AND key >= ?3",
                (_ARTIFACT, MD5_FIRST, MD5_BEYOND),
            )
        )
        if others:
            self._join(graph, others)

    def _join(self, graph: Graph, others: dict[str, int]) -> None:
        unique = {digest: md5[0] for digest, md5 in claims(graph, others).items() if len(md5) == 1}
        ids = dict(
            graph.rows(
                "SELECT key, id FROM nodes WHERE kind = ? AND key IN (SELECT value FROM json_each(?))",
                (_ARTIFACT, json.dumps(sorted(set(unique.values())))),
            )
        )
        for digest, md5 in unique.items():
            if md5 in ids:
                self._canonical[others[digest]] = ids[md5]
                self._members.setdefault(ids[md5], []).append(others[digest])
                self._content_ids[digest] = md5

    @property
    def merged(self) -> dict[int, int]:
        """The artifacts that are another node, and which."""
        return self._canonical

    def canonical(self, node_id: int) -> int:
        """Return the node that this one is: itself, but for a digest claimed of exactly one md5."""
        return self._canonical.get(node_id, node_id)

    def content_id(self, content_id: str) -> str:
        """Return the content id of the node that this one is."""
        return self._content_ids.get(content_id, content_id)

    def with_members(self, node_ids: Iterable[int]) -> dict[int, int]:
        """Return these nodes and those that are one with them → the one of `node_ids` that they are."""
        owners = {}
        for node_id in node_ids:
            owners[node_id] = node_id
            for member in self._members.get(node_id, ()):
                owners[member] = node_id
        return owners
