"""A limit of bytes a second, and waits that grow."""

import pytest

from cmf_link.pace import PIECE_S, Backoff, Pace, read_rate
from cmf_protocol.errors import CallerError


def test_over_a_while_no_more_than_the_limit_is_sent_and_hardly_less() -> None:
    pace, now_s, sent = Pace(1_000.0), 50.0, 0
    while now_s < 150.0:
        if pace.wait_s(now_s):
            now_s += pace.wait_s(now_s)
        else:
            content = min(pace.content_max() or 0, 10_000)
            pace.spend(content // 3, content, now_s)
            sent += content // 3
    assert 0.95 <= sent / (100.0 * 1_000) <= 1.05


def test_a_piece_takes_about_two_seconds_however_well_it_packs() -> None:
    pace = Pace(1_000.0)
    pace.spend(100, 1_000, 0.0)
    assert pace.content_max() == int(1_000 * PIECE_S * 10)


def test_what_was_not_sent_in_a_quiet_hour_is_not_made_up_for() -> None:
    pace = Pace(1_000.0)
    pace.spend(1_000, 1_000, 3_600.0)
    assert pace.wait_s(3_600.0) == 1.0


def test_without_a_limit_nothing_waits() -> None:
    pace = Pace(None)
    pace.spend(10**9, 10**9, 0.0)
    assert (pace.wait_s(0.0), pace.content_max()) == (0.0, None)


@pytest.mark.parametrize(
    ("text", "rate"), [("64KB/s", 64_000), ("1.5 MB/s", 1_500_000), ("256kbit/s", 32_000), ("800bit/s", 100)]
)
def test_a_rate_is_read(text: str, rate: float) -> None:
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["", "64", "64KB", "-1KB/s", "1GB/s", "99B/s", "nan KB/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(CallerError):
        read_rate(text)


def test_waits_grow_to_the_longest_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0)
    for bound_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert bound_s / 2 <= backoff.next_s() <= bound_s
    backoff.reset()
    assert backoff.next_s() <= 1.0
