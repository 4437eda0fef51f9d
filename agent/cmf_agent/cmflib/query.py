"""`CmfQuery`: the questions that scripts of HPE's cmflib ask, answered from the local view.

    query = CmfQuery("mlmd")
    for stage in query.get_pipeline_stages("mnist"):
        print(query.get_all_executions_in_stage(stage))

Rules
- The local view is this site's own events and those that were pulled; every call sees what was recorded until then.
- Ids are texts: a pipeline's is its name, a stage's `pipeline/stage`, an execution's its UUID, an artifact's its content id. Where an id
  is asked for, what a call returned is taken too. Artifacts are named `path:hash`, of models and metrics `path:hash:execution`; every
  name that a call returns is taken by all others, and so are content ids and our own names.
- What is not known gives an empty answer, as at the peer: no rows, an empty list, None, -1.
- DataFrames need pandas (`pip install 'cmf-sync[pandas]'`); what returns lists, executions or JSON does not.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmf_agent.cmflib import (
    frames,
    query_artifacts,
    query_executions,
    query_export,
    query_finding,
    query_lineage,
    query_tables,
)
from cmf_agent.cmflib import query_names as names
from cmf_agent.cmflib.entities import Artifact, Execution
from cmf_agent.home import find_home
from cmf_agent.view import local_view
from cmf_graph.filters import normal_name
from cmf_graph.reading import Reading
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]
#: An id, what has one, or many of these.
Ids = Any
#: What the call with an id leaves out of an artifact's origins.
_HIDDEN_PARENTS = ("Environment", "Label")


class CmfQuery:
    """Answers questions about pipelines, stages, executions, artifacts and their lineage."""

    def __init__(self, filepath: PathLike = "mlmd", is_server: bool = False) -> None:
        """Ask the `.cmf` of the project; raise `CallerError` if there is none.

        Of `filepath` only the folder counts, where the search for `.cmf` begins. `is_server` has no effect: a hub is
        asked by `cmf-hub query`, and what it has comes here by `cmf-agent pull`.
        """
        if is_server:
            warnings.warn("CmfQuery(is_server=True) has no effect: the local view answers", stacklevel=2)
        path = Path(filepath)
        self._home = find_home(path if path.is_dir() else path.parent)

    @contextmanager
    def _reading(self) -> Iterator[Reading]:
        with local_view(self._home) as graph, graph.snapshot():
            yield Reading(graph, {})

    # -- pipelines and stages ------------------------------------------------------------------------------------------

    def get_pipeline_names(self) -> list[str]:
        """Return the names of all pipelines."""
        with self._reading() as reading:
            return list(names.pipeline_numbers(reading))

    def get_pipeline_id(self, pipeline_name: str) -> str | int:
        """Return the id of a pipeline, which is its name, or -1 if there is none."""
        with self._reading() as reading:
            return normal_name(pipeline_name) if names.pipeline_number(reading, pipeline_name) else -1

    def get_pipeline_stages(self, pipeline_name: str) -> list[str]:
        """Return the names `pipeline/stage` of a pipeline's stages."""
        with self._reading() as reading:
            return list(names.stage_numbers(reading, pipeline_name))

    # -- executions ----------------------------------------------------------------------------------------------------

    def get_all_exe_in_stage(self, stage_name: str) -> list[Execution]:
        """Return the executions of the stage with the name `pipeline/stage`, the first one first."""
        with self._reading() as reading:
            return self._of_stage(reading, stage_name)

    def get_all_executions_by_stage(self, stage_id: str, execution_uuid: str | None = None) -> list[Execution]:
        """Return the executions of the stage with this id, `pipeline/stage`; only those with a uuid, if one is given."""
        with self._reading() as reading:
            return query_executions.with_uuid(self._of_stage(reading, stage_id), execution_uuid)

    def _of_stage(self, reading: Reading, stage: Any) -> list[Execution]:
        stages = names.stages_called(reading, stage)
        return query_executions.executions(reading, query_executions.executions_of_stages(reading, stages))

    def get_all_executions_in_stage(self, stage_name: str) -> "pd.DataFrame":
        """Return the executions of a stage: `id`, `name`, fixed properties, and `custom_properties_<key>`."""
        frames.need_pandas("get_all_executions_in_stage")
        return query_executions.execution_frame(self.get_all_exe_in_stage(stage_name))

    def get_all_executions_in_pipeline(self, pipeline_name: str) -> "pd.DataFrame":
        """Return the executions of a pipeline, with the columns of `get_all_executions_in_stage`."""
        frames.need_pandas("get_all_executions_in_pipeline")
        with self._reading() as reading:
            number = names.pipeline_number(reading, pipeline_name) or 0
            found = query_executions.executions_of_pipeline(reading, number)
            return query_executions.execution_frame(query_executions.executions(reading, found))

    def get_all_executions_by_ids_list(self, exe_ids: Ids) -> "pd.DataFrame":
        """Return the executions with these ids, with the columns of `get_all_executions_in_stage`."""
        frames.need_pandas("get_all_executions_by_ids_list")
        return query_executions.execution_frame(self._by_ids(exe_ids))

    def get_executions_with_execution_ids(self, exe_ids: Ids) -> "pd.DataFrame":
        """Return `id`, `Execution_type_name` and `Execution_uuid` of the executions with these ids."""
        frames.need_pandas("get_executions_with_execution_ids")
        return query_executions.summary_frame(self._by_ids(exe_ids))

    def _by_ids(self, exe_ids: Ids) -> list[Execution]:
        with self._reading() as reading:
            return query_executions.executions(reading, names.execution_numbers(reading, exe_ids))

    def get_all_executions_for_artifact(self, artifact_name: str) -> "pd.DataFrame":
        """Return who used (`Type` INPUT) or made (OUTPUT) an artifact: execution, stage, pipeline."""
        frames.need_pandas("get_all_executions_for_artifact")
        with self._reading() as reading:
            return self._users(reading, query_finding.artifact_called(reading, artifact_name))

    def get_all_executions_for_artifact_id(self, artifact_id: str) -> "pd.DataFrame":
        """Return who used or made the artifact with this id, as `get_all_executions_for_artifact` does."""
        frames.need_pandas("get_all_executions_for_artifact_id")
        with self._reading() as reading:
            return self._users(reading, next(iter(names.artifact_numbers(reading, artifact_id)), None))

    def _users(self, reading: Reading, artifact: int | None) -> "pd.DataFrame":
        usages = [
            (use.execution, produced)
            for produced in (True, False)
            for use in query_lineage.uses_of_artifacts(reading, _few(artifact), produced=produced)
        ]
        return query_executions.user_frame(reading, usages)

    # -- artifacts -----------------------------------------------------------------------------------------------------

    def get_all_artifacts(self) -> list[str]:
        """Return the names of all artifacts, the oldest first."""
        with self._reading() as reading:
            return [artifact.name for artifact in query_artifacts.all_artifacts(reading)]

    get_artifact_names = get_all_artifacts

    def get_all_artifact_types(self) -> list[str]:
        """Return the names of the types that artifacts have here."""
        with self._reading() as reading:
            return sorted({artifact.type for artifact in query_artifacts.all_artifacts(reading)})

    def get_artifact(self, name: str) -> "pd.DataFrame | None":
        """Return the artifact of a name as one row, or None if there is none."""
        frames.need_pandas("get_artifact")
        with self._reading() as reading:
            number = query_finding.artifact_called(reading, name)
            return None if number is None else query_artifacts.artifact_frame(reading, [number])

    def get_artifact_df(self, artifact: Artifact, d: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Return an artifact that a call returned as one row; `d` has columns to begin with.

        Raises `CallerError` if it is no artifact, and nothing is known of one by that name.
        """
        frames.need_pandas("get_artifact_df")
        with self._reading() as reading:
            number = query_finding.artifact_called(reading, artifact)
            known = query_artifacts.found_artifacts(reading, list(_few(number)))
        if not known and not isinstance(artifact, Artifact):
            raise CallerError(f"nothing is known of the artifact {artifact!r:.200}", "give what get_artifact takes")
        found = next(iter(known.values()), query_artifacts.Found(artifact, 0, 0))
        row = {**(d or {}), **query_artifacts.artifact_row(found)}
        return frames.frame([row], (*(d or {}), *(key for key in query_artifacts.COLUMNS if key not in (d or {}))))

    def get_all_artifacts_by_context(self, pipeline_name: str) -> "pd.DataFrame":
        """Return the artifacts that a pipeline's executions used or made."""
        frames.need_pandas("get_all_artifacts_by_context")
        with self._reading() as reading:
            number = names.pipeline_number(reading, pipeline_name) or 0
            found = query_artifacts.artifacts_of_pipeline(reading, number)
            return query_artifacts.artifact_frame(reading, found)

    def get_all_artifacts_by_ids_list(self, artifact_ids: Ids) -> "pd.DataFrame":
        """Return the artifacts with these ids."""
        frames.need_pandas("get_all_artifacts_by_ids_list")
        with self._reading() as reading:
            return query_artifacts.artifact_frame(reading, names.artifact_numbers(reading, artifact_ids))

    def get_all_artifacts_for_execution(self, execution_id: str) -> "pd.DataFrame":
        """Return what an execution used and made, which the column `event` tells: INPUT or OUTPUT."""
        frames.need_pandas("get_all_artifacts_for_execution")
        with self._reading() as reading:
            numbers = names.execution_numbers(reading, execution_id)
            usages = [
                (use.artifact, produced)
                for produced in (False, True)
                for use in query_lineage.uses_of_executions(reading, numbers, produced=produced)
            ]
            return query_artifacts.usage_frame(reading, usages)

    def get_all_artifacts_for_executions(self, execution_ids: Ids) -> "pd.DataFrame":
        """Return what these executions used and made, each artifact once."""
        frames.need_pandas("get_all_artifacts_for_executions")
        with self._reading() as reading:
            numbers = names.execution_numbers(reading, execution_ids)
            used = query_lineage.uses_of_executions(reading, numbers, produced=False)
            made = query_lineage.uses_of_executions(reading, numbers, produced=True)
            found = dict.fromkeys(use.artifact for use in (*used, *made))
            return query_artifacts.artifact_frame(reading, list(found))

    # -- lineage of artifacts ------------------------------------------------------------------------------------------

    def get_one_hop_child_artifacts(self, artifact_name: str, pipeline_id: str | None = None) -> "pd.DataFrame":
        """Return what was made by the executions, of one pipeline if it is named, that used an artifact."""
        return self._related(artifact_name, up=False, one_hop=True, pipeline_id=pipeline_id)

    def get_all_child_artifacts(self, artifact_name: str) -> "pd.DataFrame":
        """Return all that was made from an artifact, the nearest first, each once."""
        return self._related(artifact_name, up=False, one_hop=False)

    def get_one_hop_parent_artifacts(self, artifact_name: str) -> "pd.DataFrame":
        """Return what the executions that made an artifact had used."""
        return self._related(artifact_name, up=True, one_hop=True)

    def get_all_parent_artifacts(self, artifact_name: str) -> "pd.DataFrame":
        """Return all that an artifact was made from, the nearest first, each once."""
        return self._related(artifact_name, up=True, one_hop=False)

    def get_one_hop_parent_artifacts_with_id(self, artifact_id: str) -> "pd.DataFrame":
        """Return what the executions that made the artifact with this id had used, but for environments and labels."""
        frames.need_pandas("get_one_hop_parent_artifacts_with_id")
        with self._reading() as reading:
            numbers = names.artifact_numbers(reading, artifact_id)
            parents = query_lineage.next_artifacts(reading, numbers, up=True)
            shown = query_artifacts.without_types(reading, parents, _HIDDEN_PARENTS)
            return query_artifacts.artifact_frame(reading, shown)

    def _related(self, name: str, *, up: bool, one_hop: bool, pipeline_id: Any = None) -> "pd.DataFrame":
        frames.need_pandas("the lineage of an artifact")
        with self._reading() as reading:
            return query_artifacts.artifact_frame(reading, _relatives(reading, name, up, one_hop, pipeline_id))

    # -- lineage of executions -----------------------------------------------------------------------------------------

    def get_one_hop_parent_executions(self, execution_id: Ids, pipeline_id: str | None = None) -> list[Execution]:
        """Return the executions, of one pipeline if it is named, that made what these had used."""
        with self._reading() as reading:
            return query_executions.executions(reading, _parents(reading, execution_id, pipeline_id))

    def get_one_hop_parent_execution_ids(self, execution_id: Ids, pipeline_id: str | None = None) -> list[str]:
        """Return the ids of the executions that made what this one had used."""
        return [parent.id for parent in self.get_one_hop_parent_executions(execution_id, pipeline_id)]

    def get_all_parent_executions_by_id(self, execution_id: Ids, pipeline_id: str | None = None) -> list[list[Any]]:
        """Return a list of two: all executions upstream of these, and the links between them.

        The first are lists of id, type name and uuid, the nearest first, the second dictionaries of ids: `source` made
        what `target` used.
        """
        with self._reading() as reading:
            numbers = names.execution_numbers(reading, execution_id)
            pipeline = names.pipeline_number(reading, pipeline_id)
            links = query_lineage.all_parent_links(reading, numbers, pipeline)
            ends = dict.fromkeys([*(parent for parent, _ in links), *numbers])
            found = dict(zip(ends, query_executions.executions(reading, list(ends)), strict=True))
        parents = [found[number] for number in dict.fromkeys(parent for parent, _ in links)]
        nodes = [[each.id, *(str(each.properties[key]) for key in _SUMMARY)] for each in parents]
        return [nodes, [{"source": found[parent].id, "target": found[child].id} for parent, child in links]]

    def get_all_parent_executions(self, artifact_name: str) -> "pd.DataFrame":
        """Return the executions that made what an artifact was made from, however far up."""
        frames.need_pandas("get_all_parent_executions")
        with self._reading() as reading:
            parents = _relatives(reading, artifact_name, up=True, one_hop=False)
            makers = query_lineage.uses_of_artifacts(reading, parents, produced=True)
            numbers = list(dict.fromkeys(use.execution for use in makers))
            return query_executions.execution_frame(query_executions.executions(reading, numbers))

    def find_producer_execution(self, artifact_name: str) -> Execution | None:
        """Return the first execution that made an artifact, or None if none is known."""
        with self._reading() as reading:
            number = query_finding.artifact_called(reading, artifact_name)
            makers = query_lineage.uses_of_artifacts(reading, _few(number), produced=True)
            return next(iter(query_executions.executions(reading, [use.execution for use in makers[:1]])), None)

    get_producer_execution = find_producer_execution

    # -- metrics and slices --------------------------------------------------------------------------------------------

    def get_metrics(self, metrics_name: str) -> "pd.DataFrame | None":
        """Return step metrics, a row for each step, or None if there are none of this name.

        The name is the artifact's, or what `log_metric` was given: then the newest table of that name, or else what was
        recorded of each step.
        """
        with self._reading() as reading:
            return query_tables.metrics_frame(self._home, reading, metrics_name)

    def read_dataslice(self, name: PathLike) -> "pd.DataFrame":
        """Return a slice, by its name or as a parquet file: index `Path`, column `hash`, and a column for each property.

        Raises `CallerError` if it is neither.
        """
        with self._reading() as reading:
            return query_tables.slice_frame(self._home, reading, name)

    # -- export --------------------------------------------------------------------------------------------------------

    def dumptojson(self, pipeline_name: str, exec_uuid: str | None = None) -> str:
        """Return a pipeline as the JSON of `cmf metadata export`; only executions with this uuid, if one is given."""
        with self._reading() as reading:
            return query_export.export(reading, names.pipeline_name(pipeline_name), exec_uuid)

    def extract_to_json(self, last_sync_time: int) -> str:
        """Return, as JSON of the same form, what was said since a time, ms UTC, of any pipeline; 0 for everything."""
        with self._reading() as reading:
            return query_export.export(reading, None, None, _checked_ms(last_sync_time))


_SUMMARY = query_executions.SUMMARY_COLUMNS[1:]


def _checked_ms(given: object) -> int:
    try:
        return int(given or 0)  # type: ignore[call-overload,no-any-return]  # whatever is no number raises
    except (TypeError, ValueError) as error:
        raise CallerError(f"{given!r} is no time", "give ms since 1970, UTC, or 0") from error


def _few(number: int | None) -> Iterable[int]:
    return () if number is None else (number,)


def _relatives(reading: Reading, name: str, up: bool, one_hop: bool, pipeline_id: Any = None) -> list[int]:
    number = query_finding.artifact_called(reading, name)
    if number is None:
        return []
    pipeline = names.pipeline_number(reading, pipeline_id)
    if one_hop:
        return query_lineage.next_artifacts(reading, [number], up=up, pipeline=pipeline)
    return query_lineage.all_artifacts(reading, number, up=up)


def _parents(reading: Reading, execution_ids: Ids, pipeline_id: Any) -> list[int]:
    numbers = names.execution_numbers(reading, execution_ids)
    links = query_lineage.parent_links(reading, numbers, names.pipeline_number(reading, pipeline_id))
    return list(dict.fromkeys(parent for parent, _ in links))
