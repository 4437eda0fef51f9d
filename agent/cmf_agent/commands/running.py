"""run."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_agent.commands.options import read_pairs
from cmf_protocol.errors import CallerError

Paths = list[str]


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("run", context_settings={"allow_interspersed_args": False})(run)


def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- CMD...", help="The command to run, with its arguments.", show_default=False),
    ],
    *,
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="The pipeline's name.")],
    stage: Annotated[str, typer.Option("-s", "--stage", help="The stage's name.")],
    inputs: Annotated[
        Paths | None, typer.Option("-i", "--input", metavar="PATH", help="A file or folder that it reads; repeatable.")
    ] = None,
    outputs: Annotated[
        Paths | None,
        typer.Option("-o", "--output", metavar="PATH", help="A file or folder that it writes; repeatable."),
    ] = None,
    models: Annotated[
        Paths | None, typer.Option("-m", "--model", metavar="PATH", help="A model that it writes; repeatable.")
    ] = None,
    params: Annotated[list[str] | None, typer.Option("--param", metavar="K=V", help="A parameter; repeatable.")] = None,
    kind: Annotated[str, typer.Option(help="step or deploy.")] = "step",
    name: Annotated[str | None, typer.Option(help="A name for this run.")] = None,
) -> None:
    """Run a command and record it: inputs before, outputs after, and how it ended.

    Example: cmf-agent run -p mnist -s train -i data.csv -o model.pkl --param lr=0.1 -- python train.py

    The exit code is the command's own, 128 + n if signal n ended it, 127 if it was not found. Recording never
    stops the command: what could not be recorded is told on standard error.
    """
    from cmf_agent.wrapping import Wanted, record_command

    wanted = Wanted(
        pipeline=pipeline,
        stage=stage,
        command=command,
        inputs=_paths("-i", inputs),
        outputs=_paths("-o", outputs),
        models=_paths("-m", models),
        params=read_pairs(params or []),
        kind=kind,
        name=name,
    )
    raise typer.Exit(record_command(wanted))


def _paths(option: str, texts: Paths | None) -> list[Path]:
    if any(not text for text in texts or ()):  # as a path it would be the working directory, and all that is in it
        raise CallerError(f"{option} '' names no file", "give the path of a file or folder; is a variable empty?")
    return [Path(text) for text in texts or ()]
