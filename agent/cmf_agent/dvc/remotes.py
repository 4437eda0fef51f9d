"""Which DVC remote is meant, and opening it and the cache beside it.

Rules
- DVC opens a remote with the project's own configuration: credentials and endpoints are its business.
- The repository is held only while a remote is opened: captures go on beside a transfer that takes hours.
- Nothing is asked of a remote here: `stores.py` does that.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH120

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from cmf_agent.dvc.projects import dvc_root
from cmf_agent.dvc.reasons import reason_of
from cmf_agent.dvc.repository import repository, require_dvc
from cmf_agent.dvc.stores import Cache, Remote
from cmf_agent.home import Home
from cmf_agent.sources.masking import clean_url
from cmf_protocol.errors import CallerError, CmfError, StoreError

_NO_REMOTE_HINT = "configure one: dvc remote add -d NAME URL"
#: How DVC says which plugin a kind of remote needs.
_PLUGIN = re.compile(r"requires '(dvc-[a-z0-9]+)'")


def project_root(home: Home) -> str:
    """Return the DVC project that holds a home's project; raise `CallerError` if there is none, or no DVC."""
    require_dvc()
    root = dvc_root(str(home.root.absolute() / "x"))
    if root is None:
        raise CallerError(
            f"{home.root} is in no DVC repository", "make it one: git init && dvc init (or dvc init --no-scm)"
        )
    return root


def make_project(folder: Path) -> None:
    """Make a DVC repository of a folder that is in none; in git's, if it is in a git repository, else without git."""
    require_dvc()
    if dvc_root(str(folder.absolute() / "x")) is not None:
        return
    with warnings.catch_warnings(), redirect_stdout(StringIO()):  # DVC tells what it did, and what it would have next
        warnings.simplefilter("ignore")
        from dvc.exceptions import InitError
        from dvc.repo import Repo

        try:
            Repo.init(str(folder), no_scm=not (folder / ".git").exists()).close()
        except (InitError, OSError) as error:
            raise StoreError(
                f"{folder} can't be made a DVC repository: {reason_of(error)}", "see what `dvc init` says"
            ) from error


def open_cache(root: str) -> Cache:
    """Return the cache of the DVC project at the absolute `root`."""
    with repository(root) as repo:
        return _cache_of(repo)


def open_remote(root: str, *, name: str | None = None, url: str | None = None) -> Remote:
    """Return a remote of the DVC project at the absolute `root`: that of a `name`, that at a `url`, or its default one.

    Raises `CallerError` if there is no such remote, or what it needs is not installed; nothing is asked of the remote itself.
    """
    with repository(root) as repo, _opening(repo, root, name or url):
        return _remote_at(repo, url) if url is not None else _configured(repo, name)


def has_remote(root: str) -> bool:
    """Tell if the DVC project at the absolute `root` has a default remote."""
    with repository(root) as repo:
        return bool(repo.config["core"].get("remote"))


def _cache_of(repo: Any) -> Cache:
    odb = repo.cache.local
    return Cache(os.path.dirname(os.path.dirname(odb.path)), odb)


def _configured(repo: Any, name: str | None) -> Remote:
    chosen = name or repo.config["core"].get("remote")
    odb = repo.cloud.get_remote_odb(chosen, "artifact")
    url = str(repo.config["remote"][chosen.lower()]["url"])
    return Remote(chosen, clean_url(url), int(odb.fs.jobs), odb)


def _remote_at(repo: Any, url: str) -> Remote:
    from dvc.data_cloud import Remote as DvcRemote
    from dvc.fs import get_cloud_fs

    cls, config, path = get_cloud_fs(repo.config, url=url)
    odb = DvcRemote("", path, cls(**config), **config).odb
    return Remote(None, clean_url(url), int(odb.fs.jobs), odb)


@contextmanager
def _opening(repo: Any, root: str, wanted: str | None) -> Iterator[None]:
    from dvc.config import NoRemoteError, RemoteNotFoundError
    from dvc.fs import RemoteMissingDepsError

    known = sorted(repo.config["remote"])
    try:
        yield
    except NoRemoteError as error:
        if known:
            raise CallerError(
                f"{root} has no default DVC remote",
                f"name one with --remote ({', '.join(known)}), or: dvc remote default NAME",
            ) from error
        raise CallerError(f"{root} has no DVC remote", _NO_REMOTE_HINT) from error
    except RemoteNotFoundError as error:
        hint = f"known are: {', '.join(known)}" if known else _NO_REMOTE_HINT
        raise CallerError(f"{root} has no DVC remote called {wanted!r}", hint) from error
    except RemoteMissingDepsError as error:
        protocol = getattr(error, "protocol", "") or "all"
        raise CallerError(
            f"DVC can't use the remote here: {reason_of(error)}",
            f"install what it needs: pip install 'dvc[{protocol}]'",
        ) from error
    except CmfError:
        raise
    except Exception as error:
        plugin = _PLUGIN.search(str(error))
        if plugin is not None:
            raise CallerError(
                f"DVC can't use the remote here: {reason_of(error)}", f"install it: pip install {plugin[1]}"
            ) from error
        raise CallerError(
            f"the DVC remote {clean_url(wanted or 'in use')} can't be opened: {reason_of(error)}",
            "see `dvc remote list`, and .dvc/config",
        ) from error
