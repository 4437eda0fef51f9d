"""Trees in pieces, as a hub tells of them, and a hub in memory that tells of some events.

structure, piece = pieces_of(events)     # where the pieces stand; event id → its piece
hub = ToldHub(log, another)              # answers `pull` and `events` over these logs, whatever the filter
hub.alter = lambda answer: ...           # makes it a liar
"""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256

from tests.support.logs import MadeLog

from cmf_graph.placing import Placement
from cmf_protocol.errors import HubUnreachable
from cmf_protocol.events import Event
from cmf_protocol.pull import (
    EventsAnswer,
    EventsRequest,
    Known,
    PullAnswer,
    PullRequest,
    ToldBranch,
    ToldEvent,
    ToldTree,
    decode_events_request,
    decode_pull,
    encode_events_answer,
    encode_pull_answer,
    listing_digest,
)
from cmf_protocol.ranges import Ranges, clip, contains, last_of, of_sequences
from cmf_protocol.segments import decode_segment, encode_segment

Structure = dict[bytes, Placement]


def pieces_of(events: Sequence[Event]) -> tuple[Structure, dict[bytes, bytes]]:
    """Return where the pieces of all trees stand, and event → its piece."""
    children: dict[bytes | None, int] = {}
    for event in events:
        children[event.header.previous] = children.get(event.header.previous, 0) + 1
    structure: Structure = {}
    piece: dict[bytes, bytes] = {}
    for event in events:
        id_, header = event.event_id, event.header
        if header.previous is not None and children[header.previous] == 1:
            piece[id_] = piece[header.previous]
            continue
        piece[id_] = id_
        if header.previous is None:
            structure[id_] = Placement(id_, None, None, 1)
        else:
            before = piece[header.previous]
            structure[id_] = Placement(structure[before].root, before, header.sequence - 1, header.sequence)
    return structure, piece


class ToldHub:
    """Tells all events of some logs, or those with `listed` ids, to whoever asks; each event is a segment of its own."""

    def __init__(self, *logs: MadeLog) -> None:
        self.hub_id = os.urandom(16)
        self.incarnation = os.urandom(16)
        self.logs = list(logs)
        self.listed: set[bytes] | None = None
        self.page_events = 1_000
        self.failures = 0
        self.requests: list[PullRequest | EventsRequest] = []
        self.alter: Callable[[EventsAnswer], EventsAnswer] = lambda answer: answer
        self.alter_list: Callable[[PullAnswer], PullAnswer] = lambda answer: answer

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:  # noqa: ARG002
        """Answer as a hub does, but for the first `failures` times."""
        if self.failures:
            self.failures -= 1
            raise HubUnreachable("the line is cut")
        if subject.endswith(".pull"):
            pull = decode_pull(data)
            self.requests.append(pull)
            return encode_pull_answer(self.alter_list(self._pull(pull)))
        asked = decode_events_request(data)
        self.requests.append(asked)
        return encode_events_answer(self.alter(self._events(asked)))

    def _all(self) -> dict[bytes, tuple[Event, MadeLog]]:
        return {event.event_id: (event, log) for log in self.logs for event in log.events}

    def _pull(self, request: PullRequest) -> PullAnswer:
        known = {row.branch: row for row in request.known}
        events = [event for event, _ in self._all().values()]
        structure, piece = pieces_of(sorted(events, key=lambda event: event.header.sequence))
        ranges: dict[bytes, list[int]] = {name: [] for name in structure}
        for event in events:
            if self.listed is None or event.event_id in self.listed:
                ranges[piece[event.event_id]].append(event.header.sequence)
        told = [
            self._row(name, structure[name], of_sequences(found), known.get(name)) for name, found in ranges.items()
        ]
        keys = {log.events[0].event_id: log for log in self.logs}
        trees = tuple(ToldTree(root, log.log_id, log.signer.public_key, "made") for root, log in keys.items())
        gone = tuple(sorted(set(known) - set(structure)))
        return PullAnswer(
            self.hub_id,
            self.incarnation,
            1_700_000_000_000_000,
            request.filter,
            trees,
            tuple(filter(None, told)),
            gone,
            True,
            sha256(b"".join(sorted(event.event_id for event in events if event.body is None))).digest()[:8],
        )

    def _row(self, name: bytes, place: Placement, ranges: Ranges, known: Known | None) -> ToldBranch | None:
        def digest(upto: int) -> bytes:
            return listing_digest(place.parent, place.parent_sequence, ranges, upto)

        upto = last_of(ranges)
        after = known.upto if known is not None and known.digest == digest(known.upto) else 0
        if known is not None and after >= upto and known.digest == digest(upto):
            return None
        fresh = clip(ranges, after + 1, 2**62)
        before = (name, place.root, place.parent, place.parent_sequence, place.first_sequence)
        return ToldBranch(*before, after, fresh, max(after, upto), digest(max(after, upto)))

    def _events(self, request: EventsRequest) -> EventsAnswer:
        everything = self._all()
        ordered = sorted((event for event, _ in everything.values()), key=lambda event: event.header.sequence)
        _, piece = pieces_of(ordered)
        found = []
        for name, ranges in request.wanted:
            inside = [event for event in ordered if piece[event.event_id] == name]
            found += [(name, event) for event in inside if contains(ranges, event.header.sequence)]
        found = found[: self.page_events]
        if request.bodies is None:
            told = [ToldEvent(name, event.header.sequence, event.header_bytes, event.body) for name, event in found]
            return EventsAnswer(self.hub_id, events=tuple(told))
        bodies = dict(request.bodies)
        segments = []
        for name, event in found:
            log = everything[event.event_id][1]
            made = decode_segment(log.cut(event.header.sequence, event.header.sequence))
            body = event.body if contains(bodies.get(name, ()), event.header.sequence) else None
            segments.append(encode_segment(made.statement, made.signature, [(event.header_bytes, body)]))
        return EventsAnswer(self.hub_id, segments=tuple(segments))
