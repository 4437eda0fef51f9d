"""The query verbs, the same in both command lines.

    add_query_commands(app, open_questions)

`open_questions()` gives the `Questions` for one verb and closes what it opened. Errors are raised; the command lines say what to do about
them. This module is imported by command lines only.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any

import typer

from cmf_graph import output
from cmf_graph.filters import LIMIT_DEFAULT, Filter, Page
from cmf_graph.lineage import NODES_DEFAULT
from cmf_graph.output import Column, field, moment
from cmf_graph.questions import Questions
from cmf_graph.text import SHORT_COMMIT_CHARS, short_content_id
from cmf_protocol.errors import CallerError

OpenQuestions = Callable[..., AbstractContextManager[Questions]]
#: Gives the items of the verb `sites`, which only a hub can answer.
SitesOf = Callable[..., AbstractContextManager[Sequence[dict[str, Any]]]]
_FORMATS = ("tree", "json", "dot", "mermaid", "graphml")

_Pipeline = Annotated[str | None, typer.Option("--pipeline", "-p", help="Only of this pipeline.")]
_Stage = Annotated[str | None, typer.Option("--stage", "-s", help="Only of stages of this name.")]
_Site = Annotated[str | None, typer.Option("--site", help="Only what this site ran.")]
_Team = Annotated[str | None, typer.Option("--team", help="Only what this team ran.")]
_Kind = Annotated[
    str | None,
    typer.Option("--kind", help="Artifacts: dataset, model, metrics, environment, …; else executions: step, deploy."),
]
_Since = Annotated[
    str | None, typer.Option("--since", help="Started at or after: 2025-03-01, RFC 3339, or 7d, 12h ago.")
]
_Until = Annotated[str | None, typer.Option("--until", help="Started before; a date's whole day is in.")]
_Sort = Annotated[
    str | None, typer.Option("--sort", help="Order: a field, params.NAME, metrics.NAME; -KEY is descending.")
]
_Limit = Annotated[int, typer.Option("--limit", "-n", help="Items on a page.")]
_CursorText = Annotated[str | None, typer.Option("--cursor", help="Go on: `next` of the page before.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_Name = Annotated[str | None, typer.Option("--name", help="Only the metric of this name.")]
_Steps = Annotated[bool, typer.Option("--steps", help="With the values at all steps (in JSON).")]
_Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="A digest or id (or 6 or more of its first digits), a name, or the path of a file."
    ),
]
_Up = Annotated[bool, typer.Option("--up", help="Only what it came from.")]
_Down = Annotated[bool, typer.Option("--down", help="Only what came of it.")]
_Depth = Annotated[int | None, typer.Option("--depth", help="At most so many steps away.")]
_Format = Annotated[str, typer.Option("--format", help=f"One of {', '.join(_FORMATS)}.")]
_Nodes = Annotated[int, typer.Option("--limit", help="At most so many nodes.")]


def add_query_commands(app: typer.Typer, open_questions: OpenQuestions, *, sites_of: SitesOf | None = None) -> None:
    """Add the verbs pipelines, stages, executions, artifacts, metrics, duplicates, show and lineage; `sites` if `sites_of` is given.

    The options that `open_questions` and `sites_of` have as parameters become options of every verb.
    """

    def add(verb: str, help_: str, make: Callable[[Any], Callable[..., None]], source: Callable[..., Any]) -> None:
        app.command(verb, help=help_)(_with_options(make, source))

    for verb, columns, help_ in (
        (
            "pipelines",
            _PIPELINES,
            "pipelines, with how many executions and artifacts they have.\n\nExample: pipelines --since 7d",
        ),
        ("stages", _STAGES, "stages of pipelines.\n\nExample: stages -p mnist"),
        (
            "executions",
            _EXECUTIONS,
            "executions, newest first.\n\nExample: executions -p mnist --site berlin --sort -metrics.auc",
        ),
        (
            "artifacts",
            _ARTIFACTS,
            "artifacts; environments and labels only with --kind.\n\nExample: artifacts -p mnist --kind model",
        ),
    ):
        add(verb, f"List {help_}", partial(_list_verb, question=verb, columns=columns), open_questions)
    add("metrics", "List metrics.\n\nExample: metrics -p mnist --name auc --sort -value", _metrics_verb, open_questions)
    help_ = "List contents that exist under several names or at several sites, and the bytes saved.\n\nExample: duplicates -p mnist"
    add("duplicates", help_, partial(_list_verb, question="duplicates", columns=_DUPLICATES), open_questions)
    add("show", "Show everything about one thing.\n\nExample: show model.pkl", _show_verb, open_questions)
    help_ = "Show what something came from, and what came of it.\n\nExample: lineage ./model.pkl --up --depth 4"
    add("lineage", help_, _lineage_verb, open_questions)
    if sites_of is not None:
        add("sites", "Has each site sent everything, up to when?\n\nExample: sites --json", _sites_verb, sites_of)


def _with_options(make: Callable[[Any], Callable[..., None]], source: Callable[..., Any]) -> Callable[..., None]:
    """Return the verb that `make(opener)` gives, with the parameters of `source` as options besides its own."""
    extra = inspect.signature(source).parameters
    own = inspect.signature(make(source)).parameters

    def verb(**arguments: Any) -> None:
        opening = {name: arguments.pop(name) for name in extra}
        make(lambda: source(**opening))(**arguments)

    every = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own.values(), *extra.values())]
    verb.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in every}
    return verb


def print_list(answer: dict[str, Any], columns: Sequence[Column], what: str, *, as_json: bool) -> None:
    """Print the answer of a list verb."""
    if as_json:
        output.print_json(answer)
    else:
        output.print_table(answer["items"], columns, following=answer.get("next"), empty=f"no {what}")
        output.print_marks(answer)
        if "total" in answer:
            output.print_saved(answer["total"])


def _list_verb(open_questions: OpenQuestions, question: str, columns: Sequence[Column]) -> Callable[..., None]:
    def verb(
        pipeline: _Pipeline = None,
        stage: _Stage = None,
        site: _Site = None,
        team: _Team = None,
        kind: _Kind = None,
        since: _Since = None,
        until: _Until = None,
        sort: _Sort = None,
        limit: _Limit = LIMIT_DEFAULT,
        cursor: _CursorText = None,
        as_json: _Json = False,
    ) -> None:
        asked = Filter(pipeline, stage, site, team, kind, since, until)
        with open_questions() as questions:
            answer = getattr(questions, question)(asked, Page(sort, limit, cursor))
        print_list(answer, columns, question, as_json=as_json)

    return verb


def _metrics_verb(open_questions: OpenQuestions) -> Callable[..., None]:
    def verb(
        pipeline: _Pipeline = None,
        stage: _Stage = None,
        site: _Site = None,
        team: _Team = None,
        kind: _Kind = None,
        since: _Since = None,
        until: _Until = None,
        name: _Name = None,
        steps: _Steps = False,
        sort: _Sort = None,
        limit: _Limit = LIMIT_DEFAULT,
        cursor: _CursorText = None,
        as_json: _Json = False,
    ) -> None:
        asked = Filter(pipeline, stage, site, team, kind, since, until)
        with open_questions() as questions:
            answer = questions.metrics(asked, Page(sort, limit, cursor), name=name, steps=steps)
        print_list(answer, _METRICS, "metrics", as_json=as_json)

    return verb


def _show_verb(open_questions: OpenQuestions) -> Callable[..., None]:
    def verb(ref: _Ref, as_json: _Json = False) -> None:
        with open_questions() as questions:
            thing = questions.show(ref)
        if as_json:
            output.print_json(thing)
        else:
            output.print_text(f"{thing['type']}")
            output.print_thing(thing)
            output.print_marks(thing)

    return verb


def _lineage_verb(open_questions: OpenQuestions) -> Callable[..., None]:
    def verb(
        ref: _Ref,
        up: _Up = False,
        down: _Down = False,
        depth: _Depth = None,
        format_: _Format = "tree",
        limit: _Nodes = NODES_DEFAULT,
        as_json: _Json = False,
    ) -> None:
        from cmf_graph.views import render

        if format_ not in _FORMATS:
            raise CallerError(f"{format_!r} is no format of a lineage", f"it is one of {', '.join(_FORMATS)}")
        with open_questions() as questions:
            lineage = questions.lineage(ref, up=up, down=down, depth=depth, limit=limit)
        output.print_text(render(lineage, "json" if as_json else format_))
        if not as_json and format_ == "tree":
            output.print_marks(lineage)

    return verb


def _sites_verb(sites_of: SitesOf) -> Callable[..., None]:
    def verb(as_json: _Json = False) -> None:
        with sites_of() as items:
            print_list({"items": list(items), "next": None}, _SITES, "sites", as_json=as_json)
        for line in () if as_json else _gap_lines(items):
            output.print_text(line)

    return verb


def _gap_lines(items: Sequence[output.Item]) -> Iterator[str]:
    """Say what is missing of each site's logs, and how to accept what is lost for ever."""
    for item in items:
        for log in item["logs"]:
            for gap in log["gaps"]:
                which = f"{item['name']}: events {gap['first']} to {gap['last']} of log {log['log_id'][:8]}…"
                if gap["accepted"]:
                    yield f"{which} are lost: that was accepted"
                elif gap["command"] is None:
                    yield f"{which} are missing; later ones wait. At the site: cmf-agent push, or cmf-agent bundle export --all"
                else:
                    yield f"{which} are missing. If they are lost for ever, run at a site that may operate:\n  {gap['command']}"


