"""A site's folder: records through `cmf_agent`, pushes through the command line.

site = SiteFolder(tmp_path / "clinic-a")     # makes the folder and `.cmf` in it
site.record(executions=10, metrics=100)      # bulk, a few ms
site.run("train", outputs={"model.pkl": b"..."})
site.push()                                  # cmf-agent push --json
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.programs import BIN, Done, ask, call, environment

import cmf_agent as cmf
from cmf_agent.home import Home, future_home, init_home
from cmf_agent.identity import new_execution_id
from cmf_agent.keys import read_signer
from cmf_agent.log import Log
from cmf_agent.place import place_here, read_place, write_place
from cmf_agent.reading import LogReader
from cmf_agent.status import site_status
from cmf_graph.graph import Digest
from cmf_graph.projection import Projection
from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event
from cmf_protocol.segments import SEGMENT_EVENTS_MAX
from cmf_protocol.signing import Signer

from .strategies import segment_of

PIPELINE = "bulk"
#: A push takes seconds on a quiet machine, s; less than `COMMAND_LIMIT_S`, so that it is the push that says what it waited for.
PUSH_LIMIT_S = 120.0


class SiteFolder:
    """A project's folder with a log of its own, made at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        folder.mkdir(parents=True, exist_ok=True)
        self._pushes: list[subprocess.Popen[str]] = []
        self.home: Home = future_home(folder, {})
        init_home(self.home)

    # -- recording -----------------------------------------------------------------------------------------------------

    def record(self, executions: int, metrics: int = 2) -> list[bytes]:
        """Append executions of `metrics` + 2 events each, and return their ids."""
        made = [new_execution_id() for _ in range(executions)]
        drafts: list[Draft] = []
        for execution in made:
            drafts.append(t.execution_started(execution, PIPELINE, "train", params={"site": self.name}))
            drafts += [t.metrics_recorded(execution, metrics={f"m{n}": n / 7}) for n in range(metrics)]
            drafts.append(t.execution_finished(execution, "finished"))
        self.append(drafts)
        return made

    def append(self, drafts: Sequence[Draft]) -> list[Event]:
        """Append events to the log."""
        with Log(self.home.log_path) as log:
            return log.append(drafts)

    def run(
        self,
        pipeline: str,
        stage: str,
        *,
        inputs: Sequence[str] = (),
        outputs: Mapping[str, bytes] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Run a stage as a pipeline's own code does, writing `outputs`; return the execution's id."""
        with cmf.run(pipeline, stage, params={"lr": 0.1}, home=self.home.path) as run:
            for name in inputs:
                run.input(self.folder / name)
            for name, content in (outputs or {}).items():
                (self.folder / name).write_bytes(content)
                run.output(self.folder / name, kind="model" if name.endswith(".pkl") else "dataset")
            if metrics:
                run.metrics(metrics)
        return run.id

    # -- what is recorded ----------------------------------------------------------------------------------------------

    @property
    def signer(self) -> Signer:
        """The site's signing key."""
        return read_signer(self.home.key_path)

    def events(self) -> list[Event]:
        """Return everything that is recorded, in order."""
        with LogReader(self.home.log_path) as reader:
            return [event.decoded() for event in reader.all_events()]

    def segments(self, size: int = SEGMENT_EVENTS_MAX) -> list[bytes]:
        """Return the log as signed segments of up to `size` events."""
        events = self.events()
        return [segment_of(events[at : at + size], self.signer, events[-1]) for at in range(0, len(events), size)]

    # -- commands ------------------------------------------------------------------------------------------------------

    def call(self, *arguments: object) -> Done:
        """Run a command of `cmf-agent` in the folder."""
        return call("cmf-agent", *arguments, cwd=self.folder)

    def ask(self, *arguments: object) -> Any:
        """Run a command of `cmf-agent`, which must succeed, and return its JSON."""
        return ask("cmf-agent", *arguments, cwd=self.folder)

    def push(self, timeout_s: float = PUSH_LIMIT_S) -> dict[str, Any]:
        """Push, which must succeed, and return what the command says."""
        said: dict[str, Any] = self.ask("push", "--timeout", timeout_s)
        return said

    def start_push(self, timeout_s: float = PUSH_LIMIT_S) -> "subprocess.Popen[str]":
        """Start a push and return its process, which `end` ends if nobody else does."""
        pushing = subprocess.Popen(
            [BIN / "cmf-agent", "push", "--timeout", str(timeout_s), "--json"], cwd=self.folder, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._pushes.append(pushing)
        return pushing

    def end(self) -> None:
        """End every push that still runs."""
        for pushing in self._pushes:
            if pushing.poll() is None:
                pushing.kill()
                pushing.communicate()

    def status(self) -> dict[str, Any]:
        """Return what `cmf-agent status` says, without a process for it."""
        return site_status(self.home)


def folded(file: Path, sites: Sequence[SiteFolder]) -> Digest:
    """Return the digests of a graph, made in `file`, into which the logs of these sites are folded directly."""
    projection = Projection(file)
    try:
        for site in sites:
            projection.apply(site.events())
        return projection.graph.digest()
    finally:
        projection.close()


def copy_of(site: SiteFolder, folder: Path) -> SiteFolder:
    """Copy a site's folder, as people do."""
    subprocess.run(["cp", "-a", site.folder, folder], check=True)
    return SiteFolder(folder)


def twin_of(site: SiteFolder, folder: Path) -> SiteFolder:
    """Copy a site's folder so that nothing betrays it, as a snapshot of the whole machine does."""
    twin = copy_of(site, folder)
    place = read_place(twin.home)
    assert place is not None
    write_place(twin.home, place._replace(inode=place_here(twin.home, place.log_id).inode))
    return twin
