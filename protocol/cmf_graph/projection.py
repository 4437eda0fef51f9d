"""Folding events into a graph database: one transaction for a batch and its checkpoint.

Theory of operation: events come in an order in which each follows its previous one. A batch is gone through in steps:
each event gets its place (branch), bodies are read, nodes get numbers, rows are collected and written with `executemany`.
A step ends before an event beyond a hole: what accepts that gap may stand right before it.
Where events stand is known by `branches.py`, what they say is written by `writing.py`, which trees go on from which by `claims.py`.

Rules
- One writer per graph (the caller holds a lock); applying an event again changes nothing.
- Whatever the order, the tables that digests and queries read are the same function of the set of events.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cmf_graph import schema
from cmf_graph.branches import BEYOND_HOLE, HELD, Branches
from cmf_graph.claims import Claims
from cmf_graph.database import connect, transaction
from cmf_graph.graph import Graph, no_collector
from cmf_graph.holes import Place
from cmf_graph.placing import Structure
from cmf_graph.writing import EventRows, Folded, Numbered
from cmf_protocol import types as t
from cmf_protocol.events import Event
from cmf_protocol.gaps import Gap

#: Events folded at a time: large enough that statements cost little per event, small enough to stay under 50 MB.
BATCH_EVENTS = 5_000

T = TypeVar("T")


class Projection:
    """The writer of one graph."""

    def __init__(self, path: Path | str) -> None:
        connection = connect(path)
        schema.create(connection, str(path))
        connection.execute("PRAGMA synchronous=NORMAL")  # disposable: what a power cut takes is projected again
        connection.execute("PRAGMA cache_size=-65536")
        self.graph = Graph(connection, str(path))
        self._connection = connection
        self._skipped: dict[bytes, str] = {}
        self._load()

    def _load(self) -> None:
        """Read anew what the tables say."""
        self._branches = Branches(self.graph)
        self._claims = Claims(self.graph, self._branches)
        self._rows = EventRows(self.graph, self._skipped)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def skip(self, event_id: bytes, reason: str) -> None:
        """Let an event be applied without effect: folding it failed, which is a fault of this program."""
        self._skipped[event_id] = reason

    def apply(
        self,
        events: Iterable[Event],
        checkpoints: Mapping[str, int | bytes] | None = None,
        signers: Mapping[bytes, bytes] | None = None,
    ) -> int:
        """Fold `events`, each after the one before it, and save `checkpoints` with them; return how many were new.

        `signers` maps ids of events that lie beyond an accepted gap to the keys that signed them: they go on in trees of these.
        Raises `IntegrityError` if the event before one is not held and no gap is accepted there; then nothing of this call was written.
        """
        self._branches.signers = signers or {}
        return self._apply(events, self._apply_batch, checkpoints)

    def apply_placed(
        self,
        structure: Structure,
        events: Iterable[tuple[bytes | None, Event]],
        checkpoints: Mapping[str, int | bytes] | None = None,
    ) -> int:
        """Fold (piece, event) pairs where `structure` says that the pieces stand, whatever is missing before them; else like `apply`.

        A tree's root comes before its other events. Raises `IntegrityError` for a piece that nobody told; then nothing was written.
        """
        return self._apply(events, partial(self._apply_placed_batch, structure), checkpoints)

    def _apply(
        self, items: Iterable[T], apply_batch: Callable[[list[T]], int], checkpoints: Mapping[str, int | bytes] | None
    ) -> int:
        applied = 0
        try:
            with transaction(self._connection, self.graph.name), no_collector():
                stream = iter(items)
                while batch := list(islice(stream, BATCH_EVENTS)):
                    applied += apply_batch(batch)
                self._claims.prove()
                self._rows.refresh(sorted(self._claims.changed_nodes()))
                self._connection.executemany(
                    "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    [(f"checkpoint:{source}", value) for source, value in (checkpoints or {}).items()],
                )
        except BaseException:
            self._load()
            raise
        finally:
            self.graph.forget_chains()
        return applied

    # -- batches -------------------------------------------------------------------------------------------------------

    def _apply_batch(self, events: Sequence[Event]) -> int:
        if self._branches.placed:
            return self._apply_placed_batch({}, [(None, event) for event in events])
        applied = done = 0
        while done < len(events):
            taken, new = self._apply_step(events[done:] if done else events)
            done, applied = done + taken, applied + new
        return applied

    def _apply_step(self, events: Sequence[Event]) -> tuple[int, int]:
        """Fold the events before one that lies beyond a hole, and that one if it comes first; return how many, and how many new."""
        known: dict[bytes, Place] = {}
        touched: dict[int, tuple[int, bytes]] = {}
        new: list[Numbered] = []
        again: list[Event] = []
        number = self._rows.next_event
        branches = self._branches
        heads, trees, log_ids, followed = branches.heads, branches.trees, branches.log_ids, branches.holes.by_previous
        for event in events:
            event_id, header, _, _ = event
            log_id, sequence, previous = header[3], header[4], header[5] or b""
            head = heads.get(previous)
            if head is None or head[1] + 1 != sequence or log_ids[trees[head[0]]] != log_id or previous in followed:
                branch = branches.place(event, known, first=not (new or again))
                if branch == BEYOND_HOLE:
                    break
                if branch == HELD:
                    again.append(event)
                    continue
            else:  # it follows the newest event of a branch, as nearly all do
                branch = head[0]
                del heads[previous]
                heads[event_id] = (branch, sequence)
            known[event_id] = (branch, sequence)
            touched[branch] = (sequence, event_id)
            new.append((number, branch, event))
            number += 1
        self._rows.next_event = number
        if new:
            branches.write_heads(touched)
            self._rows.write_events(new)
            self._fold(new)
        self._end_step(known, again)
        return len(new) + len(again), len(new)

    def _fold(self, new: Sequence[Numbered]) -> list[Folded]:
        """Write what those of these events say that this version folds, and return them."""
        folded = self._rows.read(new)
        for _, _, event, body in folded:
            if event.header.type == t.LOG_OPENED:
                self._claims.note_root(event, body)
            elif event.header.type == t.GAP_ACCEPTED:
                self._branches.holes.accept(Gap.from_body(body))
        self._rows.write_folded(folded)
        return folded

    def _end_step(self, new: Mapping[bytes, Place], again: Iterable[Event]) -> None:
        """Do what follows from events that are new, and from such as came again."""
        if self._rows.withheld:
            self._take_bodies(again)
        for branch, place in self._branches.holes.changed(new):
            moved = self._branches.move(branch, place)
            self._claims.on_moved(self._branches.trees[branch], moved)
        self._claims.on_held(new)

    def _take_bodies(self, events: Iterable[Event]) -> None:
        """Fold held events whose bodies were withheld, and are there now."""
        for event in events:
            row = None if event.body is None else self.graph.event(event.event_id)
            if row is None or row.body is not None:
                continue
            self._rows.take_body(row.id, event)
            self._fold([(row.id, row.branch, event)])
            self._rows.refresh_about([event])  # it is not the latest of its branch

    def _apply_placed_batch(self, structure: Structure, batch: Sequence[tuple[bytes | None, Event]]) -> int:
        branches = self._branches
        known: dict[bytes, Place] = {}
        tops = {branch: (sequence, head) for head, (branch, sequence) in branches.heads.items()}
        touched: set[int] = set()
        new: list[Numbered] = []
        again: list[Event] = []
        late: list[Event] = []
        for name, event in batch:
            event_id, sequence = event.event_id, event.header.sequence
            held = event_id in known or branches.is_held(event_id)
            branch = None if held else branches.told(name, event, structure, known)
            if branch is None:
                again.append(event)
                continue
            known[event_id] = (branch, sequence)
            branches.placed.take(branch, sequence)
            if branch not in tops:  # it is new, and begins with this event or with one that is missing
                tops[branch] = next((top, head) for head, (found, top) in branches.heads.items() if found == branch)
            top, head = tops[branch]
            if sequence > top:
                del branches.heads[head]
                branches.heads[event_id] = branch, sequence
                tops[branch] = sequence, event_id
                touched.add(branch)
            elif head != event_id:
                late.append(event)
            new.append((self._rows.next_event, branch, event))
            self._rows.next_event += 1
        branches.write_heads({branch: tops[branch] for branch in touched})
        self._rows.write_events(new)
        self._rows.refresh_late(self._fold(new), late)
        self._end_step(known, again)
        return len(new)
