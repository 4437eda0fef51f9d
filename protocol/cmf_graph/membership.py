"""Whether some nodes are among those that a filter selects, without selecting all of them (`selection.py`).

Rules
- The same answer as `select`, at a cost that follows the events about these nodes; where a filter follows lineage, or a stage or pipeline
  is asked about, `select` is asked.
"""

from collections.abc import Collection, Iterator, Mapping

from cmf_graph.graph import Graph, no_collector
from cmf_graph.picking import DESCRIBING, HEADER, STARTED
from cmf_graph.reading import id_list
from cmf_graph.schema import KIND_CODES
from cmf_graph.selection import branches_at, select, start_fits
from cmf_protocol.events import trusted_header
from cmf_protocol.filters import Filter

_NEAR = (KIND_CODES["execution"], KIND_CODES["artifact"])


def selected_among(graph: Graph, wanted: Filter, sites: Mapping[bytes, str], numbers: Collection[int]) -> set[int]:
    """Return those of these nodes (their numbers) that a filter selects; `sites` names the site of each key. Raises like `select`."""
    with graph.snapshot(), no_collector():
        sql = "SELECT n.id, n.kind FROM json_each(?) j CROSS JOIN nodes n ON n.id = j.value"
        kinds: dict[int, int] = dict(graph.rows(sql, (id_list(numbers),)))
        if wanted.artifacts or not set(kinds.values()) <= set(_NEAR):
            return select(graph, wanted, sites) & set(numbers)
        if not wanted.selects_executions:
            return set()
        among = _Among(graph, wanted, sites)
        is_execution = KIND_CODES["execution"]
        return {
            number
            for number, kind in kinds.items()
            if (among.is_selected(number) if kind == is_execution else among.has_selected(number))
        }


class _Among:
    """Which executions are selected by their starts; each is looked at once."""

    def __init__(self, graph: Graph, wanted: Filter, sites: Mapping[bytes, str]) -> None:
        self._graph = graph
        self._wanted = wanted
        self._branches = branches_at(graph, wanted.sites, sites) if wanted.sites else None
        self._known: dict[int, bool] = {}

    def is_selected(self, execution: int) -> bool:
        """Tell if a start of an execution is as the filter says."""
        if execution not in self._known:
            self._known[execution] = any(self._starts(execution))
        return self._known[execution]

    def has_selected(self, artifact: int) -> bool:
        """Tell if a selected execution used or produced an artifact, or had it as its environment."""
        return any(map(self.is_selected, self._executions(artifact)))

    def _starts(self, execution: int) -> Iterator[bool]:
        sql = (
            "SELECT e.branch, e.header_size, e.data FROM about a CROSS JOIN events e ON e.id = a.event "
            f"WHERE a.node = ? AND {STARTED}"
        )
        for row in self._graph.connection.execute(sql, (execution,)):
            header = start_fits(self._wanted, self._branches, *row)
            stages = [] if header is None else [id_ for kind, id_ in header.about if kind == "stage"]
            yield any(not self._wanted.pipelines or pipeline in self._wanted.pipelines for pipeline, _ in stages)

    def _executions(self, artifact: int) -> Iterator[int]:
        for (execution,) in self._graph.connection.execute(
            "SELECT execution FROM edges WHERE artifact = ?", (artifact,)
        ):
            yield execution
        sql = f"SELECT {HEADER} FROM about a CROSS JOIN events e ON e.id = a.event WHERE a.node = ? AND {DESCRIBING}"
        for (header,) in self._graph.connection.execute(sql, (artifact,)):
            for node in trusted_header(header).about:
                number = self._graph.node_id(node) if node[0] == "execution" else None
                if number is not None:
                    yield number
