"""Drafts the edge between an execution and an artifact that it used or produced."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cmf_agent.shape import TEXT_CHARS_MAX, note_lossy, shape
from cmf_agent.sources.host import mask_mapping
from cmf_agent.sources.names import artifact_name
from cmf_graph.content.files import Content
from cmf_protocol.encoding import bend
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import KINDS, usage


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
