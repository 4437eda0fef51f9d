"""Forwards what is stored to other hubs (`hub.toml`), as a carrier: the same segments with the same signatures, in a process of its own.

Theory of operation: `serve` runs this file as a child where `hub.toml` names an upstream, and pokes it after each commit. Each branch of
the store is a chain that `cmf_link.replay` replays, cut where its segments end. The other hub verifies the sites themselves, which are
enrolled there by their keys. Since only what it does not hold is sent, hubs that forward to each other come to rest.

Rules
- A branch is offered once the other hub holds the event that it goes on from.
- What came for its bodies only is sent after that (`late_bodies.py`).
- A stored segment that is damaged stops its own branch only.
- A refused branch (most often: its site is not enrolled there) stops no other one, is shown by `query sites`, and is tried again later.
- Reads the store through a connection of its own, and writes to nothing but `upstreams.db`.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import zstandard

from cmf_hub.consumer import now_us
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.late_bodies import LateBodies
from cmf_hub.projector import open_custody
from cmf_hub.registry import Registry
from cmf_hub.upstreams import Progress, Upstream, configured
from cmf_link.replay import Replay, ReplayState
from cmf_protocol.chains import Cut, Mark, Offer
from cmf_protocol.encoding import Value
from cmf_protocol.errors import CmfError, IntegrityError, LinkError
from cmf_protocol.messages import Confirm, HelloAnswer, sign_hello
from cmf_protocol.signing import Signer
from cmf_protocol.sync import Moves

logger = logging.getLogger("cmf_hub")

AGENT = "cmf-hub"
#: How often the store is looked at without a poke (another process imported a bundle), s.
LOOK_EVERY_S = 2.0
#: Ends of segments, newest first, among which a hello's points are chosen: further back it names what was confirmed, and the beginning.
ENDS_MAX = 4_096

_BRANCHES = (
    "SELECT b.id, b.first_id, l.log_id, b.first_sequence, b.head_sequence, b.head_id, b.parent, b.parent_sequence "
    "FROM branches b JOIN logs l ON l.id = b.log ORDER BY b.id"
)


class Branch(NamedTuple):
    """A branch of the store; its chain is named by its first event."""

    id: int
    name: bytes
    log_id: bytes
    first: int
    head: int
    head_id: bytes
    parent: int | None
    parent_sequence: int | None


class StoredSource:
    """What is stored, replayed to one other hub: the port of `cmf_link.replay`."""

    def __init__(self, custody: Custody, progress: Progress, upstream: Upstream, signer: Signer) -> None:
        self._custody = custody
        self._progress = progress
        self._target = upstream.target
        self._token = upstream.token
        self._signer = signer
        self._branches: dict[bytes, Branch] = {}
        self._names: dict[int, bytes] = {}
        self._confirmed = {name: found.confirmed for name, found in progress.of(self._target.hub_id).items()}
        self._segments: dict[Cut, int] = {}
        self._moved: dict[bytes, int] = {}
        self._refused: dict[bytes, tuple[str, str]] = {}
        self._damaged: set[str] = set()
        self.late = LateBodies(custody, progress, upstream.target, self._is_confirmed)

    # -- what there is to send -----------------------------------------------------------------------------------------

    def offers(self) -> Iterator[Offer]:
        """Yield the branches, each once the other hub holds what it goes on from."""
        known = self._progress.of(self._target.hub_id)
        for row in self._custody.rows(_BRANCHES):
            branch = Branch._make(row)
            self._branches[branch.name], self._names[branch.id] = branch, branch.name
            confirmed = self._confirmed.get(branch.name, 0)
            if branch.parent is not None and branch.parent_sequence is not None:
                if self._confirmed.get(self._names[branch.parent], 0) < branch.parent_sequence:
                    continue
                confirmed = max(confirmed, branch.parent_sequence)
            mark = known[branch.name].mark if branch.name in known else None
            yield Offer(branch.name, branch.log_id, branch.head, min(confirmed, branch.head), mark)

    def event_id_at(self, chain: bytes, sequence: int) -> bytes | None:
        """Return the id of an event on the way from a branch's head to its log's root; None where there is none."""
        branch: Branch | None = self._branches[chain]
        while branch is not None and sequence < branch.first:
            if branch.parent is None or branch.parent_sequence is None or sequence > branch.parent_sequence:
                return None
            branch = self._branches[self._names[branch.parent]]
        if branch is None or sequence > branch.head:
            return None
        if sequence == branch.head:
            return branch.head_id
        sql = "SELECT last_id FROM segments WHERE branch = ? AND first_sequence <= ? AND last_sequence = ? AND last_id IS NOT NULL"
        found = self._custody.rows(sql, (branch.id, sequence, sequence))
        if found:
            return bytes(found[0][0])
        try:
            return self._custody.event_id_at(branch.id, sequence)
        except CmfError as error:  # the other branches are asked about all the same
            self._say_damaged(f"{self._custody.name}, branch {branch.name.hex()}: {error}")
            return None

    def _say_damaged(self, what: str) -> None:
        if what not in self._damaged:
            self._damaged.add(what)
            logger.error("%s: see cmf-hub verify", what)

    def _is_confirmed(self, branch: int, sequence: int) -> bool:
        name = self._names.get(branch)
        return name is not None and self._confirmed.get(name, 0) >= sequence

    def next_cut(self, chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:  # noqa: ARG002 - they were cut and signed
        """Return the stored segment of a branch that holds what follows `after`."""
        branch = self._branches[chain]
        found = self._custody.rows(
            "SELECT id, first_sequence - skip, last_sequence, last_id, substr(data, 2, 18) FROM segments "
            "WHERE branch = ? AND last_sequence > ? AND last_id IS NOT NULL ORDER BY first_sequence LIMIT 1",
            (branch.id, after),
        )
        if not found:
            raise IntegrityError(
                f"{self._custody.name}: branch {branch.id} lacks event {after + 1}", "see cmf-hub verify"
            )
        number, first, last, last_id, frame_header = found[0]
        cut = Cut(chain, branch.log_id, first, last, last_id, zstandard.frame_content_size(frame_header))
        self._segments[cut] = number
        return cut

    def data(self, cut: Cut) -> bytes:
        """Return a segment as it came."""
        return bytes(self._custody.rows("SELECT data FROM segments WHERE id = ?", (self._segments[cut],))[0][0])

    def hello(self, chains: Mapping[bytes, int]) -> bytes:
        """Return a hello about these branches: their heads, ends of segments before, and what they go on from."""
        logs: list[Value] = []
        for chain, confirmed in chains.items():
            branch = self._branches[chain]
            points = self._points(branch, confirmed)
            logs.append([branch.log_id, [[sequence, points[sequence]] for sequence in sorted(points, reverse=True)]])
        target = self._target
        return sign_hello(
            self._signer, site=target.carrier, hub_id=target.hub_id, token=self._token, time_us=now_us(), agent=AGENT, logs=logs,
        )  # fmt: skip

    def _points(self, branch: Branch, confirmed: int) -> dict[int, bytes]:
        ends = dict(
            self._custody.rows(
                "SELECT last_sequence, last_id FROM segments WHERE branch = ? AND last_id IS NOT NULL AND last_sequence >= ? "
                "ORDER BY last_sequence DESC LIMIT ?",
                (branch.id, confirmed, ENDS_MAX),
            )
        )
        sequences = list(ends)
        points, at = {branch.head: branch.head_id}, 1
        while at < len(sequences):
            points[sequences[at]] = ends[sequences[at]]
            at *= 2
        for sequence in (confirmed, branch.parent_sequence or 0, branch.first):
            event_id = self.event_id_at(branch.name, sequence) if sequence else None
            if event_id is not None:
                points[sequence] = event_id
        return points

    # -- what the other hub says -----------------------------------------------------------------------------------------

    def on_answer(self, answer: HelloAnswer) -> None:
        """Nothing is kept of who answered: the contact is told by the state."""

    def on_confirm(self, confirm: Confirm) -> None:
        """See whether bodies that came late have arrived."""
        self.late.on_confirm(confirm.confirmed)

    def on_moves(self, moves: Moves) -> None:
        """Take what was confirmed, lost, refused."""
        for chain, place in moves.confirmed.items():
            self._confirmed[chain] = self._moved[chain] = place[0]
        for name, held in moves.restored.items():
            self._confirmed[name] = self._moved[name] = held
            self.late.on_restored(name)
        for branch, why in moves.refused.items():
            self._refused[branch] = (why.code, why.message)
            logger.warning("%s refuses a log (%s): %s", self._target.url, why.code, why.message)
        for cut in [cut for cut in self._segments if cut.last_sequence <= self._confirmed.get(cut.chain, 0)]:
            del self._segments[cut]

    def on_marks(self, marks: Mapping[bytes, Mark]) -> None:
        """Keep how far the other hub is."""
        self._progress.keep(self._target.hub_id, self._moved, marks, self._refused)
        self._moved, self._refused = {}, {}

    def on_sent(self, cut: Cut, size: int) -> None:
        """Nothing is counted."""


class Forwarder:
    """Forwards to one other hub, until cancelled."""

    def __init__(self, data: DataFolder, upstream: Upstream, signer: Signer) -> None:
        self._upstream = upstream
        self._progress = Progress(data)
        self._custody = open_custody(data)
        self._source = StoredSource(self._custody, self._progress, upstream, signer)
        self._said: tuple[str, str] | None = None
        self.replay = Replay(upstream.target, self._source, on_state=self._on_state)

    def _on_state(self, state: ReplayState) -> None:
        if (state.word, state.detail) != self._said:
            self._said = (state.word, state.detail)
            target = self._upstream.target
            self._progress.say(target.hub_id, target.url, *self._said, now_us())

    async def run(self) -> None:
        """Forward for ever."""
        works = [
            asyncio.create_task(work) for work in (self.replay.for_ever(), self._look(), self._bring_late_bodies())
        ]
        try:
            for work in asyncio.as_completed(works):
                await work
        finally:
            for task in works:
                task.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _look(self) -> None:
        """Poke when the store has grown, or the other hub has come so far that another branch can be offered."""
        before = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if (now := self._custody.last_segment()) != before or self._has_waiting():
                before = now
                self.replay.poke()

    def _has_waiting(self) -> bool:
        count = self._custody.rows("SELECT count(*) FROM branches")[0][0]
        return bool(count != len(self.replay.machine.chains))

    async def _bring_late_bodies(self) -> None:
        while True:
            link = self.replay.link
            try:
                if link is None or not self.replay.reached or not await self._source.late.bring_next(link):
                    await asyncio.sleep(LOOK_EVERY_S)
            except (LinkError, TimeoutError) as error:
                logger.info("bodies that came late are sent again: %s", error)


async def run(data: DataFolder) -> None:
    """Forward to all that `hub.toml` names, poked through standard input. Raises `CallerError`, `StoreError`."""
    registry = Registry(data.registry)
    signer = registry.signer()
    registry.close()
    forwarders = [Forwarder(data, upstream, signer) for upstream in configured(data)]
    loop = asyncio.get_running_loop()

    def poke_all() -> None:
        for forwarder in forwarders:
            forwarder.replay.poke()

    threading.Thread(target=_read_pokes, args=(loop, poke_all), daemon=True).start()
    os.write(1, b"ready\n")
    await asyncio.gather(*(forwarder.run() for forwarder in forwarders))


def _read_pokes(loop: asyncio.AbstractEventLoop, poke: Callable[[], None]) -> None:
    """Pass pokes on, and end the process once the hub has closed the pipe: what is kept here may be lost."""
    while os.read(0, 65536):
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(poke)
    os._exit(0)


def main() -> None:
    """Run as the hub's child on the folder that the first argument names, until standard input closes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s forwarder: %(message)s")
    try:
        asyncio.run(run(DataFolder(Path(sys.argv[1]))))
    except CmfError as error:
        logger.error("nothing can be forwarded: %s %s", error, error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
