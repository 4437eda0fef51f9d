"""Slices: selections of files, each with properties of its own; a table that is an artifact.

Rules
- Files are hashed when the slice is committed. It is recorded as a slice of the datasets, logged by this `Cmf`, that its files lie in.
- A slice that is read as a DataFrame has the files' names as its index (`Path`), their digests (`hash`) and their properties.
- An update makes a new slice, another artifact: what the old one said stays.
"""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cmf_agent.by_content import is_content_id
from cmf_agent.cmflib.artifacts import last_said
from cmf_agent.cmflib.entities import Artifact, artifact_entity
from cmf_agent.cmflib.executions import current_run
from cmf_agent.cmflib.session import Edge, Session
from cmf_agent.describing import checked_mapping
from cmf_agent.run_tables import record_table
from cmf_agent.tables import Table, make_table, read_table
from cmf_protocol.errors import CallerError
from cmf_protocol.types import ARTIFACT_PRODUCED, slice_recorded

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | os.PathLike[str]

INDEX = "Path"
DIGEST = "hash"
_OWN_COLUMNS = ("path", "content_id")


class DataSlice:
    """A slice while its files are gathered; made by `Cmf.create_dataslice`."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session
        self.props: dict[str, dict[str, object]] = {}

    def add_data(self, path: PathLike, custom_properties: Mapping[str, object] | None = None) -> None:
        """Add one file, with properties; raise `CallerError` if it is not there."""
        if not os.path.lexists(path) or not os.fspath(path):
            raise CallerError(
                f"{os.fspath(path)!r} does not exist", "add a file that is there, named from the working directory"
            )
        self.props[os.fspath(path)] = dict(checked_mapping(custom_properties, "custom_properties") or {})

    def commit(self, custom_properties: Mapping[str, object] | None = None) -> Artifact:
        """Record the slice as an output of the current execution, and return it as an artifact of type `Dataslice`."""
        properties = checked_mapping(custom_properties, "custom_properties") or {}
        if not self.props:
            raise CallerError(f"the slice {self.name!r} has no files", "add some with add_data first")
        run = current_run(self._session)
        table = run.slice(self.name, self.props, of=_wholes(self._session, self.props), properties=properties)
        return _committed(self._session, table, run.id, run.execution, properties)


def _committed(
    session: Session, table: Table, execution_id: str, execution: bytes, properties: Mapping[str, object]
) -> Artifact:
    with session.lock:
        session.slices[table.name] = table
    artifact = artifact_entity(table.content_id, table.name, "slice", properties, execution_id)
    return session.remember(artifact, Edge(ARTIFACT_PRODUCED, execution, table.name, "slice"))


def _wholes(session: Session, paths: Iterable[PathLike]) -> list[PathLike]:
    """Return the content ids of what was logged and holds these files."""
    with session.lock:
        at_path = dict(session.at_path)
    found: dict[str, None] = {}
    for path in paths:
        at = os.path.abspath(path)  # noqa: PTH100 - a link is what its path says
        while at != (parent := os.path.dirname(at)):  # noqa: PTH120
            at = parent
            if at in at_path:
                found[at_path[at]] = None
    return list(found)


def read_slice(session: Session, name: str) -> "pd.DataFrame":
    """Return the newest slice of a name as a DataFrame; raise `CallerError` if there is none, or no pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise CallerError(
            "a slice is read with pandas, which is not installed", "pip install 'cmf-sync[pandas]'"
        ) from error

    table = _newest(session, name)
    digests = [str(content_id).partition(":")[2] for content_id in table.columns["content_id"]]
    custom = {key: list(cells) for key, cells in table.columns.items() if key not in _OWN_COLUMNS}
    return pd.DataFrame({DIGEST: digests, **custom}, index=pd.Index(list(table.columns["path"]), name=INDEX))


def update_slice(session: Session, name: str, record: PathLike, custom_properties: Mapping[str, object]) -> Artifact:
    """Record the newest slice of a name once more, with other properties of one file; return the new slice."""
    given = dict(checked_mapping(custom_properties, "custom_properties") or {})
    table = _newest(session, name)
    wanted = {os.fspath(record), session.name_of(record)}
    rows: list[dict[str, Any]] = table.records()
    changed = [row for row in rows if row["path"] in wanted]
    if not changed:
        raise CallerError(
            f"{os.fspath(record)!r} is not in the slice {name!r}",
            "a record is named by its path, as read_dataslice has it",
        )
    changed[0].update({key: value for key, value in given.items() if key not in _OWN_COLUMNS})
    run = current_run(session)
    made = make_table("slice", name, rows)
    wholes = _wholes_of(session, table.content_id)
    new = record_table(run, made, {}, [slice_recorded(made.table.content_id, whole) for whole in wholes])
    return _committed(session, new, run.id, run.execution, {})


def _newest(session: Session, name: str) -> Table:
    with session.lock:
        held = session.slices.get(name)
    if held is not None:
        return held
    content_id = name if is_content_id(name) else _newest_in_view(session, name)
    if content_id is None or session.home is None:
        raise CallerError(f"there is no slice {name!r}", "commit it first, or pull the pipeline that it belongs to")
    return read_table(session.home, content_id)


def _newest_in_view(session: Session, name: str) -> str | None:
    if session.home is None:
        return None
    from cmf_agent.view import local_view

    sql = (
        "SELECT n.node FROM artifact_names n JOIN artifacts a ON a.node = n.node WHERE n.name = ? AND a.kind = 'slice'"
    )
    with local_view(session.home) as graph:
        states = [graph.state(node) for (node,) in graph.rows(sql, (name,))]
    return max(((last_said(state), str(state.node[1])) for state in states), default=(None, None))[1]


def _wholes_of(session: Session, slice_id: str) -> list[str]:
    """Return what a slice is known to be a slice of."""
    if session.home is None:
        return []
    from cmf_agent.view import local_view

    with local_view(session.home) as graph:
        node_id = graph.node_id(("artifact", slice_id))
        said = [] if node_id is None else graph.state(node_id).said
    found = {str(id_) for s in said if s.body.get("slice") == slice_id for _, id_ in s.about if id_ != slice_id}
    return sorted(found)
