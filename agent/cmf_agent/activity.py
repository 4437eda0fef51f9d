"""What the daemon of a site is doing, in `.cmf/daemon.json`, for `cmf-agent status` and whoever else looks.

Rules
- It counts only while the daemon holds `.cmf/daemon.lock`, which the kernel frees however it ends.
- Imported by `status`: next to nothing is imported here.
"""

import json
from pathlib import Path
from typing import NamedTuple

from cmf_agent.home import Home
from cmf_graph.database import store_errors
from cmf_graph.locks import is_locked


class Activity(NamedTuple):
    """What the daemon does: a word, words for people about it, how many events it has yet to bring over, since when (µs UTC)."""

    pid: int
    state: str
    detail: str
    pending: int
    since_us: int


def lock_path(home: Home) -> Path:
    """Return the file that the daemon of a home locks."""
    return home.path / "daemon.lock"


def activity_path(home: Home) -> Path:
    """Return the file that says what the daemon does."""
    return home.path / "daemon.json"


def read_activity(home: Home) -> Activity | None:
    """Return what the daemon of a home does, None if none runs."""
    if not is_locked(lock_path(home)):
        return None
    path = activity_path(home)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Activity(*(found[name] for name in Activity._fields))
    except (OSError, ValueError, KeyError, TypeError):
        return Activity(0, "starting", "", 0, 0)


def write_activity(home: Home, activity: Activity) -> None:
    """Put what the daemon does in place at once; a reader sees the old or the new."""
    path = activity_path(home)
    draft = path.with_name(f".{path.name}.{activity.pid}")
    with store_errors(path):
        draft.write_text(json.dumps(activity._asdict()) + "\n", encoding="utf-8")  # tells no secret, need not last
        draft.replace(path)
