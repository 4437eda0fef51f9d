"""What an execution says of metrics tables, slices and labels: the table, its edge, and what it is a part of.

Rules
- A table's blocks are recorded once per log, whichever execution made it.
- A slice lists its files sorted by path, so that the same files are the same slice.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmf_agent.by_content import edge_draft, is_content_id
from cmf_agent.describing import checked_mapping, checked_path
from cmf_agent.recorder import say
from cmf_agent.shape import note_lossy
from cmf_agent.sources.names import artifact_name
from cmf_agent.tables import Made, Rows, Table, make_table, steps_so_far, table_drafts
from cmf_graph.content.files import Content, hash_path
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.events import Draft
from cmf_protocol.types import ARTIFACT_PRODUCED, label_attached, slice_recorded

if TYPE_CHECKING:
    from cmf_agent.recording import Recording

Named = str | PathLike[str]
#: What something is a part of: a path, a content id, or what `input` and `output` return.
Whole = Named | Content | Table
_SLICE_COLUMNS = ("path", "content_id")


def record_metrics_table(
    run: "Recording", name: str, rows: Rows | None, properties: Mapping[str, object] | None
) -> Table:
    """Record a table of metrics as produced; without rows, the step metrics so far."""
    if rows is not None:
        return record_table(run, make_table("metrics", name, rows), properties)
    run._begin()
    run._steps.flush()
    try:
        so_far: Rows = {"step": []} if run.home is None else steps_so_far(run.home, run.execution)
    except StoreError as error:
        if run.strict:
            raise
        say(f"the metrics table {name!r} was NOT recorded: {error}" + (f" ({error.hint})" if error.hint else ""))
        return make_table("metrics", name, {"step": []}).table
    return record_table(run, make_table("metrics", name, so_far), properties)


def record_slice(
    run: "Recording",
    name: str,
    rows: Mapping[Any, Mapping[str, object]] | Iterable[Named],
    of: Whole | Sequence[Whole] | None,
    properties: Mapping[str, object] | None,
) -> Table:
    """Record a selection of files as produced, and what it is a slice of."""
    wholes = content_ids(run, of)
    given = rows if isinstance(rows, Mapping) else {path: {} for path in _paths(rows)}
    made = make_table("slice", name, _slice_rows(run, given), own=_SLICE_COLUMNS)
    return record_table(run, made, properties, [slice_recorded(made.table.content_id, whole) for whole in wholes])


def record_label(
    run: "Recording",
    label: Named,
    of: Whole | Sequence[Whole],
    name: str | None,
    properties: Mapping[str, object] | None,
) -> Content:
    """Record a file as used, and what it labels."""
    wholes = content_ids(run, of)
    if not wholes:
        raise CallerError("a label has to label something", "name it: run.label(path, of=…)")
    content = run.input(label, "label", name, properties)
    run._record(*(label_attached(content.content_id, whole) for whole in wholes))
    return content


def content_ids(run: "Recording", named: Whole | Sequence[Whole] | None) -> list[str]:
    """Return the content ids of what is named by paths or content ids, each once."""
    found = [] if named is None else [_content_id(run, each) for each in _paths(named)]
    return list(dict.fromkeys(found))


def _content_id(run: "Recording", named: Whole) -> str:
    if isinstance(named, Content | Table):  # what input and output return
        return named.content_id
    if isinstance(named, str) and is_content_id(named) and not lexists(named):
        return named
    return hash_path(checked_path(named), memory=run._memory).content_id


def _paths(named: Any) -> list[Any]:
    if isinstance(named, str | PathLike | Content | Table):
        return [named]
    if isinstance(named, bytes) or not isinstance(named, Iterable):
        raise CallerError(f"{named!r:.80} names no files", "give a path or a list of paths")
    return list(named)


def _slice_rows(run: "Recording", given: Mapping[Named, Mapping[str, object]]) -> list[dict[str, object]]:
    root = run.home.root if run.home else Path.cwd()
    found: dict[str, dict[str, object]] = {}  # a file that is named in two ways is one
    for named, said in given.items():
        properties = checked_mapping(said, f"what is said of {named}") or {}
        taken = [key for key in _SLICE_COLUMNS if key in properties]
        if taken:
            raise CallerError(f"{taken[0]!r} can't be a property of a slice's files", "every row has one already")
        path = checked_path(named)
        name, _ = artifact_name(path, root)
        content = hash_path(path, memory=run._memory)
        found[name] = {"path": name, "content_id": content.content_id, **properties}
    return [row for _, row in sorted(found.items())]


def record_table(
    run: "Recording", made: Made, properties: Mapping[str, object] | None, also: Sequence[Draft] = ()
) -> Table:
    """Record a table that was made as produced, and what `also` says."""
    table = made.table
    facts = {"kind": table.kind, "size": table.size}
    edge = edge_draft(ARTIFACT_PRODUCED, run.execution, table.content_id, table.name, facts, properties)
    blocks = table_drafts(table)  # first: a table that can't be recorded leaves no edge
    run._begin()
    run._recorder.record_with_content(table.content_id, lambda: blocks, [note_lossy(edge, made.lossy), *also])
    return table
