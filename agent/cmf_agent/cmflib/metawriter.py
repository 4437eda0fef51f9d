"""`Cmf`: the calls with which a pipeline of HPE's cmflib logs its metadata, over our log.

    metawriter = Cmf(filepath="mlmd", pipeline_name="mnist")
    metawriter.create_context(pipeline_stage="Train")
    metawriter.create_execution(execution_type="Train-execution", custom_properties={"lr": 0.1})
    metawriter.log_dataset("data/train.csv", "input")
    metawriter.log_metric("training", {"loss": 0.3})
    metawriter.commit_metrics("training")
    metawriter.log_model("model.pkl", "output", model_framework="SKlearn", model_name="forest")
    metawriter.finalize()

Rules
- Every call returns what it recorded, or raises: `CallerError` for what the caller must mend, such as a file that is not there. If
  the log can't be written, the run goes on, what was said waits, and what is lost in the end is named on standard error.
- Nothing ends the process, changes the directory, switches a branch, or changes the caller's dictionaries; only
  `log_dvc_lock` commits, and only that file.
- Everything may be logged in any order, by any thread, in forked children, and after `finalize` too.
- What is typed stays typed: a float is no text.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from cmf_agent.cmflib import artifacts, contexts, executions, metrics, slices
from cmf_agent.cmflib.entities import Artifact, Context, Execution, pipeline_context, stage_context
from cmf_agent.cmflib.homes import home_for
from cmf_agent.cmflib.session import Session
from cmf_agent.cmflib.slices import DataSlice as Slice
from cmf_agent.describing import checked_mapping, description
from cmf_protocol.types import checked_name

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]
Properties = Mapping[str, object] | None


class Cmf:
    """Logs the metadata of one pipeline: its stages, their executions, what these used and produced."""

    DataSlice: TypeAlias = Slice

    def __init__(
        self,
        filepath: PathLike = "mlmd",
        pipeline_name: str = "",
        custom_properties: Properties = None,
        graph: bool = False,
        is_server: bool = False,
    ) -> None:
        """Log to the `.cmf` of the project; make one, with a line on standard error, if there is none.

        Of `filepath` only the folder counts, where the search for `.cmf` begins. Without a name the pipeline is called
        like the working directory. `graph` and `is_server` have no effect: lineage is a question to the log
        (`cmf-agent query lineage`), and the hub gets what `cmf-agent push` sends.
        """
        for name, given in (("graph", graph), ("is_server", is_server)):
            if given:
                warnings.warn(f"Cmf({name}=True) has no effect: the log answers by itself", stacklevel=2)
        name = checked_name(pipeline_name or contexts.working_folder_name(), "pipeline")
        properties = checked_mapping(custom_properties, "custom_properties") or {}
        self._session = Session(home_for(filepath), name)
        self.parent_context = pipeline_context(name, properties)
        if properties:
            self._session.record(description(name, None, properties))

    # -- stages and executions -----------------------------------------------------------------------------------------

    @property
    def child_context(self) -> Context | None:
        """The current stage; assign one, as `create_context` or a query returns it, to go on there."""
        return self._session.context

    @child_context.setter
    def child_context(self, context: Any) -> None:
        if context is None:
            self._session.context = None
            return
        pipeline, stage = contexts.stage_of(self._session, getattr(context, "name", context))
        known = context if isinstance(context, Context) else stage_context(pipeline, stage)
        self._session.context = known

    @property
    def execution(self) -> Execution | None:
        """The current execution; assign one, as a query returns it, or its id, to say more of it."""
        return self._session.execution

    @execution.setter
    def execution(self, execution: Any) -> None:
        if execution is None:  # what is logged next begins one
            self._session.execution = self._session.run = None
        else:
            executions.set_execution(self._session, execution)

    def create_context(self, pipeline_stage: str, custom_properties: Properties = None) -> Context:
        """Make `pipeline_stage` the current stage, named `pipeline/stage`; properties that it has already are replaced."""
        return contexts.enter_stage(self._session, pipeline_stage, custom_properties)

    def update_context(
        self,
        type_name: str,
        context_name: str,
        context_id: object,  # noqa: ARG002 - a name is a context's identity here
        properties: Properties = None,
        custom_properties: Properties = None,
    ) -> Context:
        """Add properties to the stage called `context_name`, or to the pipeline, if `type_name` is `Parent_Context`."""
        given = {**(properties or {}), **(custom_properties or {})}
        return contexts.update_context(self._session, type_name, context_name, given)

    def create_execution(
        self,
        execution_type: str,
        custom_properties: Properties = None,
        cmd: str | Sequence[str] | None = None,
        create_new_execution: bool = True,
    ) -> Execution:
        """Begin an execution in the current stage, with these properties as its parameters; it ends the one before.

        `cmd` is the command that runs, by default this process's. Without `create_new_execution`, the execution of this
        type in this stage at this site goes on, whichever process began it. Code, host and environment are recorded
        with it. A stage that was not created is called like the script.
        """
        return executions.create_execution(
            self._session, execution_type, custom_properties, cmd, is_new=create_new_execution
        )

    def update_execution(self, execution_id: str, custom_properties: Properties = None) -> Execution:
        """Add parameters to the execution of this id, and go on with it; raise `CallerError` if nothing is known of it."""
        return executions.update_execution(self._session, execution_id, custom_properties)

    def finalize(self) -> None:
        """Record that the current execution ended, and at which commit; nothing is committed.

        Without it the execution ends with the process, as failed if an exception ended that. After `sys.exit` no end is recorded,
        since its code is not known by then: the execution stays `running`, and standard error says so.
        """
        executions.finalize(self._session)

    def fail(self, error: BaseException) -> None:
        """Record that `error` ended the current execution; the peer has no such call."""
        executions.finalize(self._session, error)

    # -- artifacts -----------------------------------------------------------------------------------------------------

    def log_dataset(
        self,
        url: PathLike,
        event: str,
        custom_properties: Properties = None,
        label: PathLike | None = None,
        label_properties: Properties = None,
        external: bool = False,  # noqa: ARG002 - has no effect at the peer either
    ) -> Artifact:
        """Record the file or folder at `url` as a dataset, as "input" or "output"; `label` is a file that labels it.

        Raises `CallerError` if it can't be read, `UnknownEvent`, a ValueError, for another `event`.
        """
        dataset = artifacts.log_file(self._session, url, event, "dataset", custom_properties)
        if label is not None:
            artifacts.log_label(self._session, label, dataset, label_properties)
        return dataset

    def log_model(
        self,
        path: PathLike,
        event: str,
        model_framework: str = "Default",
        model_type: str = "Default",
        model_name: str = "Default",
        custom_properties: Properties = None,
    ) -> Artifact:
        """Record the file or folder at `path` as a model, as "input" or "output"; errors as for `log_dataset`."""
        model = {"model_framework": model_framework, "model_type": model_type, "model_name": model_name}
        return artifacts.log_file(self._session, path, event, "model", custom_properties, model)

    def log_python_env(self, url: PathLike) -> Artifact:
        """Record a file that describes an environment as used; every execution names its own environment anyway."""
        return artifacts.log_file(self._session, url, "input", "environment", None)

    def log_label(self, url: PathLike, dataset_name: object, custom_properties: Properties = None) -> Artifact:
        """Record the file at `url` as a label of a dataset, which is named by its name, id or path."""
        return artifacts.log_label(self._session, url, dataset_name, custom_properties)

    def log_dvc_lock(self, file_path: PathLike) -> str:
        """Commit a dvc.lock, and nothing else, record it, and return the first line of `git log`."""
        from cmf_agent.cmflib.lock_files import log_dvc_lock

        return log_dvc_lock(self._session, file_path)

    def get_artifact(self, artifact_id: str) -> Artifact:
        """Return the artifact of this id; raise `CallerError` if nothing is known of it."""
        return artifacts.find_artifact(self._session, artifact_id)

    def update_existing_artifact(self, artifact: Artifact, custom_properties: Mapping[str, object]) -> None:
        """Add properties to an artifact; `labels`, `labels_uri` and `dataset_uri` are lists with commas, which grow."""
        artifacts.update_artifact(self._session, artifact, custom_properties)

    def update_dataset_url(self, artifact: Artifact, updated_url: str) -> None:
        """Add a place to the list `url` of an artifact, unless it is there."""
        artifacts.add_url(self._session, artifact, updated_url)

    def update_model_url(self, dup_artifact: list[Artifact], updated_url: str) -> list[Artifact]:
        """Add a place to the list `url` of each of these artifacts, and return them."""
        for artifact in dup_artifact:
            artifacts.add_url(self._session, artifact, updated_url)
        return dup_artifact

    def update_model_output(self, artifact: Artifact) -> None:
        """Record the properties that the object `artifact` has."""
        artifacts.put_artifact(self._session, artifact)

    def link_artifacts(self, artifact_source: Artifact, artifact_target: Artifact) -> None:
        """Record that `artifact_target` was derived from `artifact_source`, as a slice is from its dataset."""
        artifacts.link(self._session, artifact_source, artifact_target)

    # -- metrics -------------------------------------------------------------------------------------------------------

    def log_execution_metrics(self, metrics_name: str, custom_properties: Properties = None) -> Artifact:
        """Record metrics of the current execution, and the same as an artifact of type `Metrics`."""
        return metrics.log_execution_metrics(self._session, metrics_name, custom_properties)

    def log_metric(self, metrics_name: str, custom_properties: Properties = None) -> None:
        """Record a row of step metrics, the numbers in it at once; its number in the execution, from 1 on, is the step."""
        metrics.log_metric(self._session, metrics_name, custom_properties)

    def commit_metrics(self, metrics_name: str) -> Artifact:
        """Record all rows that `log_metric` has gathered under this name as a table, of type `Step_Metrics`."""
        return metrics.commit_metrics(self._session, metrics_name)

    def log_validation_output(self, version: object, custom_properties: Properties = None) -> Artifact:
        """Record the outcome of a validation, as an output of type `Validation_output`."""
        return metrics.log_validation_output(self._session, version, custom_properties)

    # -- slices --------------------------------------------------------------------------------------------------------

    def create_dataslice(self, name: str) -> Slice:
        """Return a slice to which files can be added, and which is recorded by its `commit`."""
        return Slice(name, self._session)

    def read_dataslice(self, name: str) -> "pd.DataFrame":
        """Return the newest slice of this name: index `Path`, column `hash`, and a column for each property."""
        return slices.read_slice(self._session, name)

    def update_dataslice(self, name: str, record: PathLike, custom_properties: Mapping[str, object]) -> Artifact:
        """Set properties of one file in the slice, which makes a new slice; return that."""
        return slices.update_slice(self._session, name, record, custom_properties)
