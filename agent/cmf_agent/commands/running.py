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
        Paths | None,
        typer.Option("-i", "--input", metavar="PATH", help="A file or folder that it reads, or a pattern; repeatable."),
    ] = None,
    outputs: Annotated[
        Paths | None,
        typer.Option(
            "-o", "--output", metavar="PATH", help="A file or folder that it writes, or a pattern; repeatable."
        ),
    ] = None,
    models: Annotated[
        Paths | None,
        typer.Option("-m", "--model", metavar="PATH", help="A model that it writes, or a pattern; repeatable."),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="K=V", help="A parameter; repeatable. It counts more than those of --params."),
    ] = None,
    params_files: Annotated[
        list[str] | None,
        typer.Option(
            "--params",
            metavar="FILE[:KEY,KEY]",
            help="Parameters from a YAML, JSON or TOML file: its top-level keys, or only those named, such as "
            "train.lr. The file is an input. Repeatable; of two that say the same, the later one counts.",
        ),
    ] = None,
    metrics: Annotated[
        Paths | None,
        typer.Option(
            "--metrics",
            metavar="FILE",
            help="Metrics that it writes, read at its end: the numbers in JSON, YAML or TOML, the columns of CSV or TSV "
            "(by the column step, iteration or epoch, else by row from 0). The file is an output; if the command has not "
            "written it, no metric is read. Repeatable.",
        ),
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Commit the .dvc files of inputs and outputs to git.")
    ] = False,
    machine_metrics: Annotated[
        bool, typer.Option("--machine-metrics", help="Record CPU and memory use too (extra: machine).")
    ] = False,
    kind: Annotated[str, typer.Option(help="step or deploy.")] = "step",
    name: Annotated[str | None, typer.Option(help="A name for this run.")] = None,
) -> None:
    """Run a command and record it: inputs before, outputs after, and how it ended.

    Example: cmf-agent run -p mnist -s train -i 'data/*.csv' -o model.pkl --params params.yaml -- python train.py

    Quote a pattern (* and ?, and ** for any number of folders), so that the shell leaves it alone. One for inputs that
    matches nothing is an error, and nothing is run; one for outputs is recorded as missing.

    The exit code is the command's own, 128 + n if signal n ended it, 127 if it was not found. Recording never
    stops the command: what could not be recorded is told on standard error.
    """
    from cmf_agent.parameters import read_params
    from cmf_agent.wrapping import Wanted, record_command

    files = [read_params(text) for text in params_files or ()]
    values = {key: value for _, found in files for key, value in found.items()} | read_pairs(params or [])
    wanted = Wanted(
        pipeline=pipeline,
        stage=stage,
        command=command,
        inputs=list(dict.fromkeys([*_existing(_named("-i", inputs)), *(path for path, _ in files)])),
        outputs=_named("-o", outputs),
        models=_named("-m", models),
        params=values,
        kind=kind,
        name=name,
        metrics=[Path(text) for text in dict.fromkeys(_named("--metrics", metrics))],
        commit=commit,
        machine_metrics=machine_metrics,
    )
    raise typer.Exit(record_command(wanted))


def _named(option: str, texts: Paths | None) -> Paths:
    if any(not text for text in texts or ()):  # as a path it would be the working directory, and all that is in it
        raise CallerError(f"{option} '' names no file", "give the path of a file or folder; is a variable empty?")
    return list(texts or ())


def _existing(texts: Paths) -> list[Path]:
    """Return the paths that inputs name, those that patterns match among them; raise `CallerError` if one matches nothing."""
    from cmf_agent.globs import is_pattern, matches

    found: list[Path] = []
    for text in texts:
        paths = matches(text) if is_pattern(text) else [Path(text)]
        if not paths:
            raise CallerError(
                f"nothing matches -i {text!r}, and the command was not started",
                "patterns are looked up in the working directory; write the path of a file that may be missing in full",
            )
        found += paths
    return found
