"""What is carried by hand: bundles of what the hub has not confirmed, and the receipts that come back.

Rules
- A bundle holds segments with the signatures that were kept; exporting marks nothing: only a receipt, or the hub itself, confirms.
- What is withheld of a pipeline is the body alone: the chain stays whole, and a later bundle supplies it.
- A receipt counts like a confirmation over the link, if it is of the hub and signed with the key that the join file names: for the own
  event at that sequence only. It never takes back what was confirmed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cmf_agent.brought import Brought, BroughtSegments
from cmf_agent.cutting import Cutter
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile, joined_hub, load_hub
from cmf_agent.keys import read_signer
from cmf_agent.outbox import Cut, Outbox
from cmf_agent.place import another_writer, mark_forked
from cmf_agent.schema import SEQUENCE_MASK
from cmf_agent.view import local_view
from cmf_graph.carried import bundled_segments, check_bundle, load_receipt, must_be_new, write_new
from cmf_graph.graph import Graph
from cmf_graph.progress import progress_bar
from cmf_graph.selection import listed_events
from cmf_protocol.bundles import write_bundle
from cmf_protocol.errors import CallerError, IntegrityError
from cmf_protocol.filters import filter_of
from cmf_protocol.messages import Refusal
from cmf_protocol.ranges import Ranges, clip, count, merged
from cmf_protocol.receipts import Receipt, verify_receipt


@dataclass
class Exported:
    """What a bundle holds: segments, events, those of them without their body; its size in bytes."""

    segments: int = 0
    events: int = 0
    withheld: int = 0
    bytes: int = 0


@dataclass
class Receipted:
    """What a receipt brought: events newly confirmed, events that are still not; when it was written (µs UTC); what was refused."""

    time_us: int
    confirmed: int = 0
    pending: int = 0
    refused: list[Refusal] = field(default_factory=list)


# -- out ---------------------------------------------------------------------------------------------------------------


def export_bundle(home: Home, file: Path, *, pipelines: Sequence[str] = (), everything: bool = False) -> Exported:
    """Write what the hub has not confirmed (`everything`: all there is) to a new file; no file if there is nothing to write.

    With `pipelines`, every header is in it, and the bodies only of events about these pipelines' nodes.
    Raises `CallerError` if the file exists, or if nothing is recorded of a pipeline.
    """
    must_be_new(file)
    hub = None if everything else load_hub(home)
    bodies = _bodies_of(home, pipelines) if pipelines else None
    with Outbox(home.log_path) as outbox:
        exporting = _Export(home, outbox, hub, bodies)
        if exporting.total:
            with progress_bar(f"writing {file.name}", exporting.total) as advance:
                exporting.done.bytes = write_new(file, exporting.chunks(advance))
    return exporting.done


class _Export:
    def __init__(self, home: Home, outbox: Outbox, hub: HubFile | None, bodies: dict[bytes, Ranges] | None) -> None:
        self._cutter = Cutter(home.log_path, outbox, read_signer(home.key_path))
        self._bodies = bodies
        self._heads = {log_id: outbox.head(log_id) for log_id in outbox.logs()}
        self._after = {log_id: _confirmed(outbox, hub, log_id) for log_id in self._heads}
        self.total = sum(head[0] - self._after[log_id] for log_id, head in self._heads.items())
        self.done = Exported()

    def chunks(self, advance: Callable[[int], object]) -> Iterator[bytes]:
        """Yield the bytes of the bundle."""
        yield from write_bundle(self._segments(advance))

    def _segments(self, advance: Callable[[int], object]) -> Iterator[bytes]:
        for log_id, head in self._heads.items():
            for signed in self._cutter.cuts(log_id, self._after[log_id], head):
                yield self._cutter.encode(signed, None if self._bodies is None else self._bodies.get(log_id, ()))
                advance(self._count(signed))

    def _count(self, signed: Cut) -> int:
        first, last = signed.statement.first_sequence, signed.statement.last_sequence
        events = last - first + 1
        self.done.segments += 1
        self.done.events += events
        if self._bodies is not None:
            self.done.withheld += events - count(clip(self._bodies.get(signed.statement.log_id, ()), first, last))
        return events


def _confirmed(outbox: Outbox, hub: HubFile | None, log_id: bytes) -> int:
    """Return up to which sequence the hub is known to hold a log."""
    known = outbox.confirmed(hub.hub_id, log_id) if hub is not None else None
    return known[0] if known else 0


def _bodies_of(home: Home, pipelines: Sequence[str]) -> dict[bytes, Ranges]:
    """Return which sequences of each own log are about these pipelines' nodes; raise `CallerError` for an unknown pipeline."""
    with local_view(home) as graph, Outbox(home.log_path, read_only=True) as outbox:
        for name in pipelines:
            if graph.node_id(("pipeline", name)) is None:
                raise CallerError(f"nothing is recorded here of a pipeline {name}", "see cmf-agent query pipelines")
        listed = listed_events(graph, filter_of(pipelines=pipelines), {})
        own = set(outbox.logs())
        found: dict[bytes, list[tuple[int, int]]] = {}
        for branch, log_id in graph.rows("SELECT b.id, t.log_id FROM branches b JOIN trees t ON t.id = b.tree"):
            if log_id in own:
                mine = [r for r in listed.get(branch, ()) if _is_own(graph, outbox, branch, log_id, r[0])]
                found.setdefault(log_id, []).extend(mine)
    return {log_id: merged(ranges) for log_id, ranges in found.items()}


