"""Samples CPU and memory of a run's processes as step metrics, if asked to (extra `cmf-sync[machine]`).

    machine/cpu_percent          of this process and its children since the last sample; 100 is one core
    machine/memory_bytes         resident memory of the same
    machine/host_memory_percent  how much of the host's memory is taken, by anybody

Rules
- The step is the sample's number. The first sample is taken at the start (of CPU there is nothing to say yet), the last at the end.
- A thread of its own samples, in the process that started the run only. What can't be sampled is said once, and the run goes on.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

from cmf_agent.recorder import say
from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    from cmf_agent.recording import Recording

SAMPLE_EVERY_S = 10.0
#: Sampling more often would be felt by the run, s.
SAMPLE_EVERY_S_MIN = 0.05
#: A day: longer waits, such as infinite ones, are more than the system can count.
SAMPLE_EVERY_S_MAX = 86_400.0
#: How long the end of a run waits for a sample that is being taken, s.
_STOP_WAIT_S = 5.0
#: Over less time than this the system's ticks of CPU time say nothing, s.
_CPU_S_MIN = 0.2
_NO_PSUTIL = "no machine metrics: psutil is not installed (pip install 'cmf-sync[machine]')"


class NoSampler:
    """Samples nothing: what a run has unless it asked for more."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Sampler(NoSampler):
    """Samples every `every_s` seconds and says so of `run`, from `start` to `stop`."""

    def __init__(self, run: "Recording", every_s: float) -> None:
        self._run = run
        self._every_s = every_s
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._number = 0
        self._seen: dict[tuple[int, float], float] = {}
        self._at_s: float | None = None

    def start(self) -> None:
        """Take the first sample, and further ones from now on."""
        try:
            import psutil  # noqa: F401 - asked for here, where it can be said
        except ImportError:
            say(_NO_PSUTIL)
            return
        self._over = threading.Event()
        self._seen, self._at_s = {}, None
        if self._sample():
            self._thread = threading.Thread(target=self._go_on, args=(self._over,), name="cmf-machine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take the last sample, and no more."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._over.set()
        thread.join(_STOP_WAIT_S)
        if not thread.is_alive():
            self._sample()

    def _go_on(self, over: threading.Event) -> None:
        while not over.wait(self._every_s):
            if not self._sample():
                return

    def _sample(self) -> bool:
        """Record one sample, and return whether that went well."""
        try:
            found = self._take()
        except Exception as error:  # noqa: BLE001 - what the system refuses must not hurt the run
            say(f"no machine metrics from here on: {type(error).__name__}: {error}")
            return False
        for name, value in found.items():
            self._run._steps.add(name, value, self._number, self._run._series)
        self._number += 1
        return True

    def _take(self) -> dict[str, float]:
        import psutil

        used, memory = _tree(psutil)
        now_s = time.monotonic()
        found: dict[str, float] = {}
        if self._at_s is None:
            self._seen, self._at_s = used, now_s
        elif now_s - self._at_s >= _CPU_S_MIN:
            spent = sum(max(seconds - self._seen.get(process, 0.0), 0.0) for process, seconds in used.items())
            found["machine/cpu_percent"] = round(100 * spent / (now_s - self._at_s), 1)
            self._seen, self._at_s = used, now_s
        return found | {
            "machine/memory_bytes": memory,
            "machine/host_memory_percent": psutil.virtual_memory().percent,
        }


def _tree(psutil: Any) -> tuple[dict[tuple[int, float], float], int]:
    """Return the CPU seconds so far of each process of the tree, by id and birth, and the memory of all, bytes."""
    own = psutil.Process()
    used: dict[tuple[int, float], float] = {}
    memory = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            with process.oneshot():
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
                memory += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return used, memory


def sampler_of(run: "Recording", wanted: bool | float) -> NoSampler:
    """Return what samples for `run`: every 10 s, or as many seconds as `wanted` says; raise `CallerError` for no number."""
    if wanted is False or wanted is None:
        return NoSampler()
    every_s = SAMPLE_EVERY_S if wanted is True else wanted
    if not isinstance(every_s, int | float) or not every_s > 0:
        raise CallerError(f"machine_metrics is {wanted!r}", "give True, or the seconds between two samples")
    return Sampler(run, min(max(float(every_s), SAMPLE_EVERY_S_MIN), SAMPLE_EVERY_S_MAX))
