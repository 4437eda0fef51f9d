"""The capture API: `run` records one execution, `describe` a pipeline or a stage.

    with cmf.run("mnist", "train", {"lr": 0.1}) as run:
        run.input("data/train.csv")
        run.metric("loss", 0.3, step=1)
        run.output("model.pkl", kind="model")

Rules
- It never hurts the run: no chdir, no exit, no change to the caller's values, no error because something could not be
  recorded (unless `strict`). An exception that ends the run is recorded and goes on untouched.
- What the caller got wrong (a file that is not there, a name that can't be one) raises `CallerError` from that call.
- A run that was not started starts with its first call; one that has ended stays as it ended. What waits when the
  process ends, with or without `finish`, is recorded then, or named as lost.
- The start is durable before the body runs. Only the process that started a run ends it, not a forked child.
"""

import atexit
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from uuid import UUID

from cmf_agent.artifacts import Described, usage_draft
from cmf_agent.facts import Environment, current_environment, start_facts
from cmf_agent.forking import Forkable, renew_after_fork
from cmf_agent.home import Home, find_home, home_at
from cmf_agent.identity import id_text, new_execution_id, parse_execution_id
from cmf_agent.log import shared_log
from cmf_agent.outcome import outcome_of
from cmf_agent.recorder import Recorder, say, settle_all
from cmf_agent.settings import Settings, load_settings
from cmf_agent.shape import TEXT_CHARS_MAX, note_lossy, shape, short_text
from cmf_agent.sources.host import mask_mapping
from cmf_agent.sources.masking import mask_text
from cmf_agent.steps import Number, StepBuffer, as_number, check_metric_name, flush_all
from cmf_graph.content.files import Content, hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError, CmfError, StoreError
from cmf_protocol.events import Draft
from cmf_protocol.types import (
    ARTIFACT_PRODUCED,
    ARTIFACT_USED,
    EXECUTION_KINDS,
    execution_finished,
    execution_started,
    execution_updated,
    metrics_recorded,
    note_added,
    pipeline_described,
    stage_described,
    stage_node,
    tag_added,
)

PathLike = str | os.PathLike[str]
Progress = Callable[[int], None]

_current: ContextVar["Run | None"] = ContextVar("cmf_current_run", default=None)


def _settle() -> None:
    """Record, when the process ends, what still waits."""
    try:
        flush_all()
        settle_all()
    except CmfError as error:  # strict, and nobody is left who could be told
        say(f"not everything was recorded: {error}")


atexit.register(_settle)


def run(
    pipeline: str,
    stage: str,
    params: Mapping[str, object] | None = None,
    *,
    name: str | None = None,
    kind: str = "step",
    properties: Mapping[str, object] | None = None,
    execution_id: str | bytes | UUID | None = None,
    strict: bool = False,
    home: PathLike | None = None,
) -> "Run":
    """Return a run of `stage` in `pipeline`, to be used as a context manager.

    `kind` is `step` or `deploy`; `execution_id` goes on with an execution that exists; `strict` raises what could
    not be recorded; `home` names the folder `.cmf` (default: found as `home.find_home` does).
    """
    return Run(
        pipeline,
        stage,
        params,
        name=name,
        kind=kind,
        properties=properties,
        execution_id=execution_id,
        strict=strict,
        home=home,
    )


