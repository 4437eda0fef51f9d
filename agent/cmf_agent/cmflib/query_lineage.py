"""Who used and produced what, one step at a time and as far as it goes.

Rules
- Content identifies artifacts, so there can be cycles: a walk visits each node once. Nothing is its own parent or child by one step
  alone (an execution that wrote back what it read); what a longer cycle leads back to is in the answer.
- A step is one or two queries, however many nodes it starts from. Retracted edges don't exist.
- Artifacts that are one (`cmf_graph.aliases`) are one here.
"""

from collections.abc import Iterable
from typing import NamedTuple

from cmf_graph.reading import Reading, id_list

_OF_EXECUTIONS = (
    "SELECT x.execution, x.artifact, min(x.event) FROM json_each(?) j CROSS JOIN edges x ON x.execution = j.value "
    "WHERE x.produced = ? AND x.said = 1 GROUP BY 1, 2 ORDER BY 3"
)
_OF_ARTIFACTS = (
    "SELECT x.execution, x.artifact, min(x.event) FROM json_each(?) j CROSS JOIN edges x ON x.artifact = j.value AND x.produced = ? "
    "JOIN executions e ON e.node = x.execution WHERE x.said = 1 AND (?3 IS NULL OR e.pipeline = ?3) GROUP BY 1, 2 ORDER BY 3"
)


class Use(NamedTuple):
    """That an execution used or produced an artifact, by their numbers."""

    execution: int
    artifact: int


def uses_of_executions(reading: Reading, executions: Iterable[int], *, produced: bool) -> list[Use]:
    """Return what these executions used, or produced, in the order in which it was recorded."""
    rows = reading.graph.rows(_OF_EXECUTIONS, (id_list(executions), int(produced)))
    return _uses(reading, rows)


def uses_of_artifacts(
    reading: Reading, artifacts: Iterable[int], *, produced: bool, pipeline: int | None = None
) -> list[Use]:
    """Return who used, or produced, these artifacts, in any pipeline or in one, in the order in which it was recorded."""
    members = reading.aliases.with_members(artifacts)
    rows = reading.graph.rows(_OF_ARTIFACTS, (id_list(members), int(produced), pipeline))
    return _uses(reading, rows)


def _uses(reading: Reading, rows: Iterable[tuple[int, int, int]]) -> list[Use]:
    found = (Use(execution, reading.aliases.canonical(artifact)) for execution, artifact, _ in rows)
    return list(dict.fromkeys(found))


def next_artifacts(reading: Reading, artifacts: Iterable[int], *, up: bool, pipeline: int | None = None) -> list[int]:
    """Return what these artifacts were made from (`up`), or what was made from them, in one step."""
    start = list(artifacts)
    near = uses_of_artifacts(reading, start, produced=up, pipeline=pipeline)
    sources: dict[int, set[int]] = {}
    for use in near:
        sources.setdefault(use.execution, set()).add(use.artifact)
    far = uses_of_executions(reading, sources, produced=not up)
    return list(dict.fromkeys(use.artifact for use in far if sources[use.execution] != {use.artifact}))


def all_artifacts(reading: Reading, artifact: int, *, up: bool) -> list[int]:
    """Return all that an artifact was made from (`up`), or all that was made from it, the nearest first."""
    found: dict[int, None] = {}
    level = [artifact]
    while level:
        level = [each for each in next_artifacts(reading, level, up=up) if each not in found]
        found |= dict.fromkeys(level)
    return list(found)


def parent_links(reading: Reading, executions: Iterable[int], pipeline: int | None = None) -> list[tuple[int, int]]:
    """Return (parent, child) of each execution that produced what one of these used."""
    inputs: dict[int, list[int]] = {}
    for use in uses_of_executions(reading, executions, produced=False):
        inputs.setdefault(use.artifact, []).append(use.execution)
    producers = uses_of_artifacts(reading, inputs, produced=True, pipeline=pipeline)
    links = ((use.execution, child) for use in producers for child in inputs[use.artifact])
    return list(dict.fromkeys(link for link in links if link[0] != link[1]))


def all_parent_links(reading: Reading, executions: Iterable[int], pipeline: int | None = None) -> list[tuple[int, int]]:
    """Return (parent, child) of all executions upstream of these, the nearest first."""
    found: dict[tuple[int, int], None] = {}
    level = list(executions)
    seen = set(level)
    while level:
        links = parent_links(reading, level, pipeline)
        found |= dict.fromkeys(links)
        level = [parent for parent in dict.fromkeys(parent for parent, _ in links) if parent not in seen]
        seen.update(level)
    return list(found)
