"""init, join and leave."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmf_agent.commands.options import AsJson, HubAddress
from cmf_agent.commands.sending import UNCONFIRMED_CODE
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text

if TYPE_CHECKING:
    from cmf_agent.home import Home
    from cmf_agent.hub_file import HubFile
    from cmf_agent.leave import LeaveReport
    from cmf_agent.restoring import Restored

JoinFile = Annotated[Path, typer.Argument(metavar="FILE", help="The join file that the hub's operator made.")]
Replace = Annotated[bool, typer.Option("--replace", help="Leave the hub or the site's name joined before.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("init")(init)
    app.command("join")(join)
    app.command("leave")(leave)


def init(
    join_file: Annotated[
        Path | None, typer.Option("--join", metavar="FILE", help="Also join a hub, with the file its operator made.")
    ] = None,
    restores: Annotated[
        bool,
        typer.Option("--restore", help="Bring back from that hub what this site recorded before its disk was lost."),
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="With --restore: a copy of the old keys/signing.key.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="With --restore: seconds to wait for the hub.")] = 600.0,
    hub_url: HubAddress = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Make .cmf here: the event log, the site's signing key, a configuration to fill in.

    Example: cmf-agent init

    Harmless where it was made before. The hub can also be joined later; until then everything is kept here.

    After a lost disk: cmf-agent init --join FILE --restore, with a file that `cmf-hub site rejoin NAME -o FILE` made. What is recorded
    from then on goes into a log that goes on from the old ones. Exit code 3: time was up; run it again, it goes on from there.
    """
    from cmf_agent.home import future_home, init_home
    from cmf_agent.schema import is_restoring
    from cmf_protocol.errors import CallerError

    if (hub_url is not None or restores) and join_file is None:
        raise CallerError("--hub and --restore are about the hub of a join file", "give the file too, with --join FILE")
    if key_file is not None and not restores:
        raise CallerError("--key is for --restore", "a new site makes a key of its own")
    home = future_home()
    if join_file is not None and restores:
        _restore(home, join_file, hub_url, key_file, replace, timeout, as_json=as_json)
        return
    if is_restoring(home.log_path):
        raise CallerError(
            f"a restore into {home.path} has not come to its end",
            f"run it again, with --restore; or remove {home.path / 'restoring'} to begin anew without it",
        )
    is_new = init_home(home)
    joined = _join(join_file, hub_url, replace) if join_file is not None else None
    if as_json:
        print_json({"home": str(home.path), "made": is_new, "site": joined.site if joined is not None else None})
        return
    print_text(f"made {home.path}" if is_new else f"{home.path} is there already; nothing changed")
    if is_new:
        print_text(
            f"next: `cmf-agent run -p PIPELINE -s STAGE -- CMD`; keep a copy of {home.key_path.parent} elsewhere"
        )
    if joined is not None:
        print_text(_joined_text(joined))


def _restore(
    home: "Home",
    join_file: Path,
    hub_url: str | None,
    key_file: Path | None,
    replace: bool,
    timeout: float,
    *,
    as_json: bool,
) -> None:
    from cmf_agent.progress import counting_progress
    from cmf_agent.restoring import restore

    with counting_progress("bringing back") as progress:
        done = restore(
            home, join_file, url=hub_url, key_file=key_file, replaces=replace, timeout_s=timeout, progress=progress
        )
    if as_json:
        print_json({"home": str(home.path), "made": done.is_complete, "site": done.site, **restored_json(done)})
    else:
        print_text(restored_text(done, home))
    if not done.is_complete:
        raise typer.Exit(UNCONFIRMED_CODE)
    if not done.is_proven:
        print_warning(
            "the signing key is another one than before, so the new log is not provably this site's earlier one: what it later retracts "
            "of earlier events is shown as a dispute; a copy of .cmf/keys, kept elsewhere and given with --key, prevents that"
        )


def restored_json(done: "Restored") -> dict[str, object]:
    """Return what a restore did, as JSON has it."""
    counts = {"logs": done.logs, "events": done.events, "left_at_hub": done.left}
    return {"restored": {**counts, "proven": done.is_proven, "complete": done.is_complete}}


