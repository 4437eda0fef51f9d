"""A real hub as a process.

    with running_hub(tmp_path / "hub") as hub:
        hub.join(site)                       # enrols the site and lets it join
        hub.ask("query", "executions")       # cmf-hub query executions --json
        hub.kill(); hub.start()              # what a crash does

Whatever happens in the block, nothing of the hub is left afterwards: no hub, no nats-server, no projector.
"""

import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.nats import HOST, free_port
from tests.support.programs import BIN, Done, ask, call, end_all, environment, processes_of, until
from tests.support.sites import SiteFolder

from cmf_agent.hub_file import join
from cmf_graph.database import connect
from cmf_graph.graph import Digest
from cmf_hub.data import DataFolder
from cmf_hub.enrol import add_site
from cmf_hub.projector import caught_up_graph

#: A hub starts and stops within seconds on a quiet machine, s.
START_LIMIT_S = 120.0


class Hub:
    """A hub's data folder, and its process while there is one."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.ready_file = folder.with_name(f"{folder.name}.ready")
        self.log_file = folder.with_name(f"{folder.name}.log")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> DataFolder:
        """The folder as the hub itself sees it."""
        return DataFolder(self.folder)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    # -- life ----------------------------------------------------------------------------------------------------------

    def spawn(self, *options: object, file_bytes_max: int | None = None) -> None:
        """Start `cmf-hub serve` without waiting; `file_bytes_max` is what it and its children may write to one file."""
        words = [BIN / "cmf-hub", "serve", "--data", self.folder, "--nats", self.address]
        words += ["--ready-file", self.ready_file, *options]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words], env=environment(), stdout=log, stderr=log, start_new_session=True
            )
        if file_bytes_max is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_bytes_max, resource.RLIM_INFINITY))

    def start(self, *options: object) -> dict[str, Any]:
        """Start `cmf-hub serve` and return what its ready file says, once it is there."""
        self.ready_file.unlink(missing_ok=True)
        self.spawn(*options)
        until(lambda: self.ready_file.exists() or not self.runs, "the hub to answer", START_LIMIT_S)
        assert self.runs, f"the hub did not start:\n{self.said()}"
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready

    @property
    def runs(self) -> bool:
        """Whether the process that was started last still runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Ask the hub to end, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(with_signal)
        return self.process.wait(START_LIMIT_S)

    def kill(self) -> None:
        """End the hub's own process as a crash would; its children live on, or not."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End everything that works on the folder."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        end_all(self.folder)

    def said(self) -> str:
        """Return what the hub and its projector wrote to standard error."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def pids(self, word: str) -> list[int]:
        """Return the processes on the folder whose command line has `word` in it."""
        return [process.pid for process, command in processes_of(self.folder).items() if word in command]

    # -- commands ------------------------------------------------------------------------------------------------------

    def call(self, *arguments: object) -> Done:
        """Run a command of `cmf-hub` on this hub."""
        return call("cmf-hub", *arguments, "--data", self.folder, cwd=self.folder.parent)

    def ask(self, *arguments: object, cwd: Path | None = None) -> Any:
        """Run a command of `cmf-hub`, which must succeed, and return its JSON."""
        return ask("cmf-hub", *arguments, "--data", self.folder, cwd=cwd or self.folder.parent)

    def enrol(self, name: str) -> Path:
        """Enrol a site and return its join file."""
        file = self.folder.with_name(f"{self.folder.name}-{name}.join")
        self.ask("site", "add", name, "-o", file)
        return file

    # -- the same without a process for each, where the command line is not what is tested ------------------------------

    def join(self, site: SiteFolder) -> None:
        """Enrol a site by its name, and let it join."""
        file = self.folder.with_name(f"{self.folder.name}-{site.name}.join")
        add_site(self.data, site.name, file)
        join(site.home, file)

    def digest(self) -> Digest:
        """Return the digests of what it holds, once all that is stored is projected."""
        graph, behind = caught_up_graph(self.data, wait_s=START_LIMIT_S)
        with closing(graph.connection):
            assert behind == 0
            return graph.digest()

    def events(self) -> int:
        """Return the number of stored events."""
        with closing(connect(self.data.store, read_only=True)) as store:
            sql = "SELECT coalesce(sum(head_sequence - first_sequence + 1), 0) FROM branches"
            return int(store.execute(sql).fetchone()[0])


@contextmanager
def hub_at(folder: Path, port: int | None = None) -> Iterator[Hub]:
    """Give a hub that does not run yet, and end whatever runs on its folder afterwards."""
    hub = Hub(folder, port)
    try:
        yield hub
    finally:
        hub.end()


@contextmanager
def running_hub(folder: Path, port: int | None = None) -> Iterator[Hub]:
    """Give a hub that answers."""
    with hub_at(folder, port) as hub:
        hub.start()
        yield hub
