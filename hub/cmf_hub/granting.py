"""How much each carrier may have on the way: what the hub decides on in about two seconds, divided by who is sending.

Rules
- Measured, not configured: what custody has decided lately, by how long it took.
- Nobody waits behind another's backlog for long, and nobody is granted so little that the line runs dry.
"""

#: What may be on the way in all, as the time that it takes to decide on it, s.
AHEAD_S = 2.0
#: A carrier counts as sending for that long after it was heard, s.
ACTIVE_S = 5.0
GRANT_MIN = 50
#: Twice what fills a line of 100 ms: while half of it is confirmed, the other half is on its way.
GRANT_MAX = 8_000
#: What is assumed before anything was measured, events/s: little, since what many sites have been granted is on its way.
FIRST_RATE = 10_000.0
#: A batch of fewer events says more about commits than about events.
MEASURED_FROM = 500
#: How much of the newest measurement counts, at most.
NEWEST_SHARE = 0.3


class Granting:
    """Measures and divides; times are seconds of one clock."""

    def __init__(self) -> None:
        self._rate = FIRST_RATE
        self._heard: dict[str, float] = {}

    def heard(self, carrier: str, now_s: float) -> None:
        """Note that a carrier sends."""
        self._heard.pop(carrier, None)
        self._heard[carrier] = now_s  # the one heard last stands last

    def measured(self, events: int, took_s: float) -> None:
        """Note that so many events were decided on in that time."""
        if events >= MEASURED_FROM and took_s > 0:
            self._rate += (events / took_s - self._rate) * min(took_s / AHEAD_S, NEWEST_SHARE)

    def grant(self, now_s: float) -> int:
        """Return how many events a carrier may have on the way."""
        while self._heard and now_s - next(iter(self._heard.values())) > ACTIVE_S:
            del self._heard[next(iter(self._heard))]
        share = AHEAD_S * self._rate / max(len(self._heard), 1)
        return max(GRANT_MIN, min(int(share), GRANT_MAX))
