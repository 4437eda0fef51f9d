"""What the agent's tests share: a process that runs the command line, a reader of what was recorded."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.programs import call_within

from cmf_agent.home import Home
from cmf_agent.reading import LogReader
from cmf_graph.console import guarded, run_app
from cmf_protocol.events import Header, decode_body
from cmf_protocol.types import metrics_recorded

CLI = [sys.executable, "-c", "import sys; from cmf_agent.cli import main; sys.exit(main())"]
#: Nothing that a test starts or waits for takes longer, s: on a quiet machine a few seconds, but the cores are shared.
LIMIT_S = 120.0
EXECUTION = bytes(range(16))
DRAFT = metrics_recorded(EXECUTION, metrics={"loss": 0.5})

Recorded = tuple[Header, dict[str, Any]]


def environment(**changes: str) -> dict[str, str]:
    """The tests' own environment without what configures an agent."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CMF_")}
    return kept | {"XDG_CONFIG_HOME": "/nonexistent"} | changes


def cli(*arguments: str, cwd: Path, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run cmf-agent with these arguments and return what came of it."""
    return call_within(LIMIT_S, "cmf-agent", *arguments, cwd=cwd, **changes)


def cli_json(*arguments: str, cwd: Path) -> Any:
    """Run cmf-agent, which must succeed, and return the one document on its standard output."""
    done = cli(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def called(*arguments: str) -> int:
    """Run cmf-agent in this process, in the working directory, and return its exit code: cheaper than `cli`."""
    from cmf_agent.commands import app

    return guarded(lambda: run_app(app, arguments, "cmf-agent"))


def recorded(home: Home) -> list[Recorded]:
    """Return header and body of every event."""
    with LogReader(home.log_path) as reader:
        return [(event.header, decode_body(event.body or b"")) for event in reader.all_events()]


def of_type(home: Home, type_: str) -> list[Recorded]:
    """Return header and body of every event of a type."""
    return [(header, body) for header, body in recorded(home) if header.type == type_]


def only(home: Home, type_: str) -> Recorded:
    """Return the one event of a type."""
    found = of_type(home, type_)
    assert len(found) == 1, found
    return found[0]


def python(script: str, *, cwd: Path, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python script and return what came of it."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def wait_until(holds: Callable[[], bool], seconds: float = LIMIT_S) -> None:
    """Return as soon as `holds()` is true; fail if it isn't within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
