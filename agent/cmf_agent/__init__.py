"""The agent: log, outbox, capture, command line cmf-agent.

A pipeline imports this package as `cmf` and needs the names below; they are loaded when first used, so that importing
the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmf_agent.callbacks import RunCallback
    from cmf_agent.current import current_run
    from cmf_agent.describing import describe
    from cmf_agent.integrations.sklearn import autolog
    from cmf_agent.joining import join
    from cmf_agent.markers import Input, Output, Param
    from cmf_agent.runs import Run, run
    from cmf_agent.stages import stage
    from cmf_agent.tables import Table, read_table

__all__ = [
    "Input",
    "Output",
    "Param",
    "Run",
    "RunCallback",
    "Table",
    "autolog",
    "current_run",
    "describe",
    "join",
    "read_table",
    "run",
    "stage",
]

_MODULES = {
    "Input": "markers",
    "Output": "markers",
    "Param": "markers",
    "Run": "runs",
    "RunCallback": "callbacks",
    "Table": "tables",
    "autolog": "integrations.sklearn",
    "current_run": "current",
    "describe": "describing",
    "join": "joining",
    "read_table": "tables",
    "run": "runs",
    "stage": "stages",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
