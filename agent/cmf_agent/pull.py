"""Pull: asks the hub what it lists for filters, and fetches what of it is lacking here.

Theory of operation: for each filter the hub first tells what is new in its lists, then the events that are lacking are fetched
(`fetching.py`). The next pull goes on from what is held: there is no position that could be lost.

    report = pull(home, hub, filters, timeout_s=60)             # a command: connects, says hello, pulls
    report = await pull_all(link, home, hub)                    # a daemon, on its own link: the subscriptions

Rules
- Nothing is kept that was not checked; something wrong ends the pull (`IntegrityError`).
- What the link or the hub can't do now is tried again until time is up; then the report says that it is not complete.
- One pull of a site at a time (a lock file).
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import IO

from cmf_agent.fetching import Asks, Fetch, OwnLogs, Progress, PullReport
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.listings import Asked, Listings
from cmf_agent.outbox import Outbox
from cmf_agent.pulled import Pulled
from cmf_agent.reading import LogReader
from cmf_agent.replaying import LogSource, ask_hub
from cmf_graph.locks import try_lock
from cmf_link.link import Link, connect
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.filters import Filter
from cmf_protocol.messages import HELLO_LOGS_MAX

#: How long a hub may take to be reached at all, s.
CONNECT_WAIT_S = 10.0
#: How long another pull of this site is waited for, s, and how often it is looked for.
LOCK_WAIT_S = 10.0
LOCK_LOOK_S = 0.1


def pull(
    home: Home,
    hub: HubFile,
    filters: Sequence[Filter] | None,
    *,
    prove: bool = False,
    subscribe: bool = False,
    timeout_s: float,
    progress: Progress = lambda _done, _total: None,
) -> PullReport:
    """Pull what filters list (None: the subscriptions) for at most `timeout_s` seconds; with `subscribe` remember them.

    Raises `HubUnreachable` or `AccessDenied` if no hub was reached, `IntegrityError` if it answers wrongly, `CallerError` for a
    filter that it can't take, `StoreError` while another pull of this site runs.
    """
    return asyncio.run(_pull(home, hub, filters, prove, subscribe, timeout_s, progress))


async def _pull(
    home: Home,
    hub: HubFile,
    filters: Sequence[Filter] | None,
    prove: bool,
    subscribe: bool,
    timeout_s: float,
    progress: Progress,
) -> PullReport:
    deadline = asyncio.get_running_loop().time() + timeout_s
    link = await connect(
        hub.url,
        seed=hub.login,
        name=f"cmf-agent {hub.site}",
        ca=hub.ca,
        timeout_s=min(CONNECT_WAIT_S, timeout_s),
    )
    try:
        with Outbox(home.log_path) as outbox:
            confirmed = await _say_hello(
                link, LogSource(home, hub, outbox), outbox, hub, min(CONNECT_WAIT_S, timeout_s)
            )
        if subscribe:
            note_subscriptions(home, filters or (), prove=prove)
        report = PullReport(hub=hub.url)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await pull_all(
                    link, home, hub, filters, prove=prove, confirmed=confirmed, progress=progress, report=report
                )
        return report
    finally:
        await link.close()


def note_subscriptions(home: Home, filters: Sequence[Filter], *, prove: bool) -> None:
    """Remember filters that are pulled from now on."""
    with Pulled(home.pulled_path) as pulled:
        for wanted in filters:
            Listings(pulled).ask(wanted, subscribe=True, prove=prove)


async def _say_hello(link: Link, source: LogSource, outbox: Outbox, hub: HubFile, timeout_s: float) -> dict[bytes, int]:
    """Say hello, which binds this site's key the first time, and return up to where the hub holds this site's own logs."""
    logs = {offer.log_id: offer.confirmed for offer in source.offers()}
    confirmed = dict.fromkeys(logs, 0)
    names = list(logs)
    for start in range(0, len(names), HELLO_LOGS_MAX):
        asked = {log_id: logs[log_id] for log_id in names[start : start + HELLO_LOGS_MAX]}
        answer = await ask_hub(link, hub, source.hello(asked), timeout_s)
        source.on_answer(answer)
        for log_id, sequence, event_id in answer.confirmed:
            if log_id in logs and outbox.event_id(log_id, sequence) == event_id:
                confirmed[log_id] = max(sequence, confirmed[log_id])
    return confirmed


async def pull_all(
    link: Asks,
    home: Home,
    hub: HubFile,
    filters: Sequence[Filter] | None = None,
    *,
    prove: bool = False,
    listen: bool = False,
    confirmed: Mapping[bytes, int] | None = None,
    progress: Progress = lambda _done, _total: None,
    report: PullReport | None = None,
) -> PullReport:
    """Pull what filters list (None: the subscriptions) over a link that has said hello, until all of it is here; may be cancelled.

    `confirmed` is up to where the hub holds this site's logs (by default what it confirmed last). With `listen` a notice `new`
    follows when there is more. Raises like `pull`; `report` is filled meanwhile.
    """
    report = report if report is not None else PullReport(hub=hub.url)
    lock = await _pull_lock(home)
    with lock, Pulled(home.pulled_path) as pulled, Outbox(home.log_path) as outbox:
        listings = Listings(pulled)
        if filters is None:
            asked = [each for each in listings.filters() if each.subscribed]
        else:
            asked = [listings.ask(wanted, prove=prove) for wanted in filters]
        if confirmed is None:
            confirmed = {log_id: (outbox.confirmed(hub.hub_id, log_id) or (0,))[0] for log_id in outbox.logs()}
        pulling = Fetch(link, hub, pulled, OwnLogs(outbox, confirmed, _own_keys(home), hub.url), progress, report)
        complete = []
        for each in asked:
            try:
                complete.append(await pulling.pull(each, prove or each.prove, listen))
            except CallerError as error:  # the hub can't take this filter; it is no reason to leave out the others
                if filters is not None:
                    _forget_new(listings, each)
                    raise
                report.warnings.append(f"{error} ({error.hint})")
    report.complete = len(complete) == len(asked) and all(complete)
    report.proven = report.complete and bool(asked) and all(prove or each.prove for each in asked)
    return report


async def _pull_lock(home: Home) -> IO[str]:
    deadline = asyncio.get_running_loop().time() + LOCK_WAIT_S
    while (lock := try_lock(home.path / "pull.lock")) is None:
        if asyncio.get_running_loop().time() > deadline:
            raise StoreError(
                "another pull of this site is running", "wait until it is done; it pulls the subscriptions too"
            )
        await asyncio.sleep(LOCK_LOOK_S)
    return lock


def _own_keys(home: Home) -> dict[bytes, bytes]:
    with LogReader(home.log_path) as reader:
        return {log.log_id: log.key for log in reader.logs()}


def _forget_new(listings: Listings, asked: Asked) -> None:
    if asked.as_of_us is None:
        listings.unsubscribe(asked.id, forget=True)
