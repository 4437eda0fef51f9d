"""The facts that a run starts with: who, where, what code, which environment (protocol/README.md, section 3).

Rules
- Nothing here raises: what can't be found out is left out.
- Environment variables are recorded only if the configuration names them, and masked like everything else.
"""

import os
from collections.abc import Callable, Mapping
from hashlib import md5
from pathlib import Path
from typing import NamedTuple

from cmf_agent.settings import Settings
from cmf_agent.shape import Shaped, shape
from cmf_agent.sources.host import host_facts, mask_command, mask_mapping
from cmf_agent.sources.masking import mask_text
from cmf_agent.sources.script import command_words
from cmf_protocol.encoding import encode
from cmf_protocol.events import Draft
from cmf_protocol.types import environment_recorded

_CODE_FACTS = {
    "commit": "git_commit",
    "branch": "git_branch",
    "remote": "git_repo",
    "dirty": "git_dirty",
    "error": "git_error",
}


class Environment(NamedTuple):
    """An environment's content id and the draft that records it."""

    content_id: str
    draft: Draft


#: The environment found last: nearly always that of the next run too, and a third of a start's work.
_latest: list[tuple[dict[str, object], Environment]] = []


def start_facts(root: Path, settings: Settings, command: list[str] | None) -> tuple[dict[str, object], Environment]:
    """Return the facts of a run in the project at `root`, and its environment; `command` is what runs, None for this process."""
    code_facts = _begin_code_facts(root, settings.capture_diff)  # git compares while the rest is found out
    environment = current_environment(settings)
    facts: dict[str, object] = dict(host_facts())
    facts["command"] = mask_command(command if command is not None else command_words())
    if command is None:
        facts["self_recorded"] = True  # to run it again, nothing needs to record it
    folder = _working_folder(root)
    if folder is not None:
        facts["working_dir"] = folder
    if settings.team:
        facts["team"] = settings.team
    if settings.actor:
        facts["actor"] = settings.actor
    return facts | code_facts(), environment


def _working_folder(root: Path) -> str | None:
    """Return the working directory as a path below the project at `root`, or None outside of it."""
    try:
        folder = os.path.relpath(os.path.realpath(Path.cwd()), os.path.realpath(root))
    except OSError:  # it is gone
        return None
    return None if folder.startswith("..") else folder


def _begin_code_facts(root: Path, full_diff: bool) -> Callable[[], dict[str, object]]:
    """Begin to read what the code is, and return what returns its facts."""
    holders = (folder for folder in (root, *root.parents) if os.path.exists(folder / ".git"))  # noqa: PTH110 - doesn't raise
    holder = next(holders, None)
    if holder is None:
        return dict  # without importing git, which takes longer than all the rest of a run's start
    from cmf_agent.sources.code import begin_capture

    rest = begin_capture(root, full_diff=full_diff)
    project_dir = {} if holder == root else {"project_dir": root.relative_to(holder).as_posix()}
    return lambda: project_dir | _code_facts(rest() or {}, full_diff)


def _code_facts(code: Mapping[str, object], full_diff: bool) -> dict[str, object]:
    facts = {fact: code[key] for key, fact in _CODE_FACTS.items() if code.get(key) is not None}
    if code.get("diff_sha256"):
        facts["git_diff"] = f"sha256:{code['diff_sha256']}"
        if full_diff:
            facts |= _diff_text(str(code["diff"]), is_cut=bool(code["diff_truncated"]))
    return facts


def _diff_text(diff: str, *, is_cut: bool) -> dict[str, object]:
    """Return the start of a diff without its secrets, and whether it is not all of it; masked, it may be longer."""
    from cmf_agent.sources.code import DIFF_TEXT_BYTES_MAX

    content = mask_text(diff).encode(errors="replace")
    text = content[:DIFF_TEXT_BYTES_MAX].decode(errors="ignore")
    is_cut = is_cut or len(content) > DIFF_TEXT_BYTES_MAX
    return {"git_diff_text": text} | ({"git_diff_truncated": True} if is_cut else {})


def current_environment(settings: Settings) -> Environment:
    """Return the environment of this process."""
    from cmf_agent.sources.environment import capture_environment

    content = capture_environment()
    named = {name: os.environ[name] for name in settings.capture_env if name in os.environ}
    if named:
        content["variables"] = mask_mapping(named)
    if _latest and _latest[-1][0] == content:
        return _latest[-1][1]
    shaped: Shaped = shape(environment=content)
    environment = shaped.space("environment")
    digest = md5(encode(environment), usedforsecurity=False).hexdigest()
    content_id = f"md5:{digest}"
    found = Environment(content_id, shaped.into(environment_recorded(content_id, environment)))
    _latest[:] = [(content, found)]
    return found
