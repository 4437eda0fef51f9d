"""push."""

from typing import TYPE_CHECKING, Annotated

import typer

from cmf_agent.commands.options import AsJson, HubAddress
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text

if TYPE_CHECKING:
    from cmf_agent.push import PushReport

#: The hub was reached, and some events were not confirmed in time (design, section 6).
UNCONFIRMED_CODE = 3
_FIELDS = ("sent", "confirmed", "pending", "segments", "bytes")


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("push")(push)


def push(
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the hub's confirmation.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    hub_url: HubAddress = None,
    as_json: AsJson = False,
) -> None:
    """Send the hub what it has not confirmed, and wait until it has.

    Example: cmf-agent push --timeout 120

    Exit code 3: the hub was reached, some events are unconfirmed; 4: no hub was reached. Nothing is lost either way.
    """
    from cmf_agent.home import find_home
    from cmf_agent.hub_file import hub_in_force
    from cmf_agent.push import push as push_log

    home = find_home()
    report = push_log(home, hub_in_force(home, url=hub_url), timeout_s=timeout, dry_run=dry_run)
    for warning in report.warnings:
        print_warning(f"warning: {warning}")
    counts = {field: getattr(report, field) for field in _FIELDS}
    if as_json:
        print_json(counts)
    else:
        print_text(push_text(report, dry_run=dry_run))
    if report.pending and not dry_run:
        raise typer.Exit(UNCONFIRMED_CODE)


def push_text(report: "PushReport", *, dry_run: bool) -> str:
    """Return what a push did, or would do, as people read it."""
    return _would_send(report) if dry_run else _sent(report)


def _would_send(report: "PushReport") -> str:
    if not report.pending:
        return "nothing to send: the hub has everything"
    return f"would send {_events(report.pending)} in {_count(report.segments, 'segment')}, {_size(report.bytes)}"


def _sent(report: "PushReport") -> str:
    if report.pending:
        confirmed = f"the hub has confirmed {_events(report.confirmed)}, " if report.confirmed else ""
        return (
            f"{confirmed}{_events(report.pending)} not confirmed yet ({_size(report.bytes)} sent): nothing is lost, "
            "run `cmf-agent push` again, with a longer --timeout on a slow line"
        )
    if not report.confirmed and not report.sent:
        return "nothing to send: the hub has everything"
    every = "the event" if report.confirmed == 1 else f"all {report.confirmed} events"
    return f"the hub has confirmed {every} ({_size(report.bytes)} sent)"


def _events(count: int) -> str:
    return _count(count, "event")


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _size(count: int) -> str:
    for unit, scale in (("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
