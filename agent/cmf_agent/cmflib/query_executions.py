"""Executions as `CmfQuery` returns them.

Rules
- Fixed properties follow from what was recorded; an import's own `Execution_uuid` (a list with commas, of one that was reused),
  `Execution_type_name` and `Git_End_Commit` are kept. Custom properties are parameters and properties; of two of one name the parameter.
- What an import noted beside the user's properties is not shown as one.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cmf_agent.cmflib.entities import Execution
from cmf_agent.cmflib.frames import custom_columns, frame
from cmf_agent.cmflib.query_described import Described, described
from cmf_agent.cmflib.query_names import CREATED, UPDATED, plain
from cmf_graph.items import text_of
from cmf_graph.reading import Reading, id_list
from cmf_graph.text import execution_text
from cmf_protocol.encoding import Value

if TYPE_CHECKING:
    import pandas as pd

FIXED = (
    "Execution_uuid", "Context_Type", "Context_ID", "Execution", "Execution_type_name",
    "Pipeline_Type", "Pipeline_id", "Git_Repo", "Git_Start_Commit", "Git_End_Commit",
)  # fmt: skip
COLUMNS = ("id", "name", *FIXED)
SUMMARY_COLUMNS = ("id", "Execution_type_name", "Execution_uuid")
USER_COLUMNS = ("Type", "execution_id", "execution_name", "execution_type_name", "stage", "pipeline")
#: By these an execution that was imported is told from one that was recorded here.
_STATED_BY_IMPORTS = ("Execution_uuid", "Context_Type")
_OF_IMPORTS = frozenset(
    {
        "execution_type", "fixed_properties", "event_times", "event_types", "artifacts", "last_known_state", "contexts",
        "also_recorded_in", CREATED, UPDATED,
    }
)  # fmt: skip
_KEPT = ("Execution_uuid", "Execution_type_name", "Git_End_Commit")

#: Numbers of nodes that one batch brought have no order: of two that started at once the id decides, at every site alike.
_IN = (
    "SELECT x.node FROM executions x JOIN nodes n ON n.id = x.node WHERE x.{column} IN (SELECT value FROM json_each(?)) "
    "ORDER BY x.started_us, n.key"
)


def executions_of_stages(reading: Reading, stages: Iterable[int]) -> list[int]:
    """Return the numbers of the executions of these stages, the first one first."""
    return [node for (node,) in reading.graph.rows(_IN.format(column="stage"), (id_list(stages),))]


def executions_of_pipeline(reading: Reading, pipeline: int) -> list[int]:
    """Return the numbers of the executions of a pipeline, the first one first."""
    return [node for (node,) in reading.graph.rows(_IN.format(column="pipeline"), (id_list([pipeline]),))]


def is_imported(found: Described) -> bool:
    """Tell if an import said what the execution is."""
    return any(key in found.properties for key in _STATED_BY_IMPORTS)


def execution_of(found: Described) -> Execution:
    """Return an execution as scripts know it."""
    facts, properties = found.facts, dict(found.properties)
    id_ = execution_text(found.id)
    pipeline, stage = _stage_of(facts.get("stage"))
    name = text_of(facts.get("name")) or ""
    context = f"{pipeline}/{stage}" if stage else ""
    command = facts.get("command")
    fixed = {
        "Execution_uuid": id_,
        "Context_Type": context,
        "Context_ID": context,
        "Execution": "" if command is None else str(plain(command)),
        "Execution_type_name": name or stage,
        "Pipeline_Type": pipeline,
        "Pipeline_id": pipeline,
        "Git_Repo": text_of(facts.get("git_repo")) or "",
        "Git_Start_Commit": text_of(facts.get("git_commit")) or "",
        "Git_End_Commit": "",
        **{key: properties.pop(key) for key in _KEPT if key in properties},
    }
    if is_imported(found):
        properties = {key: value for key, value in properties.items() if key not in _OF_IMPORTS and key not in fixed}
    environment = None if is_imported(found) else facts.get("environment")  # an import's own is among its properties
    custom = {} if environment is None else {"Python_Env": environment}
    custom |= {key: plain(value) for key, value in sorted({**properties, **found.params}.items())}
    return Execution(id_, name, name or stage, fixed, custom)


def _stage_of(stated: Value) -> tuple[str, str]:
    """Return pipeline and stage; empty texts if nobody stated them, or what was stated is none."""
    if isinstance(stated, tuple) and len(stated) == 2 and isinstance(stated[0], str) and isinstance(stated[1], str):
        return stated
    return "", ""


def executions(reading: Reading, numbers: Sequence[int]) -> list[Execution]:
    """Return these executions, in their order."""
    return [execution_of(found) for found in described(reading, numbers).values()]


def with_uuid(found: Iterable[Execution], uuid: str | None) -> list[Execution]:
    """Return those of the executions that have this id, or have it among their uuids; all of them for None."""
    if uuid is None:
        return list(found)
    asked = str(uuid).strip().lower()
    return [e for e in found if asked in (e.id, *(each.strip() for each in uuids_of(e)))]


def uuids_of(execution: Execution) -> list[str]:
    """Return the uuids of an execution: of one that was reused at the peer's, several."""
    return str(execution.properties["Execution_uuid"]).lower().split(",")


def execution_frame(found: Iterable[Execution]) -> "pd.DataFrame":
    """Return executions as a DataFrame."""
    return frame((execution_row(each) for each in found), COLUMNS)


def execution_row(execution: Execution) -> dict[str, Any]:
    """Return an execution as a row."""
    return {
        "id": execution.id,
        "name": execution.name,
        **execution.properties,
        **custom_columns(execution.custom_properties),
    }


def summary_frame(found: Iterable[Execution]) -> "pd.DataFrame":
    """Return only id, type name and uuid of executions."""
    rows = ({key: execution_row(each)[key] for key in SUMMARY_COLUMNS} for each in found)
    return frame(rows, SUMMARY_COLUMNS)


def user_frame(reading: Reading, usages: Sequence[tuple[int, bool]]) -> "pd.DataFrame":
    """Return (execution's number, whether it produced it) of an artifact as rows: who used or made it, in which stage."""
    numbers = list(dict.fromkeys(number for number, _ in usages))
    found = dict(zip(numbers, executions(reading, numbers), strict=True))
    rows = (
        {
            "Type": "OUTPUT" if produced else "INPUT",
            "execution_id": found[number].id,
            "execution_name": found[number].name,
            "execution_type_name": found[number].properties["Execution_type_name"],
            "stage": found[number].properties["Context_Type"],
            "pipeline": found[number].properties["Pipeline_Type"],
        }
        for number, produced in usages
    )
    return frame(rows, USER_COLUMNS)
