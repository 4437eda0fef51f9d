"""The capture API: `run` records one execution from its start to its end.

    with cmf.run("mnist", "train", {"lr": 0.1}) as run:
        run.input("data/train.csv")
        run.metric("loss", 0.3, step=1)
        run.output("model.pkl", kind="model")

Rules
- It never hurts the run: no chdir, no exit, no change to the caller's values, no error because something could not be
  recorded (unless `strict`). An exception that ends the run is recorded and goes on untouched.
- What the caller got wrong raises `CallerError` from that call (`recording.py` has what a run says).
- A run that was not started starts with its first call; one that has ended stays as it ended, and a run that is
  started again goes on with the same execution. What waits when the process ends, with or without `finish`, is recorded
  then, or named as lost.
- The start is durable before the body runs. Only the process that started a run ends it, not a forked child.
"""

import atexit
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from uuid import UUID

from cmf_agent.current import current_run, enter, leave
from cmf_agent.describing import checked_mapping, describe, short_texts
from cmf_agent.finding import PathLike, home_or_warning
from cmf_agent.forking import Forkable, renew_after_fork
from cmf_agent.home import Home
from cmf_agent.identity import new_execution_id, parse_execution_id
from cmf_agent.machine_metrics import sampler_of
from cmf_agent.outcome import outcome_of
from cmf_agent.recorder import say, settle_all
from cmf_agent.recording import Recording
from cmf_agent.shape import note_lossy
from cmf_agent.starting import Given, execution_of_process, start_drafts
from cmf_agent.steps import flush_all
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.types import EXECUTION_KINDS, execution_finished, stage_node

__all__ = ["Run", "describe", "run"]


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
    machine_metrics: bool | float = False,
    strict: bool = False,
    home: PathLike | None = None,
) -> "Run":
    """Return a run of `stage` in `pipeline`, to be used as a context manager.

    `kind` is `step` or `deploy`; `execution_id` goes on with an execution that exists; `machine_metrics` samples CPU and
    memory of the process and its children, every 10 s or as many seconds as it says; `strict` raises what could not be
    recorded; `home` names the folder `.cmf` (default: found as `home.find_home` does).
    """
    return Run(
        pipeline,
        stage,
        params,
        name=name,
        kind=kind,
        properties=properties,
        execution_id=execution_id,
        machine_metrics=machine_metrics,
        strict=strict,
        home=home,
    )


class Run(Recording, Forkable):
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
        machine_metrics: bool | float = False,
        strict: bool = False,
        home: PathLike | None = None,
        command: list[str] | None = None,
    ) -> None:
        """Take what the run starts with; `command` is what runs if that is not this process."""
        _, (self.pipeline, self.stage) = stage_node(pipeline, stage)
        if kind not in EXECUTION_KINDS:
            raise CallerError(f"{kind!r} is no kind of run", f"it is one of {', '.join(EXECUTION_KINDS)}")
        params, properties = checked_mapping(params, "params"), checked_mapping(properties, "properties")
        self._given = Given(self.pipeline, self.stage, params or {}, properties or {}, name, kind, command)
        execution = new_execution_id() if execution_id is None else parse_execution_id(execution_id)
        super().__init__(execution, home_or_warning(home, strict=strict), strict=strict)
        self._sampler = sampler_of(self, machine_metrics)
        #: The run that this one was started in, and is nested in.
        self.outer: Run | None = None
        #: Whether its end was recorded.
        self.is_ended = False
        self._process_id = 0
        self._change = threading.RLock()  # of the two above
        self._is_start_over = False
        renew_after_fork(self)

    # -- start and end ---------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it has started and not ended."""
        return self._process_id != 0 and not self.is_ended

    def start(self) -> "Run":
        """Record the start, durably, unless that was done; `with` calls it."""
        with self._change:
            if self._process_id == os.getpid() and not self.is_ended:
                return self
            try:
                return self._started()
            finally:
                self._is_start_over = True

    def _started(self) -> "Run":
        around = current_run()
        self.outer = self.outer if around is self else around  # around itself: in a forked child
        self._process_id, self.is_ended = os.getpid(), False
        self._steps.gather(True)
        if self.home is not None:
            self._recorder.open()
            try:
                self._record_start(self.home)
            except BaseException:
                self._recorder.close()
                raise
        enter(self)
        self._sampler.start()
        return self

    def _record_start(self, home: Home) -> None:
        parent = self.outer.execution if self.outer else execution_of_process()
        environment, start = start_drafts(self.execution, self._given, home, parent=parent, strict=self.strict)
        self._recorder.record_with_content(environment.content_id, lambda: [environment.draft], [start])
        self._artifacts.tell_commits()

    def _begin(self) -> None:
        if not self._is_start_over:  # what another thread says waits for it
            self.start()

    def after_fork(self) -> None:
        """Start afresh in a forked child; the run itself stays its parent's."""
        self._change = threading.RLock()
        self._is_start_over = self._process_id != 0  # or its parent is at it

    def finish(
        self, status: str = "finished", *, exit_code: int | None = None, error: Mapping[str, str] | None = None
    ) -> None:
        """Record the end, once: `status` is `finished`, `interrupted` or `failed`; `with` calls it."""
        self._begin()
        if self._process_id != os.getpid():
            return
        texts, lossy = short_texts(error or {}, "error")
        end = note_lossy(execution_finished(self.execution, status, exit_code=exit_code, error=texts or None), lossy)
        self._sampler.stop()
        with self._change:
            again, self.is_ended = self.is_ended, True
        if again:
            self._recorder.settle()
            return
        leave(self)
        self._steps.gather(False)
        steps = self._steps.take()
        try:
            self._artifacts.tell_commits()
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
