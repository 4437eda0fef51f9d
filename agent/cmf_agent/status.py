"""What this site holds, how much of it its hub has confirmed, and what it waits for.

Rules
- This is the command that people and monitors call most often, so it imports next to nothing; what reads events is imported
  where there are several logs.
"""

from cmf_agent.activity import Activity, read_activity
from cmf_agent.home import Home, find_home
from cmf_agent.hub_file import HubFile, load_hub
from cmf_agent.outbox import Outbox
from cmf_agent.place import reason_to_succeed
from cmf_agent.reading import LogReader, LogRow
from cmf_graph.database import connect, sqlite_version, sqlite_warning, store_errors
from cmf_graph.output import print_json, print_text
from cmf_graph.text import counted
from cmf_graph.times import rfc3339

Status = dict[str, object]


def site_status(home: Home) -> Status:
    """Return the fields of `cmf-agent status --json`; counts are of the events of all this site's logs.

    `log_id` is the log that is appended to. `logs` is there where there are several, oldest first. `note` says why the next
    event opens another log, None if it does not.
    """
    hub = load_hub(home)
    with LogReader(home.log_path) as reader:
        logs = reader.logs()
        published, confirmed, contact_us = _delivered(home, hub, logs)
        several = {"logs": _several(reader, logs, confirmed)} if len(logs) > 1 else {}
    current = logs[-1] if logs else None
    events = sum(log.head_sequence for log in logs)
    pending = events - sum(confirmed)
    daemon = read_activity(home)
    return {
        "site": hub.site if hub else None,
        "public_key": current.key.hex() if current else None,
        "log_id": current.log_id.hex() if current else None,
        **several,
        "events": events,
        "published": published,
        "confirmed": sum(confirmed),
        "pending": pending,
        "hub": hub.address if hub else None,
        "last_contact": rfc3339(contact_us),
        "sqlite_version": sqlite_version(),
        "home": str(home.path),
        "note": _note(home),
        "daemon": _daemon(daemon),
        "waits_for": _waits_for(hub, pending, contact_us, daemon),
    }


def _daemon(found: Activity | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {"pid": found.pid, "state": found.state, "detail": found.detail or None, "since": rfc3339(found.since_us)}


def _delivered(home: Home, hub: HubFile | None, logs: list[LogRow]) -> tuple[int, list[int], int | None]:
    """Return how many events were published, how many of each log are confirmed, and when the hub last answered (µs)."""
    if hub is None:
        return 0, [0] * len(logs), None
    with Outbox(home.log_path, read_only=True) as outbox:
        confirmed = [outbox.confirmed(hub.hub_id, log.log_id) for log in logs]
        published = sum(outbox.published(hub.hub_id, log.log_id) for log in logs)
        contact = outbox.contact(hub.hub_id)
    return published, [place[0] if place else 0 for place in confirmed], contact.last_contact_us if contact else None


def _several(reader: LogReader, logs: list[LogRow], confirmed: list[int]) -> list[dict[str, object]]:
    from cmf_agent.successions import succession_of

    items: list[dict[str, object]] = []
    for log, count in zip(logs, confirmed, strict=True):
        succession = succession_of(reader, log)
        items.append(
            {
                "log_id": log.log_id.hex(),
                "predecessor": succession.log_id.hex() if succession else None,
                "reason": succession.reason if succession else None,
                "opened": rfc3339(log.opened_us),
                "events": log.head_sequence,
                "confirmed": count,
            }
        )
    return items


def _note(home: Home) -> str | None:
    connection = connect(home.log_path, read_only=True)
    try:
        with store_errors(home.log_path):
            reason = reason_to_succeed(home, connection)
    finally:
        connection.close()
    return f"the next event opens a successor log: {reason}" if reason else None


def _waits_for(hub: HubFile | None, pending: int, contact_us: int | None, daemon: Activity | None) -> str:
    if hub is None:
        return "a hub: join one with `cmf-agent join FILE`; until then everything is kept here"
    if not pending:
        return "nothing: the hub has confirmed every event"
    if hub.address is None:
        return f"{counted(pending, 'event')} to be confirmed: carry them with `cmf-agent bundle export FILE`, and the hub's receipt back"
    if daemon is not None:
        return f"{counted(pending, 'event')} to be confirmed: the daemon is {daemon.state}" + (
            f" ({daemon.detail})" if daemon.detail else ""
        )
    if contact_us is None:
        return f"the first push: {counted(pending, 'event')} to be sent with `cmf-agent push`"
    return f"{counted(pending, 'event')} to be confirmed: send them with `cmf-agent push`"


def status_text(status: Status) -> str:
    """Return a status as people read it."""
    lines: list[str] = []
    for key, value in status.items():
        if isinstance(value, list):
            lines += [_line("logs", len(value)), *(f"  {_log_text(log)}" for log in value)]
        elif isinstance(value, dict):
            detail = f": {value['detail']}" if value["detail"] else ""
            lines.append(_line(key, f"process {value['pid']}, {value['state']} since {value['since']}{detail}"))
        elif key != "note" or value is not None:
            lines.append(_line(key, "-" if value is None else value))
    warning = sqlite_warning(str(status["sqlite_version"]))
    return "\n".join([*lines, *([_line("warning", warning)] if warning else [])])


def _line(key: str, value: object) -> str:
    return f"{key.replace('_', ' '):<15}{value}"


def _log_text(log: dict[str, object]) -> str:
    from cmf_graph.text import clean

    since = f", goes on from {str(log['predecessor'])[:8]}: {clean(str(log['reason']))}" if log["predecessor"] else ""
    return f"{log['log_id']}  {counted(int(str(log['events'])), 'event')}, {log['confirmed']} confirmed; opened {log['opened']}{since}"


def print_status(*, as_json: bool) -> None:
    """Print the status of the home in force."""
    status = site_status(find_home())
    if as_json:
        print_json(status)
    else:
        print_text(status_text(status))
