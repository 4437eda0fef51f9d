"""How both command lines end: errors become a message, a hint and an exit code here and nowhere else."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cmf_graph.text import clean
from cmf_protocol.errors import CmfError

if TYPE_CHECKING:
    import typer

INTERRUPTED_CODE = 130


def print_warning(text: str) -> None:
    """Write text to standard error; whatever came from metadata in it can't drive a terminal."""
    sys.stderr.write("\n".join(clean(line) for line in text.splitlines()) + "\n")


def guarded(command: Callable[[], int]) -> int:
    """Return the exit code of `command`, having told what it raised."""
    try:
        return command()
    except CmfError as error:
        print_warning(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that flushing at exit does not complain
        return 1
    except OSError as error:  # a stray one
        return _tell_stray(error)


def _tell_stray(error: OSError) -> int:
    from cmf_graph.database import hint_for

    text = error.strerror or str(error)
    hint = hint_for(text)
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    print_warning(f"error: {where}{text}" + (f"\nhint: {hint}" if hint else ""))
    return 1


def run_app(app: "typer.Typer", arguments: Sequence[str], name: str) -> int:
    """Run a command of a command line and return its exit code."""
    try:
        app(args=list(arguments), prog_name=name)
    except SystemExit as stop:  # typer's way to end, also for usage errors, which it has told
        return stop.code if isinstance(stop.code, int) else 0
    return 0
