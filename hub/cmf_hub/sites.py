"""Has a site sent everything: what is held of each site's logs, up to when, and what is missing.

Rules
- Read from registry and custody only: the answer does not wait for the projection.
- 'behind' counts to the newest head that the site signed or named; what it has recorded since nobody here can know.
- A branch is named by its first event after the fork; a log without a fork has one branch, named by its root. What lies beyond an
  accepted gap is a branch of its own, as long as what is missing has not come after all.
- A loss that was accepted stays visible for ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cmf_graph.times import rfc3339
from cmf_hub.custody import Custody
from cmf_hub.registry import Registry, Site
from cmf_hub.upstreams import Progress

Row = dict[str, Any]
NOWHERE: Final[Mapping[bytes, list[Row]]] = {}

#: The lowest sequence of an event that can stand beyond a gap: the root before it is held.
FIRST_BEYOND_A_GAP: Final = 3


def list_sites(
    custody: Custody,
    registry: Registry,
    predecessors: Mapping[bytes, bytes],
    upstreams: Mapping[bytes, list[Row]] = NOWHERE,
) -> list[Row]:
    """Return one item per site.

    `predecessors` maps a log's root event id to the log id that it provably succeeds, `upstreams` a branch's first event to how far other
    hubs are with it.
    """
    contacts = {
        site: (last, ahead, left)
        for site, last, ahead, left in custody.rows("SELECT site, last_us, ahead_us, left_us FROM contacts")
    }
    items = [_site(custody, site, contacts.get(site.name), predecessors) for site in registry.sites()]
    for branch in (branch for item in items for log in item["logs"] for branch in log["branches"]):
        branch["upstreams"] = upstreams.get(branch.pop("first_id"), [])
    return items


def upstreams_of(progress: Progress | None) -> dict[bytes, list[Row]]:
    """Return how far other hubs are with each branch, by its first event."""
    found: dict[bytes, list[Row]] = {}
    for hub, url, *_ in progress.states() if progress else ():
        for branch, forwarded in progress.of(hub).items() if progress else ():
            shown = {"hub": hub.hex(), "url": url, "confirmed": forwarded.confirmed, "refused": forwarded.refused}
            found.setdefault(branch, []).append(shown)
    return found


def _site(
    custody: Custody, site: Site, contact: tuple[int, int, int | None] | None, predecessors: Mapping[bytes, bytes]
) -> Row:
    logs = [log for key in site.keys for log in (*_logs(custody, key, predecessors), *_rootless(custody, key))]
    last, ahead, left = contact or (None, None, None)
    return {
        "name": site.name,
        "keys": [key.hex() for key in site.keys],
        "logs": [log["shown"] for log in logs],
        "events": sum(log["events"] for log in logs),
        "lost": sum(log["lost"] for log in logs),
        "complete_until": _complete_until(logs),
        "last_contact": None if last is None else rfc3339(last),
        "clock_ahead_seconds": None if ahead is None else round(ahead / 1e6, 3),
        "left": None if left is None else rfc3339(left),
        "revoked": site.revoked,
        "state": _state(site, logs, has_left=left is not None),
    }


class _Row(NamedTuple):
    """A branch as custody keeps it; `is_beyond_gap` if what is missing before it was accepted as lost."""

    id: int
    parent: int | None
    parent_sequence: int
    first_sequence: int
    first_id: bytes
    head_sequence: int
    head_id: bytes
    head_wall_us: int
    is_beyond_gap: bool


def _logs(custody: Custody, key: bytes, predecessors: Mapping[bytes, bytes]) -> list[Row]:
    found = custody.rows("SELECT id, log_id, root, head_sequence FROM logs WHERE key = ? ORDER BY id", (key,))
    return [_log(custody, number, log_id, key, head, predecessors.get(root)) for number, log_id, root, head in found]


def _log(custody: Custody, number: int, log_id: bytes, key: bytes, head: int, predecessor: bytes | None) -> Row:
    sql = (
        "SELECT b.id, b.parent, coalesce(b.parent_sequence, 0), b.first_sequence, b.first_id, b.head_sequence, b.head_id, "
        "b.head_wall_us, h.branch IS NOT NULL FROM branches b LEFT JOIN holes h ON h.branch = b.id AND NOT h.filled "
        "WHERE b.log = ? ORDER BY b.id"
    )
    rows = [_Row._make(row) for row in custody.rows(sql, (number,))]
    newest = max(rows, key=lambda row: row.head_sequence)
    lost = {row.id: _lost_before(custody, row) for row in rows if row.is_beyond_gap}
    waiting = _waiting_beyond(custody, number, rows, newest)
    for gap in waiting:
        gap["command"] = accepting(log_id, key, gap)
    branches = [
        _branch(custody, row, rows, head if row is newest else row.head_sequence)
        | {"gap": waiting[0] if waiting and row is newest else lost.get(row.id)}
        for row in rows
    ]
    shown = {
        "log_id": log_id.hex(),
        "predecessor": None if predecessor is None else predecessor.hex(),
        "forked": _is_forked(rows),
        "gaps": [*lost.values(), *waiting],
        "branches": branches,
    }
    return {
        "shown": shown,
        "events": sum(row.head_sequence - row.first_sequence + 1 for row in rows),
        "lost": sum(gap["last"] - gap["first"] + 1 for gap in lost.values()),
        "until": newest.head_wall_us,
        "behind": branches[rows.index(newest)]["behind"],
    }


def _rootless(custody: Custody, key: bytes) -> list[Row]:
    """Return a key's logs of which only later parts have come: they wait for the beginning, which can't be accepted as lost."""
    found = []
    for log_id, first, after in custody.parked.without_root(key):
        gap = {"first": 1, "last": first - 1, "before": None, "after": after.hex(), "accepted": False, "command": None}
        shown = {"log_id": log_id.hex(), "predecessor": None, "forked": False, "gaps": [gap], "branches": []}
        found.append({"shown": shown, "events": 0, "lost": 0, "until": None, "behind": 0})
    return found


def accepting(log_id: bytes, key: bytes, gap: Row) -> str:
    """Return the command with which a site that may operate accepts a gap."""
    return f"cmf-agent gap accept {log_id.hex()} {gap['before']} {gap['after']} --key {key.hex()} --reason TEXT"


def _lost_before(custody: Custody, row: _Row) -> Row:
    """Return the accepted gap before a branch."""
    before = custody.event_id_at(row.parent or 0, row.parent_sequence)
    return _gap(row.parent_sequence + 1, row.first_sequence - 1, before, row.first_id, accepted=True)


def _waiting_beyond(custody: Custody, number: int, rows: Sequence[_Row], newest: _Row) -> list[Row]:
    """Return the gaps before what waits: the first one beyond all that is held, and one where a fork, nobody knows from where, begins.

    Of such a fork only the root is surely a part.
    """
    found = []
    beyond = custody.parked.first(number, newest.head_sequence + 2)
    if beyond is not None:
        found.append(_gap(newest.head_sequence + 1, beyond[0] - 1, newest.head_id, beyond[1], accepted=False))
    beside = custody.parked.first(number, FIRST_BEYOND_A_GAP, newest.head_sequence + 1)
    if beside is not None:
        root = next(row for row in rows if row.parent is None)
        found.append(_gap(2, beside[0] - 1, root.first_id, beside[1], accepted=False))
    return found


def _gap(first: int, last: int, before: bytes, after: bytes, *, accepted: bool) -> Row:
    return {"first": first, "last": last, "before": before.hex(), "after": after.hex(), "accepted": accepted}


def _is_forked(rows: Sequence[_Row]) -> bool:
    """Tell if two events of a log follow one event."""
    follow = [(row.parent, row.parent_sequence) for row in rows if row.parent is not None and not row.is_beyond_gap]
    heads = {row.id: row.head_sequence for row in rows}
    goes_on = [place for place in set(follow) if place[1] < heads.get(place[0] or 0, 0)]
    return len(follow) + len(goes_on) > len(set(follow))


def _branch(custody: Custody, row: _Row, rows: Sequence[_Row], head: int) -> Row:
    confirmed = row.head_sequence
    children = [other for other in rows if other.parent == row.id and not other.is_beyond_gap]
    forks = [other.parent_sequence for other in children if other.parent_sequence < confirmed]
    name = custody.event_id_at(row.id, max(forks) + 1) if forks else row.first_id
    return {
        "name": name.hex(),
        "confirmed": confirmed,
        "head": head,
        "behind": head - confirmed,
        "until": rfc3339(row.head_wall_us),
        "first_id": row.first_id,
    }


def _complete_until(logs: Sequence[Row]) -> str | None:
    logs = [log for log in logs if log["until"] is not None]
    if not logs:
        return None
    behind = [log["until"] for log in logs if log["behind"]]
    return rfc3339(min(behind) if behind else max(log["until"] for log in logs))


def _state(site: Site, logs: Sequence[Row], *, has_left: bool) -> str:
    lost = sum(log["lost"] for log in logs)
    state = _state_but_for_losses(site, logs, has_left=has_left)
    return f"{state}, {lost} lost" if lost else state


def _state_but_for_losses(site: Site, logs: Sequence[Row], *, has_left: bool) -> str:
    if site.revoked:
        return "revoked"
    if has_left:
        return "left"
    if not site.keys:
        return "never joined"
    if any(not gap["accepted"] for log in logs for gap in log["shown"]["gaps"]):
        return "gap"
    if any(log["shown"]["forked"] for log in logs):
        return "fork"
    behind = sum(log["behind"] for log in logs)
    if behind:
        return f"{behind} behind"
    return "complete" if logs else "never pushed"
