"""pull, subscribe, unsubscribe, subscriptions, clone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmf_agent.commands.options import AsJson, HubAddress
from cmf_agent.commands.sending import UNCONFIRMED_CODE
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.text import counted
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_agent.fetching import PullReport
    from cmf_agent.home import Home
    from cmf_agent.listings import Asked
    from cmf_protocol.filters import Filter

Pipelines = Annotated[
    list[str] | None, typer.Option("-p", "--pipeline", help="What was run of this pipeline; repeatable.")
]
Sites = Annotated[list[str] | None, typer.Option("--site", help="Only what this site ran; repeatable.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Only what was started at or after: 2025-03-01, RFC 3339, or 7d, 12h ago.")
]
Artifacts = Annotated[
    list[str] | None,
    typer.Option(
        "--artifact", metavar="REF", help="What this file, digest or name came from, and what came of it; repeatable."
    ),
]
Prove = Annotated[bool, typer.Option("--prove", help="Check the sites' own signatures: do not take the hub's word.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to pull at most.")]
WithBytes = Annotated[
    bool,
    typer.Option("--bytes", help="Also fetch the bytes of what these executions used and produced, from DVC's remote."),
]
#: Pulling much over a bad line takes long, and what has come is kept.
TIMEOUT_S = 600.0
_NO_FILTER = "say what: -p PIPELINE, --site SITE, --since TIME or --artifact REF"


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("pull")(pull)
    app.command("subscribe")(subscribe)
    app.command("unsubscribe")(unsubscribe)
    app.command("subscriptions")(subscriptions)
    app.command("clone")(clone)


def pull(
    pipelines: Pipelines = None,
    sites: Sites = None,
    since: Since = None,
    artifacts: Artifacts = None,
    prove: Prove = False,
    with_bytes: WithBytes = False,
    timeout: Timeout = TIMEOUT_S,
    hub_url: HubAddress = None,
    as_json: AsJson = False,
) -> None:
    """Fetch what other sites recorded about something, to ask about it offline; without filters, what is subscribed.

    Example: cmf-agent pull -p mnist --since 30d

    Only what is not here yet is fetched. Exit code 3: not all of it came in time, pull again and it goes on; 4: no hub was reached.
    With --bytes, files are put at their names where nothing else is; 5: what DVC's remote holds is damaged.
    """
    from cmf_agent.home import find_home

    home = find_home()
    if with_bytes:
        _require_project(home)
    wanted = _filter(home, pipelines, sites, since, artifacts)
    if wanted is None and not any(each.subscribed for each in _asked(home)):
        raise CallerError("nothing is subscribed here", f"{_NO_FILTER}; or `cmf-agent subscribe` first")
    filters = None if wanted is None else [wanted]
    _pull(home, filters, prove=prove, with_bytes=with_bytes, timeout=timeout, hub_url=hub_url, as_json=as_json)


def subscribe(
    pipelines: Pipelines = None,
    sites: Sites = None,
    since: Since = None,
    artifacts: Artifacts = None,
    prove: Prove = False,
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Only remember it; fetch nothing now.")] = False,
    timeout: Timeout = TIMEOUT_S,
    hub_url: HubAddress = None,
    as_json: AsJson = False,
) -> None:
    """Fetch what other sites recorded about something, and whatever comes later with every `pull`.

    Example: cmf-agent subscribe -p mnist

    A time like 7d is that of the day when it is subscribed. See `cmf-agent subscriptions`.
    """
    from cmf_agent.home import find_home
    from cmf_agent.pull import note_subscriptions

    home = find_home()
    wanted = _filter(home, pipelines, sites, since, artifacts)
    if wanted is None:
        raise CallerError("nothing was named to subscribe to", _NO_FILTER)
    note_subscriptions(home, [wanted], prove=prove)
    if not as_json:
        print_text(f"subscribed: {_text_of(wanted)}")
    if not no_pull:
        _pull(home, [wanted], prove=prove, timeout=timeout, hub_url=hub_url, as_json=as_json)
    elif as_json:
        print_json({"items": [_fields(each) for each in _asked(home)], "next": None})
    else:
        print_text("nothing is fetched yet: `cmf-agent pull`, or a daemon, does")


def unsubscribe(
    pipelines: Pipelines = None,
    sites: Sites = None,
    since: Since = None,
    artifacts: Artifacts = None,
    everything: Annotated[bool, typer.Option("--all", help="All subscriptions.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Also drop what was pulled by it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull something no longer. What was pulled stays, and is asked about as before, unless --forget says otherwise.

    Example: cmf-agent unsubscribe -p mnist --forget
    """
    from cmf_agent.home import find_home
    from cmf_agent.listings import Listings
    from cmf_agent.pulled import Pulled

    home = find_home()
    wanted = _filter(home, pipelines, sites, since, artifacts)
    if (wanted is None) != everything:
        raise CallerError("name what was subscribed, or --all", "`cmf-agent subscriptions` lists it")
    with Pulled(home.pulled_path) as pulled:
        listings = Listings(pulled)
        named = listings.find(wanted) if wanted is not None else None
        if wanted is not None and named is None:
            raise CallerError("that is not subscribed here", "`cmf-agent subscriptions` lists what is")
        ended = [named] if named is not None else listings.filters()
        for each in ended:
            listings.unsubscribe(each.id, forget=forget)
    if as_json:
        print_json({"items": [_fields(each) for each in _asked(home)], "next": None})
    else:
        print_text(
            f"{'forgotten' if forget else 'unsubscribed'}: {', '.join(_text(each) for each in ended) or 'nothing'}"
        )


