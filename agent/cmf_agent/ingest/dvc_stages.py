"""What dvc.lock and dvc.yaml say of stages, as values. Pure: texts in, stages out, without DVC.

Rules
- dvc.lock says what was reproduced, with every `${…}` filled in; dvc.yaml is asked only for what the lock leaves out: which outputs are
  metrics, plots or models, the working directory, what a group of stages runs over. A lock without its dvc.yaml is read all the same.
- A stage of a group (`foreach`, `matrix`) has the group's name; the lock's own name, `train@us`, names its execution.
- The id of an execution is made of what its lock entry says alone, so that one lock state is one execution at every site and time.
- An entry without `hash:` was written by DVC 2: its md5 is that of the text with unix line ends, which is another algorithm.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmf_agent.dvc.dvc_files import LEGACY_HASH, LOCK_NAME
from cmf_agent.ingest.dvc_declared import Kinds, as_list, as_map, filled, item_of, paths_of, source_kind
from cmf_agent.sources.masking import clean_url
from cmf_protocol.encoding import bend, encode
from cmf_protocol.errors import CallerError

#: The version of the UUIDs that ingested executions have; those of runs are of version 7.
INGESTED_VERSION = 8
_TAG = b"cmf.v1.dvc.lock\0"
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
_DEFAULT_PARAMS = "params.yaml"
#: What of a stage in dvc.yaml is kept as properties of its execution.
_KEPT = ("desc", "meta", "frozen", "always_changed")


class Entry(NamedTuple):
    """A dependency or an output: `name` is its path from the project's root, `path` what the lock says."""

    path: str
    name: str
    content_id: str | None
    size: int | None
    files: int | None
    kind: str | None
    cached: bool
    stated: Mapping[str, Any]


class LockedStage(NamedTuple):
    """One stage as a lock has it; `stage` and `name` begin with the folder of the lock; `notes` is what people should know of it."""

    stage: str
    name: str
    commands: tuple[str, ...]
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    params: Mapping[str, Any]
    properties: Mapping[str, Any]
    content: Mapping[str, Any]
    #: Where its command runs, from the project's root; None if that is not known.
    working_dir: str | None
    notes: tuple[str, ...]

    def execution(self, pipeline: str) -> bytes:
        """Return the id of the execution that this state of the lock stands for: a UUID of version 8 (RFC 9562)."""
        content, _ = bend({"pipeline": pipeline, "stage": self.name, **self.content})
        made = bytearray(hashlib.sha256(_TAG + encode(content)).digest()[:16])
        made[6], made[8] = made[6] & 0x0F | INGESTED_VERSION << 4, made[8] & 0x3F | 0x80
        return bytes(made)


# -- documents ---------------------------------------------------------------------------------------------------------


