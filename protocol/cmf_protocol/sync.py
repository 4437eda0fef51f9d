"""The push machine: what of which log to send next, and when all is confirmed. Pure: times are arguments, bytes are elsewhere.

Theory of operation
    waiting ──next_to_send──▶ in flight ──on_published──▶ published ──on_confirmed──▶ confirmed
       ▲                          │                           │
       └───────on_failed──────────┘◀───────on_silence─────────┘

A log is sent in its signed cuts, in order, at most `WINDOW` of all logs in flight at a time. A confirmation names an event; it counts only
if that is this log's own event at that sequence, and then confirms everything before it as well. Whatever is not confirmed
`CONFIRM_WAIT_S` after it was published is asked about (hello) and sent again; sending twice is harmless, since the hub decides by
event ids.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

#: Segments in flight: one is enough on a LAN, four filled a 100 ms link (nats-facts, Throughput).
WINDOW = 4
#: How long a published segment may stay unconfirmed before the hub is asked, s.
CONFIRM_WAIT_S = 5.0


class Cut(NamedTuple):
    """A signed range of a log: its number at the site, and the last event that the signature names."""

    log_id: bytes
    first_sequence: int
    last_sequence: int
    last_id: bytes


@dataclass
class PushMachine:
    """Sends the cuts of a site's logs until each is confirmed; `event_id_at` returns the site's own id at (log, sequence), or None."""

    event_id_at: Callable[[bytes, int], bytes | None]
    confirmed: dict[bytes, int] = field(default_factory=dict)
    _waiting: deque[Cut] = field(default_factory=deque)
    _in_flight: set[Cut] = field(default_factory=set)
    _published: dict[Cut, float] = field(default_factory=dict)

    def offer(self, cuts: Iterable[Cut]) -> None:
        """Add cuts to send, those of one log in order."""
        self._waiting.extend(cut for cut in cuts if not self._is_confirmed(cut))

    def next_to_send(self) -> Cut | None:
        """Return the cut to publish now, or None if the window is full or nothing waits."""
        if len(self._in_flight) >= WINDOW or not self._waiting:
            return None
        cut = self._waiting.popleft()
        self._in_flight.add(cut)
        return cut

    def on_published(self, cut: Cut, now_s: float) -> None:
        """JetStream has it: not yet confirmed."""
        self._in_flight.discard(cut)
        if not self._is_confirmed(cut):
            self._published[cut] = now_s

    def on_failed(self, cut: Cut) -> None:
        """It may or may not have arrived: send the same bytes again, before what follows."""
        self._in_flight.discard(cut)
        if not self._is_confirmed(cut):
            self._waiting.appendleft(cut)

    def on_confirmed(self, confirmations: Iterable[tuple[bytes, int, bytes]]) -> list[tuple[bytes, int, bytes]]:
        """Take confirmations and return those that moved a log's watermark."""
        moved = []
        for log_id, sequence, event_id in confirmations:
            if sequence > self.confirmed.get(log_id, 0) and self.event_id_at(log_id, sequence) == event_id:
                self.confirmed[log_id] = sequence
                moved.append((log_id, sequence, event_id))
        if moved:
            self._waiting = deque(cut for cut in self._waiting if not self._is_confirmed(cut))
            self._published = {cut: at for cut, at in self._published.items() if not self._is_confirmed(cut)}
        return moved

    def is_silent(self, now_s: float) -> bool:
        """Tell if something published waits longer for its confirmation than it should: say hello, then `resend`."""
        return any(now_s - at >= CONFIRM_WAIT_S for at in self._published.values())

    def resend(self, now_s: float) -> None:
        """Let what is overdue be sent again, in order, before everything else."""
        overdue = [cut for cut, at in self._published.items() if now_s - at >= CONFIRM_WAIT_S]
        for cut in overdue:
            del self._published[cut]
        self._waiting.extendleft(sorted(overdue, key=lambda cut: (cut.log_id, cut.first_sequence), reverse=True))

    @property
    def done(self) -> bool:
        """Whether everything that was offered is confirmed."""
        return not (self._waiting or self._in_flight or self._published)

    def _is_confirmed(self, cut: Cut) -> bool:
        return cut.last_sequence <= self.confirmed.get(cut.log_id, 0)
