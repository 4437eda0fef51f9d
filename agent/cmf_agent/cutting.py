"""Where a log is cut into segments, each signed once and for ever: what a push and a bundle share.

Rules
- A range is sent again only with the ends that were signed; what is not signed yet is cut and signed here, and the signature kept on
  disk before anyone gets the segment.
- Whoever cuts holds a lock file, so that a push and an export at the same time agree on the cuts.
- Memory follows what is being sent: a segment's bytes are made when it is sent.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cmf_agent.outbox import Cut, Outbox
from cmf_graph.locks import waiting_lock
from cmf_protocol.ranges import Ranges, clip
from cmf_protocol.segments import SEGMENT_BYTES_MAX, SEGMENT_EVENTS_MAX, Statement, cut, encode_segment, sign_segment
from cmf_protocol.signing import Signer

#: Cuts made at once: enough to keep a link busy while they are sent, and one commit for all of them.
CUTS_AT_ONCE = 8
#: Signatures read at once: a site that pushes every event by itself has millions.
_CUTS_READ = 1_000

#: A log's newest event: sequence and event id.
Head = tuple[int, bytes]


class Cutter:
    """Cuts the logs in the database at `log_path`, which `outbox` reads, and signs with `signer`."""

    def __init__(self, log_path: Path, outbox: Outbox, signer: Signer) -> None:
        self._lock_path = log_path.with_name("cut.lock")
        self._outbox = outbox
        self._signer = signer

    def cuts(self, log_id: bytes, after: int, head: Head, *, keep: bool = True) -> Iterator[Cut]:
        """Yield signed cuts that hold every event of a log beyond the sequence `after`, up to `head`.

        Without `keep` the signatures are made to be counted only, not to be sent.
        """
        bounds = SEGMENT_EVENTS_MAX, SEGMENT_BYTES_MAX
        while after < head[0]:
            for signed in self._next(log_id, after, head, *bounds, read=_CUTS_READ, keep=keep):
                after = signed.statement.last_sequence
                yield signed

    def next_cut(self, log_id: bytes, after: int, head: Head, *, events_max: int, bytes_max: int) -> Cut:
        """Return the signed cut that holds the event after the sequence `after`, which is before `head`.

        One that was signed before is returned as it is; a new one has at most so many events, so many bytes, and one event at least.
        """
        return self._next(log_id, after, head, events_max, bytes_max, read=1)[0]

    def encode(self, signed: Cut, bodies: Ranges | None = None) -> bytes:
        """Return the segment of a cut; with `bodies` only these sequences of its log have theirs, the others' are withheld."""
        statement = signed.statement
        first, last = statement.first_sequence, statement.last_sequence
        pairs = self._outbox.pairs(statement.log_id, first, last)
        if bodies is not None:
            kept = {sequence for low, high in clip(bodies, first, last) for sequence in range(low, high + 1)}
            pairs = [(pair[0], pair[1] if at in kept else None) for at, pair in enumerate(pairs, first)]
        return encode_segment(statement, signed.signature, pairs)

    def _next(
        self, log_id: bytes, after: int, head: Head, events_max: int, bytes_max: int, *, read: int, keep: bool = True
    ) -> list[Cut]:
        """Return the cuts that were signed of what follows `after`, at most `read`; if there are none, new ones, at least one."""
        with waiting_lock(self._lock_path) if keep else contextlib.nullcontext():
            signed = self._outbox.cuts(log_id, after, limit=read)
            following = _following(signed, after)
            if following:
                return following
            end = signed[0].statement.first_sequence - 1 if signed else head[0]
            ranges = self._ranges(log_id, after, end, events_max, bytes_max)
            made = [self._sign(log_id, first, last, head) for first, last in ranges]
            if keep:
                self._outbox.record_cuts(made)
            return made

    def _ranges(self, log_id: bytes, after: int, end: int, events_max: int, bytes_max: int) -> list[tuple[int, int]]:
        """Return (first, last) of the next segment, or where they are as large as they may be, of the next few."""
        count = CUTS_AT_ONCE if events_max >= SEGMENT_EVENTS_MAX else 1
        sizes = self._outbox.sizes_after(log_id, after, min(count * events_max, end - after))
        found = [(after + start + 1, after + stop) for start, stop in cut(sizes, events_max, bytes_max)]
        if len(found) > 1 and after + len(sizes) < end:
            found.pop()  # what was read ends there, the segment need not
        return found[:count]

    def _sign(self, log_id: bytes, first: int, last: int, head: Head) -> Cut:
        previous, last_id = self._outbox.event_id(log_id, first - 1), self._outbox.event_id(log_id, last)
        statement = Statement(log_id, first, previous, last, last_id or b"", *head, self._signer.public_key)
        return Cut(statement, sign_segment(statement, self._signer))


def _following(signed: list[Cut], reached: int) -> list[Cut]:
    """Return those of the signed cuts, in the order of their events, that go on from `reached` without a hole."""
    found = []
    for one in signed:
        if one.statement.first_sequence > reached + 1:
            break
        if one.statement.last_sequence > reached:
            found.append(one)
            reached = one.statement.last_sequence
    return found
