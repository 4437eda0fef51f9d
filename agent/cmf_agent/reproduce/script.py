"""Writes what runs a plan again: `run.sh`, `requirements.txt`. Pure: plan → text.

Rules
- Metadata may be hostile: every word of it is quoted, and what a terminal or an editor would not show as it is (control characters,
  marks that turn the direction of text) stands as an octal escape.
- A masked value is a variable of the shell that must be set, `CMF_MASKED_1` and so on: the script stops before it runs anything without.
"""

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from cmf_agent.reproduce.plan import File, Plan, is_variable, masked_variables
from cmf_agent.sources.masking import MASK
from cmf_graph.text import clean
from cmf_protocol.encoding import Value

PROJECT = "project"
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_TOLD_APART = re.compile(f"({re.escape(MASK)})")


def script(plan: Plan) -> str:
    """Return a shell script, to be put beside the folder `PROJECT`, that runs a plan's command and records it."""
    root = posixpath.join(PROJECT, *plan.code.project_dir.parts)
    masked = iter(range(1, 1 + sum(word.count(MASK) for word in plan.command)))
    words = [_word(word, masked) for word in plan.command]
    lines = [
        "#!/bin/sh",
        f"# Runs again what was recorded as {clean(plan.execution['id'])}",
        f"# ({clean(plan.execution['pipeline'])}/{clean(plan.execution['stage'])}, {clean(plan.execution['started_at'])}).",
        "# Made by `cmf-agent reproduce`. The command comes from a record: read it before you run it.",
        *_needs(plan.environment),
        "set -eu",
        *(f': "${{CMF_MASKED_{n}:?is masked in the record: set it}}"' for n in range(1, 1 + _masks(plan))),
        "unset CMF_HOME CDPATH",
        f'cd -- "$(dirname -- "$0")"/{_quoted(root)}',
        "[ -d .cmf ] || cmf-agent init >&2",
        *_variables(plan.environment),
        *([f"cd -- {_quoted('./' + str(plan.working_dir))}"] if plan.working_dir.parts else []),
    ]
    flags = [] if plan.is_self_recorded else [f"cmf-agent run {_first_flags(plan)}", *_flags(plan), "--"]
    lines += ["exec " + " \\\n  ".join([*flags, " ".join(words)])]
    return "\n".join(lines) + "\n"


def _masks(plan: Plan) -> int:
    return sum(word.count(MASK) for word in plan.command)


def _needs(environment: Mapping[str, Any] | None) -> Iterator[str]:
    if environment is not None:
        yield f"# Needs Python {clean(environment.get('python'))} with what is in requirements.txt."
    for name in masked_variables(environment):
        yield f"# The variable {clean(name)} was masked in the record: set it yourself."


def _variables(environment: Mapping[str, Any] | None) -> Iterator[str]:
    variables = (environment or {}).get("variables")
    unset = set(masked_variables(environment))
    for name, value in variables.items() if isinstance(variables, Mapping) else ():
        if is_variable(name) and name not in unset:
            yield f"export {name}={_quoted(str(value))}"


def _first_flags(plan: Plan) -> str:
    run = plan.execution
    flags = [f"--pipeline={run['pipeline']}", f"--stage={run['stage']}"]
    flags += [f"--kind={run['kind']}"] if run["kind"] != "step" else []
    flags += [f"--name={run['name']}"] if run["name"] else []
    return " ".join(map(_quoted, flags))


def _flags(plan: Plan) -> Iterator[str]:
    for key, value in plan.params.items():
        if key and "=" not in key:
            yield _quoted(f"--param={key}={param_text(value)}")
    for file in plan.inputs:
        if not file.is_table and (name := _from_folder(file, plan)) is not None:
            yield _quoted(f"--input={name}")
    for file in plan.outputs:
        option = {"model": "--model", "metrics": "--metrics"}.get(file.kind, "--output")
        if not file.is_table and (name := _from_folder(file, plan)) is not None:
            yield _quoted(f"{option}={name}")


def _from_folder(file: File, plan: Plan) -> str | None:
    """Return how the command's folder names a file: an absolute name as it is, one that is refused not at all."""
    if file.path is None:
        return (
            file.name
            if file.name is not None and file.name.startswith("/") and ".." not in file.name.split("/")
            else None
        )
    return posixpath.relpath(str(file.path), str(plan.working_dir))


def param_text(value: Value) -> str:
    """Return a parameter as `--param` reads it back: as JSON."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Value) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# -- quoting -----------------------------------------------------------------------------------------------------------


def _word(word: str, masked: Iterator[int]) -> str:
    """Return a word of the command as the shell reads it, with variables for what is masked in it."""
    parts = [part for part in _TOLD_APART.split(word) if part]
    quoted = [f'"${{CMF_MASKED_{next(masked)}}}"' if part == MASK else _quoted(part) for part in parts]
    return "".join(quoted) or "''"


def _quoted(text: str) -> str:
    """Return text as one word for the shell, all of it visible."""
    parts: list[str] = []
    for is_shown, run in _runs(text):
        octal = "".join(f"\\{byte:03o}" for byte in run.encode(errors="replace"))
        parts.append(shlex.quote(run) if is_shown else f"\"$(printf '{octal}')\"")
    return "".join(parts) or "''"


def _runs(text: str) -> Iterator[tuple[bool, str]]:
    """Yield a text in pieces, each with whether it is shown as it is; line breaks and tabs are, in quotes."""
    start = 0
    shown = [character in "\n\t" or clean(f"a{character}a") == f"a{character}a" for character in text]
    for at in range(1, len(text) + 1):
        if at == len(text) or shown[at] != shown[start]:
            yield shown[start], text[start:at]
            start = at


# -- environment -------------------------------------------------------------------------------------------------------


def requirements(environment: Mapping[str, Any], from_folders: Mapping[str, str]) -> str:
    """Return a recorded environment's packages as pip reads them; what pip can't get from an index is marked or left out.

    `from_folders` maps the packages that are installed here from a folder (editable ones, say) to their versions: the record doesn't tell.
    """
    packages = environment.get("packages")
    lines = [f"# Python {clean(environment.get('python'))} ({clean(environment.get('implementation'))})"]
    for name, version in sorted(packages.items()) if isinstance(packages, Mapping) else ():
        if not (_REQUIREMENT.fullmatch(str(name)) and _VERSION.fullmatch(str(version))):
            lines.append(f"# left out, no package of an index: {clean(name)} {clean(version)}")
        elif "+" in str(version):
            lines.append(f"{name}=={version}  # a local build: may need an index of its own")
        elif from_folders.get(str(name)) == version:
            lines.append(f"{name}=={version}  # here it is installed from a folder: may be on no index")
        else:
            lines.append(f"{name}=={version}")
    return "\n".join(lines) + "\n"
