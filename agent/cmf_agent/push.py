"""Push: replays what the hub has not confirmed, and returns when it has, or when time is up.

Theory of operation: `cmf_link.replay` does it, by what `cmf_protocol.sync` decides, with this site's logs as its source
(`replaying.py`). Nothing here decides that an event is delivered but the hub's word about that event's id.

Rules
- One push per site at a time (a lock file, which the daemon holds too); the log may grow meanwhile, what comes after the start waits for
  the next push.
- Where the daemon holds the lock, a push waits for what the daemon brings over, and reports that.
- Memory follows the window, not the backlog.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from cmf_agent.activity import read_activity
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.outbox import Outbox
from cmf_agent.progress import counting_progress
from cmf_agent.replaying import LogSource, target_of
from cmf_graph.locks import try_lock
from cmf_link.replay import Replay, ReplayState
from cmf_protocol.errors import HubUnreachable, StoreError
from cmf_protocol.messages import Refusal

#: Held by whoever replays this site's logs.
PUSH_LOCK = "push.lock"
#: How often a push looks how far the daemon has come, s.
DAEMON_LOOK_S = 0.05


@dataclass
class PushReport:
    """What a push did: events handed to the hub, newly confirmed, still unconfirmed; segments and bytes that were sent."""

    sent: int = 0
    confirmed: int = 0
    pending: int = 0
    segments: int = 0
    bytes: int = 0
    hub: str = ""
    refused: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def push(home: Home, hub: HubFile, *, timeout_s: float, dry_run: bool = False) -> PushReport:
    """Replay what is not confirmed, for at most `timeout_s` seconds.

    Raises `HubUnreachable` if no hub was reached in that time, `AccessDenied` if it refuses this site, `StoreError` while another push
    runs; events that are unconfirmed at the end are `pending` in the report.
    """
    if dry_run:
        return _estimate(home, hub)
    if home.locations_path.exists():
        from cmf_agent.dvc.stored import tell_commits  # never fails

        tell_commits(home)
    with contextlib.ExitStack() as stack:
        lock = try_lock(home.path / PUSH_LOCK)
        if lock is None and read_activity(home) is not None:
            return _beside_daemon(home, hub, timeout_s)
        if lock is None:
            raise StoreError("another push of this site is running", "wait until it is done; it pushes your events too")
        stack.callback(lock.close)
        source = LogSource(home, hub, stack.enter_context(Outbox(home.log_path)))
        report = PushReport(hub=hub.url)
        asyncio.run(_push(source, hub, timeout_s, report))
        return report


def _estimate(home: Home, hub: HubFile) -> PushReport:
    """Return what would be sent, by what this site knows of the hub: whoever replays meanwhile is not disturbed."""
    report = PushReport(hub=hub.url)
    with Outbox(home.log_path, read_only=True) as outbox:
        for events, size in LogSource(home, hub, outbox).estimate():
            report.pending += events
            report.segments += 1
            report.bytes += size
    return report


def _beside_daemon(home: Home, hub: HubFile, timeout_s: float) -> PushReport:
    """Wait until the daemon of this site has brought over what is recorded now; raise `HubUnreachable` if it does not reach the hub."""
    report = PushReport(hub=hub.url)
    activity = read_activity(home)
    deadline = time.monotonic() + timeout_s
    with Outbox(home.log_path, read_only=True) as outbox:
        heads = {log_id: outbox.head(log_id)[0] for log_id in outbox.logs()}

        def confirmed() -> int:
            places = {log_id: outbox.confirmed(hub.hub_id, log_id) for log_id in heads}
            return sum(min(place[0], heads[log_id]) for log_id, place in places.items() if place)

        before, total = confirmed(), sum(heads.values())
        while (done := confirmed()) < total and time.monotonic() < deadline and (activity := read_activity(home)):
            time.sleep(DAEMON_LOOK_S)
    report.confirmed, report.pending = max(done - before, 0), total - done
    if report.pending and activity is not None and activity.state == "connecting":
        raise HubUnreachable(
            f"the daemon does not reach the hub: {activity.detail}", "nothing is lost; it goes on trying"
        )
    if report.pending:
        state = (
            f"is {activity.state}" + (f": {activity.detail}" if activity.detail else "") if activity else "has ended"
        )
        report.warnings.append(f"the daemon {state}")
    return report


async def _push(source: LogSource, hub: HubFile, timeout_s: float, report: PushReport) -> None:
    with counting_progress("confirmed") as show:

        def on_state(state: ReplayState) -> None:
            show(source.confirmed, source.confirmed + state.pending)

        replay = Replay(target_of(hub), source, on_state=on_state)
        await replay.until_confirmed(timeout_s)
    report.sent, report.segments, report.bytes = source.sent
    report.confirmed, report.pending = source.confirmed, replay.machine.pending
    report.refused, report.warnings = list(source.refused.values()), source.warnings
    for code, message in dict.fromkeys((refusal.code, refusal.message) for refusal in report.refused):
        report.warnings.append(f"the hub refuses what was sent ({code}): {message}")