def _is_own(graph: Graph, outbox: Outbox, branch: int, log_id: bytes, sequence: int) -> bool:
    """Tell if a branch's event at a sequence is this site's own, and not that of a copy of the log."""
    event_id = outbox.event_id(log_id, sequence)
    return event_id is not None and graph.place(event_id) == (branch, sequence)


# -- back --------------------------------------------------------------------------------------------------------------


def take_receipt(home: Home, file: Path) -> Receipted:
    """Apply what the hub says in a receipt that it holds of this site's logs.

    Raises `CallerError` if no hub was joined, `PeerError` if the receipt is not the hub's, was altered, or is another site's.
    """
    hub = joined_hub(home)
    receipt = load_receipt(file)
    verify_receipt(receipt, hub_id=hub.hub_id, hub_key=hub.hub_key)
    with Outbox(home.log_path) as outbox:
        return _apply(home, outbox, hub.hub_id, receipt)


def take_bundle(home: Home, file: Path) -> Brought:
    """Keep the events of other sites that a bundle holds, for the local view; this site's own are here already.

    Raises `PeerError`, with nothing kept, if the bundle was cut or altered.
    """
    with progress_bar(f"checking {file.name}", file.stat().st_size) as advance:
        segments = check_bundle(file, advance)
    with ExitStack() as stack:
        outbox = stack.enter_context(Outbox(home.log_path, read_only=True))
        own = set(outbox.logs())

        def is_own(log_id: bytes, sequence: int, event_id: bytes) -> bool:
            return log_id in own and outbox.event_id(log_id, sequence) == event_id

        brought = stack.enter_context(BroughtSegments(home.brought_path))
        advance = stack.enter_context(progress_bar(f"importing {file.name}", segments))
        return brought.take(bundled_segments(file), is_own, advance)


def _apply(home: Home, outbox: Outbox, hub_id: bytes, receipt: Receipt) -> Receipted:
    heads = {log_id: outbox.head(log_id)[0] for log_id in outbox.logs()}
    own = [row for row in receipt.confirmed if row[0] in heads and 0 < row[1] <= SEQUENCE_MASK]
    named = {row[0] for row in receipt.confirmed} | {row.log_id for row in receipt.refused if row.log_id}
    if named and not named & heads.keys():
        raise IntegrityError("this receipt is about another site's logs", "take it to the site that it was made for")
    for log_id in another_writer(own, outbox.event_id):
        mark_forked(home, log_id)
    before = _sum_confirmed(outbox, hub_id, heads)
    for log_id, sequence, event_id in own:  # of another branch: nothing is recorded
        outbox.record_confirmed(hub_id, log_id, sequence, event_id)
    after = _sum_confirmed(outbox, hub_id, heads)
    refused = [row for row in receipt.refused if row.log_id in heads or not row.log_id]
    return Receipted(receipt.time_us, after - before, sum(heads.values()) - after, refused)


def _sum_confirmed(outbox: Outbox, hub_id: bytes, logs: dict[bytes, int]) -> int:
    places = [outbox.confirmed(hub_id, log_id) for log_id in logs]
    return sum(place[0] for place in places if place)
