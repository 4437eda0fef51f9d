"""The sending half of a replay (`replay.py`): hands cuts to the hub's buffer as fast as the limit, the line and the buffer let it.

Rules
- A full buffer, or a hub that can't take anything now, slows and loses nothing; each wait is longer and jittered.
- Whether a connection is dead is the watchdog's business: how long an acknowledgement may take follows the bytes on the way.
- A chain that is damaged here, or has an event that the hub's server can't take, stops alone.
- What is confirmed was sent, whether or not its acknowledgement came; each cut is told once.
"""

import asyncio
import secrets
from collections.abc import Callable

from cmf_link.link import Link
from cmf_link.pace import Backoff, Pace
from cmf_link.source import Source
from cmf_link.watchdog import SLOWEST_LINE
from cmf_protocol.chains import Cut
from cmf_protocol.errors import (
    AccessDenied,
    BackPressure,
    CallerError,
    CmfError,
    HubUnreachable,
    LinkError,
    PeerError,
)
from cmf_protocol.messages import Refusal
from cmf_protocol.sync import Moves, PushMachine

#: How long a hello or an acknowledgement may take beyond what the bytes on the way need, s: two long round trips and a busy hub.
ANSWER_WAIT_S = 10.0
#: First and longest wait after the buffer was full, or the hub took nothing, s.
FULL_WAIT_S = 0.25
FULL_WAIT_MAX_S = 10.0
#: How often what was published is passed on to be kept, s.
MARKS_EVERY_S = 1.0
#: The codes of refusals that are found here: a cut that the hub's server can't take, a chain that can't be read.
TOO_LARGE = "too-large"
DAMAGED = "damaged"


class _Damaged(Exception):
    """What follows in a chain can't be read."""

    def __init__(self, chain: bytes, error: PeerError) -> None:
        super().__init__(str(error))
        self.chain = chain


class Sender:
    """Sends what its machine says; `on_moves` is told what stops here, `on_change` that something happened."""

    def __init__(
        self,
        source: Source,
        carrier: str,
        bytes_per_s: float | None,
        on_moves: Callable[[Moves], None],
        on_change: Callable[[], None],
    ) -> None:
        self.machine = PushMachine(source.event_id_at, self._next_cut)
        #: What ends the work.
        self.error: CmfError | None = None
        #: Until when nothing is sent (the loop's time, s), and why.
        self.held_up_until_s = 0.0
        self.why_not = ""
        self._source = source
        self._subject = f"cmf.v1.log.{carrier}"
        self._on_moves = on_moves
        self._on_change = on_change
        self._pace = Pace(bytes_per_s)
        self._full = Backoff(FULL_WAIT_S, FULL_WAIT_MAX_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes_in_flight = 0
        #: What was handed over and is neither acknowledged nor confirmed: its size.
        self._untold: dict[Cut, int] = {}
        self._unmarked: set[bytes] = set()
        self._marks_at_s = 0.0

    def patience_s(self, size: int) -> float:
        """Return how long an answer to so many bytes may take: on the slowest line everything before it has to go first."""
        return ANSWER_WAIT_S + (self._bytes_in_flight + size) / SLOWEST_LINE

    # -- sending -------------------------------------------------------------------------------------------------------

    def send_due(self, link: Link) -> None:
        """Begin to send what may be sent now."""
        now_s = _now_s()
        while now_s >= self.held_up_until_s and not self._pace.wait_s(now_s):
            self.machine.line.bytes_limit = self._pace.content_max()
            found = self._next(now_s)
            if found is None:
                return
            cut, data = found
            self._pace.spend(len(data), cut.size, now_s)
            self._untold[cut] = len(data)
            task = asyncio.get_running_loop().create_task(self._send(link, cut, data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_cut(self, chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:
        try:
            return self._source.next_cut(chain, after, events_max, bytes_max)
        except PeerError as error:
            raise _Damaged(chain, error) from error

    def _next(self, now_s: float) -> tuple[Cut, bytes] | None:
        """Return the next cut and its bytes; None if there is none now."""
        while True:
            try:
                cut = self.machine.next_to_send(now_s)
            except _Damaged as damaged:
                self._stop(Refusal(b"", 0, b"", DAMAGED, str(damaged)), damaged.chain)
                continue
            if cut is None:
                return None
            try:
                return cut, self._source.data(cut)
            except PeerError as error:
                self._stop(Refusal(cut.log_id, cut.first_sequence, cut.last_id, DAMAGED, str(error)), cut.chain)
            except CmfError:
                self.machine.on_not_taken(cut, now_s)
                raise

    def _stop(self, refusal: Refusal, chain: bytes) -> None:
        self.machine.stop(chain, refusal, _now_s())
        self._on_moves(Moves({}, {}, {chain: refusal}))

    async def _send(self, link: Link, cut: Cut, data: bytes) -> None:
        self._bytes_in_flight += len(data)
        try:
            message_id = secrets.token_hex(16)
            ack = await link.publish(self._subject, data, message_id=message_id, timeout_s=self.patience_s(0))
        except CallerError as error:
            self._stop(Refusal(cut.log_id, cut.first_sequence, cut.last_id, TOO_LARGE, str(error)), cut.chain)
        except LinkError as error:
            self._on_failed(link, cut, error)
        except BaseException:
            self.machine.on_unknown(cut, _now_s())
            raise
        else:
            self.machine.on_published(cut, ack.stream_sequence, _now_s())
            self._full.reset()
            self._unmarked.add(cut.chain)
            self._tell_sent(cut)
        finally:
            self._bytes_in_flight -= len(data)
            self._on_change()

    def _on_failed(self, link: Link, cut: Cut, error: LinkError) -> None:
        if isinstance(error, AccessDenied):
            self.error = error
        else:
            self.why_not = str(error)
            self.held_up_until_s = _now_s() + self._full.next_s()
        nobody_took_it = isinstance(error, HubUnreachable) and link.connected
        if nobody_took_it or isinstance(error, AccessDenied | BackPressure):
            self._untold.pop(cut, None)
            self.machine.on_not_taken(cut, _now_s())
        else:
            self.machine.on_unknown(cut, _now_s())

    def go_on(self) -> None:
        """Send again at once: it may go well now."""
        self.held_up_until_s = 0.0
        self._full.reset()

    async def end(self) -> None:
        """Break off what is being sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what came of it -----------------------------------------------------------------------------------------------

    def on_moves(self, moves: Moves) -> None:
        """Take what was confirmed, or refused, of what was sent."""
        self._unmarked.update(moves.confirmed)
        for cut in list(self._untold):
            if cut.last_sequence <= moves.confirmed.get(cut.chain, (0, b""))[0]:
                self._tell_sent(cut)
            elif cut.chain in moves.refused:
                del self._untold[cut]

    def _tell_sent(self, cut: Cut) -> None:
        size = self._untold.pop(cut, None)
        if size is not None:
            self._source.on_sent(cut, size)

    def marks_due_in_s(self) -> float | None:
        """Return in how many seconds marks are to be passed on; None if there is nothing to be kept."""
        return self._marks_at_s - _now_s() if self._unmarked else None

    def pass_marks_on(self) -> None:
        """Have it kept how far everything was published; what can't be kept is passed on the next time."""
        self._marks_at_s = _now_s() + MARKS_EVERY_S
        found = {chain: self.machine.mark_of(chain) for chain in self._unmarked}
        self._source.on_marks({chain: mark for chain, mark in found.items() if mark is not None})
        self._unmarked.clear()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
