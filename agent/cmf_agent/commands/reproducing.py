"""reproduce."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_agent.commands.options import AsJson
from cmf_graph.output import print_json, print_text
from cmf_protocol.errors import CallerError, CmfError


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("reproduce")(reproduce)


def reproduce(
    execution: Annotated[
        str, typer.Argument(help="An execution's id, its first six digits or more, or its name.", show_default=False)
    ],
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Lay it out in DIR, new or empty: code, inputs, run.sh, requirements.txt."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what it takes to run an execution again: code, inputs, environment, command, parameters.

    Example: cmf-agent reproduce 01980f3e-4c21 --into again && again/run.sh

    Works on what this site has recorded and pulled. --into clones the code (your checkout is left alone), applies the
    uncommitted changes if they were recorded (capture.diff = "full") and puts every input in its place, each checked by its
    digest: from files here, git, the DVC cache and remote. Nothing is run: read run.sh, then start it; it records in a
    project of its own, DIR/project.

    With --check and --into, the exit code is 1 if something is missing, which is listed.
    """
    from cmf_agent.home import find_home
    from cmf_agent.reproduce import layout
    from cmf_agent.reproduce.plan import plan_of
    from cmf_agent.reproduce.text import missing_lines, plan_text

    if into is not None and check:
        raise CallerError("--check and --into don't go together", "check first, then lay it out")
    home = find_home()
    plan = plan_of(home, execution)
    if into is not None:
        missing = layout.lay_out(home, plan, into)
        found = layout.document(plan)
        text = [f"laid out in {into}; read run.sh, then start it", *(missing_lines(missing) if missing else [])]
    else:
        state = layout.check(home, plan)
        missing = state.missing
        found = layout.document(plan, state.sources)
        text = missing_lines(missing) if check else [plan_text(plan, state)]
    if as_json:
        print_json(found | {"missing": missing})
    else:
        print_text("\n".join(text))
    if missing and (check or into is not None):
        raise typer.Exit(CmfError.exit_code)
