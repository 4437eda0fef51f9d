"""What the peer's artifacts are here: which content, of which kind, called what, with which properties. Pure.

Rules
- A digest of DVC is the content id. Metrics are no file there: here they are a table of their values, whose columns are sorted by name,
  so that equal ones are one artifact wherever they come from. What has neither, or more values than a table
  holds, is named after the peer's own uuid (`cmf:…`).
- Artifacts of one content are one here: they keep the kind of the first and the properties of the one that was changed last;
  what another one says differently stands under its executions (`differences`).
- What the peer's server adds (`original_create_time_since_epoch`) is no value of the user's, and stands for the time of the creation.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from cmf_agent.ingest.records import Artifact, whole_number
from cmf_agent.sources.masking import clean_url
from cmf_agent.tables import Table, make_table, table_drafts
from cmf_protocol.errors import CallerError

#: The namespace of the ids that are made for what has no usable uuid.
NAMESPACE = UUID("6f0c6b5e-1f57-5d0b-9d53-52c6b1a0e7c1")
ORIGINAL_TIME = "original_create_time_since_epoch"
LAST_UPDATE = "last_update_time_since_epoch"
KINDS = {
    "Dataset": "dataset",
    "Model": "model",
    "Metrics": "metrics",
    "Step_Metrics": "metrics",
    "Dataslice": "slice",
    "Environment": "environment",
    "Label": "label",
    "Validation_output": "other",
}
#: Types that follow from the kind; the others are kept as the property `artifact_type`.
_PLAIN_TYPES = frozenset({"Dataset", "Model", "Metrics", "Dataslice", "Environment", "Label"})
_DIGEST = re.compile(r"[0-9a-fA-F]{32}(?:\.dir)?")
_DIGEST_IN_NAME = re.compile(r":([0-9a-f]{32}(?:\.dir)?)(?=:|$)")
_UUID_IN_NAME = re.compile(r":[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=:|$)")
#: Where DVC keeps an object in a remote: since version 3 below `files/md5`.
_OBJECT = re.compile(r"(?:/files/md5)?/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)/?$")
_NAME_CHARS_MAX = 4_000


class Content(NamedTuple):
    """What an artifact is here: its content id and kind, and the table if it is one."""

    content_id: str
    kind: str
    table: Table | None = None

    @property
    def is_named_by_peer(self) -> bool:
        """Whether nothing is known of its bytes."""
        return self.content_id.startswith("cmf:")


class Shared(NamedTuple):
    """What all artifacts of one content say together; often there is only one."""

    kind: str
    properties: Mapping[str, Any]
    is_of_one: bool


def content_of(artifact: Artifact) -> Content:
    """Return what content an artifact is."""
    kind = KINDS.get(artifact.type, "other")
    digest = _digest(artifact)
    if digest is not None:
        return Content(f"md5:{digest}", kind)
    table = _table(artifact) if artifact.type == "Metrics" else None
    if table is not None:
        return Content(table.content_id, kind, table)
    if artifact.uri and len(artifact.uri) <= 400 and artifact.uri.isprintable():
        return Content(f"cmf:{artifact.uri}", kind)
    made = [artifact.type, artifact.name, artifact.uri, created_ms(artifact)]
    return Content(f"cmf:{uuid_of(made)}", kind)


def _table(artifact: Artifact) -> Table | None:
    """Return the table of metrics, or None if they are too large for one."""
    values = metric_values(artifact)
    try:
        table = make_table("metrics", own_name(artifact), [values] if values else []).table
        table_drafts(table)
    except CallerError:
        return None
    return table


def uuid_of(parts: Iterable[object]) -> UUID:
    """Return the id of what has none of its own: it follows from these texts and numbers."""
    return uuid5(NAMESPACE, json.dumps([str(part) for part in parts]))


def _digest(artifact: Artifact) -> str | None:
    """Return an artifact's md5: its uri, else what its name or its `Commit` has."""
    if _DIGEST.fullmatch(artifact.uri):
        return artifact.uri.lower()
    if artifact.type == "Metrics":
        return None
    in_name = _DIGEST_IN_NAME.search(artifact.name)
    commit = artifact.properties.get("Commit")
    if in_name:
        return in_name[1]
    return commit.lower() if isinstance(commit, str) and _DIGEST.fullmatch(commit) else None


def metric_values(artifact: Artifact) -> dict[str, Any]:
    """Return the values of metrics, sorted by name."""
    return dict(sorted(user_values(artifact.custom).items()))