def subscriptions(as_json: AsJson = False) -> None:
    """List what is subscribed, and what was pulled once and is kept.

    Example: cmf-agent subscriptions --json
    """
    from cmf_agent.home import find_home

    asked = _asked(find_home())
    if as_json:
        print_json({"items": [_fields(each) for each in asked], "next": None})
        return
    for each in asked:
        state = "complete" if each.complete else "not complete: `cmf-agent pull` goes on"
        print_text(
            f"{'subscribed' if each.subscribed else 'kept':<11}{_text(each)}  ({_as_of(each.as_of_us)}, {state})"
        )
    if not asked:
        print_text("nothing is subscribed here: `cmf-agent subscribe -p PIPELINE`")


def clone(
    join_file: Annotated[Path, typer.Argument(metavar="JOINFILE", help="The join file that the hub's operator made.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The project's folder; by default it is called like the site.")
    ] = None,
    pipelines: Pipelines = None,
    prove: Prove = False,
    with_bytes: WithBytes = False,
    timeout: Timeout = TIMEOUT_S,
    hub_url: HubAddress = None,
    as_json: AsJson = False,
) -> None:
    """Begin to work on a pipeline: make a folder, join the hub, subscribe, and fetch what was recorded so far.

    Example: cmf-agent clone maria.join -p mnist mnist

    With --bytes, files are put at their names, and a folder that is in no DVC repository becomes one.
    """
    from cmf_agent.cloning import make_dvc_project, prepare, undo_unless_joined
    from cmf_agent.dvc.repository import require_dvc
    from cmf_protocol.errors import CmfError

    wanted = _filter(None, pipelines, None, None, None)
    if wanted is None:
        raise CallerError("nothing was named to clone", "say what: -p PIPELINE")
    if with_bytes:
        require_dvc()
    made = prepare(join_file, folder, url=hub_url)
    try:
        report = _pull_events(made.home, [wanted], subscribing=True, prove=prove, timeout=timeout, hub_url=hub_url)
    except CmfError as error:
        raise undo_unless_joined(made, error, [wanted], prove=prove) from error
    if with_bytes:
        make_dvc_project(made.home)
    _finish(made.home, [wanted], report, with_bytes=with_bytes, as_json=as_json)
    if not as_json:
        print_text(f"next: cd {made.home.root}; `cmf-agent query executions`")


# -- what they share ---------------------------------------------------------------------------------------------------


def _pull(
    home: "Home",
    filters: "list[Filter] | None",
    *,
    prove: bool,
    with_bytes: bool = False,
    timeout: float,
    hub_url: str | None,
    as_json: bool,
) -> None:
    report = _pull_events(home, filters, prove=prove, timeout=timeout, hub_url=hub_url)
    _finish(home, filters, report, with_bytes=with_bytes, as_json=as_json)


def _pull_events(
    home: "Home",
    filters: "list[Filter] | None",
    *,
    subscribing: bool = False,
    prove: bool,
    timeout: float,
    hub_url: str | None,
) -> "PullReport":
    from cmf_agent.hub_file import hub_in_force
    from cmf_agent.progress import counting_progress
    from cmf_agent.pull import pull as pull_now

    hub = hub_in_force(home, url=hub_url)
    with counting_progress("pulling") as progress:
        report = pull_now(home, hub, filters, prove=prove, subscribe=subscribing, timeout_s=timeout, progress=progress)
    for warning in report.warnings:
        print_warning(f"warning: {warning}")
    return report


