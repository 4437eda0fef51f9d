"""Has DVC track what a run records, and says where that is told.

Rules
- Our own digest comes first. DVC's must be the same, and the file the same as before: else it is read and added again, and what the cache
  was given meanwhile is checked. What keeps changing is a `CallerError`; nothing else here stops a recording.
- Only what nobody tracks yet is added, inside the project's own DVC project, not what is ignored, nor a stage's output, nor what git has.
- What is tracked as it is, its bytes in the cache, is left alone: DVC is not even imported.
- Why something could not be tracked is kept for the execution's `tracking_errors`, and said once per run on standard error.
- Inside `dvc repro` (`DVC_STAGE`) DVC keeps a lock on what its stage reads and writes: that is DVC's to track, and no error.
"""

# os.path: as DVC names its files.
# ruff: noqa: PTH100, PTH112, PTH114, PTH118, PTH120, PTH206

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cmf_agent.dvc import git_objects, locations
from cmf_agent.dvc.adding import add
from cmf_agent.dvc.committing import commit_place
from cmf_agent.dvc.dvc_files import cache_folder, cached_path, read_dvc_file, read_manifest
from cmf_agent.dvc.locations import Found, Place
from cmf_agent.dvc.projects import dvc_root
from cmf_agent.dvc.repository import STAGE_VARIABLE, DvcBusy, is_installed
from cmf_agent.home import Home
from cmf_agent.recorder import say
from cmf_agent.settings import Settings
from cmf_graph.content.digests import RETRIES_MAX
from cmf_graph.content.facts import FileFacts, facts_of, shown, status_of
from cmf_graph.content.files import Content, hash_path
from cmf_graph.content.folders import list_members
from cmf_graph.content.ignoring import IgnoreRules
from cmf_protocol.errors import CallerError, CmfError, StoreError

#: How long DVC is left alone by a run that has waited for its lock in vain, s.
REST_S = 30.0
#: How many reasons are recorded of one run, with each new one all of them; that there are more is said under `MORE_ERRORS`.
ERRORS_MAX = 50
MORE_ERRORS = "…"
_NEVER_TRACKED = frozenset({".git", ".hg", ".dvc", ".cmf"})

Hash = Callable[[], Content]
Facts = Mapping[str, FileFacts]


class Tracked(NamedTuple):
    """A content, where it is told of (if anywhere), whether that was written just now, and what went wrong."""

    content: Content
    place: Place | None = None
    is_new: bool = False
    error: CmfError | None = None


class Tracker:
    """What one run knows of DVC. Any thread may use it."""

    def __init__(self, home: Home, settings: Settings) -> None:
        self._home = home
        self._settings = settings
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}
        self._rest_until = 0.0

    def track(self, path: str, hash_now: Hash, *, commit: bool) -> Tracked:
        """Return the content of the absolute `path` by `hash_now`, tracked by DVC if it can be, and committed if wanted.

        Raises `CallerError` if the content can't be read, or keeps changing.
        """
        root = dvc_root(path)
        if root is None:
            missing = CallerError("no DVC project holds it", "run `dvc init` in the project's folder")
            return Tracked(hash_now(), error=missing)
        for _ in range(1 + RETRIES_MAX):
            before = _facts(path) if not os.path.isdir(path) else {}
            content = hash_now()
            tracked = self._attempt(root, path, content, before)
            if tracked is not None:
                return self._committed(root, tracked, commit=commit)
        raise CallerError(
            f"{shown(path)} keeps changing while it is read",
            "record it when what writes it has finished, or record a copy",
        )

    def errors_with(self, name: str, error: CmfError | None) -> dict[str, str] | None:
        """Note that `name` could not be tracked, or could be after all; return all reasons if they changed, None if not."""
        with self._lock:
            before = dict(self._errors)
            if error is None:
                self._errors.pop(name, None)
            elif name in self._errors or len(self._errors) < ERRORS_MAX:
                self._errors[name] = str(error)
            else:
                self._errors[MORE_ERRORS] = "more could not be tracked"
            if error is not None and not before:
                say(f"not tracked by DVC: {name}: {error}" + (f" ({error.hint})" if error.hint else ""))
            return dict(self._errors) if self._errors != before else None

    # -- one attempt -----------------------------------------------------------------------------------------------

    def _attempt(self, root: str, path: str, content: Content, before: Facts) -> Tracked | None:
        """Return None if the file is no longer what was hashed."""
        found = Found("")
        try:
            found = locations.find(root, path, content.content_id)
            if found.owner == "git":
                return _in_git(path, content, before)
            if not self._is_wanted(root, path, found, content.content_id):
                return Tracked(content, found.place)
            return self._added(root, path, content)
        except DvcBusy as error:
            if STAGE_VARIABLE in os.environ:
                return Tracked(content)
            self._rest_until = time.monotonic() + REST_S
            return Tracked(content, found.place, error=error)
        except CmfError as error:
            return Tracked(content, found.place, error=error)

    def _is_wanted(self, root: str, path: str, found: Found, content_id: str) -> bool:
        """Tell if DVC is to be asked to add the path; raise why not if that was wanted."""
        if found.owner in ("folder", "stage") or self._settings.dvc_track == "never":
            return False
        if found.place is not None and locations.is_cached(root, content_id):
            return False
        if not is_installed():
            if self._settings.dvc_track == "always":
                raise CallerError("DVC is not installed", "install it: pip install 'cmf-sync[dvc]'")
            return False
        if not _may_track(root, path, self._home):
            return False
        if time.monotonic() < self._rest_until:
            raise StoreError("DVC was busy a moment ago", "record it again when DVC is done")
        return True

    def _added(self, root: str, path: str, content: Content) -> Tracked | None:
        before = _facts(path)
        wait_s = 0.0 if STAGE_VARIABLE in os.environ else self._settings.dvc_lock_timeout_s
        added = add(root, path, wait_s=wait_s)
        if added.file is None:
            return Tracked(content)
        if _facts(path) != before:  # what DVC copied may be neither the old nor the new content
            _drop_false_objects(root, added.file, path)
            return None
        entry = next((entry for entry in read_dvc_file(added.file) if entry.path == path), None)
        if entry is not None and entry.content_id == content.content_id:
            return Tracked(content, Place("dvc", added.file) if entry.is_cached else None, added.is_new)
        legacy = locations.legacy_place(path)
        if legacy is not None:
            return Tracked(content, legacy, added.is_new)
        if entry is None or hash_path(Path(path)) != content:
            return None
        raise StoreError(f"DVC takes it for {entry.content_id}, which it is not", "touch the file, then `dvc add` it")

    def _committed(self, root: str, tracked: Tracked, *, commit: bool) -> Tracked:
        if not commit or tracked.error is not None or (tracked.place is not None and tracked.place.kind == "git"):
            return tracked
        if tracked.place is None or tracked.place.kind != "dvc":
            return tracked._replace(
                error=StoreError("not committed: no .dvc file of its own or of a folder tells of it")
            )
        try:
            commit_place(root, tracked.place.file)
        except CmfError as error:
            return tracked._replace(error=error)
        return tracked._replace(is_new=False)


