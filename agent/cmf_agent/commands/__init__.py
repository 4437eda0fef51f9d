"""The commands of `cmf-agent`, thin: each reads its options, calls one function and prints what it returns.

A new group of commands is a file here with a function that adds them to the app, called below.
"""

from typing import Annotated

import typer

from cmf_agent.commands import (
    artifact,
    asking,
    bundling,
    ingesting,
    pulling,
    reproducing,
    running,
    saying,
    sending,
    serving,
    setup,
    showing,
)
from cmf_agent.version import VERSION
from cmf_graph.output import print_text


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print_text(f"cmf-agent {VERSION}")
        raise typer.Exit


app = typer.Typer(
    name="cmf-agent",
    help="Records what ML pipelines do, with or without a network, and brings it to a hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Records what ML pipelines do, with or without a network, and brings it to a hub."""


for _group in (
    setup,
    running,
    reproducing,
    showing,
    saying,
    sending,
    pulling,
    serving,
    asking,
    bundling,
    ingesting,
    artifact,
):
    _group.add_to(app)
