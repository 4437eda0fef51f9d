"""Care of the store: what it holds, and whether it is whole.

Rules
- `verify` trusts nothing that it can compute: every segment is decoded, every signature and chain checked, and the graph's digest of
  events compared with the store's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

from cmf_graph.database import sqlite_version
from cmf_graph.graph import Graph
from cmf_graph.times import rfc3339
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.projector import SOURCE, open_custody
from cmf_hub.upstreams import read_progress
from cmf_protocol.errors import PeerError
from cmf_protocol.fold import FOLD_VERSION
from cmf_protocol.segments import decode_segment

_STORED_AT_ONCE = 64


@dataclass
class Findings:
    """What `verify` looked at, and what it found wrong."""

    segments: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list)


def verify(data: DataFolder, graph: Graph, progress: Callable[[int], None]) -> Findings:
    """Check the event store and the graph; `progress` gets the number of each segment as it is done.

    The store is read as of one moment, the graph as of one a little earlier, so that what arrives meanwhile is no finding.
    """
    with graph.snapshot():
        position, folded = graph.checkpoint(SOURCE), _digest_of(graph.event_ids())
    custody = open_custody(data)
    with custody.snapshot():
        found, projected = _verify_store(custody, position, progress)
        last = custody.last_segment()
    if position > last:
        found.problems.append(f"the graph has read {position} segments of {last}: cmf-hub rebuild makes it anew")
    elif not found.problems and folded != _digest_of(sorted(projected)):
        found.problems.append("the graph does not hold the events of the store: cmf-hub rebuild makes it anew")
    return found


def _verify_store(custody: Custody, position: int, progress: Callable[[int], None]) -> tuple[Findings, list[bytes]]:
    """Return what is wrong with the store, and the ids of its events up to the segment `position`."""
    found = Findings()
    for (text,) in custody.rows("PRAGMA integrity_check(20)"):
        if text != "ok":
            found.problems.append(f"{custody.name}: {text}")
    projected: list[bytes] = []
    heads: dict[int, bytes | None] = {}
    for number, stored in _stored(custody):
        ids: list[bytes] = []
        problem = _check_supply(stored) if stored.only_supplies else _check_segment(custody, stored, heads, ids)
        if problem is not None:
            found.problems.append(f"segment {number}: {problem}")
        found.segments += 1
        found.events += len(ids)
        if number <= position:
            projected += ids
        progress(number)
    for branch, head in custody.rows("SELECT id, head_id FROM branches"):
        if heads.get(branch) != head:
            found.problems.append(f"branch {branch}: the watermark is not its last stored event")
    return found, projected


def _digest_of(sorted_ids: Iterable[bytes]) -> bytes:
    digest = sha256()
    for event_id in sorted_ids:
        digest.update(event_id)
    return digest.digest()


class Stored(NamedTuple):
    """A segment as custody keeps it; `only_supplies` if it was stored for bodies of events that were held."""

    branch: int
    skip: int
    last_sequence: int
    key: bytes
    data: bytes
    only_supplies: bool


def _stored(custody: Custody) -> Iterator[tuple[int, Stored]]:
    position = 0
    while rows := custody.rows(
        "SELECT s.id, s.branch, s.skip, s.last_sequence, l.key, s.data, s.last_id IS NULL FROM segments s "
        "JOIN branches b ON b.id = s.branch JOIN logs l ON l.id = b.log WHERE s.id > ? ORDER BY s.id LIMIT ?",
        (position, _STORED_AT_ONCE),
    ):
        for number, *fields in rows:
            yield number, Stored._make(fields)
        position = rows[-1][0]


def _check_supply(stored: Stored) -> str | None:
    """Say what is wrong with a segment stored for its bodies; their hashes stand in headers that other segments hold."""
    try:
        holds = decode_segment(stored.data).signature_holds()
    except PeerError as error:
        return str(error)
    return None if holds else "its signature does not verify with the key that it names"


def _check_segment(custody: Custody, stored: Stored, heads: dict[int, bytes | None], ids: list[bytes]) -> str | None:
    branch = stored.branch
    try:
        segment = decode_segment(stored.data)
    except PeerError as error:
        return str(error)
    if segment.statement.key != stored.key or not segment.signature_holds():
        return "its signature does not verify with the key of its log"
    new = segment.events[stored.skip : stored.last_sequence - segment.statement.first_sequence + 1]
    if not new:
        return "it holds nothing new"
    try:
        before = heads[branch] if branch in heads else _parent_id(custody, branch)
    except PeerError:
        before = b""  # what it forks from is damaged or missing: a finding of its own
    heads[branch] = new[-1].event_id
    ids += [event.event_id for event in new]
    return None if new[0].header.previous == before else "it does not follow the segment before it"


def _parent_id(custody: Custody, branch: int) -> bytes | None:
    """Return the id that a branch's first event names as previous, as far as the store knows it from elsewhere."""
    lost = custody.rows("SELECT previous FROM holes WHERE branch = ? AND NOT filled", (branch,))
    if lost:
        return bytes(lost[0][0])
    parent, sequence = custody.rows("SELECT parent, parent_sequence FROM branches WHERE id = ?", (branch,))[0]
    return None if parent is None else custody.event_id_at(parent, sequence)


def status(data: DataFolder, graph: Graph) -> dict[str, Any]:
    """Return what the hub holds and does."""
    custody = open_custody(data)
    running = data.running()
    counted = custody.rows("SELECT count(*), coalesce(sum(length(data)), 0) FROM segments")[0]
    parked = custody.rows("SELECT count(*), coalesce(sum(size), 0) FROM parked")[0]
    quarantine = custody.rows("SELECT count(*) FROM quarantine")[0][0]
    return {
        "data": str(data.root),
        "serving": running is not None,
        "nats": (running or {}).get("nats"),
        "pid": (running or {}).get("pid"),
        "events": custody.rows("SELECT coalesce(sum(head_sequence - first_sequence + 1), 0) FROM branches")[0][0],
        "segments": counted[0],
        "segment_bytes": counted[1],
        "parked_segments": parked[0],
        "parked_bytes": parked[1],
        "quarantine": quarantine,
        "unfolded": graph.rows("SELECT count(*) FROM unfolded")[0][0],
        "projection_behind_segments": custody.last_segment() - graph.checkpoint(SOURCE),
        "fold_version": FOLD_VERSION,
        "incarnation": custody.incarnation.hex(),
        "sqlite_version": sqlite_version(),
        "upstreams": _upstreams(data),
    }


def _upstreams(data: DataFolder) -> list[dict[str, Any]]:
    """Return what forwarding to other hubs does."""
    progress = read_progress(data)
    return [
        {"hub": hub.hex(), "url": url, "state": state, "detail": detail or None, "since": rfc3339(since)}
        for hub, url, state, detail, since in (progress.states() if progress else ())
    ]


def quarantined(data: DataFolder) -> list[dict[str, Any]]:
    """Return what could not be authenticated, newest first, with the reason."""
    rows = open_custody(data).rows(
        "SELECT id, arrived_us, carrier, code, message, size, digest FROM quarantine ORDER BY id DESC"
    )
    return [
        {
            "id": id_, "arrived": rfc3339(arrived), "carrier": carrier, "code": code, "message": message, "bytes": size,
            "sha256": digest.hex(),
        }
        for id_, arrived, carrier, code, message, size, digest in rows
    ]  # fmt: skip
