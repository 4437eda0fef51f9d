"""Contents that exist more than once: under several names, or at several sites.

Theory of operation: a copy is a name at a site, as the executions there used or produced the content; a site that never named it has one
copy. Where bytes are kept by content, one copy is enough for all: what the others take is saved. Candidates are found by columns, and only
they are resolved.

Rules
- A filter selects contents as it does in the list of artifacts; what is counted of each is everything that is known of it.
- Of a content whose size nobody stated nothing is counted as saved.
"""

from collections.abc import Iterator
from typing import Any

from cmf_graph.filters import Cursor, Filter, Page, order, read_cursor, sort_key, sorted_page
from cmf_graph.items import Item, artifact_items
from cmf_graph.lists import artifact_conditions
from cmf_graph.reading import Reading, id_list
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.resolve import NodeState

_QUESTION = "duplicates"
#: How many contents are resolved for the sum of what is saved; some seconds' work.
DUPLICATES_MAX = 50_000
#: Contents that are resolved at a time.
_BATCH = 500
_SORTED_BY = ("bytes_saved", "copies", "size", "content_id")
_SEVERAL = (
    "SELECT node FROM artifact_names GROUP BY node HAVING count(*) > 1 UNION "
    "SELECT x.artifact FROM edges x CROSS JOIN events e ON e.id = x.event WHERE x.said = 1 "
    "GROUP BY x.artifact HAVING min(e.branch) < max(e.branch)"
)


def duplicate_list(reading: Reading, asked: Filter, page: Page, now_us: int) -> dict[str, Any]:
    """Return a page of contents that exist more than once, and in `total` how many there are and what is saved; raise `CallerError`."""
    key = sort_key(page.sort, {}, _SORTED_BY, "-bytes_saved")
    after = read_cursor(page.cursor, _QUESTION, key)
    limit = page.checked_limit()
    copies: dict[int, Item] = {}
    for node_id, state in _states(reading, _candidates(reading, asked, now_us)):
        found = _copies(state, reading)
        if found["copies"] > 1:
            copies[node_id] = found
    rows = [(node_id, "", order(item[key.name])) for node_id, item in copies.items()]
    shown = sorted_page(rows, key, after, limit + 1)
    ids = [node_id for node_id, _, _ in shown[:limit]]
    items = artifact_items(reading.states(ids, tables=False), reading)
    last = shown[limit - 1] if len(shown) > limit else None
    return {
        "items": [item | copies[node_id] for node_id, item in zip(ids, items, strict=True)],
        "next": None if last is None else Cursor(_QUESTION, key.text, last[2], last[0]).text(),
        "total": {
            "contents": len(copies),
            "copies": sum(item["copies"] for item in copies.values()),
            "bytes_saved": sum(item["bytes_saved"] or 0 for item in copies.values()),
        },
    }


def _candidates(reading: Reading, asked: Filter, now_us: int) -> list[int]:
    """Return the contents with several names, or said to be used from several branches of logs, and those that are one with others."""
    conditions = artifact_conditions(asked, reading, now_us)
    joined = id_list(set(reading.aliases.merged.values()))
    sql = (
        f"SELECT a.node FROM artifacts a WHERE (a.node IN ({_SEVERAL}) OR a.node IN (SELECT value FROM json_each(?))) "
        f"AND {conditions.where()} ORDER BY a.node LIMIT ?"
    )
    found = [node for (node,) in reading.graph.rows(sql, (joined, *conditions.values, DUPLICATES_MAX + 1))]
    if len(found) > DUPLICATES_MAX:
        raise CallerError(
            f"more than {DUPLICATES_MAX:,} contents may exist more than once: too many to count",
            "narrow it: --pipeline, --stage, --site, --since",
        )
    return found


def _states(reading: Reading, node_ids: list[int]) -> Iterator[tuple[int, NodeState]]:
    for start in range(0, len(node_ids), _BATCH):
        yield from reading.states(node_ids[start : start + _BATCH], tables=False).items()


def _copies(state: NodeState, reading: Reading) -> Item:
    """Return where a content exists: `places` (site, names), `copies`, `bytes_saved`."""
    named: dict[str, set[str]] = {}
    for s in state.said:
        if s.type in (t.ARTIFACT_USED, t.ARTIFACT_PRODUCED):
            own = named.setdefault(reading.site(s.branch) or "", set())
            if "name" in s.body:
                own.add(s.body["name"])
    copies = sum(max(1, len(own)) for own in named.values())
    size = state.value("size")
    return {
        "places": [{"site": site, "names": sorted(own)} for site, own in sorted(named.items())],
        "copies": copies,
        "size": size if type(size) is int else None,
        "content_id": state.node[1],
        "bytes_saved": size * (copies - 1) if type(size) is int else None,
    }
