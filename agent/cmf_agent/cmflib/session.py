"""What one `Cmf` remembers: its home, the stage and the execution it is in, and what it has logged.

Rules
- Any thread may use it; whoever is first starts the execution. A forked child goes on with its parent's.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cmf_agent.cmflib.entities import Artifact, Context, Execution
from cmf_agent.forking import Forkable, renew_after_fork
from cmf_agent.home import Home
from cmf_agent.recorder import Recorder
from cmf_agent.recording import Recording
from cmf_agent.sources.names import artifact_name
from cmf_agent.tables import Table
from cmf_protocol.events import Draft


class Edge(NamedTuple):
    """That an execution used or produced (`type`) an artifact, under a name, as what kind."""

    type: str
    execution: bytes
    name: str | None
    kind: str | None


class Session(Forkable):
    """The state of one `Cmf`; `home` is None where nothing can be recorded."""

    def __init__(self, home: Home | None, pipeline: str) -> None:
        self.home = home
        self.pipeline = pipeline
        self.context: Context | None = None
        self.execution: Execution | None = None
        self.run: Recording | None = None
        #: Every execution that something was said of, by its id.
        self.runs: dict[str, Recording] = {}
        #: What each execution logged by `log_metric`, by (execution id, name).
        self.rows: dict[tuple[str, str], list[Mapping[str, object]]] = {}
        #: The slices that were committed here, by name.
        self.slices: dict[str, Table] = {}
        #: The artifacts that were logged here, by content id, with their last edges, and the ids of what lay at a path.
        self.artifacts: dict[str, Artifact] = {}
        self.edges: dict[str, Edge] = {}
        self.at_path: dict[str, str] = {}
        #: Where the code comes from; None as long as nobody has asked.
        self._remote: str | None = None
        self.lock = threading.RLock()
        self._recorder = Recorder(home.log_path if home else None)
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Let go, in a forked child, of what another thread may have held."""
        self.lock = threading.RLock()

    def record(self, draft: Draft) -> None:
        """Record what no execution says."""
        self._recorder.record([draft])

    def remote(self) -> str:
        """Return the address of the code's repository, read once; empty if there is none."""
        if self._remote is None:
            self._remote = str(code_at(self.home).get("remote") or "")
        return self._remote

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """Return the name of the file at `path` in the project."""
        return artifact_name(Path(path), self.home.root if self.home else Path.cwd())[0]

    def remember(self, artifact: Artifact, edge: Edge, path: str | os.PathLike[str] | None = None) -> Artifact:
        """Keep what was logged, and where it lies; return it with the custom properties that it had here before."""
        with self.lock:
            before = self.artifacts.get(artifact.id)
            if before is not None and before is not artifact:
                artifact.custom_properties = {**before.custom_properties, **artifact.custom_properties}
            self.artifacts[artifact.id], self.edges[artifact.id] = artifact, edge
            if path is not None:
                self.at_path[os.path.abspath(path)] = artifact.id  # noqa: PTH100 - a link is what its path says
        return artifact


def code_at(home: Home | None) -> dict[str, object]:
    """Return `commit` and `remote` of the code, as far as there are any."""
    if home is None or not any(os.path.lexists(folder / ".git") for folder in (home.root, *home.root.parents)):
        return {}  # without importing git
    from cmf_agent.sources.code import capture_code

    return capture_code(home.root, diff=False) or {}
