"""The hub's data folder: where everything lies, and who may use it at a time.

registry.db           sites, keys, the hub's own login and signing key (0600)
store.db              the event store
graph/                the graph: `current` names the database file in use
nats/                 the nats-server's configuration and stream
tls/                  the hub's CA and the server's certificate, where it speaks TLS (0600)
hub.lock              held by `serve`
projector.lock        held by whoever projects
server.json           written by `serve` while it answers
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cmf_graph.database import file_is_on_network, store_errors
from cmf_graph.locks import is_locked, try_lock
from cmf_protocol.errors import CallerError, StoreError

#: How long `serve` tries for its lock: someone may just be looking whether a hub serves, s.
LOOKERS_WAIT_S = 1.0


@dataclass(frozen=True)
class DataFolder:
    """Paths of a hub's data."""

    root: Path

    @property
    def registry(self) -> Path:
        """The registry's database."""
        return self.root / "registry.db"

    @property
    def store(self) -> Path:
        """The event store's database."""
        return self.root / "store.db"

    @property
    def nats(self) -> Path:
        """The nats-server's folder."""
        return self.root / "nats"

    @property
    def server_file(self) -> Path:
        """What `serve` writes while it answers."""
        return self.root / "server.json"

    def prepare(self) -> None:
        """Make the folder; raise `StoreError` if it can't be, or lies on a network file system."""
        with store_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)  # commands, paths and names of people are in there
            (self.root / "graph").mkdir(exist_ok=True)
        kind = file_is_on_network(self.root)
        if kind is not None:
            raise StoreError(f"{self.root} lies on a network file system ({kind})", "use a folder on a local disk")

    def must_exist(self) -> None:
        """Raise `CallerError` if there is no hub here."""
        if not self.registry.exists():
            raise CallerError(
                f"there is no hub at {self.root}", "start one with cmf-hub serve, or name its folder with --data"
            )

    def graph_file(self) -> Path:
        """Return the database of the graph in use."""
        pointer = self.root / "graph" / "current"
        try:
            return pointer.parent / pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return pointer.parent / "graph.db"

    def use_graph(self, file: Path) -> None:
        """Let everyone who opens the graph from now on open `file`, and remove the one before."""
        before = self.graph_file()
        pointer = self.root / "graph" / "current"
        temporary = pointer.with_suffix(".new")
        with store_errors(pointer):
            with temporary.open("w", encoding="utf-8") as out:
                out.write(file.name)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(pointer)
            if before != file:
                for suffix in ("", "-wal", "-shm"):  # readers that have it open keep it
                    before.with_name(before.name + suffix).unlink(missing_ok=True)

    @property
    def rebuild_lock(self) -> Path:
        """Held by whoever builds a graph that is not in use yet."""
        return self.root / "rebuild.lock"

    def remove_leftovers(self) -> None:
        """Remove the graphs of rebuilds that were killed; leave them while one may be running."""
        lock = try_lock(self.rebuild_lock)
        if lock is None:
            return
        with lock:
            current = self.graph_file().name
            for file in (self.root / "graph").glob("graph-*.db*"):
                if not file.name.startswith(current):
                    file.unlink(missing_ok=True)

    def running(self) -> dict[str, object] | None:
        """Return what the running `serve` wrote (url, pid …), or None if none runs."""
        if not is_locked(self.root / "hub.lock"):
            return None
        try:
            found: dict[str, object] = json.loads(self.server_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found


def default_data_folder() -> Path:
    """Return where a hub keeps its data if nobody says: `CMF_HUB_DATA`, then the platform's data directory."""
    named = os.environ.get("CMF_HUB_DATA")
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "cmf-hub"


@contextmanager
def only_server(data: DataFolder) -> Iterator[None]:
    """Be the only `serve` on this data, or raise `StoreError` that names the other."""
    deadline = time.monotonic() + LOOKERS_WAIT_S
    while (lock := try_lock(data.root / "hub.lock")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if lock is None:
        other = data.running() or {}
        raise StoreError(
            f"a hub is serving {data.root} already (process {other.get('pid', 'unknown')})",
            "use that one, stop it first, or give this one another folder with --data",
        )
    with lock:
        yield
