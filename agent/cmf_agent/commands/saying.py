"""describe, tag, untag, note, retract, unretract, gap accept."""

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
    gap_app = typer.Typer(
        no_args_is_help=True,
        help="Accept that events of some site's log are lost for ever.\n\n"
        "Example: cmf-agent gap accept LOG BEFORE AFTER --key KEY --reason 'disk lost' (`cmf-hub query sites` prints it whole)",
    )
    gap_app.command("accept")(accept)
    gap_app.callback()(lambda: None)  # so that the one command is named
    app.add_typer(gap_app, name="gap")


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


def accept(
    log: Annotated[str, typer.Argument(metavar="LOG", help="The log's id: 32 hexadecimal digits.")],
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="Id of the last event before the gap: 64 digits.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Id of the first event after it: 64 digits.")],
    key: Annotated[str, typer.Option(help="The key of that log: 64 hexadecimal digits.")],
    reason: Annotated[str, typer.Option(help="Why they are lost for ever.")],
    as_json: AsJson = False,
) -> None:
    """Accept that what is missing between the events BEFORE and AFTER of a log is lost for ever.

    Example: cmf-agent gap accept 3f9c… 02a1… 77b0… --key 91ee… --reason "the disk burnt"

    `cmf-hub query sites` prints the whole command. The hub heeds it once it is pushed by a site with the right to operate
    (cmf-hub site allow NAME --operator); the loss stays visible.
    """
    from cmf_agent.remarks import accept_gap
    from cmf_protocol.gaps import Gap

    gap = Gap(_id(log, "log", 16), _id(before, "event", 32), _id(after, "event", 32))
    log_key = _id(key, "key", 32)
    event = accept_gap(find_home(), log_key, gap, reason)
    _answer([event], f"the gap in log {log[:8]}… is accepted as lost; push it", as_json)


def _id(text: str, what: str, size: int) -> bytes:
    """Return the bytes of an id; raise `CallerError` if it is none."""
    try:
        id_ = bytes.fromhex(text)
    except ValueError:
        id_ = b""
    if len(id_) != size:
        raise CallerError(
            f"{text!r} is no {what}'s id: {2 * size} hexadecimal digits", "copy the command from: cmf-hub query sites"
        )
    return id_


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