def read_yaml(text: str, name: str) -> Mapping[str, Any]:
    """Return the map that a YAML text holds; `name` is what to call it in the `CallerError` for what can't be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        raise CallerError(
            f"{name} has the marks of an unresolved merge in line {line}", "resolve it, or `dvc repro` anew"
        )
    try:
        found = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise CallerError(f"{name} is no valid YAML{where}: {reason}", "mend it, or bring it back from git") from error
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise CallerError(f"{name} holds no stages: it is a {type(found).__name__}", "bring it back from git")
    return found


def read_stages(
    lock: Mapping[str, Any], pipeline: Mapping[str, Any], folder: str, models: Sequence[str] = ()
) -> list[LockedStage]:
    """Return the stages of a lock.

    `pipeline` is the dvc.yaml beside it, empty if there is none; `folder` is theirs, from the project's root, `""` for the root itself;
    what one of the patterns `models` matches is a model. Raises `CallerError` for what is no lock file.
    """
    name = posixpath.join(folder, LOCK_NAME)
    entries = lock.get("stages", {}) if "schema" in lock or "stages" in lock else lock  # without a schema: DVC 1
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise CallerError(f"{name} is no lock file of DVC: `stages` is no map of stages", "bring it back from git")
    declared = as_map(pipeline.get("stages"))
    return [_read_stage(str(key), entry, declared, pipeline, folder, models) for key, entry in entries.items()]


def not_reproduced(lock: Mapping[str, Any], pipeline: Mapping[str, Any]) -> list[str]:
    """Return the stages of dvc.yaml of which the lock says nothing."""
    locked = {str(key) for key in as_map(lock.get("stages", lock))}
    groups = {key.rpartition("@")[0] for key in locked}
    return [str(key) for key in as_map(pipeline.get("stages")) if str(key) not in locked | groups]


# -- one stage ---------------------------------------------------------------------------------------------------------


def _read_stage(
    key: str,
    entry: Mapping[str, Any],
    declared: Mapping[str, Any],
    pipeline: Mapping[str, Any],
    folder: str,
    models: Sequence[str],
) -> LockedStage:
    group, at, member = key.rpartition("@")
    group = group if at and key not in declared else key
    definition = as_map(declared.get(group))
    body = as_map(definition.get("do")) if "foreach" in definition else definition
    item = item_of(definition, member) if group != key else None
    wdir = filled(str(body.get("wdir", "")), member, item)
    base = None if wdir is None else posixpath.join(folder, wdir)
    kinds = Kinds(body, pipeline, folder, base, models)
    deps = tuple(_entry(dep, base) for dep in as_list(entry.get("deps")))
    deps = tuple(dep._replace(kind=source_kind(dep.name)) for dep in deps)
    outs = tuple(_output(_entry(out, base), kinds) for out in as_list(entry.get("outs")))
    commands = tuple(str(line) for line in as_list(entry.get("cmd")))
    params = as_map(entry.get("params"))
    properties = {"dvc_stage": posixpath.join(folder, key)} | {name: body[name] for name in _KEPT if name in body}
    if item is not None:
        properties["item"] = item
    if wdir != "":
        properties["wdir"] = wdir or str(body["wdir"])
    elsewhere = {each.name: dict(each.stated) for each in (*deps, *outs) if each.content_id is None}
    return LockedStage(
        stage=posixpath.join(folder, group),
        name=posixpath.join(folder, key),
        commands=commands,
        deps=deps,
        outs=outs,
        params=flat_params(params),
        properties=properties | ({"external": elsewhere} if elsewhere else {}),
        content={"cmd": list(commands), "deps": _identity(deps), "outs": _identity(outs), "params": params},
        working_dir=_below_root(base),
        notes=tuple(_differences(declared, definition, body, commands, outs)),
    )


def _below_root(folder: str | None) -> str | None:
    if folder is None:
        return None
    path = posixpath.normpath(folder or ".")
    return None if path.startswith(("..", "/")) else path


def _identity(entries: Sequence[Entry]) -> list[list[Any]]:
    """Return what makes a state of these another one: where, and what content; sorted."""
    stated = ([each.path, each.content_id or json.dumps(each.stated, sort_keys=True, default=str)] for each in entries)
    return sorted(stated)


def _differences(
    declared: Mapping[str, Any],
    definition: Mapping[str, Any],
    body: Mapping[str, Any],
    commands: Sequence[str],
    outs: Sequence[Entry],
) -> Iterator[str]:
    """Tell what the stage in dvc.yaml says otherwise, as far as that can be told without filling in templates."""
    if not declared:
        return
    if not definition:
        yield "dvc.yaml has no such stage any more"
        return
    wanted = [str(line) for line in as_list(body.get("cmd"))]
    if not any("${" in line for line in wanted) and wanted != list(commands):
        yield "its command in dvc.yaml is another one: not reproduced yet"
    paths = [path for part in ("outs", "metrics", "plots") for path, _ in paths_of(body.get(part))]
    locked = {posixpath.normpath(out.path) for out in outs}
    if not any("${" in path for path in paths) and set(map(posixpath.normpath, paths)) - locked:
        yield "dvc.yaml names further outputs: not reproduced yet"


# -- dependencies and outputs ------------------------------------------------------------------------------------------


def _entry(stated: Any, base: str | None) -> Entry:
    stated = stated if isinstance(stated, Mapping) else {"path": str(stated)}
    path = str(stated.get("path", ""))
    is_elsewhere = base is None or "://" in path
    return Entry(
        path=path,
        name=clean_url(path) if is_elsewhere else posixpath.normpath(posixpath.join(base or "", path)),
        content_id=_content_id(stated),
        size=_count(stated.get("size")),
        files=_count(stated.get("nfiles")),
        kind=None,
        cached=True,
        stated={key: value for key, value in stated.items() if key != "path"},
    )


def _output(entry: Entry, kinds: Kinds) -> Entry:
    return entry._replace(kind=kinds.kind(entry.name), cached=kinds.is_cached(entry.name))


def _content_id(stated: Mapping[str, Any]) -> str | None:
    """Return the content id of an entry; None if it names no md5, as those of other storages (etag, checksum) do."""
    digest = stated.get("md5")
    if digest is None and stated.get("files"):
        digest = _manifest_digest(stated["files"])
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    return f"{'md5' if stated.get('hash') == 'md5' else LEGACY_HASH}:{digest}"


def _manifest_digest(files: Any) -> str | None:
    """Return the digest of a folder whose files stand in the lock one by one, as they do where a remote keeps versions."""
    if not all(
        isinstance(file, Mapping) and isinstance(file.get("md5"), str) and "relpath" in file for file in as_list(files)
    ):
        return None
    listed = sorted(
        ({"md5": file["md5"], "relpath": str(file["relpath"])} for file in files), key=lambda file: file["relpath"]
    )
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


# -- values ------------------------------------------------------------------------------------------------------------


def flat_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a lock entry, nested names joined by dots; those of other files than params.yaml as `FILE:NAME`."""
    defaults = [file for file in params if posixpath.basename(str(file)) == _DEFAULT_PARAMS]
    found: dict[str, Any] = {}
    for file, values in params.items():
        prefix = "" if str(file) == _DEFAULT_PARAMS or defaults == [file] else f"{file}:"
        found |= {f"{prefix}{name}": value for name, value in flat(as_map(values)).items()}
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
