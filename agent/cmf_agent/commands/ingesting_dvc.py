"""ingest dvc."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmf_agent.commands.options import AsJson
from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.text import SHORT_COMMIT_CHARS
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_agent.ingest.dvc_lock import Ingested, Outcome


def dvc(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="A dvc.lock, or a folder with one; by default the working directory."),
    ] = None,
    *,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--pipeline",
            help="The pipeline's name; by default the last part of origin's URL, else the folder's name.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dvc.lock of the project.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Also every state that git's history holds.")] = False,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="GLOB", help="Outputs of such names are models; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be recorded.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing where all went well.")] = False,
    install_hook: Annotated[
        bool, typer.Option("--install-hook", help="Have git ingest what a commit or a merge brings.")
    ] = False,
    uninstall_hook: Annotated[bool, typer.Option("--uninstall-hook", help="Take that out again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring in what DVC reproduced: the stages in dvc.lock become executions with their parameters, files and metrics.

    Example: dvc repro && cmf-agent ingest dvc

    One state of a stage in the lock is one execution, at every site; ingesting it again records nothing. Where a stage's own command
    records itself under the same pipeline and stage, what the lock says is added to that execution. DVC need not be installed.
    """
    if install_hook or uninstall_hook:
        if install_hook and uninstall_hook:
            raise CallerError("--install-hook and --uninstall-hook are opposites", "give one of them")
        _change_hooks(_options(pipeline, models or []), install=install_hook, as_json=as_json)
        return
    from cmf_agent.home import find_home
    from cmf_agent.ingest.dvc_lock import Wanted, ingest_dvc

    wanted = Wanted(tuple(paths or ()), pipeline, everything, history, tuple(models or ()), dry_run)
    done = ingest_dvc(find_home(), wanted)
    if as_json:
        print_json(outcome_json(done, dry_run=dry_run))
    elif not quiet:
        print_text(outcome_text(done, dry_run=dry_run))
        for note in outcome_notes(done):
            print_warning(f"note: {note}")


def _options(pipeline: str | None, models: list[str]) -> list[str]:
    return [*(["-p", pipeline] if pipeline else []), *(word for model in models for word in ("--model", model))]


def _change_hooks(options: list[str], *, install: bool, as_json: bool) -> None:
    from cmf_agent.home import find_home
    from cmf_agent.ingest.dvc_hook import install_hooks, uninstall_hooks

    if install:
        find_home()  # without one every commit would end with an error
    changed = install_hooks(Path(), options) if install else uninstall_hooks(Path())
    if as_json:
        print_json({"hooks": [str(path) for path in changed], "installed": install})
        return
    for path in changed:
        print_text(f"{path}: {'ingests each dvc.lock that is committed or merged' if install else 'taken out'}")
    if not changed:
        print_text("no hook of ours was there")


def outcome_json(done: "Outcome", *, dry_run: bool) -> dict[str, Any]:
    """Return what was ingested, as JSON has it."""
    stages = [each._asdict() | {"notes": list(each.notes)} for each in done.states]
    return {"stages": stages, "events": done.events, "dry_run": dry_run, "notes": outcome_notes(done)}


def outcome_notes(done: "Outcome") -> list[str]:
    """Return what people should know of what was ingested."""
    return [*done.notes, *(f"{each.lock}: {each.name}: {note}" for each in done.states for note in each.notes)]


def outcome_text(done: "Outcome", *, dry_run: bool) -> str:
    """Return what was ingested as people read it: what is not known yet, and how much of what."""
    lines = [_line(each) for each in done.states if each.standing != "known"]
    counts = Counter(each.standing for each in done.states)
    names = ", ".join(sorted({each.pipeline for each in done.states})) or "no stage"
    parts = [f"{counts['new']:,} new", f"{counts['known']:,} known"]
    if counts["recorded"]:
        parts.append(f"{counts['recorded']:,} that the stage recorded itself")
    verb = "would be recorded" if dry_run else "recorded"
    return "\n".join([*lines, f"{names}: {', '.join(parts)}; {done.events:,} events {verb}"])


def _line(each: "Ingested") -> str:
    commit = f"commit {each.git_commit[:SHORT_COMMIT_CHARS]}" if each.git_commit else "not committed"
    return f"{each.standing:<8}  {each.name}  {each.execution}  {commit}"
