"""The columns of `executions` and `artifacts` by which lists filter and sort.

Rules
- They say what `cmf_protocol.resolve` says. Where one branch alone speaks of an execution, the latest event of each kind decides and the
  node need not be resolved; in every other case `write` names the node, and `resolve` writes what resolving gave.
"""

from collections.abc import Mapping
from typing import ClassVar

from cmf_graph.graph import Graph
from cmf_protocol import types as t
from cmf_protocol.encoding import Value
from cmf_protocol.events import Header, Node
from cmf_protocol.fold import is_node
from cmf_protocol.resolve import NodeState

_LOOKUP_CHUNK = 500


def _chunks(ids: list[int]) -> list[list[int]]:
    return [ids[start : start + _LOOKUP_CHUNK] for start in range(0, len(ids), _LOOKUP_CHUNK)]


class ExecutionColumns:
    """Collects what a batch says of executions, then writes it."""

    TYPES: ClassVar = frozenset((t.EXECUTION_STARTED, t.EXECUTION_UPDATED, t.EXECUTION_FINISHED))
    _COLUMNS = "node, pipeline, stage, kind, team, status, started_us, finished_us, branch, mixed"

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._new: set[int] = set()
        self._said: dict[int, list[tuple[int, Header, Mapping[str, Value], int | None, int | None]]] = {}

    def add(self, node_id: int) -> None:
        """Note that this execution is new."""
        self._new.add(node_id)

    def say(self, branch: int, header: Header, body: Mapping[str, Value], ids: Mapping[Node, int]) -> None:
        """Note an event of one of `TYPES`."""
        execution, stage, pipeline = 0, None, None
        for node in header.about:
            if node[0] == "execution":
                execution = ids[node]
            elif node[0] == "stage":
                stage, pipeline = ids[node], ids["pipeline", node[1][0]]
        self._said.setdefault(execution, []).append((branch, header, body, stage, pipeline))

    def write(self) -> set[int]:
        """Write the rows that the batch alone decides, and return the executions that have to be resolved."""
        rows = self._existing()
        rows.update({id_: [id_, *[None] * 8, 0] for id_ in self._new})
        unsettled = set()
        for id_, said in self._said.items():
            row = rows[id_]
            branches = {branch for branch, *_ in said} | ({row[8]} - {None})
            if row[9] or len(branches) > 1 or any(_restates_stage(header, body) for _, header, body, _, _ in said):
                row[9] = 1
                unsettled.add(id_)
                continue
            row[8] = said[0][0]
            for _, header, body, stage, pipeline in said:
                _follow(row, header, body, stage, pipeline)
        marks = ",".join("?" * 10)
        self._graph.connection.executemany(
            f"INSERT OR REPLACE INTO executions ({self._COLUMNS}) VALUES ({marks})", list(rows.values())
        )
        return unsettled

    def _existing(self) -> dict[int, list[Value]]:
        rows: dict[int, list[Value]] = {}
        for chunk in _chunks([id_ for id_ in self._said if id_ not in self._new]):
            marks = ",".join("?" * len(chunk))
            found = self._graph.rows(f"SELECT {self._COLUMNS} FROM executions WHERE node IN ({marks})", chunk)
            rows.update({row[0]: list(row) for row in found})
        return rows

    @staticmethod
    def resolve(graph: Graph, node_id: int, state: NodeState) -> None:
        """Write an execution's row as resolving says; from now on it is always resolved."""
        stage = state.value("stage")
        named = is_node(("stage", stage))  # a fact of that name may be anything
        stage_id = graph.node_id(("stage", stage)) if named else None
        pipeline_id = graph.node_id(("pipeline", stage[0])) if named else None
        shown = state.statuses[0] if state.statuses else None
        ended = shown is not None and shown.status != "running"
        speaks = shown.by if shown is not None else max(state.said, key=lambda said: said.tie, default=None)
        graph.connection.execute(
            "UPDATE executions SET pipeline = ?, stage = ?, kind = ?, team = ?, status = ?, started_us = ?, finished_us = ?, "
            "branch = coalesce(?, branch), mixed = 1 WHERE node = ?",
            (
                pipeline_id, stage_id, _text(state.value("kind")), _text(state.value("team")), shown and shown.status,
                state.started, shown.at if shown and ended else None, speaks and speaks.branch, node_id,
            ),
        )  # fmt: skip


