"""init and join."""

from pathlib import Path
from typing import Annotated

import typer

from cmf_agent.commands.options import AsJson, HubAddress
from cmf_graph.output import print_json, print_text

JoinFile = Annotated[Path, typer.Argument(metavar="FILE", help="The join file that the hub's operator made.")]
Replace = Annotated[bool, typer.Option("--replace", help="Leave the hub or the site's name joined before.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("init")(init)
    app.command("join")(join)


def init(
    join_file: Annotated[
        Path | None, typer.Option("--join", metavar="FILE", help="Also join a hub, with the file its operator made.")
    ] = None,
    hub_url: HubAddress = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Make .cmf here: the event log, the site's signing key, a configuration to fill in.

    Example: cmf-agent init

    Harmless where it was made before. The hub can also be joined later; until then everything is kept here.
    """
    from cmf_agent.home import future_home, init_home
    from cmf_protocol.errors import CallerError

    if hub_url is not None and join_file is None:
        raise CallerError("--hub says where the hub of a join file is", "give the file too, with --join FILE")
    home = future_home()
    is_new = init_home(home)
    joined = _join(join_file, hub_url, replace) if join_file is not None else None
    if as_json:
        print_json({"home": str(home.path), "made": is_new, "site": joined})
        return
    print_text(f"made {home.path}" if is_new else f"{home.path} is there already; nothing changed")
    if is_new:
        print_text(
            f"next: `cmf-agent run -p PIPELINE -s STAGE -- CMD`; keep a copy of {home.key_path.parent} elsewhere"
        )
    if joined is not None:
        print_text(f"joined as {joined}; `cmf-agent push` sends what is recorded")


def join(join_file: JoinFile, hub_url: HubAddress = None, replace: Replace = False, as_json: AsJson = False) -> None:
    """Join a hub with the file that its operator made.

    Example: cmf-agent join clinic-a.join

    Nothing is sent yet: `cmf-agent push` does that.
    """
    site = _join(join_file, hub_url, replace)
    if as_json:
        print_json({"site": site})
    else:
        print_text(f"joined as {site}; `cmf-agent push` sends what is recorded")


def _join(join_file: Path, hub_url: str | None, replace: bool) -> str:
    from cmf_agent.home import find_home
    from cmf_agent.hub_file import join as join_hub

    return join_hub(find_home(), join_file, url=hub_url, replaces=replace).site
