"""The home that capture records in; without one the run goes on, and it is said that nothing of it is recorded."""

import os
from pathlib import Path

from cmf_agent.home import Home, find_home, home_at
from cmf_agent.recorder import say
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError, StoreError

PathLike = str | os.PathLike[str]


def home_or_warning(home: PathLike | None, *, strict: bool) -> Home | None:
    """Return the home to record in; where there is none, raise if `strict`, else say so and return None."""
    try:
        return home_at_hand(home)
    except (CallerError, StoreError) as error:
        if strict:
            raise
        say(f"WARNING: NOTHING of this run is recorded: {error} ({error.hint})")
        return None


def home_at_hand(named: PathLike | None) -> Home:
    """Return the home of that folder `.cmf`, None for the one found; raise `CallerError` or `StoreError` for none."""
    if named is None:
        return find_home()
    with store_errors(os.fspath(named)):  # a working directory that is gone, a folder that may not be looked into
        found = home_at(Path(named).absolute(), Path.cwd())
        exists = found.path.is_dir()
    if not exists:
        raise CallerError(f"{found.path} does not exist", "run `cmf-agent init` to make it")
    return found
