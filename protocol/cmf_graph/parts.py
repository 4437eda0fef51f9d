"""What `show` tells of an artifact beside its usages: where its bytes are, its labels and slices, and what it holds as a table.

Rules
- Of two locations that differ only in that one names no commit, the other is shown.
- A table is put together from its blocks as far as they follow one another; nothing here checks its content id.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from cmf_graph.filters import ARTIFACT_KIND_DEFAULT
from cmf_graph.items import Item
from cmf_graph.reading import Reading
from cmf_protocol.encoding import Value, to_json
from cmf_protocol.resolve import NodeState

#: Rows that a table is shown with; `rows` says how many it has.
RECORDS_MAX = 100
_PARTS = ("labels", "label_of", "slices", "slice_of")


def bytes_and_parts(state: NodeState, reading: Reading) -> Item:
    """Return the fields `locations`, `labels`, `label_of`, `slices`, `slice_of` and `table` (None if it is none)."""
    return {
        "locations": locations_of(state),
        **{space: _artifacts(state.space(space), reading) for space in _PARTS},
        "table": _table(state),
    }


def locations_of(state: NodeState) -> list[dict[str, str]]:
    """Return the places where an artifact's bytes are told to be, without those that another tells with a commit."""
    told = [dict(place) for place in state.space("locations").values()]
    committed = [_without_commit(place) for place in told if "commit" in place]
    kept = [place for place in told if "commit" in place or place not in committed]
    return sorted(kept, key=lambda place: (place["kind"], sorted(place.items())))


def _without_commit(place: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in place.items() if key != "commit"}


def _artifacts(content_ids: Iterable[str], reading: Reading) -> list[Item]:
    """Return artifacts as the inputs of an execution are shown."""
    known = reading.artifacts({reading.aliases.content_id(content_id) for content_id in content_ids})
    names = reading.names(node_id for node_id, _ in known.values())
    return [
        {
            "content_id": content_id,
            "name": next(iter(names.get(node_id, ())), None),
            "kind": kind or ARTIFACT_KIND_DEFAULT,
        }
        for content_id, (node_id, kind) in sorted(known.items())
    ]


def _table(state: NodeState) -> Item | None:
    blocks = {int(first): columns for first, columns in state.space("table").items()}
    if not blocks:
        return None
    names = [name for name, _ in blocks[min(blocks)]]
    records = [dict(zip(names, to_json(list(cells)), strict=False)) for cells in _rows(blocks)]
    return {"columns": names, "rows": state.value("rows"), "records": records}


def _rows(blocks: dict[int, Any]) -> Iterator[tuple[Value, ...]]:
    """Yield the first rows of a table, as far as its blocks follow one another from row 0 on."""
    at = 0
    while at < RECORDS_MAX and at in blocks:
        rows = list(zip(*(cells for _, cells in blocks[at]), strict=False))
        yield from rows[: RECORDS_MAX - at]
        if not rows:
            return
        at += len(rows)
