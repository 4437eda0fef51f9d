"""The clock of a log: never behind its wall time, never back within its chain unless the wall went back by more than an hour."""

from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second

from cmf_protocol.clock import AHEAD_MS_MAX, TICK_BITS, clock_base, clock_holds, next_clock

HOUR_US = 3_600_000_000
WALL_US = 1_700_000_000_000_000


def walls() -> st.SearchStrategy[int]:
    jumps = st.sampled_from(
        [0, 1, 999, 1_000, -1_000, HOUR_US, -HOUR_US, HOUR_US + 1_000, -HOUR_US - 1_000, -HOUR_US - 2_000]
    )
    return jumps.map(lambda jump: WALL_US + jump) | st.integers(-(10**16), 10**17)


@given(st.lists(walls(), min_size=1, max_size=40))
def test_what_a_writer_gives_holds_whatever_its_wall_clock_does(times: list[int]) -> None:
    clock: int | None = None
    for wall_us in times:
        before, clock = clock, next_clock(clock, wall_us)
        assert clock_holds(clock, wall_us)
        if before is not None and before <= clock_base(wall_us) + (AHEAD_MS_MAX << TICK_BITS):
            assert clock == max(before + 1, clock_base(wall_us))
        else:
            assert clock == clock_base(wall_us)


@given(st.integers(0, 2**63 - 1), walls())
def test_both_decoders_judge_a_clock_alike(clock: int, wall_us: int) -> None:
    assert clock_holds(clock, wall_us) is second.clock_holds(clock, wall_us)


@given(walls(), st.sampled_from([-1, 0, 1, AHEAD_MS_MAX << TICK_BITS]), st.integers(-2, 2))
def test_both_decoders_judge_a_clock_at_the_edges_alike(wall_us: int, far: int, off: int) -> None:
    clock = clock_base(wall_us) + far + off
    assert clock_holds(clock, wall_us) is second.clock_holds(clock, wall_us)


def test_events_of_one_millisecond_count_up_from_the_wall() -> None:
    first = next_clock(None, WALL_US)
    assert first == WALL_US // 1_000 << TICK_BITS
    assert [next_clock(first, WALL_US), next_clock(first + 1, WALL_US + 1)] == [first + 1, first + 2]


def test_a_wall_that_goes_back_less_than_an_hour_does_not_turn_the_clock_back() -> None:
    clock = next_clock(None, WALL_US)
    assert next_clock(clock, WALL_US - HOUR_US) == clock + 1


def test_a_wall_that_goes_back_more_than_an_hour_starts_the_clock_again() -> None:
    clock = next_clock(None, WALL_US)
    behind = WALL_US - HOUR_US - 1_000
    assert next_clock(clock, behind) == clock_base(behind)


def test_a_wall_that_jumps_ahead_takes_the_clock_along() -> None:
    clock = next_clock(None, WALL_US)
    assert next_clock(clock, WALL_US + 5 * HOUR_US) == clock_base(WALL_US + 5 * HOUR_US)


def test_times_before_1970_have_the_base_nought() -> None:
    assert clock_base(-1) == clock_base(-(10**15)) == 0
    assert next_clock(None, -5_000) == 0
    assert next_clock(0, -5_000) == 1
