"""How fast to go on: a limit of bytes a second, and waits that grow."""

import random
import re

from cmf_protocol.errors import CallerError

#: How long one piece may take under a limit of bytes a second, s.
PIECE_S = 2.0
#: What is assumed of a piece's size on the wire beside that of its content, until one was made.
PACKED = 0.5
#: The slowest line that is served at all, bytes/s: a segment of one event takes seconds there.
RATE_MIN = 100
_RATE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[kKmM]?(?:B|bit))/s")
_RATE_UNITS = {"b": 1, "kb": 1_000, "mb": 1_000_000, "bit": 1 / 8, "kbit": 125, "mbit": 125_000}


def read_rate(text: str) -> float:
    """Return the bytes a second that `text` names: a number with `B`, `KB`, `MB` or `bit`, `kbit`, `Mbit` a second.

    Raises `CallerError` for anything else.
    """
    found = _RATE.fullmatch(text.strip())
    rate = float(found["number"]) * _RATE_UNITS[found["unit"].lower()] if found else 0.0
    if rate < RATE_MIN:
        raise CallerError(
            f"{text!r} is no bandwidth, or too small a one", "write for example 64KB/s, 1MB/s or 256kbit/s"
        )
    return rate


class Pace:
    """A bucket that may be overdrawn by one piece: who asks first pays later."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._ready_at_s = 0.0
        self._packed = PACKED

    def wait_s(self, now_s: float) -> float:
        """Return how long the next piece has to wait."""
        return max(self._ready_at_s - now_s, 0.0)

    def spend(self, size: int, content: int, now_s: float) -> None:
        """Count a piece of so many bytes on the wire, made of so many of content."""
        if self._bytes_per_s is not None:
            self._ready_at_s = max(self._ready_at_s, now_s) + size / self._bytes_per_s
            self._packed = size / max(content, 1)

    def content_max(self) -> int | None:
        """Return how many bytes of content a piece may have to take about `PIECE_S`; None for no limit."""
        if self._bytes_per_s is None:
            return None
        return max(int(self._bytes_per_s * PIECE_S / self._packed), 1)


class Backoff:
    """A wait that grows from `first_s` to `most_s`, jittered, until something succeeds."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._bound_s = first_s

    def next_s(self) -> float:
        """Return how long to wait now; the next wait is longer."""
        bound_s, self._bound_s = self._bound_s, min(self._bound_s * 2, self._most_s)
        return bound_s * random.uniform(0.5, 1.0)  # jitter, no secret

    def reset(self) -> None:
        """Begin anew: it went well."""
        self._bound_s = self._first_s
