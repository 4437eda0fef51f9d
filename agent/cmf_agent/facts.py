"""The facts that a run starts with: who, where, what code, which environment (protocol/README.md, section 3).

Rules
- Nothing here raises: what can't be found out is left out.
- Environment variables are recorded only if the configuration names them, and masked like everything else.
"""

import os
import sys
from hashlib import md5
from pathlib import Path
from typing import NamedTuple

from cmf_agent.settings import Settings
from cmf_agent.shape import Shaped, shape
from cmf_agent.sources.host import host_facts, mask_command, mask_mapping
from cmf_agent.sources.masking import mask_text
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


def start_facts(root: Path, settings: Settings, command: list[str] | None) -> dict[str, object]:
    """Return the facts of a run in the project at `root`; `command` is what runs, None for this process."""
    facts: dict[str, object] = dict(host_facts())
    facts["command"] = mask_command(command if command is not None else sys.orig_argv)
    if settings.team:
        facts["team"] = settings.team
    if settings.actor:
        facts["actor"] = settings.actor
    return facts | _code_facts(root, settings.capture_diff)


def _code_facts(root: Path, full_diff: bool) -> dict[str, object]:
    if not any(os.path.exists(folder / ".git") for folder in (root, *root.parents)):  # noqa: PTH110 - doesn't raise
        return {}  # without importing git, which takes longer than all the rest of a run's start
    from cmf_agent.sources.code import capture_code

    code = capture_code(root, full_diff=full_diff) or {}
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
    shaped: Shaped = shape(environment=content)
    environment = shaped.space("environment")
    digest = md5(encode(environment), usedforsecurity=False).hexdigest()
    content_id = f"md5:{digest}"
    return Environment(content_id, shaped.into(environment_recorded(content_id, environment)))