def _follow(
    row: list[Value], header: Header, body: Mapping[str, Value], stage: int | None, pipeline: int | None
) -> None:
    """Update a row by the next event of the only branch that speaks of this execution."""
    facts = body.get("facts", {})
    for at, key in ((3, "kind"), (4, "team")):
        if header.type != t.EXECUTION_FINISHED and key in facts:
            row[at] = _text(facts[key])
    if header.type == t.EXECUTION_STARTED:
        row[1], row[2] = pipeline, stage
        row[5:8] = ["running", body.get("at", header.wall_us), None]
    elif header.type == t.EXECUTION_FINISHED and row[5] is not None:
        row[5], row[7] = body["status"], body.get("at", header.wall_us)


def _restates_stage(header: Header, body: Mapping[str, Value]) -> bool:
    """Tell if an event states another stage than an `about`, which the rows' own rule knows nothing of."""
    return header.type == t.EXECUTION_UPDATED and "stage" in body.get("facts", {})


def _text(value: Value) -> str | None:
    return value if isinstance(value, str) else None


class ArtifactColumns:
    """Collects what a batch says of artifacts, then writes it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._new: set[int] = set()
        self._kinds: dict[int, Value] = {}
        self._unsettled: set[int] = set()
        self._names: set[tuple[str, int]] = set()
        self._aliases: set[tuple[str, int]] = set()

    def add(self, node_id: int) -> None:
        """Note that this artifact is new."""
        self._new.add(node_id)

    def say(self, node_id: int, content_id: str, body: Mapping[str, Value]) -> None:
        """Note what a usage event's body, or as much of an environment's, says of an artifact."""
        facts = body.get("facts", {})
        if "kind" in facts and self._kinds.setdefault(node_id, facts["kind"]) != facts["kind"]:
            self._unsettled.add(node_id)
        name = body.get("name")
        if name is not None:
            self._names.add((name, node_id))
        for digest in body.get("digests", ()):
            if digest != content_id:
                self._aliases.add((digest, node_id))

    def write(self) -> set[int]:
        """Write names, aliases and kinds, and return the artifacts of which several kinds were stated."""
        connection = self._graph.connection
        connection.executemany("INSERT OR IGNORE INTO artifact_names VALUES (?, ?)", self._names)
        connection.executemany("INSERT OR IGNORE INTO aliases VALUES (?, ?)", self._aliases)
        known = self._existing()
        changed = {}
        for id_, kind in self._kinds.items():
            if id_ in self._new and isinstance(kind, str):
                changed[id_] = kind
            elif known.get(id_) != kind:  # what holds none may have had one that was no text, or was taken back
                self._unsettled.add(id_)
        connection.executemany(
            "INSERT OR IGNORE INTO artifacts (node, kind) VALUES (?, ?)", [(id_, changed.get(id_)) for id_ in self._new]
        )
        return self._unsettled

    def _existing(self) -> dict[int, str | None]:
        rows: dict[int, str | None] = {}
        for chunk in _chunks([id_ for id_ in self._kinds if id_ not in self._new]):
            marks = ",".join("?" * len(chunk))
            rows.update(self._graph.rows(f"SELECT node, kind FROM artifacts WHERE node IN ({marks})", chunk))
        return rows

    @staticmethod
    def resolve(graph: Graph, node_id: int, state: NodeState) -> None:
        """Write an artifact's kind, names and aliases as resolving says."""
        connection = graph.connection
        connection.execute("UPDATE artifacts SET kind = ? WHERE node = ?", (_text(state.value("kind")), node_id))
        connection.execute("DELETE FROM artifact_names WHERE node = ?", (node_id,))
        connection.executemany("INSERT INTO artifact_names VALUES (?, ?)", [(name, node_id) for name in state.names])
        connection.execute("DELETE FROM aliases WHERE node = ?", (node_id,))
        connection.executemany("INSERT INTO aliases VALUES (?, ?)", [(digest, node_id) for digest in state.aliases])
