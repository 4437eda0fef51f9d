"""Small graphs for tests: sites that record real events, folded by a real `Projection` into a real SQLite file.

    world = World(tmp_path)
    berlin = world.site("berlin")
    run = berlin.run("mnist", "train", uses={"data.csv": md5("data")}, makes={"model.pkl": md5("model")}, metrics={"auc": 0.9})
    world.questions().executions()

Every id is made from names and counters, so that a failing test fails the same way twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5 as md5_of
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any
from uuid import UUID

from cmf_graph.graph import Graph, open_graph
from cmf_graph.projection import Projection
from cmf_graph.questions import Questions
from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event, Head, head_of, make_events

#: 2025-06-01T12:00:00Z, µs
NOON_US = 1_748_779_200_000_000
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


def md5(text: str) -> str:
    """Return the content id of a file that holds `text`."""
    return "md5:" + md5_of(text.encode()).hexdigest()


def sha256(text: str) -> str:
    """Return the sha256 digest of a file that holds `text`."""
    return "sha256:" + sha256_of(text.encode()).hexdigest()


def id_text(execution: bytes) -> str:
    """Return an execution's id as answers have it."""
    return str(UUID(bytes=execution))


@dataclass
class Site:
    """A site with one log; `record` makes an event and folds it at once."""

    world: "World"
    name: str
    head: Head
    key: bytes
    events: list[Event] = field(default_factory=list)
    branch: str = ""

    def record(self, *drafts: Draft, at: int | None = None) -> list[Event]:
        """Append events to the log and fold them; `at` is their wall time, µs."""
        made = self.made(*drafts, at=at)
        self.world.projection.apply(made)
        return made

    def made(self, *drafts: Draft, at: int | None = None) -> list[Event]:
        """Append events to the log without folding them."""
        salts = b"".join(
            sha256_of(f"{self.name}{self.branch} {self.head.sequence + n}".encode()).digest()[:16]
            for n in range(len(drafts))
        )
        made = make_events(self.head, drafts, salts, at or self.world.tick())
        self.head = head_of(made[-1])
        self.events += made
        return made

    def fork(self) -> "Site":
        """Return a writer that goes on from the same event, as a copy of the log does."""
        return Site(self.world, self.name, self.head, self.key, [*self.events], self.branch + "'")

    def run(
        self,
        pipeline: str = "mnist",
        stage: str = "train",
        *,
        uses: Mapping[str, str] | Sequence[str] = (),
        makes: Mapping[str, str] | Sequence[str] = (),
        metrics: Mapping[str, Any] | None = None,
        status: str | None = "finished",
        execution: bytes | None = None,
        at: int | None = None,
        **start: Any,
    ) -> bytes:
        """Record an execution with its usage edges (name → content id); return its id."""
        execution = execution or self.world.new_execution()
        at = at or self.world.tick()
        drafts = [t.execution_started(execution, pipeline, stage, **start)]
        for type_, used in ((t.ARTIFACT_USED, uses), (t.ARTIFACT_PRODUCED, makes)):
            named = used.items() if isinstance(used, Mapping) else [(None, content_id) for content_id in used]
            drafts += [t.usage(type_, execution, content_id, name=name) for name, content_id in named]
        if metrics:
            drafts.append(t.metrics_recorded(execution, metrics=metrics))
        if status is not None:
            drafts.append(t.execution_finished(execution, status))
        self.record(*drafts, at=at)
        return execution


class World:
    """Some sites and the graph of what they recorded."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "graph.sqlite"
        self.projection = Projection(self.path)
        self.sites: dict[bytes, str] = {}
        self.now_us = NOON_US
        self._executions = 0
        self._readers: list[Graph] = []

    def tick(self) -> int:
        """Return the time, a second later with each call."""
        self.now_us += SECOND_US
        return self.now_us

    def new_execution(self) -> bytes:
        """Return the id of a new execution."""
        self._executions += 1
        return sha256_of(b"execution %d" % self._executions).digest()[:16]

    def site(self, name: str, *, known: bool = True) -> Site:
        """Return a new site; with `known` its key is that of a site by this name."""
        key = sha256_of(f"key of {name}".encode()).digest()
        if known:
            self.sites[key] = name
        log_id = sha256_of(f"log of {name} {len(self.sites)}".encode()).digest()[:16]
        site = Site(self, name, Head(log_id, 0, None, None), key)
        site.record(t.log_opened(key, agent="test"))
        return site

    def graph(self) -> Graph:
        """Return the graph, opened as a reader does."""
        self._readers.append(open_graph(self.path))
        return self._readers[-1]

    def questions(self, *, hash_file: Callable[[Path], str] | None = None) -> Questions:
        """Return the questions over the graph; now is when the last event was recorded."""
        return Questions(self.graph(), self.sites, hash_file=hash_file, clock=lambda: self.now_us)

    def close(self) -> None:
        """Close the writer and all readers."""
        for reader in self._readers:
            reader.connection.close()
        self.projection.close()
