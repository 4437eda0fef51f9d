"""Bodies that came late, brought to another hub: a segment whose events it holds, sent once more, one at a time.

Rules
- One counts as brought when the other hub has confirmed just that; what it does not confirm in time goes behind the others, and is sent
  again later and later.
- One whose events the other hub does not hold yet, or refuses, holds up no other.
- What was brought is known by its bytes: numbers may be given anew when the store is brought back from a copy. Of a branch of which the
  other hub has lost something all is brought again.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NamedTuple

from cmf_hub.custody import Custody
from cmf_hub.upstreams import Progress
from cmf_link.link import Link
from cmf_link.pace import Backoff
from cmf_link.replay import Target
from cmf_protocol.errors import LinkError
from cmf_protocol.messages import Confirmation
from cmf_protocol.segments import decode_segment

#: How long the other hub may take to confirm what was brought, s.
CONFIRM_WAIT_S = 60.0
#: First and longest wait after one that was not confirmed, s.
FAILED_WAIT_S = 2.0
FAILED_WAIT_MAX_S = 600.0


class Late(NamedTuple):
    """A stored segment that brought bodies of events that were held: its number, branch and last sequence there, and its bytes' digest."""

    number: int
    branch: int
    last_sequence: int
    digest: bytes


class LateBodies:
    """What came late and another hub lacks; `is_confirmed` tells if it holds a branch (its number here) up to a sequence."""

    def __init__(
        self, custody: Custody, progress: Progress, target: Target, is_confirmed: Callable[[int, int], bool]
    ) -> None:
        self._custody = custody
        self._progress = progress
        self._target = target
        self._is_confirmed = is_confirmed
        self._read = 0
        self._waiting: dict[int, Late] = {}
        self._awaited: tuple[Confirmation, asyncio.Event] | None = None
        self._waits = Backoff(FAILED_WAIT_S, FAILED_WAIT_MAX_S)

    def on_confirm(self, confirmed: Iterable[Confirmation]) -> None:
        """See whether what was brought has arrived."""
        if self._awaited is not None and self._awaited[0] in confirmed:
            self._awaited[1].set()

    def on_restored(self, chain: bytes) -> None:
        """Begin anew with a branch of which the other hub has lost something."""
        self._progress.forget_supplied(self._target.hub_id, chain)
        self._read = 0
        self._waiting.clear()

    async def bring_next(self, link: Link) -> bool:
        """Bring what can be brought now, and wait until it is confirmed; return False if there is nothing.

        Raises `LinkError` and `TimeoutError` if it was not confirmed, after a wait.
        """
        late = self._next()
        if late is None:
            return False
        try:
            await self._bring(link, self._data(late.number))
        except (LinkError, TimeoutError):
            self._waiting.pop(late.number, None)
            self._waiting[late.number] = late
            await asyncio.sleep(self._waits.next_s())
            raise
        self._waits.reset()
        self._waiting.pop(late.number, None)
        chain = self._custody.rows("SELECT first_id FROM branches WHERE id = ?", (late.branch,))[0][0]
        self._progress.note_supplied(self._target.hub_id, chain, late.digest)
        return True

    def _next(self) -> Late | None:
        self._look()
        found = (late for late in self._waiting.values() if self._is_confirmed(late.branch, late.last_sequence))
        return next(found, None)

    def _look(self) -> None:
        """Read what was stored since the last look."""
        last = self._custody.last_segment()
        if last == self._read:
            return
        brought = self._progress.supplied(self._target.hub_id)
        sql = "SELECT id, branch, last_sequence FROM segments WHERE supplies = 1 AND id > ? AND id <= ? ORDER BY id"
        for number, branch, last_sequence in self._custody.rows(sql, (self._read, last)):
            late = Late(number, branch, last_sequence, sha256(self._data(number)).digest())
            if late.digest not in brought:
                self._waiting[number] = late
        self._read = last

    def _data(self, number: int) -> bytes:
        return bytes(self._custody.rows("SELECT data FROM segments WHERE id = ?", (number,))[0][0])

    async def _bring(self, link: Link, data: bytes) -> None:
        statement = decode_segment(data).statement
        self._awaited = (statement.log_id, statement.last_sequence, statement.last_id), asyncio.Event()
        try:
            async with asyncio.timeout(CONFIRM_WAIT_S):
                subject = f"cmf.v1.log.{self._target.carrier}"
                await link.publish(subject, data, message_id=os.urandom(16).hex(), timeout_s=CONFIRM_WAIT_S)
                await self._awaited[1].wait()
        finally:
            self._awaited = None
