"""Records the files and folders that a run used or produced: what they are, and where their bytes can be found."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cmf_agent.dvc.projects import dvc_root
from cmf_agent.home import Home
from cmf_agent.settings import Settings, load_settings
from cmf_agent.shape import TEXT_CHARS_MAX, note_lossy, shape
from cmf_agent.sources.host import mask_mapping
from cmf_agent.sources.names import artifact_name
from cmf_graph.content.files import Content, hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.encoding import bend
from cmf_protocol.errors import CallerError, CmfError
from cmf_protocol.events import Draft, Event
from cmf_protocol.types import KINDS, execution_updated, usage

if TYPE_CHECKING:
    from cmf_agent.dvc.tracking import Tracked, Tracker

#: An execution's property: the artifacts that DVC could not track, each with the reason.
ERRORS_PROPERTY = "tracking_errors"


class Described(NamedTuple):
    """What the caller says of an artifact: one of `types.KINDS`, a name other than its path's, properties."""

    kind: str | None
    name: str | None
    properties: Mapping[str, object] | None

    def check(self) -> None:
        """Raise `CallerError` for an unknown kind or a name that is too long."""
        if self.kind is not None and self.kind not in KINDS:
            raise CallerError(f"{self.kind!r} is no kind of artifact", f"it is one of {', '.join(KINDS)}")
        if self.name is not None and not 1 <= len(self.name) <= TEXT_CHARS_MAX:
            raise CallerError(
                f"{self.name[:40]!r} can't be an artifact's name", f"use up to {TEXT_CHARS_MAX:,} characters"
            )


@dataclass
class ArtifactRecording:
    """What recording artifacts needs of a run; `record` appends drafts, and returns no events if they have to wait."""

    execution: bytes
    home: Home | None
    memory: DigestMemory | None
    record: Callable[[Sequence[Draft]], list[Event]]

    @cached_property
    def settings(self) -> Settings:
        """What is configured; nothing if that can't be read, which the run's start says."""
        try:
            return load_settings(self.home.config_path if self.home else None)
        except CmfError:
            return Settings()

    @cached_property
    def tracker(self) -> "Tracker":
        """What this run knows of DVC."""
        from cmf_agent.dvc.tracking import Tracker

        assert self.home is not None
        return Tracker(self.home, self.settings)

    def tell_commits(self) -> None:
        """Record which commits have come to hold what was told of without one."""
        if self.home is not None and self.home.locations_path.exists():
            from cmf_agent.dvc.stored import tell_commits

            tell_commits(self.home, self.record)


def record_artifact(
    run: ArtifactRecording,
    type_: str,
    path: Path,
    described: Described,
    progress: Callable[[int], None] | None,
    commit: bool,
) -> Content:
    """Record the file or folder at `path` as used or produced (`type_`), where its bytes can be found, and return its content.

    In a DVC project it is added to DVC; with `commit`, what DVC wrote about it is committed to git. What fails of that is a property of
    the execution. Raises `CallerError` if the file can't be read.
    """
    described.check()
    if run.home is None:
        return hash_path(path, memory=run.memory, progress=progress)
    full = os.path.abspath(path)  # noqa: PTH100 - links are not followed
    if dvc_root(full) is None and run.settings.dvc_track != "always" and not commit:
        content = hash_path(path, memory=run.memory, progress=progress)
        run.record([usage_draft(type_, run.execution, content, path=path, root=run.home.root, described=described)])
        return content
    tracked = run.tracker.track(full, lambda: hash_path(path, memory=run.memory, progress=progress), commit=commit)
    _record_tracked(run, run.home, type_, path, described, tracked)
    return tracked.content


def _record_tracked(
    run: ArtifactRecording, home: Home, type_: str, path: Path, described: Described, tracked: "Tracked"
) -> None:
    from cmf_agent.dvc.locations import locate
    from cmf_agent.dvc.stored import remember, to_tell

    content = tracked.content
    drafts = [usage_draft(type_, run.execution, content, path=path, root=home.root, described=described)]
    full = os.path.abspath(path)  # noqa: PTH100 - links are not followed
    location = locate(tracked.place, full, content.content_id) if tracked.place is not None else None
    telling = to_tell(home, content.content_id, location, is_new=tracked.is_new) if location is not None else None
    if telling is not None:
        drafts.append(telling.draft())
    errors = run.tracker.errors_with(str(drafts[0].body["name"]), tracked.error)
    if errors is not None:
        shaped = shape(properties={ERRORS_PROPERTY: errors})
        drafts.append(shaped.into(execution_updated(run.execution, properties=shaped.space("properties"))))
    events = run.record(drafts)
    if events and telling is not None:
        remember(home, events[0].header.log_id, telling)


def usage_draft(
    type_: str, execution: bytes, content: Content, *, path: Path, root: Path, described: Described
) -> Draft:
    """Draft the edge of type `type_` to `content`, found at `path` in the project at `root`."""
    name, lossy = _name(described.name, path, root)
    facts: dict[str, object] = {"size": content.size}
    if described.kind is not None:
        facts["kind"] = described.kind
    if content.sha256 is None:  # a folder
        facts["files"] = content.files
    shaped = shape(facts=facts, properties=mask_mapping(described.properties or {}))
    draft = usage(
        type_,
        execution,
        content.content_id,
        name=name,
        digests=[content.sha256] if content.sha256 else [],
        facts=shaped.space("facts"),
        properties=shaped.space("properties"),
    )
    return note_lossy(shaped.into(draft), lossy)


def _name(given: str | None, path: Path, root: Path) -> tuple[str, dict[str, str]]:
    if given is not None:
        name, lossy = bend(given, "name")
        return str(name), lossy
    found, is_bent = artifact_name(path, root)
    return found, {"name": "path"} if is_bent else {}
