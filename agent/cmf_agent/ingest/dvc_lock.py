"""Turns dvc.lock into executions: finds lock files, learns from git which commit brought each state, records what is new.

Rules
- DVC is not needed, and nothing of the project is changed.
- One lock state is one execution: importing it again, here or at another site, appends nothing that is known.
- A state that is not committed has no commit and no time but that of the import; when it is committed, the next import adds the commit.
- The commit of a state is the one that brought its entry into the lock of the branch that is checked out.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.dvc.dvc_files import LOCK_NAME, PIPELINE_NAME
from cmf_agent.home import Home
from cmf_agent.identity import id_text
from cmf_agent.ingest.appending import append_new
from cmf_agent.ingest.dvc_bytes import Files
from cmf_agent.ingest.dvc_drafts import LockState
from cmf_agent.ingest.dvc_known import Standing, Told, tell
from cmf_agent.ingest.dvc_places import by_project, lock_files, project_name
from cmf_agent.ingest.dvc_stages import LockedStage, not_reproduced, read_stages, read_yaml
from cmf_agent.ingest.git_files import Blob, Commit, GitFiles, git_files
from cmf_agent.view import local_view
from cmf_graph.content.facts import unreadable
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import CallerError
from cmf_protocol.types import checked_name


class Wanted(NamedTuple):
    """What to ingest: the locks at `paths` (or in them), all of the project if `everything`, of all commits if `history`."""

    paths: tuple[Path, ...] = ()
    pipeline: str | None = None
    everything: bool = False
    history: bool = False
    models: tuple[str, ...] = ()
    dry_run: bool = False


class Ingested(NamedTuple):
    """What came of one state of a stage."""

    lock: str
    pipeline: str
    stage: str
    name: str
    execution: str
    standing: Standing
    git_commit: str | None
    notes: tuple[str, ...]


class Outcome(NamedTuple):
    """What was ingested, how many events that took (in a dry run: would take), and what people should know."""

    states: list[Ingested]
    events: int
    notes: list[str]


def ingest_dvc(home: Home, wanted: Wanted) -> Outcome:
    """Record what the lock files say; raise `CallerError` for one that is not there or can't be read."""
    states: list[Ingested] = []
    notes: list[str] = []
    drafts = []
    with ExitStack() as stack:
        memory = stack.enter_context(DigestMemory(home.digests_path))
        graph = stack.enter_context(local_view(home))
        for project, locks in by_project(lock_files(wanted.paths, everything=wanted.everything)).items():
            git = stack.enter_context(git_files(project))
            pipeline = checked_name(wanted.pipeline or project_name(project, git), "pipeline")
            files = Files(project, git, memory)
            for lock in locks:
                found = _Lock(lock, project, git, wanted)
                notes += found.notes()
                for state in found.states():
                    told = tell(graph, pipeline, state, files)
                    drafts += told.drafts
                    states.append(_ingested(state, pipeline, told))
    return Outcome(states, append_new(home, drafts, dry_run=wanted.dry_run).recorded, notes)


def _ingested(state: LockState, pipeline: str, told: Told) -> Ingested:
    return Ingested(
        lock=state.lock,
        pipeline=pipeline,
        stage=state.stage.stage,
        name=state.stage.name,
        execution=id_text(told.execution),
        standing=told.standing,
        git_commit=state.commit.id if state.commit else None,
        notes=(*state.stage.notes, *told.notes),
    )


# -- one lock file -----------------------------------------------------------------------------------------------------


