"""The digests of what a filter lists: how two who should hold the same of it tell (protocol/README.md, sections 9 and 10).

Rules
- The listed events alone are folded, into a graph of their own that is thrown away: the cost grows with the whole graph.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from cmf_graph.graph import Digest, Graph
from cmf_graph.placing import Placement
from cmf_graph.projection import Projection
from cmf_graph.schema import unpack_event
from cmf_graph.selection import listed_events
from cmf_protocol.events import Event, trusted_header
from cmf_protocol.filters import Filter
from cmf_protocol.ranges import Ranges, contains


def filtered_digest(
    graph: Graph, wanted: Filter, sites: Mapping[bytes, str], own_keys: Collection[bytes] = ()
) -> Digest:
    """Return the digests of the fold of the listed events alone: who has pulled all of them gets the same. Raises like `select`."""
    with graph.snapshot(), TemporaryDirectory() as folder:
        listed = listed_events(graph, wanted, sites, own_keys)
        projection = Projection(Path(folder) / "graph.db")
        try:
            names, structure = structure_of(graph)
            projection.apply_placed(structure, placed_events(graph, listed, names))
            return projection.graph.digest()
        finally:
            projection.close()


def structure_of(graph: Graph) -> tuple[dict[int, bytes], dict[bytes, Placement]]:
    """Return a name for each branch of a graph, its root's id where it has one, and where each stands."""
    rows = graph.rows(
        "SELECT b.id, b.parent, b.parent_sequence, b.first_sequence, t.root FROM branches b JOIN trees t ON t.id = b.tree"
    )
    names = {branch: root if parent is None else branch.to_bytes(32, "big") for branch, parent, _, _, root in rows}
    structure = {
        names[branch]: Placement(root, None if parent is None else names[parent], sequence, first)
        for branch, parent, sequence, first, root in rows
    }
    return names, structure


def placed_events(
    graph: Graph, listed: Mapping[int, Ranges], names: Mapping[int, bytes]
) -> Iterator[tuple[bytes | None, Event]]:
    """Yield the listed events of a graph, each with the name of its branch."""
    sql = "SELECT branch, sequence, header_size, data FROM events ORDER BY id"
    for branch, sequence, header_size, data in graph.connection.execute(sql):
        if contains(listed.get(branch, ()), sequence):
            event_id, header_bytes, body = unpack_event(header_size, data)
            yield names[branch], Event(event_id, trusted_header(header_bytes), header_bytes, body)
