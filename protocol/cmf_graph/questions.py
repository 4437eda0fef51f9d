"""The questions over one graph, the same for hub and agent: lists, one thing, its lineage.

    questions = Questions(graph, {signing key: "berlin"})
    questions.executions(Filter(pipeline="mnist", since="7d"), Page(sort="-metrics.auc", limit=10))
    questions.lineage("model.pkl", up=True)

Rules
- An answer is plain dicts and lists that JSON can carry, of one moment of the graph, with the field names of the design (section 6).
- Lists are `{"items": […], "next": cursor or null}`, newest first unless sorted otherwise: executions by their start, other things by when
  this graph first heard of them.
- Site, pipeline, stage, team and times are an execution's: for artifacts, those of any one execution that used or produced them.
- What can't be answered is a `CallerError`; nothing here writes.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cmf_graph import lists
from cmf_graph.details import show_event, show_node
from cmf_graph.duplicates import duplicate_list
from cmf_graph.filters import Filter, Page
from cmf_graph.graph import Graph, no_collector
from cmf_graph.items import Item
from cmf_graph.lineage import NODES_DEFAULT, NODES_MAX, closure, lineage_answer, roots_of
from cmf_graph.metrics import metric_list
from cmf_graph.reading import Reading
from cmf_graph.refs import HashFile, Match, find, node_text, resolve_one
from cmf_protocol.errors import CallerError

Answer = dict[str, Any]
_EVERYTHING = Filter()
_FIRST_PAGE = Page()


def wall_us() -> int:
    """Return the time of now, µs UTC."""
    return time.time_ns() // 1000


class Questions:
    """Asks one graph. `sites` maps signing keys to the names of their sites; `hash_file` returns the content id of a file or folder."""

    def __init__(
        self,
        graph: Graph,
        sites: Mapping[bytes, str],
        *,
        hash_file: HashFile | None = None,
        clock: Callable[[], int] = wall_us,
    ) -> None:
        self.graph = graph
        self.sites = sites
        self._hash_file = hash_file
        self._clock = clock

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Let everything read in the block be of one moment."""
        with self.graph.snapshot():
            yield Reading(self.graph, self.sites)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def pipelines(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return pipelines: `name, properties, executions, artifacts, sites`, … (`executions` and `artifacts` are counts)."""
        with self.reading() as reading:
            return lists.group_list("pipeline", reading, asked, page, self._clock())

    def stages(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return stages, as pipelines, each with its `pipeline`."""
        with self.reading() as reading:
            return lists.group_list("stage", reading, asked, page, self._clock())

    def executions(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return executions; some thousand can be sorted by `params.x`, `metrics.x`, `properties.x` too."""
        with self.reading() as reading:
            return lists.execution_list(reading, asked, page, self._clock())

    def artifacts(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return artifacts; environments and labels only when `kind` asks for them."""
        with self.reading() as reading:
            return lists.artifact_list(reading, asked, page, self._clock())

    def metrics(
        self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE, *, name: str | None = None, steps: bool = False
    ) -> Answer:
        """Return one item for each execution and metric name; with `steps`, its series with their points too."""
        with self.reading() as reading:
            return metric_list(reading, asked, page, self._clock(), name=name, steps=steps)

    def duplicates(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return contents that exist under several names or at several sites, and in `total` what keeping each once saves, bytes."""
        with self.reading() as reading, no_collector():
            return duplicate_list(reading, asked, page, self._clock())

    # -- one thing -----------------------------------------------------------------------------------------------------

    def find(self, ref: str) -> list[Match]:
        """Return everything that `ref` can mean (`refs`)."""
        return find(self.graph, ref, sites=self.sites, hash_file=self._hash_file)

    def resolve(self, ref: str) -> Match:
        """Return the one thing that `ref` means; raise `CallerError` with the candidates if there are several, or none."""
        return resolve_one(self.graph, ref, sites=self.sites, hash_file=self._hash_file)

    def show(self, ref: str) -> Item:
        """Return everything that is known of one thing; `type` says what it is."""
        match = self.resolve(ref)  # outside of the moment: it may hash a large file
        with self.reading() as reading:
            if match.event_id is not None:
                return show_event(match.event_id, reading)
            return show_node(match.node_id or 0, reading)

    def lineage(
        self,
        ref: str,
        *,
        up: bool = False,
        down: bool = False,
        depth: int | None = None,
        limit: int = NODES_DEFAULT,
    ) -> Answer:
        """Return what `ref` came from (`up`), what came of it (`down`), or both: `root, nodes, edges, truncated`.

        `depth` counts edges. Of a pipeline or stage all executions are roots. `truncated` is how many nodes, at least, `limit` left out.
        """
        if not 1 <= limit <= NODES_MAX or (depth is not None and depth < 0):
            raise CallerError(
                f"a lineage has 1 to {NODES_MAX:,} nodes and a depth of 0 or more", "leave out --depth for all there is"
            )
        both = up == down
        match = self.resolve(ref)
        with self.reading() as reading, no_collector():
            executions, artifacts = roots_of(match.node_id, match.event_id, reading)
            found = closure(reading, executions, artifacts, up=up or both, down=down or both, depth=depth, limit=limit)
            answer = lineage_answer(found, reading)
            kept = [*(set(executions) & found.executions), *(set(artifacts) & found.artifacts)]
            roots = sorted(node_text(node) for node in reading.nodes(kept).values())
        return {
            "root": match.id,
            "root_type": match.kind,
            "roots": roots,
            "direction": "both" if both else "up" if up else "down",
            **answer,
        }
