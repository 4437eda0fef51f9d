"""What it takes to run a recorded execution again: code, inputs, environment, command, parameters. Read from the local view.

Rules
- Everything here was told by some site and may be hostile: what is used as a path, a commit, an address or a variable is asked of the
  functions below first; what they refuse is a problem of the plan, never a guess.
- Nothing here looks at files, at git or at DVC (`sources.py`), or writes anything (`layout.py`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from cmf_agent.home import Home
from cmf_agent.sources.masking import MASK
from cmf_agent.view import local_view
from cmf_graph.items import execution_items
from cmf_graph.reading import Reading
from cmf_graph.refs import PREFIX_CHARS_MIN, find, resolve_one
from cmf_graph.text import clean
from cmf_protocol.encoding import Value, to_json
from cmf_protocol.errors import CallerError
from cmf_protocol.resolve import NodeState

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MD5 = re.compile(r"md5:[0-9a-f]{32}(\.dir)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Addresses that git fetches from without running what they name: no `ext::`, nothing that is read as an option.
_REPOSITORY = re.compile(r"(?:https?|ssh|file)://[^-\s]\S*|[^-/\s:][^/\s:]*:(?!:|//)\S+|/\S+")
#: Folders whose content is obeyed, whatever the case of their names.
_OBEYED = frozenset({"..", ".git", ".cmf", ".dvc"})


class Code(NamedTuple):
    """The version of the code: `diff` is the recorded text of what was not committed, None unless it is whole; `repo` is as recorded."""

    commit: str | None
    repo: str | None
    is_dirty: bool
    diff: str | None
    project_dir: PurePosixPath


class File(NamedTuple):
    """An input or an output: what it is called, its content, where somebody says that it is stored."""

    name: str | None
    content_id: str
    kind: str
    size: int | None
    locations: list[dict[str, str]]
    is_table: bool

    @property
    def path(self) -> PurePosixPath | None:
        """Where it lies below the project's root; None for a name that no file of a project may have."""
        return None if self.name is None else safe_path(self.name)


class Plan(NamedTuple):
    """An execution, and what it takes to run it again; `problems` is what the record itself does not say."""

    execution: dict[str, Any]
    code: Code
    inputs: list[File]
    outputs: list[File]
    environment: dict[str, Any] | None
    command: list[str]
    working_dir: PurePosixPath
    is_self_recorded: bool
    params: dict[str, Value]
    problems: list[str]


def plan_of(home: Home, ref: str) -> Plan:
    """Return what it takes to run the execution that `ref` names again; raise `CallerError` if it names none, or several."""
    name = ref.strip().removeprefix("execution:")
    with local_view(home) as graph:
        if not name or not find(graph, f"execution:{name}", sites={}):
            raise CallerError(
                f"no execution here is called {clean(name)!r}: it is no id, nor the first digits of one "
                f"({PREFIX_CHARS_MIN} or more), nor a name",
                "`cmf-agent query executions` lists them; `cmf-agent query show ARTIFACT` says which one produced it",
            )
        match = resolve_one(graph, f"execution:{name}", sites={})
        assert match.node_id is not None, "an execution is a node"
        with graph.snapshot():
            reading = Reading(graph, {})
            states = reading.states([match.node_id])
            return _plan(states[match.node_id], execution_items(states, reading)[0], reading)


def _plan(state: NodeState, item: Mapping[str, Any], reading: Reading) -> Plan:
    artifacts = _artifacts(item, reading)
    environment = artifacts.get(str(item["environment"]))
    code = _code(state)
    command = _texts(state.value("command"))
    working_dir = _folder(state.value("working_dir"))
    plan = Plan(
        execution={key: item[key] for key in _SHOWN},
        code=code,
        inputs=_files(item["inputs"], artifacts),
        outputs=_files(item["outputs"], artifacts),
        environment=None if environment is None else _environment(environment),
        command=command or [],
        working_dir=working_dir or PurePosixPath(),
        is_self_recorded=state.value("self_recorded") is True,
        params=state.space("params"),
        problems=[],
    )
    return plan._replace(problems=list(_gaps(plan, state)))


def _environment(state: NodeState) -> dict[str, Any] | None:
    found = to_json(state.value("environment"))
    return found if isinstance(found, dict) else None


_SHOWN = ("id", "pipeline", "stage", "name", "kind", "status", "host", "started_at", "exit_code")


def _artifacts(item: Mapping[str, Any], reading: Reading) -> dict[str, NodeState]:
    """Return the artifacts that an execution has to do with, by content id."""
    ids = {usage["content_id"] for usage in (*item["inputs"], *item["outputs"])} | {str(item["environment"])}
    found = {content_id: reading.graph.node_id(("artifact", content_id)) for content_id in ids}
    numbers = {content_id: number for content_id, number in found.items() if number is not None}
    states = reading.states(list(set(numbers.values())))
    return {content_id: states[number] for content_id, number in numbers.items()}


def _files(usages: Iterable[Mapping[str, Any]], artifacts: Mapping[str, NodeState]) -> list[File]:
    return [_file(usage, artifacts.get(usage["content_id"])) for usage in usages]


