"""Answers requests: one handler per subject, many requests at a time.

Rules
- Only a reply subject that the server made for a service import (`_R_.…`) is answered. Permissions do not
  check the reply subject that a sender states: a service that answers any of them can be made to publish into
  another site's subject (nats-io/nats-server issue 8274).
- A handler that raises is logged and answers nothing; it never ends the service.
- A slow request holds up no other one, up to `AT_ONCE_MAX`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cmf_link.connection import Received
from cmf_protocol.errors import CmfError

logger = logging.getLogger("cmf_link")

Handler = Callable[[str, bytes], Awaitable[bytes]]
Answer = Callable[[str, bytes], Awaitable[None]]

#: What the server puts before the reply subject of a request that came through a service import.
IMPORTED_REPLY = "_R_."
#: What NATS clients put before their own reply subjects.
INBOX_REPLY = "_INBOX."
#: Requests of one subject that are worked on at a time; more wait their turn.
AT_ONCE_MAX = 32


class Service:
    """One handler and the requests that it is working on."""

    def __init__(self, handler: Handler, answer: Answer, *, in_account_too: bool) -> None:
        self._handler = handler
        self._answer = answer
        self._replies = (IMPORTED_REPLY, INBOX_REPLY) if in_account_too else (IMPORTED_REPLY,)
        self._free = asyncio.Semaphore(AT_ONCE_MAX)
        self._working: set[asyncio.Task[None]] = set()

    async def receive(self, request: Received) -> None:
        """Begin to work on `request`, or drop it if its reply subject is not to be trusted."""
        if not request.reply.startswith(self._replies):
            logger.warning("a request on %s asks for its answer on %r: dropped", request.subject, request.reply)
            return
        await self._free.acquire()
        task = asyncio.get_running_loop().create_task(self._work(request))
        self._working.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._working.discard(task)
        self._free.release()

    async def _work(self, request: Received) -> None:
        try:
            await self._answer(request.reply, await self._handler(request.subject, request.data))
        except CmfError as error:
            logger.warning("a request on %s was not answered: %s", request.subject, error)
        except Exception:
            logger.exception("a request on %s was not answered", request.subject)
