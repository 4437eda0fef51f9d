"""Records what a run says, without ever hurting the run.

Rules
- What the log refuses waits in memory, with the time at which it was said, and is tried again: with the next call
  once a rest is over, and at the end. What is lost in the end is named on standard error.
- It may be called from a signal handler, in the midst of a call of the same thread: what it says then waits.
- `strict` raises instead, at the call that could not be recorded.
- Without a home nothing can be recorded: it is said once, and the run goes on.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from cmf_agent.forking import Forkable, renew_after_fork
from cmf_agent.log import TurnHeld, now_us, shared_log
from cmf_agent.naming import describe_node
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.events import Draft, Event

#: How long a log that refused is left alone, s: a locked database costs the run 10 s each time it is tried.
REST_S = 1.0
REST_S_MAX = 60.0
#: How many of the lost events are named one by one.
NAMED_MAX = 20


def say(text: str) -> None:
    """Write a line to standard error, if there is one."""
    try:
        sys.stderr.write(f"cmf: {text}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError, RuntimeError):  # none, a closed one, one that a signal found busy
        return


#: The recorders with something that waits.
_unsettled: set["Recorder"] = set()


def settle_all() -> None:
    """Try a last time what waits anywhere, and name what is lost."""
    for recorder in list(_unsettled):
        recorder.settle()


class Recorder(Forkable):
    """The way of one run's drafts into the log at `path`; None where there is no home."""

    def __init__(self, path: Path | None, *, strict: bool = False) -> None:
        self._path = path
        self._strict = strict
        self._held = ExitStack()
        self._lock = threading.RLock()  # reentrant for signal handlers, which `_retrying` keeps out
        self._retrying = False
        self._waiting: list[Draft] = []
        self._failure: CmfError | None = None
        self._rest_s = REST_S
        self._rest_until = 0.0
        renew_after_fork(self)

    def open(self) -> None:
        """Keep the log open until `close`."""
        if self._path is not None:
            self._held.enter_context(shared_log(self._path))

    def record(self, drafts: Sequence[Draft]) -> list[Event]:
        """Record drafts and return their events; none if they have to wait."""
        if self._path is None:
            return []
        if not self._waiting:
            try:
                return self._append(drafts)
            except CallerError:
                raise
            except CmfError as error:
                if self._strict and not isinstance(error, TurnHeld):
                    raise
                self._note_failure(error)
        elif self._strict:  # a timer's points: they come first, or nothing does
            self._retry(must=True)
            self._raise_if_waiting()
            return self._append(drafts)
        self._let_wait(drafts)
        self._retry(must=False)
        return []

    def record_with_content(
        self, content_id: str, content: Callable[[], Sequence[Draft]], drafts: Sequence[Draft]
    ) -> list[Event]:
        """Record drafts, and before them the `content` of that content id unless this log holds it already."""
        if self._path is None:
            return []
        if self._holds(self._path, content_id):
            return self.record(drafts)
        events = self.record([*content(), *drafts])
        if events:
            self._remember(self._path, content_id)
        return events

    def _holds(self, path: Path, content_id: str) -> bool:
        try:
            with shared_log(path) as log:
                return log.holds_content(content_id)
        except CmfError:
            return False  # the append that follows says what is wrong

    def _remember(self, path: Path, content_id: str) -> None:
        try:
            with shared_log(path) as log:
                log.remember_content(content_id)
        except CmfError:
            return  # it is recorded once more by the next run

    def record_behind(self, draft: Draft) -> None:
        """Record a draft on behalf of nobody who could be told; `strict` raises at the next call instead."""
        try:
            self.record([draft])
        except CmfError as error:
            self._note_failure(error)
            self._let_wait([draft])

    def close(self) -> None:
        """Try a last time, name what is lost, and let go of the log."""
        try:
            self.settle()
        finally:
            self._held.close()

    def settle(self) -> None:
        """Try a last time what waits, and name what is lost.

        In a signal handler that interrupted an append nothing is lost: it waits for the next call, or for the end of
        the process.
        """
        self._retry(must=True)
        if not self._waiting or isinstance(self._failure, TurnHeld):
            return
        with self._lock:
            lost, self._waiting = self._waiting, []
        _unsettled.discard(self)
        say(_loss_report(lost, self._failure))
        if self._strict and self._failure is not None:
            raise self._failure

    def after_fork(self) -> None:
        """Leave to the parent, in a forked child, what it has to record."""
        self._lock, self._retrying = threading.RLock(), False
        self._waiting = []
        _unsettled.discard(self)

    def _let_wait(self, drafts: Sequence[Draft]) -> None:
        at = now_us()
        with self._lock:
            self._waiting += [draft if draft.wall_us else draft._replace(wall_us=at) for draft in drafts]
            _unsettled.add(self)

    def _retry(self, *, must: bool) -> None:
        """Try again what waits, if the log has rested or it `must` be."""
        with self._lock:
            if not self._waiting or self._retrying or not (must or time.monotonic() >= self._rest_until):
                return
            self._retrying = True
            try:
                self._append_waiting()
            finally:
                self._retrying = False

    def _append_waiting(self) -> None:
        drafts = list(self._waiting)
        try:
            self._append(drafts)
        except CmfError as error:
            self._note_failure(error)
            return
        del self._waiting[: len(drafts)]  # a signal handler may have added to it
        if not self._waiting:
            _unsettled.discard(self)
            self._failure = None
        self._rest_s = REST_S

    def _raise_if_waiting(self) -> None:
        if self._waiting and self._failure is not None:
            raise self._failure

    def _append(self, drafts: Sequence[Draft]) -> list[Event]:
        assert self._path is not None
        with shared_log(self._path) as log:
            return log.append(drafts)

    def _note_failure(self, error: CmfError) -> None:
        if self._failure is None and not isinstance(error, TurnHeld):
            say(f"can't record for now, the run goes on: {error}" + (f" ({error.hint})" if error.hint else ""))
        self._failure = error
        if isinstance(error, TurnHeld):  # the next call can record it
            return
        self._rest_until = time.monotonic() + self._rest_s
        self._rest_s = min(self._rest_s * 2, REST_S_MAX)


def _loss_report(lost: list[Draft], failure: CmfError | None) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(draft.type for draft in lost).items())
    lines = [f"WARNING: {len(lost)} events were NOT recorded ({kinds})", f"  because: {failure}"]
    if failure is not None and failure.hint:
        lines.append(f"  way out: {failure.hint}")
    lines += [f"  lost: {_named(draft)}" for draft in lost[:NAMED_MAX]]
    if len(lost) > NAMED_MAX:
        lines.append(f"  and {len(lost) - NAMED_MAX} more")
    return "\n".join(lines)


def _named(draft: Draft) -> str:
    name = draft.body.get("name") or ", ".join(list(draft.body.get("metrics", ()))[:NAMED_MAX])
    return f"{draft.type} of {', '.join(map(describe_node, draft.about))}" + (f" ({name})" if name else "")