def restored_text(done: "Restored", home: "Home") -> str:
    """Return what a restore did, as people read it."""
    if not done.is_complete:
        return "not all of it came yet: run the same command again, it goes on from here; until then nothing can be recorded"
    lines = [
        f"made {home.path}; brought back {done.events:,} events of {done.site} in {done.logs} log{'' if done.logs == 1 else 's'}",
        f"what is recorded from now on goes into a new log; keep a copy of {home.key_path.parent} elsewhere",
    ]
    if done.left:
        lines.append(
            f"{done.left} other branch{'' if done.left == 1 else 'es'} of these logs, which a copy of them recorded, stay at the hub: "
            f"`cmf-agent pull --site {done.site}` fetches them"
        )
    return "\n".join(lines)


def join(join_file: JoinFile, hub_url: HubAddress = None, replace: Replace = False, as_json: AsJson = False) -> None:
    """Join a hub with the file that its operator made.

    Example: cmf-agent join clinic-a.join

    Nothing is sent yet: `cmf-agent push` does that.
    """
    joined = _join(join_file, hub_url, replace)
    if as_json:
        print_json({"site": joined.site})
    else:
        print_text(_joined_text(joined))


def leave(
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the hub's confirmation.")] = 60.0,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove .cmf, with the log and the keys.")] = False,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask before removing.")] = False,
    hub_url: HubAddress = None,
    as_json: AsJson = False,
) -> None:
    """Leave the hub for good: push, make sure that it holds everything, tell it, forget the login.

    Example: cmf-agent leave --purge

    Exit code 3: some events are unconfirmed; 4: no hub was reached, or it refuses this site. Nothing is changed then. Where the hub is
    gone for good, remove .cmf by hand: what it has not confirmed is lost with it.
    """
    from cmf_agent.home import find_home
    from cmf_agent.hub_file import hub_in_force
    from cmf_agent.leave import leave as leave_hub

    home = find_home()
    hub = hub_in_force(home, url=hub_url)
    if purge and not is_sure:
        _ask_before_removing(home)
    report = leave_hub(home, hub, timeout_s=timeout, purge=purge)
    for warning in report.warnings:
        print_warning(f"warning: {warning}")
    if as_json:
        counts = {"events": report.events, "pending": report.pending, "purged": report.purged}
        print_json({"site": hub.site, "left": not report.pending, **counts})
    else:
        print_text(leave_text(report, hub.site, home))
    if report.pending:
        raise typer.Exit(UNCONFIRMED_CODE)


def _ask_before_removing(home: "Home") -> None:
    from cmf_protocol.errors import CallerError

    if not sys.stdin.isatty():
        raise CallerError(f"--purge removes {home.path} with the log and the keys", "say --yes too, if that is meant")
    typer.confirm(f"Remove {home.path} with the log and the keys, once the hub has everything?", abort=True, err=True)


def leave_text(report: "LeaveReport", site: str, home: "Home") -> str:
    """Return what leaving came to, as people read it."""
    if report.pending:
        return (
            f"NOT left: the hub has not confirmed {report.pending:,} events; nothing was changed here\n"
            "run `cmf-agent leave` again, with a longer --timeout on a slow line"
        )
    end = f"removed {home.path}" if report.purged else "the log stays here; `cmf-agent join FILE` would join again"
    return f"the hub has confirmed all {report.events:,} events, and knows that {site} has left\n{end}"


def _joined_text(hub: "HubFile") -> str:
    if hub.address is None:
        return f"joined as {hub.site}, without a link; `cmf-agent bundle export FILE` writes what is recorded, to be carried"
    return f"joined as {hub.site}; `cmf-agent push` sends what is recorded"


def _join(join_file: Path, hub_url: str | None, replace: bool) -> "HubFile":
    from cmf_agent.home import find_home
    from cmf_agent.hub_file import join as join_hub

    return join_hub(find_home(), join_file, url=hub_url, replaces=replace)
