"""ingest cmf; `ingest dvc` is in ingesting_dvc.py."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_agent.commands.ingesting_dvc import dvc
from cmf_agent.commands.options import AsJson
from cmf_graph.output import print_json, print_text

ingest_app = typer.Typer(
    no_args_is_help=True,
    help="Bring in what other programs recorded; again, only what is new.\n\nExample: cmf-agent ingest cmf mlmd",
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be recorded.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    ingest_app.command("cmf")(cmf)
    ingest_app.command("dvc")(dvc)
    ingest_app.callback()(lambda: None)
    app.add_typer(ingest_app, name="ingest")


def cmf(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `cmf metadata export` wrote, or an MLMD SQLite file.")
    ],
    pipeline: Annotated[
        list[str] | None, typer.Option("-p", "--pipeline", help="Only this pipeline; may be given again.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Bring in the history of HPE's cmf: the JSON of `cmf metadata export`, or its MLMD SQLite file (`mlmd`).

    Example: cmf-agent ingest cmf mlmd

    Executions keep their uuid, artifacts their content, and all of them their times.
    Importing again records only what is new; at another site it makes no second entity.
    What has no place of its own is kept as a property, and named.
    """
    from cmf_agent.home import find_home
    from cmf_agent.ingest.importing import import_json, import_text, ingest_cmf

    done = ingest_cmf(find_home(), file, pipelines=pipeline or (), dry_run=dry_run)
    if as_json:
        print_json(import_json(done))
    else:
        print_text(import_text(done))
