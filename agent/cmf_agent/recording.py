"""What can be said of an execution while it is recorded: files, tables, parameters, metrics, remarks.

Rules
- What the caller got wrong (a file that is not there, a name that can't be one) raises `CallerError` from that call.
- Any thread may say something, and a forked child too.
- An input by content id alone has to be known here; a file of that name goes first.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from cmf_agent.artifacts import ArtifactRecording, Described, record_artifact
from cmf_agent.by_content import is_content_id, use_by_content_id, use_table
from cmf_agent.describing import checked_mapping, checked_path, checked_text
from cmf_agent.finding import PathLike
from cmf_agent.home import Home
from cmf_agent.identity import id_text
from cmf_agent.recorder import Recorder
from cmf_agent.run_tables import Whole, record_label, record_metrics_table, record_slice
from cmf_agent.shape import shape
from cmf_agent.sources.host import mask_mapping
from cmf_agent.steps import Number, StepBuffer, as_number, check_metric_name
from cmf_agent.tables import Rows, Table
from cmf_graph.content.files import Content
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.events import Draft
from cmf_protocol.types import (
    ARTIFACT_PRODUCED,
    ARTIFACT_USED,
    execution_updated,
    metrics_recorded,
    note_added,
    tag_added,
)

Progress = Callable[[int], None]


class Recording:
    """Says things of one execution; the start and the end are its subclasses' business."""

    def __init__(self, execution: bytes, home: Home | None, *, strict: bool) -> None:
        self.execution = execution
        self.home = home
        self.strict = strict
        self._series = ""
        self._recorder = Recorder(home.log_path if home else None, strict=strict)
        self._steps = StepBuffer(execution, self._recorder.record_behind)
        self._memory = DigestMemory(home.digests_path) if home else None
        self._artifacts = ArtifactRecording(execution, home, self._memory, self._recorder.record)

    @property
    def id(self) -> str:
        """The execution's id, a UUID."""
        return id_text(self.execution)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied, with the way out."""
        raise TypeError("a run can't be pickled or copied: give the other process run.id, for cmf.join(run.id)")

    def _begin(self) -> None:
        """Do what has to be done before anything is said."""

    def _record(self, *drafts: Draft) -> None:
        self._begin()
        self._recorder.record(drafts)

    # -- files and tables ------------------------------------------------------------------------------------------

    def input(
        self,
        path: PathLike | Table,
        kind: str | None = None,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
        commit: bool = False,
    ) -> Content:
        """Record a file or folder as used, by its content as it is now; or a table, or a content id that is known here.

        `kind` is one of `types.KINDS`; `name` is by default the path from the project's root; `progress` gets the
        number of bytes just read; `commit` commits to git what DVC writes about it. Raises `CallerError` if it can't be
        read.
        """
        described = Described(kind, name, checked_mapping(properties, "properties"))
        if isinstance(path, Table):
            return use_table(self, ARTIFACT_USED, path, described)
        if isinstance(path, str) and is_content_id(path) and not os.path.lexists(path):
            return use_by_content_id(self, path, described)
        return self._artifact(ARTIFACT_USED, path, described, progress, commit)

    def output(
        self,
        path: PathLike | Table,
        kind: str | None = None,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
        commit: bool = False,
    ) -> Content:
        """Record a file or folder (or a table) as produced; the rest as for `input`."""
        described = Described(kind, name, checked_mapping(properties, "properties"))
        if isinstance(path, Table):
            return use_table(self, ARTIFACT_PRODUCED, path, described)
        return self._artifact(ARTIFACT_PRODUCED, path, described, progress, commit)

    def log_model(
        self,
        path: PathLike,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
        commit: bool = False,
    ) -> Content:
        """Record the file or folder at `path` as a model that this execution produced."""
        return self.output(path, "model", name, properties, progress=progress, commit=commit)

    def metrics_table(
        self, name: str, rows: Rows | None = None, properties: Mapping[str, object] | None = None
    ) -> Table:
        """Record a table of metrics as produced, an artifact by itself that a later stage can have as input.

        `rows` is a list of dictionaries, a dictionary of columns, or a DataFrame; by default the step metrics of
        this execution so far: a column `step`, and one for each metric (`name[series]`), None where it has no value.
        """
        return record_metrics_table(self, name, rows, checked_mapping(properties, "properties"))

    def slice(
        self,
        name: str,
        rows: Mapping[PathLike, Mapping[str, object]] | Iterable[PathLike],
        of: Whole | Sequence[Whole] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> Table:
        """Record a selection of files as produced: a table of their paths, content ids and properties.

        `rows` are the paths, with properties if it is a mapping; `of` names what it is a slice of: a path, a content
        id, what `input` returned, or a list of these.
        """
        return record_slice(self, name, rows, of, checked_mapping(properties, "properties"))

    def label(
        self,
        path: PathLike,
        of: Whole | Sequence[Whole],
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> Content:
        """Record the file at `path` as used, and that it labels `of`: a path, a content id, or a list of these."""
        return record_label(self, path, of, name, properties)

    def _artifact(
        self, type_: str, named: PathLike, described: Described, progress: Progress | None, commit: bool
    ) -> Content:
        described.check()
        path = checked_path(named)
        self._begin()
        return record_artifact(self._artifacts, type_, path, described, progress, commit)

    # -- values ----------------------------------------------------------------------------------------------------

    def params(self, values: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Record parameters; what looks secret by its name is recorded as `***`."""
        shaped = shape(params=mask_mapping({**(checked_mapping(values, "params") or {}), **more}))
        self._record(shaped.into(execution_updated(self.execution, params=shaped.space("params"))))

    def property(self, key: str, value: object) -> None:
        """Record one property."""
        self.properties({key: value})

    def properties(self, values: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Record properties."""
        shaped = shape(properties=mask_mapping({**(checked_mapping(values, "properties") or {}), **more}))
        self._record(shaped.into(execution_updated(self.execution, properties=shaped.space("properties"))))

    def metric(self, name: str, value: Number, step: int | None = None, series: str | None = None) -> None:
        """Record a number; with a `step` it may wait up to a second, without one it is durable on return.

        `series` tells apart points of one metric that have the same steps, such as those of several workers.
        """
        if step is None:
            self.metrics({name: value})
        else:
            self._begin()
            self._steps.add(name, value, step, self._series if series is None else series)

    def metrics(self, values: Mapping[str, Number], step: int | None = None, series: str | None = None) -> None:
        """Record several numbers, as `metric` does."""
        checked_mapping(values, "metrics")
        self._begin()
        if step is not None:
            for name, value in values.items():
                self._steps.add(name, value, step, self._series if series is None else series)
            return
        for name in values:
            check_metric_name(name)
        numbers = {name: as_number(name, value) for name, value in values.items()}
        shaped = shape(metrics=numbers)
        steps = self._steps.take()  # first, so that what is said now is later than what waits
        said = shaped.into(metrics_recorded(self.execution, metrics=shaped.space("metrics")))
        self._record(*([steps] if steps else []), said)

    # -- remarks ---------------------------------------------------------------------------------------------------

    def tag(self, name: str) -> None:
        """Put a tag on this execution."""
        self._record(tag_added(("execution", self.execution), name))

    def note(self, text: str) -> None:
        """Put a note on this execution; raise `CallerError` if it is longer than `shape.TEXT_CHARS_MAX`."""
        self._record(note_added(("execution", self.execution), checked_text(text, "note")))