def _in_git(path: str, content: Content, before: Facts) -> Tracked | None:
    """Return what git tracks: a file is told of by git itself; a folder that it has a part of can be in neither."""
    place = locations.git_place(path)
    if place is None:
        top = git_objects.top_folder(path) or path
        known = set(git_objects.tracked_files(top, os.path.relpath(path, top)))
        below = os.path.relpath(path, top)
        if all(os.path.normpath(os.path.join(below, name)) in known for name in list_members(path)):
            return Tracked(content)
        first = min(known, default=".")
        raise StoreError(f"git tracks a part of the folder ({first})", "take that out of git, or name the other files")
    return Tracked(content, place) if _facts(path) == before else None


def _may_track(root: str, path: str, home: Home) -> bool:
    """Tell if `path` lies where DVC may track it, in a DVC project that is this one's or inside it."""
    project = os.path.abspath(home.root)
    if root != dvc_root(os.path.join(project, "x")) and not (root + "/").startswith(project + "/"):
        return False
    below = os.path.relpath(path, root)
    parts = below.split(os.sep)
    if below == "." or not _NEVER_TRACKED.isdisjoint(parts):
        return False
    if os.path.realpath(os.path.dirname(path)) != os.path.join(os.path.realpath(root), os.path.dirname(below)).rstrip(
        "/"
    ):
        return False  # it lies elsewhere, behind a link
    if os.path.isdir(path) and os.path.islink(path):
        return False
    rules = IgnoreRules(root).inside("")
    for end in range(1, len(parts) + 1):
        prefix = "/".join(parts[:end])
        is_folder = end < len(parts) or os.path.isdir(path)
        if rules.hides(prefix, is_folder=is_folder):
            return False
        rules = rules.inside(prefix) if is_folder else rules
    return True


def _facts(path: str) -> Facts:
    """Return the facts of a file, or of all files in a folder: what is the same again was not changed."""
    return list_members(path) if os.path.isdir(path) else {"": facts_of(status_of(path))}


def _drop_false_objects(root: str, dvc_file: str, path: str) -> None:
    """Take out of the cache what a changing file left there under another content's name."""
    cache = cache_folder(root)
    for entry in read_dvc_file(dvc_file):
        if entry.path != path or entry.hash != "md5":
            continue
        manifest = read_manifest(cache, entry.content_id) if entry.digest.endswith(".dir") else {"": entry.digest}
        for md5 in set((manifest or {}).values()):
            object_path = cached_path(cache, f"md5:{md5}")
            if os.path.isfile(object_path) and hash_path(Path(object_path)).content_id != f"md5:{md5}":  # noqa: PTH113
                Path(object_path).unlink(missing_ok=True)