# -- columns -----------------------------------------------------------------------------------------------------------


def _names(item: output.Item) -> object:
    return item["names"] or short_content_id(item["content_id"])


def _warnings(item: output.Item) -> object:
    found = [f"conflict: {conflict['key']}" for conflict in item["conflicts"]]
    found += ["disputed"] * bool(item["disputes"]) + list(item.get("flags", ()))
    found += ["ambiguous digest"] * bool(item.get("ambiguous"))
    return found + ["incomplete"] * bool(item.get("incomplete"))


def _of(item: output.Item) -> str:
    return f"{item['pipeline']}/{item['stage']}" if item["pipeline"] else ""


_TAGS = Column("tags", lambda item: item["tags"])
_COUNTS = (field("executions", right=True), field("artifacts", right=True), field("sites"))
_REMARKS = (_TAGS, Column("", _warnings))
_PIPELINES = (field("name"), *_COUNTS, field("properties"), *_REMARKS)
_STAGES = (field("pipeline"), field("name"), *_COUNTS, field("properties"), *_REMARKS)
#: The first digits of a UUIDv7, which hold its millisecond; they serve as a REF.
_ID_CHARS = 13
#: A time without its seconds.
_MINUTE_CHARS = 16
_EXECUTIONS = (
    field("id", chars=_ID_CHARS),
    Column("stage", _of),
    field("name"),
    field("status", chars=11),
    field("site"),
    Column("started", lambda item: moment(item["started_at"]), chars=_MINUTE_CHARS, wide=True),
    field("params"),
    field("metrics"),
    Column("git", lambda item: str(item["git_commit"] or ""), chars=SHORT_COMMIT_CHARS, wide=True),
    *_REMARKS,
)
_ARTIFACTS = (
    Column("name", _names),
    Column("content id", lambda item: item["content_id"]),
    field("kind"),
    field("size", right=True),
    field("sites"),
    *_REMARKS,
)
_DUPLICATES = (
    Column("name", _names),
    Column("content id", lambda item: item["content_id"]),
    field("kind"),
    field("copies", right=True),
    field("size", right=True),
    field("bytes_saved", "saved", right=True),
    field("sites"),
    *_REMARKS,
)
_METRICS = (
    field("execution", chars=_ID_CHARS),
    Column("stage", _of),
    field("name"),
    field("value", right=True),
    field("step", right=True),
    field("site"),
)
_SITES = (
    field("name"),
    field("events", right=True),
    Column("complete until", lambda item: moment(item["complete_until"])),
    Column("last contact", lambda item: moment(item["last_contact"])),
    field("state"),
)
