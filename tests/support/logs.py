"""A log made by hand, to be cut and forked at will.

log = MadeLog(SIGNERS[0])            # its root is there
log.say(9)                           # nine more events
log.cut(1, 4), log.cut(5, 10)        # signed segments, by sequence
copy = log.fork(5)                   # another writer that goes on after event 5
"""

import os
from collections.abc import Sequence

from tests.support.strategies import WALL_US, make_event, segment_of

from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event
from cmf_protocol.segments import encode_segment, sign_segment, statement_of
from cmf_protocol.signing import Signer

EXECUTION = bytes(range(16))
Point = tuple[int, bytes]


class MadeLog:
    """The events of one chain, from its root on."""

    def __init__(self, signer: Signer, log_id: bytes | None = None, events: Sequence[Event] = ()) -> None:
        self.signer = signer
        self.events = list(events)
        if not self.events:
            draft = t.log_opened(signer.public_key, agent="test")
            self._add(make_event(None, draft, salt=self._salt(), log_id=log_id or os.urandom(16)))

    @property
    def log_id(self) -> bytes:
        return self.events[0].header.log_id

    @property
    def head(self) -> Point:
        """Sequence and id of the newest event."""
        return len(self.events), self.events[-1].event_id

    def _salt(self) -> int:
        return int.from_bytes(os.urandom(8), "big")

    def _add(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def say(self, count: int, draft: Draft | None = None, *, withheld: bool = False) -> "MadeLog":
        """Append events."""
        for _ in range(count):
            said = draft or t.note_added(("execution", EXECUTION), f"{self._salt():x}")
            wall_us = WALL_US + len(self.events)
            self._add(make_event(self.events[-1], said, salt=self._salt(), wall_us=wall_us, withheld=withheld))
        return self

    def fork(self, sequence: int) -> "MadeLog":
        """Return a writer that goes on after the event at `sequence`, as a copy of the log does."""
        return MadeLog(self.signer, events=self.events[:sequence])

    def cut(self, first: int, last: int, signer: Signer | None = None) -> bytes:
        """Return the segment of the events `first` to `last`."""
        return segment_of(self.events[first - 1 : last], signer or self.signer, self.events[-1])

    def forged(self, first: int, last: int, signer: Signer) -> bytes:
        """Return that segment with the own key named and another's signature."""
        events = self.events[first - 1 : last]
        statement = statement_of(events, self.events[-1], self.signer.public_key)
        return encode_segment(
            statement, sign_segment(statement, signer), [(event.header_bytes, event.body) for event in events]
        )

    def singles(self) -> list[bytes]:
        """Return a segment for each event."""
        return [self.cut(sequence, sequence) for sequence in range(1, len(self.events) + 1)]

    def points(self, *sequences: int) -> list[Point]:
        """Return (sequence, event id) for sequences of this chain."""
        return [(sequence, self.events[sequence - 1].event_id) for sequence in sequences]
