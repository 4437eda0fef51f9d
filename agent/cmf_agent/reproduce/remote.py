"""Inputs that are not here, in the DVC remote that this project is configured to use: whether it has them, and fetching them.

Rules
- Only the remote that the user's own project names is asked, never an address that a record or a clone brings along.
- They are fetched into the project's DVC cache, each object checked by its digest (`dvc/transfer.py`).
- No remote, or no DVC, is no error here: then the remote has nothing, and that is the reason given.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from cmf_agent.dvc.projects import dvc_root
from cmf_agent.dvc.repository import is_installed
from cmf_agent.home import Home
from cmf_agent.reproduce.sources import Source
from cmf_protocol.errors import CmfError


class Answer(NamedTuple):
    """What a remote has, by content id, and of others why it could not be asked or did not give them."""

    found: dict[str, Source]
    reasons: dict[str, str]


NOTHING = Answer({}, {})


def ask_remote(home: Home, content_ids: Iterable[str]) -> Answer:
    """Return what the remote says that it has of these contents; what it holds is checked when it is fetched."""
    return _asked(home, content_ids, _held)


def fetch(home: Home, content_ids: Iterable[str]) -> Answer:
    """Bring these contents into the DVC cache and return which came, and why others did not."""
    return _asked(home, content_ids, _fetched)


def _asked(home: Home, content_ids: Iterable[str], ask: Callable[[str, list[str]], Answer]) -> Answer:
    """Return the answer of the remote of the project's DVC repository, or for all of them why there is none."""
    from cmf_agent.dvc.transfer import carries

    wanted = [content_id for content_id in content_ids if carries(content_id)]
    root = dvc_root(str(home.root.absolute() / "any"))
    if not wanted or root is None:
        return Answer(
            {}, dict.fromkeys(wanted, "no DVC project is around here: go to a clone of the code that has one")
        )
    if not is_installed():
        return Answer({}, dict.fromkeys(wanted, "DVC is not installed: pip install 'cmf-sync[dvc]'"))
    from cmf_agent.dvc.remotes import has_remote

    try:
        if not has_remote(root):
            return Answer({}, dict.fromkeys(wanted, "the DVC project here has no default remote"))
        return ask(root, wanted)
    except CmfError as error:
        return Answer({}, dict.fromkeys(wanted, str(error)))


def _held(root: str, wanted: list[str]) -> Answer:
    from cmf_agent.dvc.remotes import open_remote

    remote = open_remote(root)
    held = remote.sizes(content_id.removeprefix("md5:") for content_id in wanted)
    there = Source("remote", f"DVC remote {remote.url}")
    return Answer({each: there for each in wanted if each.removeprefix("md5:") in held}, {})


def _fetched(root: str, wanted: list[str]) -> Answer:
    from cmf_agent.dvc.remotes import open_cache, open_remote
    from cmf_agent.dvc.transfer import pull

    remote = open_remote(root)
    carried = pull(open_cache(root), remote, wanted)
    came = Source("remote", f"DVC remote {remote.url}")
    return Answer(
        {each.content_id: came for each in carried if each.state in ("transferred", "present")},
        {each.content_id: each.reason for each in carried if each.reason},
    )
