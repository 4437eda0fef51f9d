"""The command line `cmf-agent`: where it begins, and how it ends.

Rules
- Commands are in `commands`; this file imports nothing heavy.
- `status`, which monitors call all the time, runs without typer, whose import takes longer than all that it does.
  With any other option than `--json` it takes the ordinary way.
"""

import sys

from cmf_graph.console import guarded, run_app


def main() -> int:
    """Run the command that the process was called with and return its exit code."""
    return guarded(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    if arguments in (["status"], ["status", "--json"]):
        from cmf_agent.status import print_status

        print_status(as_json="--json" in arguments)
        code = 0
    else:
        from cmf_agent.commands import app

        code = run_app(app, arguments, "cmf-agent")
    sys.stdout.flush()  # here, where a reader that has left is no error to tell
    return code
