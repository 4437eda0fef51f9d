"""Carrying many objects, several at a time, and telling how far that is.

Rules
- Each object is carried once, however many contents it is of. One that fails stops no other; after `FAILURES_MAX` the rest is not tried.
- Who interrupts it waits no longer than for the next piece of each file that is on its way.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from cmf_agent.dvc.stores import OnBytes
from cmf_protocol.errors import CmfError, StoreError

#: So many objects that fail say that something is wrong with the remote or the disk.
FAILURES_MAX = 10


class Counter(NamedTuple):
    """Takes what has been carried: bytes, and whole files."""

    bytes: OnBytes
    file: Callable[[], None]


#: Called with how many files and bytes are to be carried, around carrying them.
Showing = Callable[[int, int], AbstractContextManager[Counter]]


def silent(_files: int, _bytes: int) -> AbstractContextManager[Counter]:
    """Show nothing."""
    return nullcontext(Counter(lambda _: None, lambda: None))


class Work:
    """Carrying objects, several at a time; each once, however many contents it is of."""

    def __init__(self, jobs: int) -> None:
        self.counter = Counter(lambda _: None, lambda: None)
        self.done: set[str] = set()
        self.failed: dict[str, CmfError] = {}
        self._jobs = jobs
        self._tried_in_vain = 0
        self._stopped = threading.Event()

    def counted(self, count: int) -> None:
        """Count bytes; end the transfer that tells of them if all are to end."""
        if self._stopped.is_set():
            raise StoreError("interrupted", "run it again: what has arrived stays")
        self.counter.bytes(count)

    def run(self, oids: set[str], carry: Callable[[str], None]) -> None:
        """Carry each of these objects; what fails is in `failed`."""
        with ThreadPoolExecutor(max_workers=max(1, min(self._jobs, len(oids)))) as pool:
            running = {pool.submit(self._one, oid, carry): oid for oid in sorted(oids)}
            try:
                for future in as_completed(running):
                    self._note(running[future], future.result())
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, oid: str, carry: Callable[[str], None]) -> CmfError | None:
        if self._tried_in_vain >= FAILURES_MAX:
            return StoreError(f"not tried: {self._tried_in_vain} others failed before", "mend what is wrong with those")
        try:
            carry(oid)
            return None
        except CmfError as error:
            failed = error
        except FileNotFoundError as error:
            failed = StoreError(f"{error.filename or error}: it is gone", "run it again")
        self._tried_in_vain += 1
        return failed

    def _note(self, oid: str, error: CmfError | None) -> None:
        if error is not None:
            self.failed[oid] = error
        else:
            self.done.add(oid)
            self.counter.file()
