"""Drafts what one stage of a dvc.lock says. Pure, but for reading the files that the lock names, which must have its digests.

Rules
- The same lock entry and the same commit make the same drafts everywhere: no clock, no host, no path of this machine is in them.
- A file is believed only if its digest is the one in the lock; a metrics file that is not at hand leaves its numbers unsaid.
- An output of DVC 2 whose bytes are at hand is recorded as what it is, with its old digest as another one of the same bytes.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from cmf_agent.ingest.dvc_bytes import Files, identity
from cmf_agent.ingest.dvc_stages import Entry, LockedStage
from cmf_agent.ingest.git_files import Commit
from cmf_agent.metric_files import read_metrics
from cmf_agent.shape import note_lossy, shape
from cmf_agent.sources.host import mask_command, mask_mapping
from cmf_agent.sources.masking import mask_text
from cmf_protocol.encoding import INTEGER_MAX, INTEGER_MIN, bend
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import (
    ARTIFACT_PRODUCED,
    ARTIFACT_USED,
    artifact_stored,
    execution_finished,
    execution_started,
    metrics_recorded,
    usage,
)


class LockState(NamedTuple):
    """A stage as a lock has it; `commit` brought it, in which the lock, at `path` from the repository's root, is `blob`."""

    stage: LockedStage
    lock: str
    commit: Commit | None = None
    path: str = ""
    blob: str = ""


# -- an execution ------------------------------------------------------------------------------------------------------


def started(state: LockState, execution: bytes, pipeline: str, repo: str | None) -> Draft:
    """Draft the start of the execution of a stage; of when that was only a commit tells something."""
    stage = state.stage
    facts = {"name": stage.name, "kind": "step", "command": command_words(stage.commands), **code_facts(state, repo)}
    if stage.working_dir is not None:
        facts["working_dir"] = stage.working_dir
    shaped = shape(facts=facts, params=mask_mapping(stage.params), properties=mask_mapping(stage.properties))
    draft = execution_started(
        execution,
        pipeline,
        stage.stage,
        facts=shaped.space("facts"),
        params=shaped.space("params"),
        properties=shaped.space("properties"),
        at=state.commit.at_us if state.commit else None,
    )
    return shaped.into(draft)


def finished(state: LockState, execution: bytes) -> Draft:
    """Draft the end of the execution of a stage: DVC locks only what succeeded."""
    return execution_finished(execution, "finished", at=state.commit.at_us if state.commit else None)


def code_facts(state: LockState, repo: str | None) -> dict[str, object]:
    """Return the facts of the commit that brought a state, none if it is not committed."""
    if state.commit is None:
        return {}
    facts: dict[str, object] = {"git_commit": state.commit.id}
    return facts | ({"git_repo": repo} if repo else {})


def command_words(commands: tuple[str, ...]) -> list[str]:
    """Return the words of a stage's command without its secrets; several commands are joined by `&&`, as DVC runs them."""
    words: list[str] = []
    for command in commands:
        try:
            split = [mask_text(command)] if "\n" in command else mask_command(shlex.split(command))
        except ValueError:  # an open quote: its shell knows
            split = [mask_text(command)]
        words += ["&&", *split] if words else split
    return words


# -- artifacts ---------------------------------------------------------------------------------------------------------


def usage_drafts(state: LockState, execution: bytes, files: Files) -> Iterator[Draft]:
    """Draft the edges to what a stage read and wrote, and where the bytes can be found."""
    for type_, entries in ((ARTIFACT_USED, state.stage.deps), (ARTIFACT_PRODUCED, state.stage.outs)):
        for entry in entries:
            if entry.content_id is None:
                continue
            artifact, digests = identity(entry, files)
            yield _usage(type_, execution, entry, artifact, digests)
            if state.commit is not None:
                yield from _stored(entry, artifact, state, files, is_output=type_ == ARTIFACT_PRODUCED)


def _usage(type_: str, execution: bytes, entry: Entry, artifact: str, digests: list[str]) -> Draft:
    facts: dict[str, object] = {}
    if entry.size is not None:
        facts["size"] = entry.size
    if entry.files is not None:
        facts["files"] = entry.files
    if entry.kind is not None:
        facts["kind"] = entry.kind
    name, lossy = bend(entry.name, "name")
    shaped = shape(facts=facts)
    draft = usage(type_, execution, artifact, name=str(name), digests=digests, facts=shaped.space("facts"))
    return note_lossy(draft, lossy)


def _stored(entry: Entry, artifact: str, state: LockState, files: Files, *, is_output: bool) -> Iterator[Draft]:
    """Draft where bytes are: outputs that DVC keeps by the lock itself, everything else where git has it."""
    assert state.commit is not None
    place = {"kind": "dvc.lock", "path": state.path, "blob": state.blob}
    if not (is_output and entry.cached):
        held = files.in_git(entry, state.commit)
        if held is None:
            return
        place = {"kind": "git", "path": held[0], "blob": held[1]}
    yield artifact_stored(artifact, place | {"commit": state.commit.id} | ({"repo": files.repo} if files.repo else {}))


# -- metrics -----------------------------------------------------------------------------------------------------------


def metrics_of(state: LockState, files: Files) -> dict[str, int | float]:
    """Return the numbers in the metrics files of a stage, nested names joined by dots."""
    numbers: dict[str, int | float] = {}
    for out in state.stage.outs:
        content = files.small(out, state.commit) if out.kind == "metrics" and out.content_id else None
        for name, value in _numbers(content, out.name).items() if content is not None else ():
            numbers[name if name not in numbers else f"{out.name}:{name}"] = value
    return numbers


def metrics_draft(execution: bytes, numbers: Mapping[str, int | float]) -> Draft:
    """Draft metrics."""
    shaped = shape(metrics=numbers)
    return shaped.into(metrics_recorded(execution, metrics=shaped.space("metrics")))


def _numbers(content: bytes, name: str) -> dict[str, int | float]:
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"metrics{PurePosixPath(name).suffix}"
        copy.write_bytes(content)
        try:
            values = read_metrics(copy).values
        except CallerError:
            return {}  # DVC takes any file for metrics: a table, a text
    return {
        key: value for key, value in values.items() if INTEGER_MIN <= value <= INTEGER_MAX or isinstance(value, float)
    }
