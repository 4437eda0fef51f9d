"""Makes the folder of a new colleague: a home that has joined a hub, before anything is pulled into it.

Rules
- Nothing that was there is changed or removed; a folder that has a home already is refused.
- A hub that refuses leaves nothing behind; where it was not reached, or had bound the new signing key before, the folder is good
  and kept, and the error says how to go on.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cmf_agent.home import HOME_NAME, Home, future_home, init_home
from cmf_agent.hub_file import join, load_hub, read_join_file
from cmf_agent.pull import note_subscriptions
from cmf_graph.database import store_errors
from cmf_protocol.errors import CallerError, CmfError, HubUnreachable
from cmf_protocol.filters import Filter


class Clone(NamedTuple):
    """A home that was made, and whether its folder was made too."""

    home: Home
    is_new_folder: bool


def prepare(join_file: Path, folder: Path | None, *, url: str | None) -> Clone:
    """Make the folder (by default called like the site) and a home in it, and join; raise `CallerError` if one is there already."""
    site = read_join_file(join_file).site
    target = (folder or Path(site)).absolute()
    if (target / HOME_NAME).exists():
        raise CallerError(f"{target} has a {HOME_NAME} already", f"cd {target} and use `cmf-agent subscribe`")
    clone = Clone(future_home(target, {}), not target.exists())
    with store_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    try:
        init_home(clone.home)
        join(clone.home, join_file, url=url)
    except BaseException:
        _remove(clone)
        raise
    return clone


def make_dvc_project(home: Home) -> None:
    """Make the folder a DVC repository, if it is in none: without one there is no cache that bytes could come into."""
    from cmf_agent.dvc.remotes import make_project

    make_project(home.root)


def undo_unless_joined(clone: Clone, error: CmfError, filters: Sequence[Filter], *, prove: bool) -> CmfError:
    """Remove what was made if the hub refused, and return the error to raise; else keep it and say how to go on."""
    hub = load_hub(clone.home)
    if hub is not None and hub.token is not None and not isinstance(error, HubUnreachable):
        _remove(clone)
        return error
    note_subscriptions(clone.home, filters, prove=prove)
    kept = type(error)(str(error), f"{clone.home.root} is made and subscribed: cd there, and `cmf-agent pull` goes on")
    return (
        kept
        if isinstance(kept, HubUnreachable) or not error.hint
        else type(error)(str(error), f"{error.hint}; {kept.hint}")
    )


def _remove(clone: Clone) -> None:
    shutil.rmtree(clone.home.path, ignore_errors=True)
    if clone.is_new_folder:
        shutil.rmtree(clone.home.root, ignore_errors=True)
