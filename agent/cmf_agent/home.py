"""Where a site keeps what is its own: the folder `.cmf`, how it is found and how it is made.

Rules
- It is found upwards from the working directory, as git finds `.git`; `CMF_HOME` names one elsewhere.
- Making it again changes nothing that is there and adds what is missing. For a log that exists a signing key is never
  made anew, nor is `place.json`: that it is missing says that the log was copied.
- Not on a network file system: SQLite's log needs shared memory and locks that those don't give.
"""

# os.path: a folder that this user may not look into is one without a home, where pathlib raises.
# ruff: noqa: PTH110, PTH112

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cmf_graph.database import file_is_on_network, store_errors
from cmf_protocol.errors import CallerError, StoreError

HOME_NAME = ".cmf"
_INIT_HINT = "run `cmf-agent init` in the project's folder"


class Home(NamedTuple):
    """A site's folder, and the root of the project, below which artifacts are named."""

    path: Path
    root: Path

    @property
    def log_path(self) -> Path:
        """The log's database."""
        return self.path / "log.db"

    @property
    def lock_path(self) -> Path:
        """The file on which writers of the log queue."""
        return self.path / "log.lock"

    @property
    def place_path(self) -> Path:
        """Where the log was opened, and what has left of it (`place.py`)."""
        return self.path / "place.json"

    @property
    def digests_path(self) -> Path:
        """The memory of files' digests."""
        return self.path / "digests.db"

    @property
    def key_path(self) -> Path:
        """The seed of the signing key."""
        return self.path / "keys" / "signing.key"

    @property
    def config_path(self) -> Path:
        """The project's configuration."""
        return self.path / "config.toml"

    @property
    def view_path(self) -> Path:
        """The local view's database."""
        return self.path / "view.db"

    @property
    def pulled_path(self) -> Path:
        """What was pulled of other sites."""
        return self.path / "pulled.db"

    @property
    def brought_path(self) -> Path:
        """What bundles brought of other sites."""
        return self.path / "brought.db"

    @property
    def locations_path(self) -> Path:
        """What was told of where bytes are, and what of it waits for a commit."""
        return self.path / "locations.db"

    @property
    def hub_path(self) -> Path:
        """What the join file said of the hub, with the login."""
        return self.path / "hub.json"


def find_home(start: Path | None = None, environment: Mapping[str, str] = os.environ) -> Home:
    """Return the home in force in the folder `start` (default: the working directory).

    Raises `CallerError` if there is none.
    """
    folder = _folder(start)
    named = environment.get("CMF_HOME")
    if named:
        home = home_at(folder / named, folder)
        if not os.path.isdir(home.path):
            raise CallerError(f"CMF_HOME names {home.path}, which does not exist", "run `cmf-agent init` to make it")
        return home
    for parent in (folder, *folder.parents):
        if os.path.isdir(parent / HOME_NAME):
            return Home(parent / HOME_NAME, parent)
    raise CallerError(f"no {HOME_NAME} in {folder} or above it", _INIT_HINT)


def _folder(start: Path | None) -> Path:
    """Return where one works, as an absolute path; the working directory may have been deleted."""
    try:
        return (start or Path.cwd()).absolute()
    except OSError as error:
        raise CallerError("the working directory is gone", "cd to a folder that exists") from error


def home_at(path: Path, folder: Path) -> Home:
    """Return the home at `path` for someone who works in `folder`."""
    if path.name == HOME_NAME:
        return Home(path, path.parent)
    roots = (parent for parent in (folder, *folder.parents) if os.path.exists(parent / ".git"))
    return Home(path, next(roots, folder))


def future_home(start: Path | None = None, environment: Mapping[str, str] = os.environ) -> Home:
    """Return the home that `init_home` would make or find in the folder `start` (default: the working directory).

    That is `CMF_HOME`, else the folder's own `.cmf`, even where one further up is in force.
    """
    folder = _folder(start)
    named = environment.get("CMF_HOME")
    return home_at(folder / named if named else folder / HOME_NAME, folder)


def init_home(home: Home) -> bool:
    """Make what `home` lacks, and return False if it lacked nothing.

    Raises `StoreError` for a network file system, and where a file can't be made.
    """
    from cmf_agent.keys import make_key
    from cmf_agent.locking import QueueLock
    from cmf_agent.opening import has_log, open_first_log

    is_new = make_folder(home)
    lock = QueueLock(home.lock_path)
    try:
        with lock, store_errors(home.path):
            if has_log(home.log_path):
                return is_new
            if not home.key_path.exists():
                make_key(home.key_path)
            open_first_log(home)
            return True
    finally:
        lock.close()


def make_folder(home: Home) -> bool:
    """Make what `home` lacks beside a key and a log, and return False if it lacked nothing; raise like `init_home`."""
    from cmf_agent.settings import TEMPLATE

    _refuse_network(home.path)
    with store_errors(home.path):
        home.key_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = [_write_missing(home.path / ".gitignore", "*\n"), _write_missing(home.config_path, TEMPLATE)]
    return any(made)


def _refuse_network(path: Path) -> None:
    kind = file_is_on_network(path)
    if kind is not None:
        raise StoreError(
            f"{path} lies on a network file system ({kind}), where a log can be damaged",
            "keep one log per host on a local disk: set CMF_HOME to a folder there",
        )


def _write_missing(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True
