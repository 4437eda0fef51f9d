"""What runs in this process, as people call it: a script's name, its command line, a notebook's name.

Rules
- Nothing is imported that is not loaded already: IPython, if this is a notebook, is.
- Of a notebook's command line, which only starts its kernel, the kernel's connection file is left out.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

NOTEBOOK = "notebook"
#: The name of what was typed in, or given with `-c`.
INTERACTIVE = "python"
_NO_SCRIPTS = ("", "-", "-c", "-m")


def script_name() -> str:
    """Return the script's name without its ending; a notebook's where that can be known, else `notebook`."""
    shell = _kernel_shell()
    if shell is not None:
        return PurePath(_notebook(shell) or NOTEBOOK).stem
    named = PurePath(sys.argv[0] if sys.argv else "")
    if str(named) in (*_NO_SCRIPTS, "."):
        return INTERACTIVE
    return (named.parent.name if named.stem == "__main__" else named.stem) or INTERACTIVE


def command_words() -> list[str]:
    """Return the command line of this process; of a notebook, what started its kernel and the notebook's name."""
    shell = _kernel_shell()
    if shell is None:
        return list(sys.orig_argv)
    return [*_without_connection_file(sys.orig_argv), _notebook(shell) or NOTEBOOK]


def is_notebook() -> bool:
    """Tell if this process is a notebook's kernel."""
    return _kernel_shell() is not None


def _kernel_shell() -> Any:
    """Return IPython's shell if this process is a kernel, else None."""
    try:
        shell = sys.modules["IPython"].get_ipython()
    except (KeyError, AttributeError):
        return None
    return shell if getattr(shell, "kernel", None) is not None else None


def _notebook(shell: Any, environment: Mapping[str, str] = os.environ) -> str:
    """Return the notebook's file name, as Visual Studio Code and Jupyter tell it, or an empty text."""
    names = getattr(shell, "user_ns", None) or {}
    path = names.get("__vsc_ipynb_file__") or environment.get("JPY_SESSION_NAME") or ""
    return PurePath(str(path)).name


def _without_connection_file(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skips = False
    for word in words:
        if skips:
            skips = False
        elif word == "-f":
            skips = True
        elif not word.startswith(("-f=", "--f=", "--IPKernelApp.connection_file=")):
            kept.append(word)
    return kept
