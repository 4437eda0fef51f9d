"""Which artifact a name means, of all the forms that names have.

Rules
- Any name that a call returns is taken by all others: `path:hash`, `path:hash:execution`, and what an imported artifact was called.
- So are a content id, and our own name: of several contents the one of which something was said last.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cmf_agent.cmflib.artifacts import last_said
from cmf_agent.cmflib.query_artifacts import ORIGINAL_NAME
from cmf_agent.cmflib.query_names import id_of
from cmf_graph.reading import Reading

#: With which algorithm the digest in a name may have been made.
_ALGORITHMS = ("md5", "sha256", "md5-dos2unix", "cmf")
_CALLED = (
    "SELECT DISTINCT n.node FROM json_each(?1) j CROSS JOIN artifact_names n ON n.name = j.value JOIN artifacts a ON a.node = n.node "
    "WHERE ?2 IS NULL OR a.kind = ?2"
)


def artifact_called(reading: Reading, named: Any, kind: str | None = None) -> int | None:
    """Return the number of the artifact of a name, as this module's rules say; None if there is none."""
    given = id_of(named)
    text = given.strip() if isinstance(given, str) else ""
    parts = text.split(":")
    by_digest = [text, *(f"{algorithm}:{part}" for part in reversed(parts) for algorithm in _ALGORITHMS if part)]
    by_digest += [f"cmf:{':'.join(parts[at:])}" for at in range(len(parts))]  # the peer's own ids may have colons
    known = reading.artifacts(by_digest)
    found = next((known[content_id][0] for content_id in by_digest if content_id in known), None)
    if found is None:
        found = _newest(reading, _called(reading, [text], kind)) or _originally_called(reading, text, parts)
    return None if found is None else reading.aliases.canonical(found)


def _called(reading: Reading, names: Iterable[str], kind: str | None = None) -> list[int]:
    return [node for (node,) in reading.graph.rows(_CALLED, (json.dumps(list(names)), kind))]


def _newest(reading: Reading, numbers: Sequence[int]) -> int | None:
    if len(numbers) <= 1:
        return next(iter(numbers), None)
    states = reading.states(numbers)
    return max(states, key=lambda number: last_said(states[number]))


def _originally_called(reading: Reading, text: str, parts: Sequence[str]) -> int | None:
    """Return the imported artifact whose name, with a uuid in it, this was."""
    beginnings = [":".join(parts[:end]) for end in range(1, len(parts))]
    numbers = _called(reading, beginnings)
    states = reading.states(numbers)
    return next((number for number in numbers if states[number].value(ORIGINAL_NAME, "properties") == text), None)
