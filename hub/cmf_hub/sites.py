"""Has a site sent everything: what is held of each site's logs, up to when, and what is missing.

Rules
- Read from registry and custody only: the answer does not wait for the projection.
- 'behind' counts to the newest head that the site signed or named; what it has recorded since nobody here can know.
- A branch is named by its first event after the fork; a log without a fork has one branch, named by its root.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cmf_graph.times import rfc3339
from cmf_hub.custody import Custody
from cmf_hub.registry import Registry, Site

Row = dict[str, Any]


def list_sites(custody: Custody, registry: Registry, predecessors: Mapping[bytes, bytes]) -> list[Row]:
    """Return one item per site; `predecessors` maps a log's root event id to the log id that it provably succeeds."""
    contacts = {
        site: (last, ahead) for site, last, ahead in custody.rows("SELECT site, last_us, ahead_us FROM contacts")
    }
    return [_site(custody, site, contacts.get(site.name), predecessors) for site in registry.sites()]


def _site(custody: Custody, site: Site, contact: tuple[int, int] | None, predecessors: Mapping[bytes, bytes]) -> Row:
    logs = [log for key in site.keys for log in _logs(custody, key, predecessors)]
    last, ahead = contact or (None, None)
    return {
        "name": site.name,
        "keys": [key.hex() for key in site.keys],
        "logs": [log["shown"] for log in logs],
        "events": sum(log["events"] for log in logs),
        "complete_until": _complete_until(logs),
        "last_contact": None if last is None else rfc3339(last),
        "clock_ahead_seconds": None if ahead is None else round(ahead / 1e6, 3),
        "revoked": site.revoked,
        "state": _state(site, logs),
    }


def _logs(custody: Custody, key: bytes, predecessors: Mapping[bytes, bytes]) -> list[Row]:
    found = custody.rows("SELECT id, log_id, root, head_sequence FROM logs WHERE key = ? ORDER BY id", (key,))
    return [_log(custody, number, log_id, head, predecessors.get(root)) for number, log_id, root, head in found]


def _log(custody: Custody, number: int, log_id: bytes, head: int, predecessor: bytes | None) -> Row:
    rows = custody.rows(
        "SELECT id, parent, parent_sequence, first_id, head_sequence, head_id, head_wall_us FROM branches WHERE log = ? ORDER BY id",
        (number,),
    )
    parked = custody.first_parked(number)
    newest = max(rows, key=lambda row: row[4])
    branches = [
        _branch(custody, row, rows, head if row is newest else row[4], parked if row is newest else None)
        for row in rows
    ]
    shown = {
        "log_id": log_id.hex(),
        "predecessor": None if predecessor is None else predecessor.hex(),
        "forked": len(rows) > 1,
        "branches": branches,
    }
    own = sum(row[4] - (row[2] or 0) for row in rows)
    return {"shown": shown, "events": own, "until": newest[6], "behind": branches[rows.index(newest)]["behind"]}


def _branch(custody: Custody, row: Sequence[Any], rows: Sequence[Sequence[Any]], head: int, parked: int | None) -> Row:
    number, _, _, first_id, confirmed, _, wall_us = row
    forks = [other[2] for other in rows if other[1] == number and other[2] < confirmed]
    name = custody.event_id_at(number, max(forks) + 1) if forks else first_id
    gap = None if parked is None or parked <= confirmed + 1 else [confirmed + 1, parked - 1]
    return {
        "name": name.hex(),
        "confirmed": confirmed,
        "head": head,
        "behind": head - confirmed,
        "gap": gap,
        "until": rfc3339(wall_us),
    }


def _complete_until(logs: Sequence[Row]) -> str | None:
    if not logs:
        return None
    behind = [log["until"] for log in logs if log["behind"]]
    return rfc3339(min(behind) if behind else max(log["until"] for log in logs))


def _state(site: Site, logs: Sequence[Row]) -> str:
    if site.revoked:
        return "revoked"
    if not site.keys:
        return "never joined"
    if any(branch["gap"] for log in logs for branch in log["shown"]["branches"]):
        return "gap"
    if any(log["shown"]["forked"] for log in logs):
        return "fork"
    behind = sum(log["behind"] for log in logs)
    if behind:
        return f"{behind} behind"
    return "complete" if logs else "never pushed"
