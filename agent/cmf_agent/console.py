"""What the command line writes: documents to standard output, everything else to standard error.

Rules
- With `--json`, one document is all that standard output gets.
- Errors become a message, a hint and an exit code here and nowhere else.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping

from cmf_protocol.errors import CmfError

INTERRUPTED_CODE = 130


def print_json(document: Mapping[str, object]) -> None:
    """Write one JSON document."""
    print_document(json.dumps(document, indent=2, ensure_ascii=False))


def print_document(text: str) -> None:
    """Write text to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_warning(text: str) -> None:
    """Write text to standard error."""
    sys.stderr.write(text + "\n")


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