class _Lock:
    """One lock file, now and in the history of the repository."""

    def __init__(self, lock: Path, project: Path, git: GitFiles | None, wanted: Wanted) -> None:
        self._folder = "" if lock.parent == project else lock.parent.relative_to(project).as_posix()
        self._name = lock.relative_to(project).as_posix()
        self._wanted = wanted
        self._text = _read(lock)
        self._document = read_yaml(self._text, self._name)
        self._pipeline = _read(lock.with_name(PIPELINE_NAME)) if lock.with_name(PIPELINE_NAME).exists() else ""
        self._git = git if git is not None and git.has_commits() else None
        self._path = self._git.path(lock) if self._git is not None else None
        self._pipelines: dict[str, Mapping[str, Any]] = {}

    def notes(self) -> list[str]:
        """Return which stages were not reproduced yet."""
        stages = not_reproduced(self._document, self._declared(self._pipeline))
        return [f"{self._name}: {stage} was not reproduced yet" for stage in stages]

    def states(self) -> list[LockState]:
        """Return the states of the stages, of the oldest commit first, each once."""
        found = list(self._past()) if self._wanted.history else []
        seen = {(state.stage.name, state.stage.execution("")) for state in found}
        return found + [s for s in self._present() if (s.stage.name, s.stage.execution("")) not in seen]

    def _present(self) -> Iterator[LockState]:
        stages = self._stages(self._document, self._pipeline)
        blocks = split_blocks(self._text)
        commits = self._brought({stage.name: blocks.get(self._in_lock(stage.name), self._text) for stage in stages})
        for stage in stages:
            commit, blob = commits.get(stage.name, (None, ""))
            yield LockState(stage, self._name, commit, self._path or "", blob)

    def _brought(self, blocks: Mapping[str, str]) -> dict[str, tuple[Commit, str]]:
        """Return the commit that brought each of these entries as it is, and the blob of the lock there."""
        left = dict(blocks)
        found: dict[str, tuple[Commit, str]] = {}
        if self._git is None or self._path is None:
            return {}
        for commit in self._git.commits(self._path):
            held = self._git.blob(commit.id, self._path)
            text = _decoded(held)
            entries = split_blocks(text)
            left = {name: block for name, block in left.items() if block in (entries.get(self._in_lock(name)), text)}
            if not left or held is None:
                break
            found |= dict.fromkeys(left, (commit, held.id))
        return found

    def _past(self) -> Iterator[LockState]:
        """Yield the states that the commits brought, the oldest first; what no commit can be read of is left out."""
        if self._git is None or self._path is None:
            return
        pipeline_path = self._path.removesuffix(LOCK_NAME) + PIPELINE_NAME
        seen: set[tuple[str, str]] = set()
        for commit in reversed(list(self._git.commits(self._path))):
            held = self._git.blob(commit.id, self._path)
            if held is None:
                continue
            text = _decoded(held)
            blocks = split_blocks(text) or {"": text}
            new = {name: block for name, block in blocks.items() if (name, block) not in seen}
            seen |= set(new.items())
            pipeline = self._git.blob(commit.id, pipeline_path) if new else None
            part = "stages:\n" + "".join(new.values()) if "" not in new else new[""]
            try:
                stages = self._stages(read_yaml(part, self._name), _decoded(pipeline)) if new else []
            except CallerError:
                continue  # a conflict was committed
            yield from (
                LockState(stage._replace(notes=()), self._name, commit, self._path, held.id) for stage in stages
            )

    def _stages(self, lock: Mapping[str, Any], pipeline: str) -> list[LockedStage]:
        return read_stages(lock, self._declared(pipeline), self._folder, self._wanted.models)

    def _declared(self, text: str) -> Mapping[str, Any]:
        if text not in self._pipelines:
            self._pipelines[text] = read_yaml(text, self._name.removesuffix(LOCK_NAME) + PIPELINE_NAME)
        return self._pipelines[text]

    def _in_lock(self, name: str) -> str:
        return name.removeprefix(f"{self._folder}/") if self._folder else name


def split_blocks(text: str) -> dict[str, str]:
    """Return the entries of a lock as DVC writes it, name → lines; empty for one of another form (DVC 1, names too long for a line)."""
    if "\n  ? " in text:
        return {}
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    is_inside = False
    for line in text.splitlines(keepends=True):
        if not line.startswith(" "):
            is_inside, lines = line.rstrip() == "stages:", []
        elif is_inside and line[2:3] not in (" ", "-", "#") and line.rstrip().endswith(":"):
            lines = blocks.setdefault(line.strip()[:-1].strip("'\""), [])
        lines.append(line)
    return {name: "".join(block) for name, block in blocks.items()}


def _decoded(held: Blob | None) -> str:
    """Return the text of a file in git, with unix line ends as `_read` has them; `""` if there is none."""
    return held.content.decode("utf-8", "replace").replace("\r\n", "\n") if held is not None else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CallerError(
            f"{path} is no text: {error.reason} at byte {error.start}", "bring it back from git"
        ) from error
    except OSError as error:
        raise unreadable(str(path), error) from error
