"""What this site holds, how much of it its hub has confirmed, and what it waits for.

This is the command that people and monitors call most often, so it imports next to nothing.
"""

from cmf_agent.home import Home, find_home
from cmf_agent.hub_file import HubFile, load_hub
from cmf_agent.outbox import Outbox
from cmf_agent.reading import LogReader, LogRow
from cmf_graph.database import sqlite_version, sqlite_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.times import rfc3339

Status = dict[str, object]


def site_status(home: Home) -> Status:
    """Return the fields of `cmf-agent status --json`; counts are of the events of all this site's logs."""
    hub = load_hub(home)
    with LogReader(home.log_path) as reader:
        logs = reader.logs()
    current = logs[-1] if logs else None
    published, confirmed, contact_us = _delivered(home, hub, logs)
    events = sum(log.head_sequence for log in logs)
    return {
        "site": hub.site if hub else None,
        "public_key": current.key.hex() if current else None,
        "log_id": current.log_id.hex() if current else None,
        "events": events,
        "published": published,
        "confirmed": confirmed,
        "pending": events - confirmed,
        "hub": hub.url if hub else None,
        "last_contact": rfc3339(contact_us),
        "sqlite_version": sqlite_version(),
        "home": str(home.path),
        "waits_for": _waits_for(hub, events - confirmed, contact_us),
    }


def _delivered(home: Home, hub: HubFile | None, logs: list[LogRow]) -> tuple[int, int, int | None]:
    """Return how many events were published, how many are confirmed, and when the hub last answered (µs)."""
    if hub is None:
        return 0, 0, None
    with Outbox(home.log_path, read_only=True) as outbox:
        confirmed = [outbox.confirmed(hub.hub_id, log.log_id) for log in logs]
        published = sum(outbox.published(hub.hub_id, log.log_id) for log in logs)
        contact = outbox.contact(hub.hub_id)
    return published, sum(place[0] for place in confirmed if place), contact.last_contact_us if contact else None


def _waits_for(hub: HubFile | None, pending: int, contact_us: int | None) -> str:
    if hub is None:
        return "a hub: join one with `cmf-agent join FILE`; until then everything is kept here"
    if not pending:
        return "nothing: the hub has confirmed every event"
    if contact_us is None:
        return f"the first push: {pending} events are to be sent with `cmf-agent push`"
    return f"{pending} events to be confirmed: send them with `cmf-agent push`"


def status_text(status: Status) -> str:
    """Return a status as people read it."""
    shown = {key: "-" if value is None else value for key, value in status.items()}
    lines = [f"{key.replace('_', ' '):<15}{value}" for key, value in shown.items() if key != "waits_for"]
    lines.append(f"{'waits for':<15}{status['waits_for']}")
    warning = sqlite_warning(str(status["sqlite_version"]))
    return "\n".join([*lines, *([f"{'warning':<15}{warning}"] if warning else [])])


def print_status(*, as_json: bool) -> None:
    """Print the status of the home in force."""
    status = site_status(find_home())
    if as_json:
        print_json(status)
    else:
        print_text(status_text(status))
