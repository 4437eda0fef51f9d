"""The agent: log, outbox, capture, command line cmf-agent.

A pipeline imports this package as `cmf` and needs `run` and `describe`; they are loaded when first used, so that
importing the package costs next to nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmf_agent.runs import Run, describe, run

__all__ = ["Run", "describe", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmf_agent import runs

    return getattr(runs, name)
