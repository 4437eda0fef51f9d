"""What the way to the hub can carry: how large a cut should be, and how many may be in flight. Pure.

Rules
- A connection begins small: nobody knows yet how slow the line is, and a hub whose sites all come back at once hears each of them soon.
- A cut should take no longer than `TRANSFER_S`: what a broken connection costs is bounded, and confirmations come often.
- More than two in flight pay only where the round trip is longer than the transfer (nats-facts, Throughput).
"""

import math

from cmf_protocol.segments import SEGMENT_BYTES_MAX, SEGMENT_EVENTS_MAX

#: The first cut of a connection: about 100 events, a second or two at 64 kbit/s.
FIRST_SCALE = 0.1
#: The smallest cut on a slow line: below that, signature and message cost more than the events.
SMALLEST_SCALE = 0.05
#: How long one cut may take on the line, s.
TRANSFER_S = 2.0
#: Where acknowledgements come within that, two in flight keep the line busy, s.
NEAR_S = 0.02
WINDOW_NEAR = 2
#: Four filled a line of 100 ms (nats-facts, Throughput).
WINDOW_FAR = 4


class Line:
    """Measures acknowledgements; times are seconds of one clock."""

    def __init__(self) -> None:
        #: How many bytes of events a new cut may hold at most, whatever the line carries: somebody's limit, or None.
        self.bytes_limit: int | None = None
        self.begin()

    def begin(self) -> None:
        """A new connection: nothing is known of it."""
        self._scale = FIRST_SCALE
        self._round_trip_s = math.inf
        self._acknowledged_after_s = math.inf
        self._transfer_s = math.inf
        self._last_at_s = -math.inf

    def on_round_trip(self, took_s: float) -> None:
        """A small question was answered after that time."""
        self._round_trip_s = min(self._round_trip_s, took_s)

    def on_acknowledged(self, sent_s: float, now_s: float) -> None:
        """What was sent at `sent_s` was acknowledged just now."""
        took_s = now_s - sent_s
        self._round_trip_s = min(self._round_trip_s, took_s)
        # Of two in flight the later one waits for the first; of one alone the round trip is no transfer.
        self._transfer_s = min(now_s - self._last_at_s, took_s - self._round_trip_s)
        self._acknowledged_after_s = took_s
        self._last_at_s = now_s
        if self._transfer_s < TRANSFER_S / 2:
            self._scale = min(self._scale * 2, 1.0)
        elif self._transfer_s > TRANSFER_S:
            self._scale = max(self._scale / 2, SMALLEST_SCALE)

    @property
    def window(self) -> int:
        """How many may be in flight."""
        if self._acknowledged_after_s <= NEAR_S or math.isinf(self._round_trip_s):
            return WINDOW_NEAR
        transfers = self._round_trip_s / max(self._transfer_s, 0.001)
        return max(WINDOW_NEAR, min(WINDOW_FAR, 1 + math.ceil(transfers)))

    @property
    def events_max(self) -> int:
        """How many events a new cut may hold."""
        return int(SEGMENT_EVENTS_MAX * self._scale)

    @property
    def bytes_max(self) -> int:
        """How many bytes of events, uncompressed, a new cut may hold."""
        found = int(SEGMENT_BYTES_MAX * self._scale)
        return found if self.bytes_limit is None else min(found, self.bytes_limit)
