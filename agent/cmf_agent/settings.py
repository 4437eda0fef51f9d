"""The agent's configuration: flag > environment > `.cmf/config.toml` > the user's file.

Rules
- A file that can't be read is a `CallerError` that names it and the way out.
- A key that says something impossible is told on standard error and left out: it alone, not the rest.
- Keys that this version does not know are left alone.
"""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmf_protocol.errors import CallerError

TEMPLATE = """\
# What this site's agent does. A flag goes before an environment variable, that before this file,
# and this file before the user's own (~/.config/cmf-sync/config.toml).

# team = "vision"            # CMF_TEAM: recorded with every run
# actor = "maria"            # CMF_ACTOR: who is responsible; the login name is recorded anyway

[hub]
# url = "tls://hub.example.org:4222"    # CMF_HUB: instead of the address in the join file
# bandwidth = "64KB/s"       # CMF_BANDWIDTH: the daemon sends no more than that

[capture]
# diff = "full"              # CMF_CAPTURE_DIFF: also record the text of uncommitted changes (its first 200 KiB)
# env = ["CUDA_VISIBLE_DEVICES"]        # CMF_CAPTURE_ENV: environment variables to record, no others are

[dvc]
# track = "never"            # CMF_DVC_TRACK: auto (what is recorded in a DVC project is added to DVC, where DVC is installed),
                             # never, or always (where that can't be done, it is said)
# lock_timeout_s = 10        # CMF_DVC_LOCK_TIMEOUT_S: how long another DVC is waited for that holds its lock
"""

#: Whether what is recorded is added to DVC.
TRACK_MODES = ("auto", "never", "always")
#: How long another DVC is waited for, s.
LOCK_TIMEOUT_S = 10.0

_TRUE = {"1", "true", "yes", "on", "full"}
_FALSE = {"0", "false", "no", "off", ""}


class Settings(NamedTuple):
    """What is configured; None or empty where nothing is."""

    team: str | None = None
    actor: str | None = None
    hub_url: str | None = None
    capture_diff: bool = False
    capture_env: tuple[str, ...] = ()
    #: What the daemon may send, bytes/s.
    bandwidth: float | None = None
    #: One of `TRACK_MODES`.
    dvc_track: str = "auto"
    dvc_lock_timeout_s: float = LOCK_TIMEOUT_S


def user_config_path(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the path of the user's file, in the platform's folder for configuration."""
    named = environment.get("XDG_CONFIG_HOME")
    if named:
        return Path(named) / "cmf-sync" / "config.toml"
    folder = Path(environment.get("HOME") or "~").expanduser()
    middle = Path("Library") / "Application Support" if platform == "darwin" else Path(".config")
    return folder / middle / "cmf-sync" / "config.toml"


def load_settings(
    project: Path | None, environment: Mapping[str, str] = os.environ, *, hub_url: str | None = None
) -> Settings:
    """Return what is in force for the configuration file `project`; `hub_url` is what a flag said."""
    files = [path for path in (project, user_config_path(environment)) if path is not None]
    tables = [(path, _read(path)) for path in files]
    env = environment.get("CMF_CAPTURE_ENV")
    diff = environment.get("CMF_CAPTURE_DIFF")
    return Settings(
        team=environment.get("CMF_TEAM") or _lookup(tables, "team", str),
        actor=environment.get("CMF_ACTOR") or _lookup(tables, "actor", str),
        hub_url=hub_url or environment.get("CMF_HUB") or _lookup(tables, "hub.url", str),
        capture_diff=bool(_lookup(tables, "capture.diff", bool) if diff is None else _variable_flag(diff)),
        capture_env=_names(_lookup(tables, "capture.env", list) if env is None else env.split(",")),
        bandwidth=_rate(environment.get("CMF_BANDWIDTH") or _lookup(tables, "hub.bandwidth", str)),
        dvc_track=_mode(environment.get("CMF_DVC_TRACK") or _lookup(tables, "dvc.track", str)),
        dvc_lock_timeout_s=_seconds(
            environment.get("CMF_DVC_LOCK_TIMEOUT_S") or _lookup(tables, "dvc.lock_timeout_s", float)
        ),
    )


def _mode(text: str | None) -> str:
    mode = (text or "auto").strip().lower()
    if mode in TRACK_MODES:
        return mode
    _leave_out(f"dvc.track is {text!r}", f"set it to one of {', '.join(TRACK_MODES)}")
    return "auto"


def _seconds(said: str | float | None) -> float:
    if said is None:
        return LOCK_TIMEOUT_S
    try:
        seconds = float(said)
        if 0 <= seconds < math.inf:
            return seconds
    except ValueError:
        pass  # said below, as what is out of range
    _leave_out(f"dvc.lock_timeout_s is {said!r}", "set it to a number of seconds")
    return LOCK_TIMEOUT_S


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    from cmf_link.pace import read_rate  # here: a run needs none

    try:
        return read_rate(text)
    except CallerError as error:
        _leave_out(f"the bandwidth {text!r}", error.hint)
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CallerError(f"{path} can't be read: {error.strerror}", "let this user read it, or remove it") from error
    if not any(line.strip()[:1] not in (b"", b"#", b"[") for line in content.splitlines()):
        return {}
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError both are
        raise CallerError(f"{path} is not valid TOML: {error}", "mend that line") from error


def _lookup(tables: list[tuple[Path, dict[str, Any]]], key: str, kind: type) -> Any:
    """Return the value of the dotted `key` in the first file that says something possible, None if none does."""
    for path, table in tables:
        value: Any = table
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if kind is bool and isinstance(value, str):
            value = _flag(value, value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, kind):
            return value
        if value is not None:
            _leave_out(f"{key} in {path} is {value!r}", f"it is to be {_FORMS[kind]}: mend that line")
    return None


_FORMS = {str: "a text in quotes", float: "a number", bool: 'true, false or "full"', list: 'a list of names, ["NAME"]'}


def _names(values: list[Any] | None) -> tuple[str, ...]:
    return tuple(name for name in (str(value).strip() for value in values or []) if name)


def _flag(text: str, otherwise: object = None) -> object:
    word = text.strip().lower()
    return word in _TRUE if word in _TRUE | _FALSE else otherwise


def _variable_flag(text: str) -> object:
    flag = _flag(text)
    if flag is None:
        _leave_out(f"CMF_CAPTURE_DIFF is {text!r}", "set it to true, false or full")
    return flag


def _leave_out(what: str, way_out: str) -> None:
    from cmf_agent.recorder import say  # here: `status` has nothing to say, and the log to import for it

    say(f"WARNING: left out of the configuration: {what} ({way_out})")
