"""The command lines as users run them, and waiting for what a process does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.support.forked import can_fork, run_forked

BIN = Path(sys.executable).parent
#: No command of a test takes longer, s: on a quiet machine a few seconds, but the cores are shared by all workers.
COMMAND_LIMIT_S = 180.0
#: What is waited for takes far less, even then, s.
UNTIL_S = 90.0

Done = subprocess.CompletedProcess[str]


def environment(**changes: str) -> dict[str, str]:
    """Return the tests' own environment without what configures an agent or a hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMF_")}
    return kept | {"XDG_CONFIG_HOME": "/nonexistent", "XDG_DATA_HOME": "/nonexistent"} | changes


def call(program: str, *arguments: object, cwd: Path, **changes: str) -> Done:
    """Run `cmf-agent` or `cmf-hub` with these arguments and return what came of it."""
    return call_within(COMMAND_LIMIT_S, program, *arguments, cwd=cwd, **changes)


def call_within(limit_s: float, program: str, *arguments: object, cwd: Path, **changes: str) -> Done:
    """Do the same, within `limit_s` seconds."""
    words = [str(BIN / program), *map(str, arguments)]
    if can_fork(program, changes):
        code, out, err = run_forked(program, words[1:], cwd, environment(**changes), limit_s)
        return subprocess.CompletedProcess(words, code, out, err)
    return subprocess.run(
        words, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=limit_s, check=False
    )


def ask(program: str, *arguments: object, cwd: Path) -> Any:
    """Run a command, which must succeed, with `--json`; return the one document on its standard output."""
    done = call(program, *arguments, "--json", cwd=cwd)
    assert done.returncode == 0, f"{program} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def until(condition: Callable[[], object], what: str, limit_s: float = UNTIL_S) -> None:
    """Return as soon as `condition()` is true; fail, naming `what`, if that takes longer than `limit_s` seconds.

    What takes long to ask is asked less often, so that the cores are left to what is waited for.
    """
    deadline = time.monotonic() + limit_s
    asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"waited {limit_s:.0f} s for {what}"
        time.sleep(min(max(0.002, now - asked), 0.25))
        asked = time.monotonic()


def processes_of(folder: Path) -> dict[psutil.Process, str]:
    """Return the hub's processes that work on a folder (the hub, its nats-server, its projector, its pulls) and their command lines.

    A process may end at any moment: what is asked of it is asked here, once.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except psutil.Error:
            continue
        is_ours = any(
            word.endswith(("/cmf-hub", "nats-server", "cmf_hub.projector", "cmf_hub.pull_service", "cmf_hub.forwarder"))
            for word in words
        )
        if is_ours and any(word == str(folder) or word.startswith(f"{folder}/") for word in words):
            found[process] = " ".join(words)
    return found


def end_all(folder: Path) -> None:
    """End every process of the hub on a folder, at once, and wait until they are gone."""

    def none_is_left() -> bool:
        left = processes_of(folder)  # one may have started another just before it was ended itself
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return not left

    until(none_is_left, f"the processes on {folder} to end")
