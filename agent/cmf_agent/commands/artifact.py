"""artifact push, pull, list."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmf_agent.commands.artifact_output import showing, tell_report
from cmf_agent.commands.options import AsJson
from cmf_graph.output import Column, field, print_json, print_table
from cmf_graph.text import short_content_id
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_agent.artifact_bytes import Wanted
    from cmf_agent.needed import Asked, Needed

Refs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF", help="A file, digest or name, or an execution: what it used and produced. Repeatable."
    ),
]
Pipelines = Annotated[
    list[str] | None,
    typer.Option("-p", "--pipeline", help="What the executions of this pipeline used and produced; repeatable."),
]
Stage = Annotated[str | None, typer.Option("-s", "--stage", help="With -p: only those of this stage.")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only dataset, model, metrics, …")]
Inputs = Annotated[bool, typer.Option("--inputs", help="Of executions: only what they used.")]
Outputs = Annotated[bool, typer.Option("--outputs", help="Of executions: only what they produced.")]
RemoteName = Annotated[
    str | None, typer.Option("--remote", metavar="NAME", help="One of DVC's remotes, if not its default one.")
]
RemoteUrl = Annotated[str | None, typer.Option("--url", help="A remote's address, if it is not configured.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="How many files at a time; DVC's number by default.")
]
_NAME_HINT = (
    "name what to pull: a file, a digest, an execution, or -p PIPELINE; `cmf-agent artifact list` shows what there is"
)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Carry the bytes of artifacts to and from DVC's remote, and see where they are.\n\nExample: cmf-agent artifact push",
    )
    group.command("push")(push)
    group.command("pull")(pull)
    group.command("list")(list_)
    app.add_typer(group, name="artifact")


def push(
    refs: Refs = None,
    pipelines: Pipelines = None,
    stage: Stage = None,
    kind: Kind = None,
    inputs: Inputs = False,
    outputs: Outputs = False,
    remote: RemoteName = None,
    url: RemoteUrl = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Give DVC's remote the bytes that it lacks; without REF and -p, of all that this site recorded and its DVC cache holds.

    Example: cmf-agent artifact push -p mnist

    What has arrived stays: run it again after a cut, and it goes on. Exit code 1: something is missing here, or failed.
    """
    from cmf_agent.artifact_bytes import push_bytes
    from cmf_agent.home import find_home
    from cmf_agent.needed import needed, own_contents

    home = find_home()
    asked = _asked(refs, pipelines, stage, kind, inputs, outputs)
    is_all = not (asked.refs or asked.pipelines)
    wanted = [each for each in own_contents(home) if kind in (None, each.kind)] if is_all else needed(home, asked)
    report = push_bytes(home, wanted, _where(remote, url, jobs), only_cached=is_all, show=showing("pushing"))
    tell_report(report, "pushed", as_json=as_json)


def pull(
    refs: Refs = None,
    pipelines: Pipelines = None,
    stage: Stage = None,
    kind: Kind = None,
    inputs: Inputs = False,
    outputs: Outputs = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Put files below this folder, not into the project.")
    ] = None,
    checkout: Annotated[
        bool, typer.Option("--checkout/--no-checkout", help="Put files at their names, or only into DVC's cache.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there with other content.")] = False,
    remote: RemoteName = None,
    url: RemoteUrl = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the bytes of artifacts into DVC's cache, check them, and put them at their names in the project.

    Example: cmf-agent artifact pull model.pkl

    What is there with other content stays, unless --force is given. Run it again after a cut, and it goes on.
    Exit code 1: something could not be had, or not be put in place; 5: the remote holds something damaged.
    """
    from cmf_agent.artifact_bytes import pull_bytes
    from cmf_agent.home import find_home
    from cmf_agent.needed import needed

    home = find_home()
    asked = _asked(refs, pipelines, stage, kind, inputs, outputs)
    if not (asked.refs or asked.pipelines):
        raise CallerError("nothing was named to pull", _NAME_HINT)
    into = to or (home.root if checkout else None)
    wanted = needed(home, asked, by_name=True)
    if to is not None:
        wanted = [each._replace(names=_names_in_folder(each)) for each in wanted]
    report = pull_bytes(home, wanted, _where(remote, url, jobs), into=into, force=force, show=showing("pulling"))
    tell_report(report, "pulled", as_json=as_json)


def list_(
    refs: Refs = None,
    pipelines: Pipelines = None,
    stage: Stage = None,
    kind: Kind = None,
    inputs: Inputs = False,
    outputs: Outputs = False,
    check: Annotated[bool, typer.Option("--check", help="Ask the remote what it holds.")] = False,
    remote: RemoteName = None,
    url: RemoteUrl = None,
    as_json: AsJson = False,
) -> None:
    """List artifacts and where their bytes are: in DVC's cache, in the remote (with --check, --remote or --url).

    Example: cmf-agent artifact list -p mnist --check

    Without REF and -p: all that is known here to have been used or produced.
    """
    from cmf_agent.artifact_bytes import list_bytes
    from cmf_agent.home import find_home
    from cmf_agent.needed import known_contents, needed

    home = find_home()
    asked = _asked(refs, pipelines, stage, kind, inputs, outputs)
    is_all = not (asked.refs or asked.pipelines)
    wanted = [each for each in known_contents(home) if kind in (None, each.kind)] if is_all else needed(home, asked)
    items = list_bytes(home, wanted, _where(remote, url, None) if check or remote or url else None)
    if as_json:
        print_json({"items": items, "next": None})
    else:
        print_table(items, _COLUMNS, empty="no artifacts")


# -- what they share ---------------------------------------------------------------------------------------------------


def _places(item: Any) -> list[str]:
    return sorted({place["kind"] for place in item["locations"]})


_COLUMNS = (
    Column("name", lambda item: item["names"] or short_content_id(item["content_id"])),
    Column("content id", lambda item: item["content_id"]),
    field("kind"),
    field("size", right=True),
    field("cached"),
    field("remote"),
    Column("told of in", _places),
)


def _names_in_folder(each: "Needed") -> tuple[str, ...]:
    """Return the names of a content below a folder of the caller's: of one that leads out of it the last part; without any its digest."""
    names = {
        name.rpartition("/")[2] if name.startswith("/") or ".." in name.split("/") else name for name in each.names
    }
    return tuple(sorted(names)) or (each.content_id.partition(":")[2],)


def _asked(
    refs: list[str] | None,
    pipelines: list[str] | None,
    stage: str | None,
    kind: str | None,
    inputs: bool,
    outputs: bool,
) -> "Asked":
    from cmf_agent.needed import Asked

    if stage is not None and not pipelines:
        raise CallerError("--stage is about a pipeline", "name it with -p")
    usage = "" if inputs == outputs else "used" if inputs else "produced"
    return Asked(refs or (), pipelines or (), stage, kind, usage)


def _where(remote: str | None, url: str | None, jobs: int | None) -> "Wanted":
    from cmf_agent.artifact_bytes import Wanted

    if remote is not None and url is not None:
        raise CallerError("--remote and --url both name a remote", "give one of them")
    if "" in (remote, url):
        raise CallerError("an empty --remote or --url names no remote", "leave it out for DVC's default one")
    if url is not None and "://" not in url:
        # It is recorded, and what it is from here would say nothing elsewhere.
        url = os.path.abspath(Path(url).expanduser())  # noqa: PTH100
    return Wanted(remote, url, jobs)
