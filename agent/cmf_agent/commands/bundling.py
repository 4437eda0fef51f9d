"""bundle export and bundle import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmf_agent.commands.options import AsJson
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.text import counted

if TYPE_CHECKING:
    from cmf_agent.brought import Brought
    from cmf_agent.bundle import Exported, Receipted
    from cmf_agent.home import Home

bundle_app = typer.Typer(
    no_args_is_help=True,
    help="Carry events and receipts by hand, where there is no link.\n\nExample: cmf-agent bundle export clinic-a.bundle",
)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    bundle_app.command("export")(export)
    bundle_app.command("import")(import_)
    app.add_typer(bundle_app, name="bundle")


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle to write; it must not exist.")],
    pipeline: Annotated[
        list[str] | None, typer.Option("-p", "--pipeline", help="Withhold the bodies of what is not about this one.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what the hub has confirmed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write what the hub has not confirmed to a file that someone carries there.

    Example: cmf-agent bundle export clinic-a.bundle

    There `cmf-hub import` takes it. Bring the hub's receipt back to `cmf-agent bundle import`: the next bundle then holds only
    what is new. A body that -p withholds the hub gets with a later `bundle export --all`.
    """
    from cmf_agent.bundle import export_bundle
    from cmf_agent.home import find_home

    done = export_bundle(find_home(), file, pipelines=pipeline or (), everything=everything)
    if as_json:
        print_json({"file": str(file) if done.segments else None, **vars(done)})
    else:
        print_text(export_text(done, file))


def export_text(done: "Exported", file: Path) -> str:
    """Return what was exported as people read it."""
    if not done.segments:
        return "nothing to carry: the hub has confirmed every event; `--all` writes them all the same"
    withheld = f", {done.withheld:,} of them without their body" if done.withheld else ""
    held = f"{counted(done.events, 'event')}{withheld} in {counted(done.segments, 'segment')}"
    return f"{file}: {held}, {done.bytes:,} bytes; next: cmf-hub import {file.name}"


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A hub's receipt, or another site's bundle.")],
    as_json: AsJson = False,
) -> None:
    """Take what someone carried here: a hub's receipt, or another site's bundle.

    Example: cmf-agent bundle import clinic-a.receipt

    A receipt says what the hub holds: that counts as confirmed. A bundle's events answer questions here from then on; its site is known
    by its key alone. Importing either again changes nothing.
    """
    from cmf_agent.bundle import take_receipt
    from cmf_agent.home import find_home
    from cmf_graph.carried import is_receipt

    home = find_home()
    if not is_receipt(file):
        _import_bundle(home, file, as_json=as_json)
        return
    taken = take_receipt(home, file)
    for code, message in dict.fromkeys((row.code, row.message) for row in taken.refused):
        print_warning(f"warning: the hub refused what was carried there ({code}): {message}")
    if as_json:
        print_json(receipt_json(taken))
    else:
        print_text(receipt_text(taken))


def _import_bundle(home: "Home", file: Path, *, as_json: bool) -> None:
    from cmf_agent.bundle import take_bundle
    from cmf_protocol.errors import IntegrityError, StoreError

    found = take_bundle(home, file)
    if as_json:
        print_json(bundle_json(found))
    else:
        print_text(
            f"{counted(found.segments, 'segment')}: {counted(found.events, 'event')} new here, "
            f"{counted(found.duplicates, 'segment')} here already, "
            f"{found.own:,} are this site's own, {len(found.refused):,} refused"
        )
    for problem in found.refused[1:]:
        print_warning(f"refused: {problem}")
    if found.refused:
        raise IntegrityError(f"refused: {found.refused[0]}", "the others were taken; ask who made the bundle")
    for log_id, sequence in found.waiting.items():
        raise StoreError(
            f"log {log_id.hex()}: what is before event {sequence} is not here, so what follows was not taken",
            "import the bundles before this one first, or one that `bundle export --all` made",
        )


def bundle_json(found: "Brought") -> dict[str, Any]:
    """Return what a bundle brought, as JSON has it."""
    waiting = [{"log_id": log_id.hex(), "first_sequence": first} for log_id, first in found.waiting.items()]
    counts = {name: getattr(found, name) for name in ("segments", "events", "duplicates", "own")}
    return {"kind": "bundle", **counts, "waiting": waiting, "refused": found.refused}


def receipt_json(taken: "Receipted") -> dict[str, Any]:
    """Return what a receipt brought, as JSON has it."""
    from cmf_graph.times import rfc3339

    refused = [{"code": row.code, "message": row.message} for row in taken.refused]
    return {
        "kind": "receipt", "time": rfc3339(taken.time_us), "confirmed": taken.confirmed, "pending": taken.pending,
        "refused": refused,
    }  # fmt: skip


def receipt_text(taken: "Receipted") -> str:
    """Return what a receipt brought as people read it."""
    news = f"{counted(taken.confirmed, 'event')} confirmed now" if taken.confirmed else "nothing new is confirmed"
    rest = f"{taken.pending:,} are not yet" if taken.pending else "the hub has confirmed every event"
    return f"{news}; {rest}"
