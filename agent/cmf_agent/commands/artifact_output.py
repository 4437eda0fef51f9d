"""What is told of carrying artifact bytes: progress, a report for people or programs, how a command ends after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from cmf_graph.console import print_warning
from cmf_graph.output import print_json, print_text
from cmf_graph.text import clean, counted, short_content_id
from cmf_protocol.errors import IntegrityError

if TYPE_CHECKING:
    from cmf_agent.artifact_bytes import Item, Report
    from cmf_agent.dvc.work import Counter, Showing
    from cmf_agent.needed import Needed

#: Items that are told one by one to people; a push of ten thousand files is told as a sum.
_TOLD_MAX = 20


def showing(what: str) -> "Showing":
    """Return what shows progress on standard error, if that is a terminal."""
    from cmf_agent.dvc.work import Counter
    from cmf_agent.progress import transfer_progress

    @contextmanager
    def show(files: int, size: int) -> "Iterator[Counter]":
        with transfer_progress(what, files, size) as (count_bytes, count_file):
            yield Counter(count_bytes, count_file)

    return show


def tell_report(report: "Report", done: str, *, as_json: bool) -> None:
    """Tell what was done, and end with an exit code if something is missing, failed or damaged."""
    for note in report.notes:
        print_warning(f"note: {note}")
    if as_json:
        print_json(report_json(report))
    else:
        print_text(report_text(report, done))
        tell_failures(report)
    if any(item.is_damaged for item in report.items):
        raise typer.Exit(IntegrityError.exit_code)
    if not all(item.is_good for item in report.items):
        raise typer.Exit(1)


def report_json(report: "Report") -> dict[str, Any]:
    """Return what was done about bytes, as JSON has it."""
    states = ("transferred", "present", "missing", "failed", "elsewhere")
    return {
        **{state: report.count(state) for state in states},
        "bytes": report.bytes,
        "recorded": report.recorded,
        "remotes": report.remotes,
        "notes": report.notes,
        "items": [_item_json(item) for item in report.items],
    }


def _item_json(item: "Item") -> dict[str, Any]:
    from cmf_agent.artifact_bytes import named

    placed = [{"path": p.path, "state": p.state, **({"reason": p.reason} if p.reason else {})} for p in item.placed]
    reason = {"reason": item.reason} if item.reason else {}
    return {**named(item.needed), "state": item.state, "bytes": item.bytes, **reason, "placed": placed}


def report_text(report: "Report", done: str) -> str:
    """Return what was done about bytes, as people read it."""
    carried = report.count("transferred")
    parts = [f"{done} {counted(carried, 'artifact')} ({report.bytes:,} bytes)"]
    for state, text in (
        ("present", "there before"),
        ("elsewhere", "in git"),
        ("missing", "MISSING"),
        ("failed", "FAILED"),
    ):
        if report.count(state):
            parts.append(f"{report.count(state):,} {text}")
    placed = sum(p.state == "placed" for item in report.items for p in item.placed)
    if placed:
        parts.append(f"{placed:,} put in place")
    where = f" ({', '.join(report.remotes)})" if report.remotes else ""
    return ", ".join(parts) + where


def tell_failures(report: "Report") -> None:
    """Say on standard error what is missing or failed, and what was not put in place, the first of it one by one."""
    lines = [
        f"{_label(item.needed)}: {item.state}: {item.reason}"
        for item in report.items
        if item.state in ("missing", "failed")
    ]
    lines += [f"{p.path}: {p.reason}" for item in report.items for p in item.placed if p.reason]
    for line in lines[:_TOLD_MAX]:
        print_warning(line)
    if len(lines) > _TOLD_MAX:
        print_warning(f"… and {len(lines) - _TOLD_MAX:,} more: --json lists them all")


def _label(each: "Needed") -> str:
    return f"{clean(each.names[0])} ({short_content_id(each.content_id)})" if each.names else each.content_id
