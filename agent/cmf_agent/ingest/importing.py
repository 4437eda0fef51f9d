"""Brings the peer's history in: reads a file of either form, maps it, appends what is new, and says what was done.

Rules
- Nothing is recorded before the whole file was read and mapped.
- Which form a file has is seen in its first bytes, not in its name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.home import Home
from cmf_agent.ingest.appending import Appended, append_new
from cmf_agent.ingest.cmf_json import read_json
from cmf_agent.ingest.mapping import Counts, map_history
from cmf_agent.ingest.mlmd import is_sqlite, read_mlmd
from cmf_graph.database import store_errors
from cmf_graph.graph import no_collector
from cmf_protocol.errors import CallerError

_HINT = "give what `cmf metadata export` wrote, or the MLMD SQLite file"


class Imported(NamedTuple):
    """What a file holds, how much of it was new here, and what had no place of its own."""

    file: Path
    form: str
    counts: Counts
    events: Appended
    unmapped: list[dict[str, Any]]
    is_dry_run: bool


def ingest_cmf(home: Home, file: Path, *, pipelines: Sequence[str] = (), dry_run: bool = False) -> Imported:
    """Record what the peer's export or database `file` says and is not said here yet, of all or of some pipelines.

    Raises `CallerError` for a file that is neither, `IntegrityError` for a damaged database, `StoreError` if it can't be read.
    """
    with store_errors(file):
        if not file.exists():
            raise CallerError(f"{file} does not exist", _HINT)
        if not file.is_file():
            raise CallerError(f"{file} is no file", _HINT)
        if file.stat().st_size == 0:
            raise CallerError(f"{file} is empty", _HINT)
    form = "mlmd" if is_sqlite(file) else "json"
    with no_collector():
        mapped = map_history(read_mlmd(file) if form == "mlmd" else read_json(file), pipelines)
    appended = append_new(home, mapped.drafts, dry_run=dry_run)
    return Imported(file, form, mapped.counts, appended, mapped.unmapped.items(), dry_run)


def import_json(done: Imported) -> dict[str, Any]:
    """Return what was imported as JSON has it."""
    return {
        "file": str(done.file),
        "form": done.form,
        **done.counts._asdict(),
        "events": {"new": done.events.recorded, "known": done.events.known},
        "dry_run": done.is_dry_run,
        "unmapped": done.unmapped,
    }


def import_text(done: Imported) -> str:
    """Return what was imported as people read it."""
    held = ", ".join(_counted(count, what) for what, count in done.counts._asdict().items())
    lines = [f"{done.file}: {held}", _news(done)]
    if done.unmapped:
        lines.append("without a place of their own:")
    for item in done.unmapped:
        examples = ", ".join(item["examples"]) + (", …" if item["count"] > len(item["examples"]) else "")
        lines.append(f"  {item['count']:,} {item['what']} ({examples})")
        lines.append(f"    kept: {item['kept']}")
    return "\n".join(lines)


_WORDS = {"edges": "usage edges", "metrics": "metrics artifacts"}


def _counted(count: int, what: str) -> str:
    words = _WORDS.get(what, what)
    if count == 1:
        words = {"metrics": "metrics artifact"}.get(what, words.removesuffix("s"))
    return f"{count:,} {words}"


def _news(done: Imported) -> str:
    new, known = done.events
    if not new:
        return f"nothing new: all of its {_counted(known, 'events')} are known here"
    would = "would be recorded" if done.is_dry_run else "recorded"
    return f"{_counted(new, 'events')} {would}" + (f", {known:,} known here already" if known else "")
