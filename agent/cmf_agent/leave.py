"""Leaving a hub for good: pushes, makes sure, says so, and only then gives the membership up.

Rules
- Nothing is given up before the hub has said, just now, that it holds every event of every log of this site, by id.
- The hub hears that the site leaves before the site forgets its login: what is interrupted can be repeated.
- What is recorded meanwhile is not left behind: the heads are compared once more under the writers' lock. With `purge` the log is closed to
  writers there, so that a run that goes on is told that it records nothing any more, and then the whole folder goes.
"""

import asyncio
import shutil
from contextlib import closing
from dataclasses import dataclass, field

from cmf_agent.activity import read_activity
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.listings import Listings
from cmf_agent.locking import QueueLock
from cmf_agent.outbox import Outbox
from cmf_agent.pulled import Pulled
from cmf_agent.push import PUSH_LOCK, push
from cmf_agent.replaying import LogSource, ask_hub, target_of
from cmf_graph.database import connect, store_errors, transaction
from cmf_graph.locks import try_lock
from cmf_link.link import connect as connect_link
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.messages import HELLO_LOGS_MAX, HelloAnswer

#: How long one connection or one answer may take, s.
ANSWER_WAIT_S = 10.0

#: log id → sequence and event id of its newest event
Heads = dict[bytes, tuple[int, bytes]]


@dataclass
class LeaveReport:
    """Whether the site has left, with how many events; how many are unconfirmed if it has not; what the hub said."""

    events: int = 0
    pending: int = 0
    purged: bool = False
    warnings: list[str] = field(default_factory=list)


def leave(home: Home, hub: HubFile, *, timeout_s: float, purge: bool = False) -> LeaveReport:
    """Push for at most `timeout_s` seconds, and leave the hub if it holds everything then; else change nothing (`pending`).

    `purge` also removes the folder with the log and the keys. Raises `CallerError` while the daemon runs, `LinkError` if no hub was
    reached, `StoreError` if something was recorded in the meantime.
    """
    if read_activity(home) is not None:
        raise CallerError("this site's daemon runs: it would go on pushing", "stop it first, then leave")
    pushed = push(home, hub, timeout_s=timeout_s)
    report = LeaveReport(pending=pushed.pending, warnings=pushed.warnings)
    if pushed.pending:
        return report
    lock = try_lock(home.path / PUSH_LOCK)
    if lock is None:
        raise StoreError("another push of this site, or its daemon, has just started", "end it, then leave again")
    with lock:
        with Outbox(home.log_path) as outbox:
            heads = _heads(outbox)
            report.events = sum(sequence for sequence, _ in heads.values())
            report.pending = asyncio.run(_say_goodbye(LogSource(home, hub, outbox), hub, heads))
        if not report.pending:
            _give_up(home, heads, purge=purge)
            report.purged = purge
    return report


def _heads(outbox: Outbox) -> Heads:
    return {log_id: outbox.head(log_id) for log_id in outbox.logs()}


# -- the hub's word ----------------------------------------------------------------------------------------------------


async def _say_goodbye(source: LogSource, hub: HubFile, heads: Heads) -> int:
    """Say that the site leaves, if the hub holds everything; else return how many events it lacks."""
    target = target_of(hub)
    offered = {offer.chain: offer.confirmed for offer in source.offers()}
    asked = [log_id for log_id in heads if log_id in offered]
    link = await connect_link(target.url, seed=target.seed, name=target.name, ca=target.ca, timeout_s=ANSWER_WAIT_S)
    try:
        lacking = 0
        for start in range(0, len(asked), HELLO_LOGS_MAX):
            chunk = asked[start : start + HELLO_LOGS_MAX]
            answer = await ask_hub(
                link, hub, source.hello({log_id: offered[log_id] for log_id in chunk}), ANSWER_WAIT_S
            )
            lacking += sum(heads[log_id][0] - _held(answer, log_id, heads[log_id]) for log_id in chunk)
        if not lacking:
            source.leaving = True
            last = asked[-HELLO_LOGS_MAX:]
            await ask_hub(link, hub, source.hello({log_id: offered[log_id] for log_id in last}), ANSWER_WAIT_S)
    finally:
        await link.close()
    return lacking


def _held(answer: HelloAnswer, log_id: bytes, head: tuple[int, bytes]) -> int:
    """Return how much of a log the answer confirms: all of it, or what it names below the head."""
    if (log_id, *head) in answer.confirmed:
        return head[0]
    below = [sequence for found, sequence, _ in answer.confirmed if found == log_id and sequence < head[0]]
    return max(below, default=0)


# -- here --------------------------------------------------------------------------------------------------------------


def _give_up(home: Home, heads: Heads, *, purge: bool) -> None:
    """Forget the hub, and with `purge` everything; raise `StoreError`, with nothing changed, if the log has grown."""
    with closing(QueueLock(home.lock_path)) as lock, lock:
        with Outbox(home.log_path, read_only=True) as outbox:
            if _heads(outbox) != heads:
                raise StoreError(
                    "something was recorded while the site was leaving, and the hub does not have it",
                    "let what runs here end, then leave again",
                )
        if purge:
            _close_log(home)
        _unsubscribe(home)
        with store_errors(home.hub_path):
            home.hub_path.unlink()
    if purge:
        with store_errors(home.path):
            shutil.rmtree(home.path)


def _unsubscribe(home: Home) -> None:
    """Pull nothing of the hub any more; what was pulled stays."""
    if home.pulled_path.exists():
        with Pulled(home.pulled_path) as pulled:
            listings = Listings(pulled)
            for asked in listings.filters():
                listings.unsubscribe(asked.id, forget=False)


def _close_log(home: Home) -> None:
    """Make every further append fail, also of who has the database open."""
    with closing(connect(home.log_path)) as connection, transaction(connection, str(home.log_path)):
        connection.execute("ALTER TABLE events RENAME TO events_at_the_hub")
