"""The calls of HPE's cmflib 0.1, over our log: a pipeline moves over by changing its import.

    from cmf_agent.cmflib import Cmf, CmfQuery

Same names, same arguments, same stage names (`pipeline/stage`), same columns. What differs on purpose is said where it
differs: nothing here ends the process, changes the working directory, switches a branch, or commits unasked; what can't
be logged raises; ids are texts of our own. Both are loaded when first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmf_agent.cmflib.metawriter import Cmf
    from cmf_agent.cmflib.query import CmfQuery

__all__ = ["Cmf", "CmfQuery"]


def __getattr__(name: str) -> Any:
    if name == "Cmf":
        from cmf_agent.cmflib.metawriter import Cmf

        return Cmf
    if name == "CmfQuery":
        from cmf_agent.cmflib.query import CmfQuery

        return CmfQuery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
