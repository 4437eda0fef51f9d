"""The clock of a log: orders events for display where no chain does (protocol/README.md, section 4). Pure."""

#: Bits below the wall clock's milliseconds: 65,536 events a millisecond before the clock runs ahead of the wall.
TICK_BITS = 16
#: How far a log may run ahead of the wall before its clock starts again from the wall, ms.
AHEAD_MS_MAX = 3_600_000
_AHEAD_MAX = AHEAD_MS_MAX << TICK_BITS


def clock_base(wall_us: int) -> int:
    """Return the clock that belongs to the wall time `wall_us` (µs UTC) alone; 0 for times before 1970."""
    return max(wall_us // 1000, 0) << TICK_BITS


def next_clock(previous: int | None, wall_us: int) -> int:
    """Return the clock of an event recorded at `wall_us` (µs UTC) after one with the clock `previous`."""
    base = (wall_us // 1000 if wall_us > 0 else 0) << TICK_BITS
    if previous is None or previous < base or previous > base + _AHEAD_MAX:
        return base
    return previous + 1


def clock_holds(clock: int, wall_us: int) -> bool:
    """Tell if a writer that kept the rules can have given an event of `wall_us` (µs UTC) this clock."""
    base = (wall_us // 1000 if wall_us > 0 else 0) << TICK_BITS
    return base <= clock <= base + _AHEAD_MAX + 1
