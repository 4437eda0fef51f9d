"""What the tests of copies share: copying a site's folder as people do, and what its logs say of each other."""

import subprocess
from contextlib import closing
from pathlib import Path

from tests.agent.helpers import DRAFT

from cmf_agent.home import Home
from cmf_agent.locking import QueueLock
from cmf_agent.log import Log
from cmf_agent.place import read_place, write_place
from cmf_agent.reading import LogReader, LogRow
from cmf_agent.successions import succession_of
from cmf_graph.database import connect
from cmf_protocol.events import Event
from cmf_protocol.signing import Succession


def copy_of(home: Home, folder: Path) -> Home:
    """Copy the project with all that is in it, as people do."""
    subprocess.run(["cp", "-a", home.root, folder], check=True)
    return Home(folder / home.path.name, folder)


def append(home: Home, count: int = 1) -> list[Event]:
    with Log(home.log_path) as log:
        return log.append([DRAFT] * count)


def logs_of(home: Home) -> list[LogRow]:
    with LogReader(home.log_path) as reader:
        return reader.logs()


def succession(home: Home) -> Succession:
    """Return what the newest log says it goes on from; it has to be proven, and be from the head of the log before."""
    with LogReader(home.log_path) as reader:
        *_, predecessor, newest = reader.logs()
        found = succession_of(reader, newest)
    assert found is not None
    assert (found.log_id, found.sequence) == (predecessor.log_id, predecessor.head_sequence)
    assert found.proven_by(predecessor.key, newest.log_id, newest.key)
    return found


def pretend_copied(home: Home) -> None:
    """Let `place.json` name another file, as it does in a copy."""
    with closing(QueueLock(home.lock_path)) as lock, lock:
        place = read_place(home)
        assert place is not None
        write_place(home, place._replace(inode=place.inode + 1))


def backup(home: Home, file: Path) -> None:
    """Copy the database as SQLite does, into the file that is there."""
    with closing(connect(home.log_path)) as source, closing(connect(file)) as target:
        source.backup(target)


def put_back(home: Home, file: Path) -> None:
    with closing(connect(file)) as source, closing(connect(home.log_path)) as target:
        source.backup(target)
