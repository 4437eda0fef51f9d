"""Which files of a folder DVC leaves out of it: `.dvcignore`, DVC's own defaults, and nested projects.

Rules (those of dvc/ignore.py and dvc/pathspec_math.py, DVC 3)
- Rules are gitignore's. They are read from the project's root down, each file's for what lies beside and below
  it; the last rule that matches decides; what an ignored folder holds can't be brought back.
- `.git`, `.hg/`, `.dvc/` and nested DVC projects are always left out; so is our own `.cmf/`, which changes with
  every event.
- A `.dvcignore` inside a recorded folder counts, but is no part of its content. (DVC refuses such a folder; the
  digest is the one that it gives once the rules have moved to the project's root.)
"""

# os.path: one call per folder of a large one, where pathlib is several times slower.
# ruff: noqa: PTH112, PTH118, PTH120, PTH123

import os
import re
from dataclasses import dataclass

from cmf_graph.content.facts import shown, unreadable
from cmf_protocol.errors import CallerError

IGNORE_FILE = ".dvcignore"
_FOLDERS_LEFT_OUT = frozenset({".git", ".hg", ".dvc", ".cmf"})


@dataclass(frozen=True, slots=True)
class _Rule:
    """Rules that follow each other and say the same, as one expression over paths below the project's root."""

    expression: re.Pattern[str]
    ignores: bool
    folders_only: bool


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The rules in force in one folder; paths are relative to `root`, with slashes."""

    root: str
    rules: tuple[_Rule, ...] = ()

    def hides(self, path: str, *, is_folder: bool) -> bool:
        """Say whether `path`, whose parents are not hidden, is left out."""
        name = path.rpartition("/")[2]
        if name == ".git" or (is_folder and name in _FOLDERS_LEFT_OUT):
            return True
        for rule in reversed(self.rules):
            if rule.folders_only and not is_folder:
                continue
            if rule.expression.match(path) or (is_folder and rule.expression.match(path + "/")):
                return rule.ignores
        return False

    def inside(self, folder: str) -> "IgnoreRules":
        """Return the rules in force inside `folder` ("" for the root), its own `.dvcignore` read."""
        path = f"{folder}/{IGNORE_FILE}" if folder else IGNORE_FILE
        full = os.path.join(self.root, path)
        if not os.path.lexists(full) or self.hides(path, is_folder=False):
            return self
        return IgnoreRules(self.root, self.rules + _compiled(_read_patterns(full), folder, full))


def rules_for(folder: str) -> tuple[IgnoreRules, str]:
    """Return the rules in force inside the absolute `folder`, and its path below their root ("" for the root).

    A folder that is itself ignored counts all the same, as in `git add -f`: no rule from above it applies.
    """
    root = _project_root(folder)
    below = os.path.relpath(folder, root).replace(os.sep, "/")
    rules = IgnoreRules(root).inside("")
    if below == ".":
        return rules, ""
    parts = below.split("/")
    for end in range(1, len(parts) + 1):
        prefix = "/".join(parts[:end])
        if rules.hides(prefix, is_folder=True):
            return IgnoreRules(folder).inside(""), ""
        rules = rules.inside(prefix)
    return rules, below


def is_nested_project(folder: str) -> bool:
    """Say whether `folder` is a DVC project of its own, which the one around it leaves out."""
    return os.path.lexists(os.path.join(folder, ".dvc"))


def _project_root(folder: str) -> str:
    """Return the nearest DVC project that holds `folder`, else the nearest git or cmf project, else `folder`."""
    nearest = None
    current = folder
    while True:
        if os.path.isdir(os.path.join(current, ".dvc")):
            return current
        if nearest is None and any(os.path.lexists(os.path.join(current, name)) for name in (".git", ".cmf")):
            nearest = current
        parent = os.path.dirname(current)
        if parent == current or os.path.ismount(current):  # neither git nor DVC looks beyond a mount point
            return nearest or folder
        current = parent


def _read_patterns(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise CallerError(f"{shown(path)} is not UTF-8", "save it as UTF-8") from error
    return [line for line in lines if line and not line.startswith("#")]


def _compiled(patterns: list[str], folder: str, source: str) -> tuple[_Rule, ...]:
    from itertools import groupby

    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    found: list[tuple[str, bool, bool]] = []
    for pattern in patterns:
        rebased = _rebased(pattern, folder) if folder else pattern
        try:
            expression, ignores = GitIgnoreSpecPattern.pattern_to_regex(rebased)
        except ValueError as error:
            raise CallerError(f"{shown(source)} holds a rule that means nothing: {pattern}", "mend the rule") from error
        if expression is not None and ignores is not None:
            # pathspec names a group, and a name may stand only once in what is joined below.
            found.append((expression.replace("(?P<ps_d>", "(?:"), ignores, rebased.endswith("/")))
    return tuple(
        _Rule(re.compile("|".join(f"(?:{expression})" for expression, _, _ in group)), ignores, folders_only)
        for (ignores, folders_only), group in groupby(found, key=lambda item: item[1:])
    )


def _rebased(pattern: str, folder: str) -> str:
    """Return `pattern`, written for what lies in `folder`, as one for the root (dvc/pathspec_math.py change_rule)."""
    negated = pattern.startswith("!")
    rule = pattern[1:] if negated else pattern
    anchored = "/" in rule[:-1] and not rule.startswith("**/")
    rule = rule.removeprefix("/" if anchored else "**/").removeprefix("\\")
    rebased = f"/{folder}/{rule}" if anchored else f"/{folder}/**/{rule}"
    return "!" + rebased if negated else rebased
