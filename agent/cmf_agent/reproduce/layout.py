"""What of a plan is at hand here, and laying it out in a folder of its own: `cmf-agent reproduce --check` and `--into DIR`.

    DIR/project/            the code at its commit, with what was not committed, and the inputs in their places
    DIR/run.sh              runs the command and records it
    DIR/requirements.txt    Python's packages
    DIR/params.json         the parameters
    DIR/reproduce.json      the plan, with the outputs that are expected, and what could not be laid out

Rules
- Nothing is run, and nothing outside of DIR is written (but for DVC's cache, into which remotes are pulled).
- What could not be laid out is a line of `missing`; the rest is laid out all the same.
"""

import json
import posixpath
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cmf_agent.home import Home
from cmf_agent.reproduce.code import apply_diff, clone_code, has_file, has_submodules, local_repository
from cmf_agent.reproduce.plan import File, Plan, is_fetchable
from cmf_agent.reproduce.remote import NOTHING, Answer, ask_remote, fetch
from cmf_agent.reproduce.script import PROJECT, requirements, script
from cmf_agent.reproduce.sources import Source, bring, find_source, holds, leads_inside, packages_from_folders
from cmf_agent.sources.names import is_source
from cmf_graph.database import store_errors
from cmf_graph.text import clean
from cmf_protocol.encoding import to_json
from cmf_protocol.errors import CallerError, CmfError

_IN_CODE = Source("code", "in the code")
_IN_PLACE = Source("place", "in place: an absolute path")


class Found(NamedTuple):
    """What of a plan is at hand: the repository with the commit, if it is here, a source (or None) for each input, what is missing."""

    repository: Path | None
    sources: list[Source | None]
    missing: list[str]


def check(home: Home, plan: Plan) -> Found:
    """Return what is at hand here to run a plan again; nothing is written but a clone that is removed again."""
    repository = _repository(home, plan)
    sources = [_source(home, file, repository) for file in plan.inputs]
    problems = _code_problems(plan, repository)
    if repository is not None:
        problems += _uncommitted(plan, lambda path: has_file(repository, str(plan.code.commit), path.as_posix()))
    if repository is not None and (plan.code.diff is not None or None in sources):
        with tempfile.TemporaryDirectory(prefix="cmf-") as folder:
            project = Path(folder) / PROJECT
            problems += _lay_out_code(plan, repository, project, borrow=True)
            root = project / plan.code.project_dir
            sources = [source or _in_code(file, root) for file, source in zip(plan.inputs, sources, strict=True)]
    lacking = [file.content_id for file, source in zip(plan.inputs, sources, strict=True) if source is None]
    asked = ask_remote(home, lacking) if lacking else NOTHING
    sources = [source or asked.found.get(file.content_id) for file, source in zip(plan.inputs, sources, strict=True)]
    missing = [*plan.problems, *problems, *_input_problems(plan.inputs, sources, asked)]
    return Found(repository, sources, missing)


def lay_out(home: Home, plan: Plan, folder: Path) -> list[str]:
    """Lay a plan out in `folder`, new or empty, and return what could not be; raise `CallerError` for any other folder."""
    with store_errors(str(folder)):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CallerError(f"{folder} is not empty", "name a folder that is new or empty")
        folder.mkdir(parents=True, exist_ok=True)
        project = folder.absolute() / PROJECT
        missing = list(plan.problems)
        repository = _repository(home, plan)
        source: Path | str | None = repository or plan.code.repo
        if plan.code.commit is not None and source is not None:
            missing += _lay_out_code(plan, source, project)
        elif plan.code.commit is not None:
            missing += _code_problems(plan, repository)
        root = project / plan.code.project_dir
        missing += _lay_out_folders([project, root, root / plan.working_dir], project)
        missing += _lay_out_inputs(home, plan, repository, project)
        if project.is_dir() and plan.code.commit is not None:
            missing += _uncommitted(plan, lambda path: (project / path).exists())
        _write_files(plan, folder, missing)
    return missing


# -- code --------------------------------------------------------------------------------------------------------------


def _repository(home: Home, plan: Plan) -> Path | None:
    return None if plan.code.commit is None else local_repository(home.root, plan.code.commit)


def _code_problems(plan: Plan, repository: Path | None) -> list[str]:
    if plan.code.commit is None or repository is not None:
        return []
    repo = plan.code.repo
    if repo is None:
        return [f"the commit {plan.code.commit} is not here, and no repository's address was recorded"]
    how = f"it can be cloned from {repo}" if is_fetchable(repo) else f"the recorded address {repo!r} is refused"
    return [f"the commit {plan.code.commit} is not here: {how}"]


def _uncommitted(plan: Plan, is_there: Callable[[PurePosixPath], bool]) -> list[str]:
    """Return which programs that the command names are not in the code; `is_there` is asked about paths from the repository's root."""
    inputs = {str(file.path) for file in plan.inputs if file.path is not None}
    found = []
    for word in dict.fromkeys(plan.command):
        name = posixpath.normpath(posixpath.join(plan.working_dir.as_posix(), word))
        path = PurePosixPath(posixpath.normpath(posixpath.join(plan.code.project_dir.as_posix(), name)))
        if not is_source(word) or path.is_absolute() or path.parts[0] == ".." or name in inputs:
            continue
        if not is_there(path):
            found.append(f"{name} is not in the code at {plan.code.commit}: it was not committed when this ran")
    return found


