"""status, log and verify."""

from collections.abc import Mapping
from typing import Annotated

import typer

from cmf_agent.commands.options import AsJson
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.text import counted
from cmf_protocol.errors import IntegrityError


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("status")(status)
    app.command("log")(log)
    app.command("verify")(verify)


def status(as_json: AsJson = False) -> None:
    """Show what this site holds, how much of it the hub has confirmed, and what it waits for.

    Example: cmf-agent status --json
    """
    from cmf_agent.status import print_status

    print_status(as_json=as_json)


def log(
    pipeline: Annotated[str | None, typer.Option("-p", "--pipeline", help="Only events of this pipeline.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where a page ended (its `next`).")] = None,
    as_json: AsJson = False,
) -> None:
    """List this site's events, newest first.

    Example: cmf-agent log -p mnist --limit 10
    """
    from cmf_agent.history import history, history_text
    from cmf_agent.home import find_home

    page = history(find_home(), pipeline=pipeline, limit=limit, cursor=cursor)
    if as_json:
        print_json(page._asdict())
    else:
        print_text(history_text(page))


def verify(as_json: AsJson = False) -> None:
    """Check the whole log and what was pulled: file, chain of events, their hashes, signatures. Exit code 5 if one fails.

    Example: cmf-agent verify
    """
    from cmf_agent.home import find_home
    from cmf_agent.pulled_verify import verify_pulled
    from cmf_agent.verify import verify as verify_log

    report = verify_log(find_home())
    pulled, pulled_problems = verify_pulled(find_home())
    problems = [
        {"log_id": p.log_id.hex() if p.log_id else None, "sequence": p.sequence, "problem": p.text}
        for p in [*report.problems, *pulled_problems]
    ]
    counts = {"logs": report.logs, "events": report.events, "signatures": report.signatures, "pulled": pulled}
    if as_json:
        print_json({"ok": not problems, **counts, "problems": problems})
    elif not problems:
        also = f", {pulled} pulled events" if pulled else ""
        print_text(
            f"ok: {counted(report.events, 'event')} in {counted(report.logs, 'log')}, {counted(report.signatures, 'signature')}{also}"
        )
    for problem in problems:
        print_warning(_line(problem))
    if problems:
        raise typer.Exit(IntegrityError.exit_code)


def _line(problem: Mapping[str, object]) -> str:
    where = f"log {problem['log_id']} event {problem['sequence']}" if problem["log_id"] else "database"
    return f"{where}: {problem['problem']}"
