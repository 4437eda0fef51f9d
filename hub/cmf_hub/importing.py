"""Bringing a bundle in, and saying by a signed receipt what is held: the hub's side of what is carried by hand.

Rules
- A bundle is checked as a whole before anything of it is taken; then it is decided on like what comes over the link, a batch at a time.
- Importing needs nobody's leave and stops nobody: it works beside a hub that serves, and importing again changes nothing.
- A receipt names only what is committed. It says of each branch its newest event, of each fork the event before it, and how far the
  bundle itself went: so every chain that holds one of these events learns how much of it is here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cmf_graph.carried import bundled_segments, check_bundle, must_be_new, write_new
from cmf_graph.progress import progress_bar
from cmf_graph.text import counted
from cmf_hub.consumer import now_us
from cmf_hub.custody import Answer, Confirmation, Custody
from cmf_hub.data import DataFolder
from cmf_hub.projector import open_custody
from cmf_hub.registry import Registry
from cmf_protocol.errors import CallerError
from cmf_protocol.messages import Refusal
from cmf_protocol.receipts import sign_receipt

_RECEIVE_SEGMENTS = 64

Row = dict[str, Any]


@dataclass
class Imported:
    """What became of a bundle's segments; `parked` are those of its logs that wait for earlier events, from whatever bundle."""

    segments: int = 0
    admitted: int = 0
    duplicates: int = 0
    #: Segments that wait for earlier events, and for which there was no room: they are not kept.
    not_kept: int = 0
    parked: list[Row] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    #: log id → the highest point of the bundle that is held
    reached: dict[bytes, Confirmation] = field(default_factory=dict)
    logs: set[bytes] = field(default_factory=set)

    def shown(self) -> Row:
        """Return it as JSON has it."""
        refused = [
            {"log_id": row.log_id.hex(), "first_sequence": row.first_sequence, "code": row.code, "message": row.message}
            for row in self.refused
        ]
        return {
            "segments": self.segments, "admitted": self.admitted, "duplicates": self.duplicates, "parked": self.parked,
            "not_kept": self.not_kept, "refused": refused,
        }  # fmt: skip


def import_bundle(data: DataFolder, file: Path, *, receipt: Path | None = None) -> Imported:
    """Bring the segments of a bundle in, carried by the operator; write to `receipt` what of its logs is held then.

    Raises `PeerError`, with nothing taken, if the bundle was cut or altered; what is refused of a whole one is in the answer.
    """
    if receipt is not None:
        must_be_new(receipt)
    with progress_bar(f"checking {file.name}", file.stat().st_size if file.exists() else 0) as advance:
        count = check_bundle(file, advance)
    custody = open_custody(data)
    found = Imported(segments=count)
    with progress_bar(f"importing {file.name}", count) as advance:
        segments = bundled_segments(file)
        while (batch := list(islice(segments, _RECEIVE_SEGMENTS))) or custody.has_ready():
            _note(found, custody.receive([(None, segment) for segment in batch], now_us()), len(batch))
            advance(len(batch))
    found.parked = _parked(custody, found.logs)
    if receipt is not None:
        confirmed = {*_held(custody, found.logs), *found.reached.values()}
        write_receipt(data, custody, receipt, confirmed, found.refused)
    return found


def import_text(found: Imported) -> str:
    """Return what became of a bundle as people read it."""
    lines = [
        f"{counted(found.segments, 'segment')}: {counted(found.admitted, 'event')} admitted, {found.duplicates} held already, "
        f"{counted(len(found.parked), 'segment')} parked, {len(found.refused)} refused"
    ]
    first: dict[str, Row] = {}
    for row in found.parked:
        first.setdefault(row["log_id"], row)
    lines += [
        f"parked: log {row['log_id']} of {row['site']} from event {row['first_sequence']} on waits for what is before it: "
        f"import the bundle that holds it"
        for row in first.values()
    ]
    return "\n".join(lines)


def _note(found: Imported, answers: list[Answer], brought: int) -> None:
    """Note what a batch came to; the first `brought` answers are about its own segments, the rest about what waited for them."""
    for answer in answers:
        found.admitted += answer.admitted_events
        found.duplicates += answer.duplicates
        found.refused += [Refusal._make(row) for row in answer.refused]
    for answer in answers[:brought]:
        if not (answer.confirmed or answer.refused or answer.parked):
            found.not_kept += 1
        found.logs |= {log_id for log_id, _ in answer.parked} | {row[0] for row in answer.confirmed.values()}
        if answer.confirmed:  # the segment's own end, and the head of its branch, which is later
            end = min(answer.confirmed.values(), key=lambda row: row[1])
            found.reached[end[0]] = max(end, found.reached.get(end[0], end), key=lambda row: row[1])


def _parked(custody: Custody, logs: Iterable[bytes]) -> list[Row]:
    """Return what the operator brought of these logs that waits."""
    return [
        {"site": site, "log_id": log_id.hex(), "first_sequence": first}
        for log_id in sorted(logs)
        for site, first in custody.rows(
            "SELECT site, first_sequence FROM parked WHERE log_id = ? AND carrier IS NULL ORDER BY first_sequence",
            (log_id,),
        )
    ]


# -- receipts --------------------------------------------------------------------------------------------------------


def receipt_of_site(data: DataFolder, site: str, file: Path) -> int:
    """Write what is held of all logs of a site; return the number of logs. Raises `CallerError` if there is no such site."""
    must_be_new(file)
    keys = [key for each in Registry(data.registry).sites() if each.name == site for key in each.keys]
    if not keys:
        raise CallerError(f"there is no site {site} with a key", "see cmf-hub site list")
    custody = open_custody(data)
    with custody.snapshot():
        logs = {row[0] for key in keys for row in custody.rows("SELECT log_id FROM logs WHERE key = ?", (key,))}
        confirmed = set(_held(custody, logs))
    write_receipt(data, custody, file, confirmed, [])
    return len(logs)


def write_receipt(
    data: DataFolder, custody: Custody, file: Path, confirmed: Iterable[Confirmation], refused: Iterable[Refusal]
) -> None:
    """Write a receipt, signed with the hub's own key."""
    registry = Registry(data.registry)
    signed = sign_receipt(
        registry.signer(), hub_id=registry.identity()[0], incarnation=custody.incarnation, time_us=now_us(),
        confirmed=tuple(sorted(confirmed)), refused=tuple(refused),
    )  # fmt: skip
    write_new(file, [signed])


def _held(custody: Custody, logs: Iterable[bytes]) -> Iterator[Confirmation]:
    """Yield the newest event of each branch of these logs, and the event before each fork."""
    for log_id in logs:
        rows = custody.rows(
            "SELECT b.head_sequence, b.head_id, b.parent, b.parent_sequence FROM branches b JOIN logs l ON l.id = b.log "
            "WHERE l.log_id = ?",
            (log_id,),
        )
        for head, head_id, parent, parent_sequence in rows:
            yield log_id, head, head_id
            if parent is not None:
                yield log_id, parent_sequence, custody.event_id_at(parent, parent_sequence)