def _lay_out_code(plan: Plan, source: Path | str, project: Path, *, borrow: bool = False) -> list[str]:
    """Clone the code and apply the diff; return what failed."""
    assert plan.code.commit is not None
    problems = []
    try:
        clone_code(plan.code, source, project, borrow=borrow)
        if has_submodules(project, plan.code.commit):
            problems.append("the code has submodules: run `git submodule update --init` in project")
        if plan.code.diff is not None:
            apply_diff(plan.code.diff, project)
    except CmfError as error:
        problems.append(f"the code at {plan.code.commit}: {error}")
    return problems


def _lay_out_folders(folders: Sequence[Path], project: Path) -> list[str]:
    """Make the folders that are not there; return which can't be, or lead out of the project by a link."""
    problems = []
    for folder in folders:
        if not leads_inside(folder / "any", project):
            problems.append(f"the folder {folder} leads out of the project by a link: don't start run.sh")
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                problems.append(f"the folder {folder} can't be made: {error.strerror}")
    return problems


# -- inputs ------------------------------------------------------------------------------------------------------------


def _source(home: Home, file: File, repository: Path | None) -> Source | None:
    source = find_source(home, file, repository)
    is_absolute = file.name is not None and file.name.startswith("/")
    return _IN_PLACE if source is not None and source.how == "file" and is_absolute else source


def _in_code(file: File, root: Path) -> Source | None:
    return _IN_CODE if file.path is not None and holds(root / file.path, file) else None


def _input_problems(inputs: Sequence[File], sources: Sequence[Source | None], asked: Answer) -> list[str]:
    found = []
    for file, source in zip(inputs, sources, strict=True):
        if source is None:
            found.append(_not_at_hand(file, asked))
        elif file.path is None and source.how not in ("place", "events"):
            found.append(f"{input_text(file)} can't be put in place: {_name_problem(file)}")
    return found


def _lay_out_inputs(home: Home, plan: Plan, repository: Path | None, project: Path) -> list[str]:
    """Put the inputs in their places, unless the code has brought them; return what is wrong."""
    root = project / plan.code.project_dir
    files = {file.name or file.content_id: file for file in reversed(plan.inputs)}  # one of each name
    sources = [(file, _source(home, file, repository)) for file in reversed(files.values())]
    left = [file for file, source in sources if source is None and _in_code(file, root) is None]
    fetched = fetch(home, dict.fromkeys(file.content_id for file in left if file.path is not None))
    problems = []
    for file, source in sources:
        came = source is None and file.content_id in fetched.found
        at_hand = _source(home, file, repository) if came else source
        problems += _lay_out_input(file, at_hand, root, project, fetched)
    return problems


def _lay_out_input(file: File, source: Source | None, root: Path, project: Path, fetched: Answer) -> list[str]:
    if source is not None and source.how in ("events", "place"):
        return []
    if file.path is None:
        return [f"{input_text(file)} can't be put in place: {_name_problem(file)}"]
    try:
        if _in_code(file, root) is None:
            if source is None:
                return [_not_at_hand(file, fetched)]
            bring(source, file, root / file.path, project)
    except (CmfError, OSError) as error:
        return [f"{input_text(file)}: {error}"]
    return []


def _not_at_hand(file: File, asked: Answer) -> str:
    """Return that an input is not here, what the remote said of it, and where others say that it is stored."""
    told = ", ".join(sorted({_place_text(place) for place in file.locations} - {""}))
    reason = None if _in_git(file) else asked.reasons.get(file.content_id)
    more = [*([reason] if reason else []), *([f"said to be stored as {told}"] if told else [])]
    return f"{input_text(file)} is not at hand" + (f" ({'; '.join(more)})" if more else "")


def _in_git(file: File) -> bool:
    return any(place.get("kind") == "git" for place in file.locations)


def _place_text(place: Mapping[str, str]) -> str:
    where = place.get("url") or place.get("path")
    return (clean(where) + (" in git" if place.get("kind") == "git" else "")) if where else ""


def input_text(file: File) -> str:
    """Return an input as people read it."""
    return f"{clean(file.name) if file.name is not None else 'an input without a name'} ({clean(file.content_id)})"


def _name_problem(file: File) -> str:
    return "its name was not recorded" if file.name is None else "its name leads out of the project"


# -- files -------------------------------------------------------------------------------------------------------------


def _write_files(plan: Plan, folder: Path, missing: Sequence[str]) -> None:
    if plan.environment is not None:
        (folder / "requirements.txt").write_text(
            requirements(plan.environment, packages_from_folders()), encoding="utf-8"
        )
    (folder / "params.json").write_text(_json(to_json(plan.params)), encoding="utf-8")
    if plan.command:
        path = folder / "run.sh"
        path.write_text(script(plan), encoding="utf-8", errors="backslashreplace")
        path.chmod(0o755)
    (folder / "reproduce.json").write_text(_json(document(plan) | {"missing": list(missing)}), encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def document(plan: Plan, sources: Sequence[Source | None] | None = None) -> dict[str, Any]:
    """Return a plan as JSON has it; with `sources`, where each input is at hand."""
    found: Sequence[Source | None] = sources if sources is not None else [None] * len(plan.inputs)
    return {
        "execution": plan.execution,
        "code": plan.code._asdict() | {"project_dir": str(plan.code.project_dir)},
        "inputs": [
            _fields(file) | ({"at_hand": source.where if source else None} if sources is not None else {})
            for file, source in zip(plan.inputs, found, strict=True)
        ],
        "environment": plan.environment,
        "command": plan.command,
        "working_dir": str(plan.working_dir),
        "self_recorded": plan.is_self_recorded,
        "params": to_json(plan.params),
        "outputs": [_fields(file) for file in plan.outputs],
    }


def _fields(file: File) -> dict[str, Any]:
    return {key: getattr(file, key) for key in ("name", "content_id", "kind", "size", "locations")}
