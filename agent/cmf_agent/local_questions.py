"""The questions over the local view, with what they rest on: own events, and what was pulled by which filters.

Rules
- Every answer has `view`: `own` (all of this site's own events are in it) and `pulled`, what was pulled by which filter, as of when
  by the hub's clock, whether all of it is here, and whether the sites' signatures were checked (`proven`) or the hub vouches for it.
- A thing of which events were pulled, but which no filter selects, is `incomplete`: more may be known of it elsewhere.
- `show` says who speaks of a thing (`said_by`) and who vouches for what was pulled of it (`told_by`: hub or proven).
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from cmf_agent.listings import Asked, Listings
from cmf_agent.pulled import Pulled
from cmf_graph.filters import Filter, Page
from cmf_graph.graph import EventRow, Graph
from cmf_graph.lineage import NODES_DEFAULT
from cmf_graph.membership import selected_among
from cmf_graph.questions import Answer, Questions
from cmf_graph.refs import HashFile
from cmf_graph.schema import KIND_CODES
from cmf_graph.times import rfc3339
from cmf_protocol.events import Node
from cmf_protocol.filters import Filter as PullFilter

_EVERYTHING = Filter()
_FIRST_PAGE = Page()
#: (node, event id) of the events about some nodes that lie in other branches than the own ones.
_FOREIGN = " UNION ALL ".join(
    f"SELECT j.value, substr(e.data, 1, 32) FROM json_each(?1) j CROSS JOIN {table} x ON x.{column} = j.value "
    "CROSS JOIN events e ON e.id = x.event WHERE e.branch NOT IN (SELECT value FROM json_each(?2))"
    for table, column in (("about", "node"), ("edges", "execution"), ("edges", "artifact"))
)


class LocalQuestions(Questions):
    """Asks the local view; `heads` are the newest events of this site's logs, `pulled` is what was pulled, None if nothing was."""

    def __init__(
        self,
        graph: Graph,
        sites: Mapping[bytes, str],
        *,
        heads: Iterable[bytes],
        pulled: Pulled | None,
        hash_file: HashFile | None = None,
    ) -> None:
        super().__init__(graph, sites, hash_file=hash_file)
        self._heads = list(heads)
        self._pulled = pulled
        self._filters = Listings(pulled).filters() if pulled is not None else []

    # -- answers -------------------------------------------------------------------------------------------------------

    def pipelines(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return pipelines, marked."""
        return self._marked(super().pipelines(asked, page), "items", lambda item: ("pipeline", item["name"]))

    def stages(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return stages, marked."""
        answer = super().stages(asked, page)
        return self._marked(answer, "items", lambda item: ("stage", (item["pipeline"], item["name"])))

    def executions(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return executions, marked."""
        return self._marked(super().executions(asked, page), "items", lambda item: _execution(item["id"]))

    def artifacts(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return artifacts, marked."""
        return self._marked(super().artifacts(asked, page), "items", lambda item: ("artifact", item["content_id"]))

    def metrics(
        self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE, *, name: str | None = None, steps: bool = False
    ) -> Answer:
        """Return metrics, marked where their execution is incomplete."""
        answer = super().metrics(asked, page, name=name, steps=steps)
        return self._marked(answer, "items", lambda item: _execution(item["execution"]))

    def duplicates(self, asked: Filter = _EVERYTHING, page: Page = _FIRST_PAGE) -> Answer:
        """Return contents that exist more than once, marked."""
        return self._marked(super().duplicates(asked, page), "items", lambda item: ("artifact", item["content_id"]))

    def lineage(
        self,
        ref: str,
        *,
        up: bool = False,
        down: bool = False,
        depth: int | None = None,
        limit: int = NODES_DEFAULT,
    ) -> Answer:
        """Return a lineage with its nodes marked."""
        answer = super().lineage(ref, up=up, down=down, depth=depth, limit=limit)
        return self._marked(answer, "nodes", lambda node: _node(node["type"], node["id"]))

    def show(self, ref: str) -> Answer:
        """Return everything that is known of one thing, with who speaks of it and who vouches for that."""
        shown = super().show(ref)
        node = _node_of(shown)
        if node is None:
            row = self.graph.event(bytes.fromhex(shown["id"]))
            rows = [] if row is None else [row]
        else:
            rows = self._events_about(node, shown)
        own = set(self._own_branches())
        ids = [row.event_id for row in rows if row.branch not in own]
        told = self._pulled.told(ids) if self._pulled is not None else {}
        if told:
            shown["told_by"] = "proven" if all(told.values()) else "hub"
        return shown | {"view": self._view()}

    def _events_about(self, node: Node, shown: Answer) -> list[EventRow]:
        """Return the events about a node, and note in `shown` who recorded them and whether they are all that may be known."""
        node_id = self.graph.node_id(node)
        assert node_id is not None, "it is shown"
        with self.reading() as reading:
            members = reading.aliases.with_members([node_id]) if node[0] == "artifact" else [node_id]
            rows = [row for member in members for row in self.graph.events_about(member)]
            shown["said_by"] = sorted({str(reading.site(row.branch)) for row in rows})
        if self._incomplete({node_id}):
            shown["incomplete"] = True
        return rows

    # -- marks ---------------------------------------------------------------------------------------------------------

    def _view(self) -> dict[str, Any]:
        hub = self._pulled.hub() if self._pulled is not None else None
        return {"own": True, "pulled": [pulled_view(each, hub) for each in self._filters]}

    def _marked(self, answer: Answer, key: str, node_of: Any) -> Answer:
        if self._filters:
            numbers = {at: self.graph.node_id(node_of(item)) for at, item in enumerate(answer[key])}
            incomplete = self._incomplete({number for number in numbers.values() if number is not None})
            for at, number in numbers.items():
                if number in incomplete:
                    answer[key][at]["incomplete"] = True
        return answer | {"view": self._view()}

    def _incomplete(self, numbers: set[int]) -> set[int]:
        """Return those of these nodes of which events were pulled, but which no filter selects."""
        if self._pulled is None or not self._filters:
            return set()
        with self.graph.snapshot():
            left = set(numbers)
            for each in self._filters:
                if left:
                    left -= selected_among(self.graph, each.told, self.sites, left)
            found = self.graph.rows(_FOREIGN, (json.dumps(sorted(left)), json.dumps(self._own_branches())))
        told = self._pulled.told({event_id for _, event_id in found})
        return {number for number, event_id in found if event_id in told}

    def _own_branches(self) -> list[int]:
        """Return the branches that the own logs lie in."""
        parents = dict(self.graph.rows("SELECT id, parent FROM branches"))
        found: set[int] = set()
        for head in self._heads:
            place = self.graph.place(head)
            branch = None if place is None else place[0]
            while branch is not None and branch not in found:
                found.add(branch)
                branch = parents[branch]
        return sorted(found)


def pulled_view(asked: Asked, hub: bytes | None) -> dict[str, Any]:
    """Return a filter as answers show it; `hub` is the id of the one that told."""
    return {
        "filter": filter_fields(asked.told),
        "as_of": rfc3339(asked.as_of_us),
        "hub": hub.hex() if hub is not None else None,
        "proven": asked.prove and asked.complete,
        "complete": asked.complete,
    }


def filter_fields(found: PullFilter) -> dict[str, Any]:
    """Return a filter as JSON has it."""
    parts = found.parts()
    if found.since_us is not None:
        parts["since"] = rfc3339(found.since_us)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in parts.items()}


def _execution(text: str) -> Node:
    return "execution", UUID(text).bytes


def _node(kind: str, id_: str) -> Node:
    return _execution(id_) if kind == "execution" else (kind, id_)


def _node_of(shown: Mapping[str, Any]) -> Node | None:
    """Return the node that is shown; None for an event."""
    kind = shown["type"]
    if kind == "stage":
        return "stage", (shown["pipeline"], shown["name"])
    if kind == "key":
        return "key", bytes.fromhex(shown["id"])
    if kind not in KIND_CODES:
        return None
    return _node(kind, shown["id" if kind == "execution" else "content_id" if kind == "artifact" else "name"])
