"""Records what a run says, without ever hurting the run.

Rules
- What the log refuses waits in memory, with the time at which it was said, and is tried again: with the next call
  once a rest is over, and at the end. What is lost in the end is named on standard error.
- `strict` raises instead, at the call that could not be recorded.
- Without a home nothing can be recorded: it is said once, and the run goes on.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from cmf_agent.forking import renew_after_fork
from cmf_agent.log import now_us, shared_log
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
    except (AttributeError, OSError, ValueError):  # no standard error, a closed one
        return


class Recorder:
    """The way of one run's drafts into the log at `path`; None where there is no home."""

    def __init__(self, path: Path | None, *, strict: bool = False) -> None:
        self._path = path
        self._strict = strict
        self._held = ExitStack()
        self._lock = threading.Lock()
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
                if self._strict:
                    raise
                self._note_failure(error)
        elif self._strict:  # a timer's points: they come first, or nothing does
            self._retry(must=True)
            self._raise_if_waiting()
            return self._append(drafts)
        at = now_us()
        with self._lock:
            self._waiting += [draft if draft.wall_us else draft._replace(wall_us=at) for draft in drafts]
        self._retry(must=False)
        return []

    def record_behind(self, draft: Draft) -> None:
        """Record a draft on behalf of nobody who could be told; `strict` raises at the next call instead."""
        try:
            self.record([draft])
        except CmfError as error:
            self._note_failure(error)
            with self._lock:
                self._waiting.append(draft)

    def close(self) -> None:
        """Try a last time, name what is lost, and let go of the log."""
        try:
            self._retry(must=True)
            if self._waiting:
                say(_loss_report(self._waiting, self._failure))
            if self._strict:
                self._raise_if_waiting()
        finally:
            self._waiting = []
            self._held.close()

    def after_fork(self) -> None:
        """Leave to the parent, in a forked child, what it has to record."""
        self._lock = threading.Lock()
        self._waiting = []

    def _retry(self, *, must: bool) -> None:
        """Try again what waits, if the log has rested or it `must` be."""
        with self._lock:
            if not self._waiting or not (must or time.monotonic() >= self._rest_until):
                return
            try:
                self._append(self._waiting)
            except CmfError as error:
                self._note_failure(error)
            else:
                self._waiting = []
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
        if self._failure is None:
            say(f"can't record for now, the run goes on: {error}" + (f" ({error.hint})" if error.hint else ""))
        self._failure = error
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
    name = draft.body.get("name")
    return f"{draft.type} of {', '.join(map(describe_node, draft.about))}" + (f" ({name})" if name else "")
