"""The command line `cmf-agent`: where it begins, and how it ends.

Rules
- Commands are in `commands`; this file imports nothing heavy.
- `status`, which monitors call all the time, runs without typer, whose import takes longer than all that it does.
  With any other option than `--json` it takes the ordinary way.
"""

import sys

from cmf_agent.console import guarded


def main() -> int:
    """Run the command that the process was called with and return its exit code."""
    arguments = sys.argv[1:]
    if arguments in (["status"], ["status", "--json"]):
        return guarded(lambda: _status(as_json="--json" in arguments))
    return guarded(lambda: _any_command(arguments))


def _status(*, as_json: bool) -> int:
    from cmf_agent.status import print_status

    print_status(as_json=as_json)
    return 0


def _any_command(arguments: list[str]) -> int:
    from cmf_agent.commands import app

    try:
        app(args=arguments, prog_name="cmf-agent")
    except SystemExit as stop:  # typer's way to end, also for usage errors, which it has told
        return stop.code if isinstance(stop.code, int) else 0
    return 0
