"""Reads what programs keep their parameters in: YAML, JSON and TOML files.

Rules
- YAML is that of version 1.2, as DVC reads it: `1e-3` is a number, `yes` and `on` are texts.
- The top-level keys of a file are the parameters, nested maps stay whole. `FILE:train.lr,seed` takes these alone, each
  under the name that it is asked for by.
- What can't be used is a `CallerError` that names the file, the place in it, and the way out.
"""

import json
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from cmf_graph.content.facts import unreadable
from cmf_protocol.errors import CallerError

DOCUMENT_SUFFIXES = (".yaml", ".yml", ".json", ".toml")
_KEYS_SHOWN = 8


def read_params(text: str) -> tuple[Path, dict[str, object]]:
    """Return the file that `FILE` or `FILE:KEY,KEY` names, and the parameters that it says there."""
    path, keys = _split(text)
    document = read_document(path)
    if not isinstance(document, Mapping):
        raise CallerError(f"{path} holds no parameters: it is {_shape_name(document)}", "write it as KEY: VALUE lines")
    if not keys:
        return path, dict(document)
    return path, {key: _lookup(document, key, path) for key in keys}


def _split(text: str) -> tuple[Path, list[str]]:
    """Return the file and the keys; a file of that very name wins."""
    name, colon, keys = text.rpartition(":")
    if not colon or Path(text).exists():
        name, keys = text, ""
    wanted = [key.strip() for key in keys.split(",")] if colon and name != text else []
    if not name or not all(wanted):
        raise CallerError(f"{text!r} is not FILE or FILE:KEY,KEY", "write for example params.yaml:train.lr,train.seed")
    return Path(name), wanted


def _lookup(document: Mapping[str, Any], key: str, path: Path) -> object:
    if key in document:
        return document[key]
    value: Any = document
    for part in key.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise CallerError(f"{path} has no parameter {key!r}", f"it has {_named(document)}")
    return value


def _named(document: Mapping[str, Any]) -> str:
    names = list(document)
    more = f" and {len(names) - _KEYS_SHOWN} more" if len(names) > _KEYS_SHOWN else ""
    return (", ".join(names[:_KEYS_SHOWN]) or "none") + more


# -- documents ---------------------------------------------------------------------------------------------------------


def read_document(path: Path) -> Any:
    """Return what a YAML, JSON or TOML file holds: keys are texts, dates and times too; None for an empty YAML file."""
    suffix = path.suffix.lower()
    if suffix not in DOCUMENT_SUFFIXES:
        raise CallerError(f"{path} is no file of parameters or metrics", f"give a {', '.join(DOCUMENT_SUFFIXES)} file")
    text = read_text(path)
    try:
        if suffix == ".json":
            found = json.loads(text)
        elif suffix == ".toml":
            found = tomllib.loads(text)
        else:
            found = _read_yaml(text)
        return _plain(found)
    except RecursionError as error:
        raise CallerError(f"{path} is nested too deep, or holds itself", "write it flatter") from error
    except ValueError as error:  # what json and tomllib raise, and `_read_yaml`
        kind = "YAML" if suffix in (".yaml", ".yml") else suffix[1:].upper()
        raise CallerError(f"{path} is not valid {kind}: {error}", "mend that line") from error


def read_text(path: Path) -> str:
    """Return the text of a file; raise `CallerError` if it can't be read or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CallerError(f"{path} is no text: {error.reason} at byte {error.start}", "write it in UTF-8") from error
    except OSError as error:
        raise unreadable(str(path), error) from error


def _read_yaml(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(_yaml_reason(error)) from error


def _yaml_reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    reason = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "")
    return f"{reason}{where}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date | datetime | time) else value


def _shape_name(document: object) -> str:
    if document is None:
        return "empty"
    return "a list" if isinstance(document, list) else f"one value, {str(document)[:40]!r}"
