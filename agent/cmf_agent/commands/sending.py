"""push."""

from typing import Annotated

import typer

from cmf_agent.commands.options import AsJson, HubAddress
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text

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
        print_text(", ".join(f"{count} {field}" for field, count in counts.items()))
    if report.pending and not dry_run:
        raise typer.Exit(UNCONFIRMED_CODE)