def user_values(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom properties without what the peer's server added; `user_type` becomes `type` again."""
    values = {key: value for key, value in custom.items() if key != ORIGINAL_TIME}
    if "user_type" in values and "type" not in values:
        values["type"] = values.pop("user_type")
    return values


def own_name(artifact: Artifact, path: str = "") -> str:
    """Return an artifact's name without digest, uuid and numbers of executions; `path` is what an edge calls it."""
    for full in (path, artifact.name):
        found = _DIGEST_IN_NAME.search(full) or _UUID_IN_NAME.search(full)
        if found and found.start() and (full is not path or not artifact.uri or artifact.uri in full):
            return full[: found.start()][:_NAME_CHARS_MAX]
    return (artifact.name or artifact.uri or artifact.type or "artifact")[:_NAME_CHARS_MAX]


def created_ms(record: Any) -> int:
    """Return when a pipeline, stage, execution or artifact was made first, ms: on the server that is a custom property."""
    return whole_number(record.custom.get(ORIGINAL_TIME)) or int(record.created_ms)


def time_properties(record: Any) -> dict[str, int]:
    """Return the times of a record as properties."""
    made = created_ms(record)
    found = {ORIGINAL_TIME: made} if made else {}
    return found | ({LAST_UPDATE: record.updated_ms} if record.updated_ms not in (0, made) else {})


def joined_properties(fixed: Mapping[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom and fixed properties in one map; a fixed one whose key is taken goes under `fixed_properties`, an empty one nowhere."""
    told = {key: value for key, value in fixed.items() if value not in (None, "")}
    taken = {key: value for key, value in told.items() if key in custom}
    free = {key: value for key, value in told.items() if key not in custom}
    return {**custom, **free, **({"fixed_properties": taken} if taken else {})}


def artifact_properties(artifact: Artifact) -> dict[str, Any]:
    """Return all that an artifact says of itself beside its content and name."""
    found = joined_properties(artifact.properties, user_values(artifact.custom)) | time_properties(artifact)
    more: dict[str, Any] = {}
    if artifact.type not in _PLAIN_TYPES:
        more["artifact_type"] = artifact.type
    if artifact.uri and not _DIGEST.fullmatch(artifact.uri):
        more["uri"] = artifact.uri
    if artifact.name not in ("", f"{own_name(artifact)}:{artifact.uri}"):
        more["original_name"] = artifact.name
    return found | {key: value for key, value in more.items() if key not in found}


def differences(artifact: Artifact, shared: Shared) -> dict[str, Any]:
    """Return what an artifact says differently than all artifacts of its content say together."""
    own = artifact_properties(artifact)
    told = shared.properties
    return {key: own[key] for key in sorted(own) if repr(told.get(key)) != repr(own[key])}  # 1, 1.0 and true differ


class Artifacts:
    """All artifacts of a file: what each is, what those of one content say together, what labels what."""

    def __init__(self, artifacts: Iterable[Artifact]) -> None:
        self._contents: dict[int, Content] = {}
        self._held: dict[int, Artifact] = {id(artifact): artifact for artifact in artifacts}

    def content(self, artifact: Artifact) -> Content:
        """Return what content an artifact is."""
        found = self._contents.get(id(artifact))
        if found is None:
            found = self._contents[id(artifact)] = content_of(artifact)
        return found

    @cached_property
    def shared(self) -> dict[str, Shared]:
        """What the artifacts of each content id say together."""
        groups: dict[str, list[Artifact]] = {}
        for artifact in self._held.values():
            groups.setdefault(self.content(artifact).content_id, []).append(artifact)
        return {content_id: self._together(group) for content_id, group in groups.items()}

    def _together(self, group: list[Artifact]) -> Shared:
        properties: dict[str, Any] = {}
        for artifact in sorted(group, key=lambda a: (a.updated_ms, a.id, a.name)):
            properties |= artifact_properties(artifact)
        first = min(group, key=lambda a: (created_ms(a), a.id, a.name))
        return Shared(self.content(first).kind, properties, len(group) == 1)

    def labelled(self, artifact: Artifact) -> Iterator[tuple[str, str]]:
        """Yield (label, what it labels), content ids, as an artifact tells: a label of others, others of their labels."""
        own, is_label = self.content(artifact).content_id, artifact.type == "Label"
        named = artifact.custom.get("dataset_uri" if is_label else "labels_uri")
        for entry in str(named or "").split(","):
            digest = entry.strip().rpartition(":")[2]
            other = f"md5:{digest.lower()}"
            if _DIGEST.fullmatch(digest) and other != own:
                yield (own, other) if is_label else (other, own)


def remotes_of(artifact: Artifact, pipelines: Iterable[str]) -> list[str]:
    """Return the addresses of the remotes that hold an artifact's bytes, as its `url` names them; folders of another machine are none."""
    url = artifact.properties.get("url")
    found = []
    for entry in url.split(",") if isinstance(url, str) else ():
        address = entry.strip()
        named = next((name for name in pipelines if address.startswith(f"{name}:")), None)
        if named is not None:
            address = address[len(named) + 1 :]
        elif not re.match(r"[a-z0-9+.-]+://", address):
            address = address.partition(":")[2]
        kept = _OBJECT.search(address)
        is_address = "://" in address and not address.startswith("file:")
        if (
            is_address
            and address.isprintable()
            and len(address) <= _NAME_CHARS_MAX
            and kept
            and kept[1] + kept[2] == _digest(artifact)
        ):
            found.append(clean_url(address[: kept.start()]))
    return list(dict.fromkeys(found))
