from cmf_hub.granting import ACTIVE_S, AHEAD_S, GRANT_MAX, GRANT_MIN, Granting


def test_what_is_decided_in_two_seconds_is_divided_by_those_who_send() -> None:
    granting = Granting()
    for _ in range(100):
        granting.measured(10_000, 1.0)
    granting.heard("ana", 0.0)
    assert granting.grant(0.0) == GRANT_MAX
    for at in range(50):
        granting.heard(f"site-{at}", 0.0)
    assert abs(granting.grant(0.0) - AHEAD_S * 10_000 / 51) < 5
    for at in range(5_000):
        granting.heard(f"more-{at}", 1.0)
    assert granting.grant(1.0) == GRANT_MIN


def test_who_was_not_heard_lately_has_no_share() -> None:
    granting = Granting()
    for at in range(1_000):
        granting.heard(f"site-{at}", 0.0)
    granting.heard("site-0", ACTIVE_S)
    assert granting.grant(0.0) < granting.grant(ACTIVE_S + 0.1) == GRANT_MAX


def test_small_batches_say_nothing_about_the_rate() -> None:
    granting = Granting()
    granting.heard("ana", 0.0)
    for _ in range(1_000):
        granting.measured(1, 0.01)
    assert granting.grant(0.0) == GRANT_MAX
