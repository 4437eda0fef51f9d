"""The commands of `cmf-agent`, thin: each reads its options, calls one function and prints what it returns.

A new group of commands is a file here with a function that adds them to the app, called below.
"""

import typer

from cmf_agent.commands import asking, running, saying, sending, setup, showing

app = typer.Typer(
    name="cmf-agent",
    help="Records what ML pipelines do, with or without a network, and brings it to a hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _group in (setup, running, showing, saying, sending, asking):
    _group.add_to(app)