def _finish(
    home: "Home", filters: "list[Filter] | None", report: "PullReport", *, with_bytes: bool, as_json: bool
) -> None:
    """Fetch the bytes, if they are wanted and all events have come; tell what was done, and how the command ends."""
    from cmf_agent.commands.artifact_output import report_json
    from cmf_agent.commands.pulling_bytes import ending, print_fetched, pull_selected
    from cmf_agent.local_questions import filter_fields
    from cmf_graph.times import rfc3339

    if not as_json:
        print_text(pull_text(report))
        for each in report.empty:
            print_text(f"the hub holds nothing of {_words_of(each)} (yet)")
    fetched = None
    if with_bytes and report.complete:
        fetched = pull_selected(home, [each.told for each in _asked(home) if _is_meant(each, filters)])
    if as_json:
        fields: dict[str, object] = {"events": report.events, "bytes": report.bytes, "complete": report.complete}
        fields |= {"found": not report.empty, "empty": [filter_fields(each) for each in report.empty]}
        fields |= {"as_of": rfc3339(report.as_of_us), "hub": report.hub, "proven": report.proven}
        print_json(fields if fetched is None else fields | {"artifacts": report_json(fetched)})
    elif fetched is not None:
        print_fetched(fetched)
    code = UNCONFIRMED_CODE if not report.complete else ending(fetched)
    if code:
        raise typer.Exit(code)


def pull_text(report: "PullReport") -> str:
    """Return what a pull did as people read it."""
    came = f"{counted(report.events, 'new event')} ({report.bytes:,} bytes)"
    if not report.complete:
        return f"{came}; not all of it came yet: run `cmf-agent pull` again, it goes on from here"
    vouched = "their sites' signatures hold" if report.proven else f"as told by {report.hub}"
    return f"{came}; all that the hub lists is here, {vouched}"


def _is_meant(asked: "Asked", filters: "list[Filter] | None") -> bool:
    """Tell if a filter is one of those that were pulled now: the subscribed ones, if none was named."""
    return asked.subscribed if filters is None else asked.asked in filters or asked.told in filters


def _require_project(home: "Home") -> None:
    """Raise `CallerError` before anything is pulled, if no bytes can be."""
    from cmf_agent.dvc.remotes import project_root

    project_root(home)


def _filter(
    home: "Home | None",
    pipelines: list[str] | None,
    sites: list[str] | None,
    since: str | None,
    artifacts: list[str] | None,
) -> "Filter | None":
    """Return the filter that these options say, None if they say nothing."""
    from cmf_agent.log import now_us
    from cmf_graph.times import parse_time
    from cmf_protocol.filters import filter_of
    from cmf_protocol.types import checked_name

    if not (pipelines or sites or since or artifacts):
        return None
    return filter_of(
        pipelines=[checked_name(name, "pipeline") for name in pipelines or ()],
        sites=sites or (),
        since_us=None if since is None else parse_time(since, now_us()),
        artifacts=[_content_id(home, ref) for ref in artifacts or ()],
    )


def _content_id(home: "Home | None", ref: str) -> str:
    """Return the content id of the file or folder that `ref` is the path of, else `ref` itself: the hub finds what it names."""
    from cmf_graph.content.files import hash_path
    from cmf_graph.content.memory import DigestMemory

    if home is None or "\0" in ref or not Path(ref).expanduser().exists():
        return ref
    with DigestMemory(home.digests_path) as memory:
        return hash_path(Path(ref).expanduser(), memory=memory).content_id


def _asked(home: "Home") -> "list[Asked]":
    from cmf_agent.listings import Listings
    from cmf_agent.pulled import Pulled

    if not home.pulled_path.exists():
        return []
    with Pulled(home.pulled_path) as pulled:
        return Listings(pulled).filters()


def _fields(asked: "Asked") -> dict[str, object]:
    from cmf_agent.local_questions import filter_fields
    from cmf_graph.times import rfc3339

    return {
        "filter": filter_fields(asked.told),
        "subscribed": asked.subscribed,
        "prove": asked.prove,
        "as_of": rfc3339(asked.as_of_us),
        "complete": asked.complete,
    }


def _text(asked: "Asked") -> str:
    return _text_of(asked.told)


def _text_of(found: "Filter") -> str:
    from cmf_agent.local_questions import filter_fields

    options = {"pipelines": "-p", "sites": "--site", "since": "--since", "artifacts": "--artifact", "own": "--own"}
    words = []
    for key, value in filter_fields(found).items():
        words += [f"{options[key]} {each}" for each in (value if isinstance(value, list) else [value])]
    return " ".join(words)


def _words_of(found: "Filter") -> str:
    """Return a filter as a sentence has it."""
    from cmf_agent.local_questions import filter_fields

    words = {"pipelines": "pipeline ", "sites": "site ", "since": "", "artifacts": "artifact "}
    parts = []
    for key, value in filter_fields(found).items():
        each = value if isinstance(value, list) else [f"what was started since {value}"]
        parts.append(words.get(key, "") + " or ".join(map(str, each)))
    return ", ".join(parts)


def _as_of(time_us: int | None) -> str:
    from cmf_graph.output import moment
    from cmf_graph.times import rfc3339

    return "never pulled" if time_us is None else f"as of {moment(rfc3339(time_us))}"
