"""`join`: says things of an execution that another process (or host) started, such as a worker's of its training run.

    with cmf.run("mnist", "train") as run:                   # the process that starts the workers
        torch.multiprocessing.spawn(work, args=(run.id,), nprocs=4)

    def work(rank, execution_id):
        with cmf.join(execution_id, series=str(rank)) as run:
            run.metric("loss", 0.3, step=1)

Rules
- Neither start nor end nor environment is recorded, and nothing is started inside it: the execution is its starter's.
- Outside of `with`, everything is recorded at once, since a worker may end without a word; inside, step metrics wait up to
  a second as they do in a run.
- An exception that leaves the `with` goes on untouched. It is noted as the property `worker_error[WHO]` of the execution,
  which does not end by it; WHO is the series, or the host and process id where there is none.
"""

import os
from types import TracebackType
from uuid import UUID

from cmf_agent.current import current_run
from cmf_agent.describing import short_texts
from cmf_agent.finding import PathLike, home_or_warning
from cmf_agent.identity import parse_execution_id
from cmf_agent.outcome import outcome_of
from cmf_agent.recorder import say
from cmf_agent.recording import Recording
from cmf_agent.starting import execution_of_process
from cmf_protocol.errors import CallerError, CmfError


def join(
    execution_id: str | bytes | UUID | None = None,
    *,
    series: str | None = None,
    strict: bool = False,
    home: PathLike | None = None,
) -> "JoinedRun":
    """Return what says things of an execution that another process started; to be used as a context manager.

    `execution_id` is by default that of the run in whose body this is, else that which `CMF_EXECUTION` names (`cmf-agent
    run` sets it). `series` is that of step metrics which name none, by default the worker's number in `RANK`, as torchrun
    sets it. Raises `CallerError` if there is no execution to join.
    """
    return JoinedRun(_execution(execution_id), series=series, strict=strict, home=home)


class JoinedRun(Recording):
    """An execution of which this process says things, and which another one starts and ends; made by `join`."""

    def __init__(self, execution: bytes, *, series: str | None, strict: bool, home: PathLike | None) -> None:
        super().__init__(execution, home_or_warning(home, strict=strict), strict=strict)
        self._series = os.environ.get("RANK", "") if series is None else series
        self._steps.gather(False)
        self._process_id = 0

    def start(self) -> "JoinedRun":
        """Keep the log open, and let step metrics wait for each other; `with` calls it."""
        if self._process_id != os.getpid():
            self._process_id = os.getpid()
            self._recorder.open()
            self._steps.gather(True)
        return self

    def finish(self) -> None:
        """Record what still waits; `with` calls it. The execution goes on."""
        self._steps.gather(False)
        if self._process_id != os.getpid():
            return
        self._process_id = 0
        steps = self._steps.take()
        try:
            if steps:
                self._record(steps)
        finally:
            self._recorder.close()
            if self._memory is not None:
                self._memory.close()

    def __enter__(self) -> "JoinedRun":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        status, exit_code, texts = outcome_of(error)
        if texts is None and status != "finished":
            texts = {"type": "SystemExit", "message": f"exit code {exit_code}"}
        try:
            if texts:
                self.property(f"worker_error[{self._who()}]", short_texts(texts, "error")[0])
            self.finish()
        except CmfError as failure:  # strict; but the exception is what its caller must see
            say(f"not everything that this worker said of run {self.id} was recorded: {failure}")

    def _who(self) -> str:
        return self._series or f"{os.uname().nodename}:{os.getpid()}"


def _execution(named: str | bytes | UUID | None) -> bytes:
    if named is not None:
        return parse_execution_id(named)
    run = current_run()
    execution = run.execution if run is not None else execution_of_process()
    if execution is None:
        raise CallerError(
            "there is no run to join",
            "give its id: cmf.join(run.id), or set CMF_EXECUTION to it in the worker's environment",
        )
    return execution