def _file(usage: Mapping[str, Any], state: NodeState | None) -> File:
    size = None if state is None else state.value("size")
    locations = [] if state is None else list(state.space("locations").values())
    return File(
        name=usage["name"],
        content_id=usage["content_id"],
        kind=usage["kind"],
        size=size if type(size) is int else None,
        locations=[dict(place) for place in locations if isinstance(place, Mapping)],
        is_table=state is not None and bool(state.space("table")),
    )


def _code(state: NodeState) -> Code:
    commit, repo = state.value("git_commit"), state.value("git_repo")
    diff, digest = state.value("git_diff_text"), state.value("git_diff")
    is_whole = isinstance(diff, str) and digest == f"sha256:{hashlib.sha256(diff.encode()).hexdigest()}"
    return Code(
        commit=commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None,
        repo=repo if isinstance(repo, str) else None,
        is_dirty=state.value("git_dirty") is True or digest is not None,
        diff=str(diff) if is_whole else None,
        project_dir=_folder(state.value("project_dir")) or PurePosixPath(),
    )


def _gaps(plan: Plan, state: NodeState) -> Iterable[str]:
    """Yield what the record does not say, or says in a way that can't be used."""
    yield from _code_gaps(plan.code, state)
    for key in ("project_dir", "working_dir"):
        value = state.value(key)
        if value is not None and _folder(value) is None:
            yield f"the {key} {value!r} is no folder of a project"
    for name in sorted(_used_twice(plan.inputs)):
        yield f"the input {name} was used with several contents: only one of them can lie there"
    if plan.environment is None:
        yield "no environment was recorded: Python and its packages are unknown"
    if not plan.command:
        yield "no command was recorded"
    for number, word in enumerate(masked_words(plan.command), start=1):
        yield f"the command holds a masked value, {word!r}: supply it in CMF_MASKED_{number} when you run it"
    for key in plan.params:
        if "=" in key or not key:
            yield f"the parameter {key!r} can't be given to a command: see params.json"
    for key in masked_params(plan.params):
        yield f"the parameter {key!r} is masked in part: its value is not recorded"
    for name in masked_variables(plan.environment):
        yield f"the variable {name} was masked: set it yourself"


def _used_twice(inputs: Iterable[File]) -> set[str]:
    names = [file.name for file in inputs if file.name is not None and not file.is_table]
    return {name for name in names if names.count(name) > 1}


def _code_gaps(code: Code, state: NodeState) -> Iterable[str]:
    if code.commit is None and state.value("git_commit") is not None:
        yield f"the git_commit {state.value('git_commit')!r} is refused: it is no commit's id"
    if state.value("git_error") is not None:
        yield f"the code's version could not be recorded: {state.value('git_error')}"
    elif code.commit is None and state.value("git_commit") is None:
        yield "no version of the code was recorded: it was in no git repository, or before its first commit"
    if code.is_dirty and code.diff is None:
        is_known = state.value("git_diff_text") is not None
        how = "are recorded only in part, or masked" if is_known else 'were not recorded (capture.diff = "full" does)'
        yield f"the code had uncommitted changes, which {how}: {state.value('git_diff') or 'of unknown digest'}"


# -- what may be used --------------------------------------------------------------------------------------------------


def safe_path(name: str) -> PurePosixPath | None:
    """Return the path below a project's root that `name` is; None if it is absolute, leads out, or into what git and DVC obey."""
    path = PurePosixPath(name)
    if path.is_absolute() or "\0" in name or not path.parts or any(part.lower() in _OBEYED for part in path.parts):
        return None
    return path


def is_fetchable(repo: str) -> bool:
    """Tell if git may be given this address: it names a place, and neither an option nor a program."""
    return _REPOSITORY.fullmatch(repo) is not None


def is_variable(name: str) -> bool:
    """Tell if a shell can have a variable of this name."""
    return _VARIABLE.fullmatch(name) is not None


def is_md5(content_id: str) -> bool:
    """Tell if a content id is one by which DVC and we look for bytes."""
    return _MD5.fullmatch(content_id) is not None


def _folder(value: Value) -> PurePosixPath | None:
    if not isinstance(value, str):
        return None
    return PurePosixPath() if value == "." else safe_path(value)


def _texts(value: Value) -> list[str] | None:
    words = list(value) if isinstance(value, tuple | list) else []
    return [str(word) for word in words] if all(isinstance(word, str) for word in words) else None


# -- what was masked ---------------------------------------------------------------------------------------------------


def masked_words(command: Iterable[str]) -> list[str]:
    """Return the words of a command that hold a masked value, once for each such value."""
    return [word for word in command for _ in range(word.count(MASK))]


def masked_params(params: Mapping[str, Value]) -> list[str]:
    """Return the names of the parameters that hold a masked value, at any depth."""
    return [key for key, value in params.items() if _is_masked(value)]


def masked_variables(environment: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the recorded environment variables whose value is masked."""
    variables = (environment or {}).get("variables")
    return [name for name, value in variables.items() if _is_masked(value)] if isinstance(variables, Mapping) else []


def _is_masked(value: object) -> bool:
    if isinstance(value, str):
        return MASK in value
    if isinstance(value, Mapping):
        return any(map(_is_masked, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_masked, value))
