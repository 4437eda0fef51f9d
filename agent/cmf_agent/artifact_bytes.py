"""The bytes of artifacts: pushing them to a DVC remote, pulling them from one and putting them in place, listing where they are.

Rules
- What is meant was chosen before (`needed.py`). What a side lacks, and what is done about it, is in the report, item by item.
- That a remote holds a content is recorded once, after it was seen to.
- Where no remote is configured, a pull uses the one that events name with the content, and says so: what comes is checked by its digest.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.dvc import transfer
from cmf_agent.dvc.checkout import Placed, check_out
from cmf_agent.dvc.remotes import has_remote, open_cache, open_remote, project_root
from cmf_agent.dvc.stores import Cache, Remote
from cmf_agent.dvc.transfer import Carried
from cmf_agent.dvc.work import Showing, silent
from cmf_agent.home import Home
from cmf_agent.log import shared_log
from cmf_agent.needed import Needed
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import CmfError, IntegrityError
from cmf_protocol.types import artifact_stored

#: Addresses that are used because an event names them; any other may be one of this machine only.
_TOLD_SCHEMES = ("s3", "gs", "azure", "oss", "ssh", "http", "https", "webdav", "webdavs", "hdfs")
#: Events that are appended at a time.
_DRAFTS = 500
#: Names of several contents that are told one by one.
_NOTED_MAX = 5
_UNNAMED_BY_DVC = "DVC can't keep it: no md5 of it is known"
_NO_SOURCE = "no DVC remote is configured here, and nobody told of one that holds it"


class Wanted(NamedTuple):
    """Which remote is meant: one of DVC's by name, an address, or (both None) DVC's default; how many files go at a time."""

    name: str | None = None
    url: str | None = None
    jobs: int | None = None


class Item(NamedTuple):
    """What became of one content; `state` is transferred, present, missing, failed, or elsewhere (in git)."""

    needed: Needed
    state: str
    bytes: int = 0
    reason: str = ""
    placed: tuple[Placed, ...] = ()
    is_damaged: bool = False

    @property
    def is_good(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.state not in ("missing", "failed") and all(p.state in ("placed", "there") for p in self.placed)


@dataclass
class Report:
    """What was done about some contents; `remotes` are the addresses, `notes` what the caller should know."""

    items: list[Item] = field(default_factory=list)
    remotes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded: int = 0

    def count(self, state: str) -> int:
        """Return how many contents are in that state."""
        return sum(item.state == state for item in self.items)

    @property
    def bytes(self) -> int:
        """How much was carried."""
        return sum(item.bytes for item in self.items)


# -- push --------------------------------------------------------------------------------------------------------------


def push_bytes(
    home: Home, wanted: Sequence[Needed], where: Wanted, *, only_cached: bool = False, show: Showing = silent
) -> Report:
    """Give a remote what it lacks of these contents, and record where they are; `only_cached`: leave out what the cache has not whole.

    Raises `CallerError` if there is no such remote, `StoreError` if it can't be asked.
    """
    root = project_root(home)
    cache, remote = open_cache(root), open_remote(root, name=where.name, url=where.url)
    if only_cached:
        wanted = [each for each in wanted if transfer.is_whole(cache, each.content_id)]
    report = Report(remotes=[remote.url])
    carried = transfer.push(cache, remote, _carriable(wanted), jobs=where.jobs, show=show)
    report.items = _items(wanted, carried)
    report.recorded = _record(
        home, remote, [item.needed for item in report.items if item.state in ("transferred", "present")]
    )
    return report


def _record(home: Home, remote: Remote, held: Iterable[Needed]) -> int:
    """Record that the remote holds these, of which that was not recorded."""
    location = {"kind": "remote", "url": remote.url}
    drafts = [
        artifact_stored(each.content_id, location) for each in held if each.is_known and location not in each.locations
    ]
    with shared_log(home.log_path) as log:
        for start in range(0, len(drafts), _DRAFTS):
            log.append(drafts[start : start + _DRAFTS])
    return len(drafts)


# -- pull --------------------------------------------------------------------------------------------------------------


def pull_bytes(
    home: Home,
    wanted: Sequence[Needed],
    where: Wanted,
    *,
    into: Path | None,
    force: bool = False,
    needs_remote: bool = True,
    show: Showing = silent,
) -> Report:
    """Bring these contents into DVC's cache, and put them at their names below `into`, if that is given.

    Raises `CallerError` if there is no remote (unless not `needs_remote`: then what is not here is missing), `StoreError` if it can't be
    asked or the cache can't be written.
    """
    root = project_root(home)
    cache, report = open_cache(root), Report()
    for remote, some in _sources(root, cache, wanted, where, report, needs_remote):
        if remote is not None:
            report.remotes.append(remote.url)
            carried = transfer.pull(cache, remote, _carriable(some), jobs=where.jobs, show=show)
        else:
            whole = {each.content_id for each in some if transfer.is_whole(cache, each.content_id)}
            carried = [
                Carried(id_, "present") if id_ in whole else Carried(id_, "missing", 0, _NO_SOURCE)
                for id_ in _carriable(some)
            ]
        report.items += _items(some, carried)
    if into is not None:
        _place(home, cache, report, into, force)
    return report


def _sources(
    root: str, cache: Cache, wanted: Sequence[Needed], where: Wanted, report: Report, needs_remote: bool
) -> Iterator[tuple[Remote | None, list[Needed]]]:
    """Yield each remote with what is to come from it; None with what comes from nowhere."""
    if where.name or where.url or has_remote(root):
        yield open_remote(root, name=where.name, url=where.url), list(wanted)
        return
    by_url: dict[str, list[Needed]] = {}
    for each in wanted:
        url = next((url for url in each.urls if _may_be_used(url)), "")
        by_url.setdefault("" if transfer.is_whole(cache, each.content_id) else url, []).append(each)
    lacking = [each for each in by_url.get("", ()) if not (transfer.is_whole(cache, each.content_id) or each.in_git)]
    if lacking and needs_remote and len(by_url) == 1:
        yield open_remote(root), list(wanted)  # which says what to do
        return
    for url, some in sorted(by_url.items()):
        if url:
            report.notes.append(f"no DVC remote is configured here: using {url}, which was recorded with the bytes")
        yield open_remote(root, url=url) if url else None, some


def _may_be_used(url: str) -> bool:
    scheme, separator, _ = url.partition("://")
    return scheme.lower() in _TOLD_SCHEMES if separator else url.startswith("/") and Path(url).is_dir()


def _place(home: Home, cache: Cache, report: Report, into: Path, force: bool) -> None:
    claims: dict[str, set[str]] = {}
    for item in report.items:
        for name in item.needed.names:
            claims.setdefault(name, set()).add(item.needed.content_id)
    several = {name: len(contents) for name, contents in sorted(claims.items()) if len(contents) > 1}
    report.notes += [
        f"{name} is the name of {count} contents: none is put there; pull the one that is meant by its digest"
        for name, count in list(several.items())[:_NOTED_MAX]
    ]
    if len(several) > _NOTED_MAX:
        report.notes.append(f"so are {len(several) - _NOTED_MAX} more names")
    nameless = sum(item.state in ("transferred", "present") and not item.needed.names for item in report.items)
    if nameless:
        what = (
            "1 artifact has no name here, and is"
            if nameless == 1
            else f"{nameless:,} artifacts have no name here, and are"
        )
        report.notes.append(
            f"{what} in DVC's cache only; `cmf-agent artifact pull DIGEST --to DIR` puts it into a folder"
        )
    with DigestMemory(home.digests_path) as memory:
        for at, item in enumerate(report.items):
            if item.state in ("transferred", "present"):
                names = [name for name in item.needed.names if name not in several]
                report.items[at] = _placed(item, names, cache, into, memory, force)


def _placed(item: Item, names: Sequence[str], cache: Cache, into: Path, memory: DigestMemory, force: bool) -> Item:
    try:
        placed = tuple(check_out(cache, item.needed.content_id, into, name, memory, force=force) for name in names)
    except CmfError as error:  # damage in the cache, a full disk: of this one
        reason = f"{error}: {error.hint}" if error.hint else str(error)
        return item._replace(state="failed", reason=reason, is_damaged=isinstance(error, IntegrityError))
    return item._replace(placed=placed)


# -- list --------------------------------------------------------------------------------------------------------------


def list_bytes(home: Home, wanted: Sequence[Needed], where: Wanted | None) -> list[dict[str, Any]]:
    """Return where the bytes of these contents are: `cached` (None without a DVC repository), `remote` (None if `where` is).

    Raises like `push_bytes`, if a remote is to be asked.
    """
    cached = _cached(home, wanted)
    in_remote: dict[str, bool] = {}
    if where is not None:
        root = project_root(home)
        remote = open_remote(root, name=where.name, url=where.url)
        in_remote = transfer.held(open_cache(root), remote, _carriable(wanted))
    return [
        {
            **named(each),
            "cached": cached[each.content_id] if cached is not None else None,
            "remote": None if where is None else in_remote.get(each.content_id, False),
            "locations": list(each.locations),
        }
        for each in wanted
    ]


def _cached(home: Home, wanted: Iterable[Needed]) -> dict[str, bool] | None:
    from cmf_agent.dvc.locations import is_cached
    from cmf_agent.dvc.projects import dvc_root

    root = dvc_root(str(home.root.absolute() / "x"))
    if root is None:
        return None
    return {each.content_id: transfer.carries(each.content_id) and is_cached(root, each.content_id) for each in wanted}


# -- items -------------------------------------------------------------------------------------------------------------


def named(each: Needed) -> dict[str, Any]:
    """Return the fields by which a content is shown."""
    return {"content_id": each.content_id, "names": list(each.names), "kind": each.kind, "size": each.size}


def _carriable(wanted: Iterable[Needed]) -> list[str]:
    return [each.content_id for each in wanted if transfer.carries(each.content_id)]


def _items(wanted: Iterable[Needed], carried: Iterable[Carried]) -> list[Item]:
    done = {each.content_id: each for each in carried}
    found = []
    for each in wanted:
        one = done.get(each.content_id) or Carried(each.content_id, "missing", 0, _UNNAMED_BY_DVC)
        if one.state == "missing" and each.in_git:
            found.append(Item(each, "elsewhere", one.bytes, each.in_git))
        else:
            found.append(Item(each, one.state, one.bytes, one.reason, (), one.is_damaged))
    return found
