"""describe, tag, untag, note, retract, unretract."""

from typing import Annotated

import typer

from cmf_agent.commands.options import AsJson, read_pairs
from cmf_agent.home import Home, find_home
from cmf_agent.naming import describe_node
from cmf_graph.graph import EventRow
from cmf_graph.output import print_json, print_text
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Event, Node

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="An id or digest (6 digits or more), a file, a name, PIPELINE or PIPELINE/STAGE."
    ),
]
EventRef = Annotated[str, typer.Argument(metavar="REF|EVENT", help="What to name in REF, or an event's id.")]
TagName = Annotated[str, typer.Argument(metavar="NAME", help="The tag.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (describe, tag, untag, note, retract, unretract):
        app.command(command.__name__)(command)


def describe(
    values: Annotated[list[str], typer.Argument(metavar="K=V...", help="Properties.", show_default=False)],
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="The pipeline's name.")],
    stage: Annotated[str | None, typer.Option("-s", "--stage", help="One of its stages.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record properties of a pipeline, or of one of its stages.

    Example: cmf-agent describe -p mnist -s train owner=maria
    """
    from cmf_agent.remarks import describe_here

    _answer([describe_here(find_home(), pipeline, stage, read_pairs(values))], "described", as_json)


def tag(ref: Ref, name: TagName, as_json: AsJson = False) -> None:
    """Put a tag on an artifact, an execution, a stage or a pipeline.

    Example: cmf-agent tag model.pkl approved
    """
    from cmf_agent.remarks import tag as add_tag

    home = find_home()
    _answer([add_tag(home, _node(home, ref), name)], f"tagged {name}", as_json)


def untag(ref: Ref, name: TagName, as_json: AsJson = False) -> None:
    """Take a tag off.

    Example: cmf-agent untag model.pkl approved
    """
    from cmf_agent.remarks import untag as remove_tag

    home = find_home()
    _answer([remove_tag(home, _node(home, ref), name)], f"no longer tagged {name}", as_json)


def note(ref: Ref, text: Annotated[str, typer.Argument(help="What to say of it.")], as_json: AsJson = False) -> None:
    """Put a note on an artifact, an execution, a stage or a pipeline.

    Example: cmf-agent note model.pkl "trained before the relabelling"
    """
    from cmf_agent.remarks import note as add_note

    home = find_home()
    _answer([add_note(home, _node(home, ref), text)], "noted", as_json)


def retract(
    ref: EventRef, reason: Annotated[str, typer.Option(help="Why it does not hold.")], as_json: AsJson = False
) -> None:
    """Say that an event of this site does not hold, or dispute what is recorded elsewhere.

    Example: cmf-agent retract 3f9c02a1 --reason "wrong labels"
    """
    from cmf_agent.refs import resolve_ref
    from cmf_agent.remarks import retract as add_retraction

    home = find_home()
    _answer([add_retraction(home, resolve_ref(home, ref), reason)], "retracted", as_json)


def unretract(
    ref: EventRef,
    reason: Annotated[str | None, typer.Option(help="Why it holds after all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Withdraw this site's retractions of something.

    Example: cmf-agent unretract 3f9c02a1
    """
    from cmf_agent.refs import resolve_ref
    from cmf_agent.remarks import unretract as withdraw

    home = find_home()
    _answer(withdraw(home, resolve_ref(home, ref), reason), "no longer retracted", as_json)


def _node(home: Home, ref: str) -> Node:
    from cmf_agent.refs import resolve_ref

    target = resolve_ref(home, ref)
    if isinstance(target, EventRow):
        raise CallerError(f"{ref!r} is an event", "name an artifact, an execution, a stage or a pipeline")
    return target


def _answer(events: list[Event], done: str, as_json: bool) -> None:
    """Print what was recorded; `done` says it of the nodes that the first event is about."""
    about = ", ".join(map(describe_node, events[0].header.about))
    if as_json:
        print_json({"items": [{"event_id": e.event_id.hex(), "type": e.header.type} for e in events], "about": about})
    else:
        print_text(f"{about}: {done}")
