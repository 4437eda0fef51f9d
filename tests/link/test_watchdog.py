"""When a connection on which nothing moves any more is given up: it follows what answers have shown of the line."""

import asyncio

from cmf_link.watchdog import SLOWEST_LINE, Shown, until_silent

MANY_BYTES = 2_000_000


class Silent:
    """A connection that has sent much, of which nothing waits here, and that never answers again."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.doubt = asyncio.Event()
        self.doubt.set()

    async def ping(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    def bytes_read(self) -> int:
        return 0

    def bytes_left(self) -> int:
        return MANY_BYTES

    def unsent_bytes(self) -> int:
        return 0


def is_given_up(shown: Shown, within_s: float) -> bool:
    async def main() -> bool:
        try:
            async with asyncio.timeout(within_s):
                await until_silent(Silent(shown))
        except TimeoutError:
            return False
        return True

    return asyncio.run(main())


def test_a_line_that_was_fast_is_given_up_soon_though_much_is_on_the_way() -> None:
    shown = Shown()
    shown.on_answer(50_000, 50_000, took_s=0.005)
    assert is_given_up(shown, within_s=50)


def test_what_has_arrived_is_not_waited_for() -> None:
    shown = Shown()
    shown.on_answer(MANY_BYTES, 100, took_s=0.001)
    assert shown.bytes_per_s == SLOWEST_LINE
    assert is_given_up(shown, within_s=50)


def test_a_line_of_which_nothing_is_known_may_be_the_slowest() -> None:
    assert not is_given_up(Shown(), within_s=6)


def test_a_slow_answer_never_shows_less_than_the_slowest_line() -> None:
    shown = Shown()
    shown.on_answer(5_000, 5_000, took_s=60)
    assert shown.bytes_per_s == SLOWEST_LINE