class Run(Forkable):
    """One execution while it is recorded; made by `run`. Any thread may use it."""

    def __init__(
        self,
        pipeline: str,
        stage: str,
        params: Mapping[str, object] | None = None,
        *,
        name: str | None = None,
        kind: str = "step",
        properties: Mapping[str, object] | None = None,
        execution_id: str | bytes | UUID | None = None,
        strict: bool = False,
        home: PathLike | None = None,
        command: list[str] | None = None,
    ) -> None:
        """Take what the run starts with; `command` is what runs if that is not this process."""
        _, (self.pipeline, self.stage) = stage_node(pipeline, stage)
        if kind not in EXECUTION_KINDS:
            raise CallerError(f"{kind!r} is no kind of run", f"it is one of {', '.join(EXECUTION_KINDS)}")
        self.execution = new_execution_id() if execution_id is None else parse_execution_id(execution_id)
        self.home = _home_or_warning(home, strict=strict)
        self._strict = strict
        self._start = {"name": name, "kind": kind}, _mapping(params, "params"), _mapping(properties, "properties")
        self._command = command
        self._recorder = Recorder(self.home.log_path if self.home else None, strict=strict)
        self._steps = StepBuffer(self.execution, self._recorder.record_behind)
        self._memory = DigestMemory(self.home.digests_path) if self.home else None
        self._outer: Run | None = None
        self._process_id = 0
        self._ended = False
        self._change = threading.RLock()  # of the two above
        renew_after_fork(self)

    @property
    def id(self) -> str:
        """The execution's id, a UUID."""
        return id_text(self.execution)

    # -- start and end ---------------------------------------------------------------------------------------------

    def start(self) -> "Run":
        """Record the start, durably, unless that was done; `with` calls it."""
        with self._change:
            if self._process_id == os.getpid() and not self._ended:
                return self
            return self._started()

    def _started(self) -> "Run":
        self._process_id, self._ended = os.getpid(), False
        self._steps.gather(True)
        self._outer = _alive(_current.get())
        if self.home is not None:
            self._recorder.open()
            try:
                self._record_start(self.home)
            except BaseException:
                self._recorder.close()
                raise
        _current.set(self)
        return self

    def _ensure_started(self) -> None:
        if not self._process_id:
            self.start()

    def after_fork(self) -> None:
        """Start afresh in a forked child; the run itself stays its parent's."""
        self._change = threading.RLock()

    def finish(
        self, status: str = "finished", *, exit_code: int | None = None, error: Mapping[str, str] | None = None
    ) -> None:
        """Record the end, once: `status` is `finished`, `interrupted` or `failed`; `with` calls it."""
        self._ensure_started()
        if self._process_id != os.getpid():
            return
        texts, lossy = _short_texts(error or {}, "error")
        end = note_lossy(execution_finished(self.execution, status, exit_code=exit_code, error=texts or None), lossy)
        with self._change:
            again, self._ended = self._ended, True
        if again:
            self._recorder.settle()
            return
        if _current.get() is self:
            _current.set(_alive(self._outer))
        self._steps.gather(False)
        steps = self._steps.take()
        try:
            self._record(*([steps] if steps else []), end)
        finally:
            self._recorder.close()
            if self._memory is not None:
                self._memory.close()

    def __enter__(self) -> "Run":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status, exit_code, texts = outcome_of(error)
        if error is None:
            self.finish(status)
            return
        try:
            self.finish(status, exit_code=exit_code, error=texts)
        except CmfError as failure:  # strict; but the exception that ends the run is what its caller must see
            say(f"the end of run {self.id} was NOT recorded: {failure}")

    # -- what a run says -------------------------------------------------------------------------------------------

    def input(
        self,
        path: PathLike,
        kind: str | None = None,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Content:
        """Record the file or folder at `path` as used, by its content as it is now.

        `kind` is one of `types.KINDS`; `name` is by default the path from the project's root; `progress` gets the
        number of bytes just read. Raises `CallerError` if it can't be read.
        """
        return self._artifact(ARTIFACT_USED, path, Described(kind, name, properties), progress)

    def output(
        self,
        path: PathLike,
        kind: str | None = None,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Content:
        """Record the file or folder at `path` as produced; the rest as for `input`."""
        return self._artifact(ARTIFACT_PRODUCED, path, Described(kind, name, properties), progress)

    def log_model(
        self,
        path: PathLike,
        name: str | None = None,
        properties: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Content:
        """Record the file or folder at `path` as a model that this run produced."""
        return self._artifact(ARTIFACT_PRODUCED, path, Described("model", name, properties), progress)

    def params(self, values: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Record parameters; what looks secret by its name is recorded as `***`."""
        shaped = shape(params=mask_mapping({**(_mapping(values, "params") or {}), **more}))
        self._record(shaped.into(execution_updated(self.execution, params=shaped.space("params"))))

    def property(self, key: str, value: object) -> None:
        """Record one property."""
        self.properties({key: value})

    def properties(self, values: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Record properties."""
        shaped = shape(properties=mask_mapping({**(_mapping(values, "properties") or {}), **more}))
        self._record(shaped.into(execution_updated(self.execution, properties=shaped.space("properties"))))

    def metric(self, name: str, value: Number, step: int | None = None, series: str | None = None) -> None:
        """Record a number; with a `step` it may wait up to a second, without one it is durable on return."""
        if step is None:
            self.metrics({name: value})
        else:
            self._ensure_started()
            self._steps.add(name, value, step, series or "")

    def metrics(self, values: Mapping[str, Number], step: int | None = None) -> None:
        """Record several numbers, as `metric` does."""
        self._ensure_started()
        if step is not None:
            for name, value in values.items():
                self._steps.add(name, value, step, "")
            return
        for name in values:
            check_metric_name(name)
        numbers = {name: as_number(name, value) for name, value in values.items()}
        shaped = shape(metrics=numbers)
        steps = self._steps.take()  # first, so that what is said now is later than what waits
        said = shaped.into(metrics_recorded(self.execution, metrics=shaped.space("metrics")))
        self._record(*([steps] if steps else []), said)

    def tag(self, name: str) -> None:
        """Put a tag on this execution."""
        self._record(tag_added(("execution", self.execution), name))

    def note(self, text: str) -> None:
        """Put a note on this execution; raise `CallerError` if it is longer than `shape.TEXT_CHARS_MAX`."""
        self._record(note_added(("execution", self.execution), checked_text(text, "note")))

    # -- how -------------------------------------------------------------------------------------------------------

    def _record(self, *drafts: Draft) -> None:
        self._ensure_started()
        self._recorder.record(drafts)

    def _record_start(self, home: Home) -> None:
        settings = self._settings(home)
        given, params, properties = self._start
        facts: dict[str, object] = {key: value for key, value in given.items() if value is not None}
        facts |= start_facts(home.root, settings, self._command)
        parent = self._outer.execution if self._outer else _parent_of_process()
        if parent is not None and parent != self.execution:
            facts["parent"] = parent
        environment = current_environment(settings)
        known = self._knows(home, environment)
        shaped = shape(facts=facts, params=mask_mapping(params or {}), properties=mask_mapping(properties or {}))
        started = execution_started(
            self.execution,
            self.pipeline,
            self.stage,
            environment=environment.content_id,
            facts=shaped.space("facts"),
            params=shaped.space("params"),
            properties=shaped.space("properties"),
        )
        events = self._recorder.record([*([] if known else [environment.draft]), shaped.into(started)])
        if events and not known:
            self._remember(home, environment)

    def _settings(self, home: Home) -> Settings:
        try:
            return load_settings(home.config_path)
        except CmfError as error:
            if self._strict:
                raise
            say(f"the configuration is not used: {error}")
            return Settings()

    def _knows(self, home: Home, environment: Environment) -> bool:
        try:
            with shared_log(home.log_path) as log:
                return log.holds_environment(environment.content_id)
        except CmfError:
            return False  # the append that follows says what is wrong

    def _remember(self, home: Home, environment: Environment) -> None:
        try:
            with shared_log(home.log_path) as log:
                log.remember_environment(environment.content_id)
        except CmfError:
            return  # it is recorded once more by the next run

    def _artifact(self, type_: str, named: PathLike, described: Described, progress: Progress | None) -> Content:
        described.check()
        path = _path(named)
        self._ensure_started()
        content = hash_path(path, memory=self._memory, progress=progress)
        if self.home is not None:
            root = self.home.root
            self._record(usage_draft(type_, self.execution, content, path=path, root=root, described=described))
        return content


def _path(named: PathLike) -> Path:
    if not os.fspath(named):
        raise CallerError("'' is not the path of a file or folder", "is a variable empty? '.' is the folder itself")
    return Path(named)


def describe(pipeline: str, stage: str | None = None, /, **properties: object) -> None:
    """Record properties of a pipeline, or of one of its stages; like a run, it never raises for want of a log."""
    draft = description(pipeline, stage, properties)
    home = _home_or_warning(None, strict=False)
    recorder = Recorder(home.log_path if home else None)
    recorder.record([draft])
    recorder.close()


def description(pipeline: str, stage: str | None, properties: Mapping[str, object]) -> Draft:
    """Draft properties of a pipeline, or of a stage if one is named."""
    shaped = shape(properties=mask_mapping(properties))
    values = shaped.space("properties")
    draft = pipeline_described(pipeline, values) if stage is None else stage_described(pipeline, stage, values)
    return shaped.into(draft)


def checked_text(text: str, what: str) -> str:
    """Return a note's or a reason's text, encodable; raise `CallerError` if it is empty or too long."""
    clean, is_cut = short_text(str(text))
    if is_cut or not clean.strip():
        raise CallerError(
            f"a {what} has 1 to {TEXT_CHARS_MAX:,} characters", "record a longer text as a file, as an artifact"
        )
    return clean


def _home_or_warning(home: PathLike | None, *, strict: bool) -> Home | None:
    """Return the home to record in; where there is none, raise if `strict`, else say so and return None."""
    try:
        if home is None:
            return find_home()
        with store_errors(os.fspath(home)):  # a working directory that is gone, a folder that may not be looked into
            found = home_at(Path(home).absolute(), Path.cwd())
            exists = found.path.is_dir()
        if not exists:
            raise CallerError(f"{found.path} does not exist", "run `cmf-agent init` to make it")
        return found
    except (CallerError, StoreError) as error:
        if strict:
            raise
        say(f"WARNING: NOTHING of this run is recorded: {error} ({error.hint})")
        return None


def _alive(run: Run | None) -> Run | None:
    """Return `run`, or the nearest around it that has not ended."""
    while run is not None and run._ended:
        run = run._outer
    return run


def _mapping(values: Mapping[str, object] | None, what: str) -> Mapping[str, object] | None:
    if values is None or isinstance(values, Mapping):
        return values
    hint = "give vars(args)" if hasattr(values, "__dict__") else "give a dictionary"
    raise CallerError(f"{what} is a {type(values).__name__}, not a mapping", hint)


def _parent_of_process() -> bytes | None:
    """Return the execution that `cmf-agent run` started this process for."""
    try:
        return parse_execution_id(os.environ["CMF_EXECUTION"])
    except (KeyError, CallerError):
        return None


def _short_texts(texts: Mapping[str, str], path: str) -> tuple[dict[str, str], dict[str, str]]:
    short, lossy = {}, {}
    for key, text in texts.items():
        short[key], is_cut = short_text(mask_text(text))  # exceptions quote addresses and headers
        if is_cut:
            lossy[f"{path}.{key}"] = "truncated"
    return short, lossy
