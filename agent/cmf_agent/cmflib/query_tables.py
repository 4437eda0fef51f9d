"""Step metrics and slices as DataFrames: read back from the tables that were recorded, or from files.

Rules
- What is read from a file is what was recorded only if the file still has that content, which is checked.
- Step metrics that nobody committed as a table are put together from what was recorded of each step.
- Files in parquet need pyarrow or fastparquet, which no part of this project brings along.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmf_agent.cmflib.frames import cells_frame, need_pandas
from cmf_agent.cmflib.query_finding import artifact_called
from cmf_agent.cmflib.query_names import plain
from cmf_agent.cmflib.slices import DIGEST, INDEX
from cmf_agent.home import Home
from cmf_graph.reading import Reading, type_is
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.resolve import NodeState

if TYPE_CHECKING:
    import pandas as pd

#: The columns that number rows: of the peer's tables, and of ours.
SEQUENCE, STEP = "SequenceNumber", "step"
_PATH, _CONTENT_ID = "path", "content_id"
#: Executions whose metrics are looked through at a time.
_BATCH = 200
_MEASURED = (
    "SELECT x.node FROM executions x WHERE EXISTS (SELECT 1 FROM about a JOIN events e ON e.id = a.event "
    f"WHERE a.node = x.node AND {type_is(t.METRICS_RECORDED)}) ORDER BY x.started_us DESC, x.node DESC"
)


def metrics_frame(home: Home, reading: Reading, name: str) -> "pd.DataFrame | None":
    """Return the step metrics of a name, the artifact's or the one given to `log_metric`; None if there are none."""
    need_pandas("get_metrics")
    number = artifact_called(reading, name, "metrics")
    state = None if number is None else reading.states([number])[number]
    if state is None or state.value("kind") != "metrics":
        return _uncommitted(reading, name)
    columns = _table_columns(home, state)
    found = _file_frame(home, state) if columns is None else cells_frame(columns)
    index = next((key for key in (SEQUENCE, STEP) if key in found.columns), None)
    return found if index is None else found.set_index(index)


def slice_frame(home: Home, reading: Reading, name: str | os.PathLike[str]) -> "pd.DataFrame":
    """Return a slice, by its name or as a parquet file; raise `CallerError` if there is none."""
    need_pandas("read_dataslice")
    text = os.fspath(name)
    if Path(text).is_file():
        return _parquet(Path(text))
    number = artifact_called(reading, text, "slice") or artifact_called(reading, text.rpartition("/")[2], "slice")
    state = None if number is None else reading.states([number])[number]
    if state is None or state.value("kind") != "slice":
        raise CallerError(
            f"{text!r} is neither a slice that is known here nor a file", "name it as get_all_artifacts does"
        )
    columns = _table_columns(home, state)
    if columns is None:
        return _file_frame(home, state)
    custom = {key: cells for key, cells in columns.items() if key not in (_PATH, _CONTENT_ID)}
    digests = [str(content_id).partition(":")[2] for content_id in columns[_CONTENT_ID]]
    return cells_frame({INDEX: columns[_PATH], DIGEST: digests, **custom}).set_index(INDEX)


def _table_columns(home: Home, state: NodeState) -> Mapping[str, Sequence[Any]] | None:
    """Return the columns of a table, whole; None if the artifact is no table."""
    from cmf_agent.tables import read_table

    if not state.space("table"):
        return None
    return {key: plain(list(cells)) for key, cells in read_table(home, str(state.node[1])).columns.items()}


# -- files -------------------------------------------------------------------------------------------------------------


def _file_frame(home: Home, state: NodeState) -> "pd.DataFrame":
    """Return what a file that was recorded holds; raise `CallerError` if it is not there with that content."""
    from cmf_graph.content.files import hash_path

    path = next((path for name in state.names if (path := home.root / name).is_file()), None)
    label = state.names[0] if state.names else str(state.node[1])
    if path is None:
        raise CallerError(f"{label} is a file that is not here", "bring it back: cmf-agent artifact pull")
    if hash_path(path).content_id != state.node[1]:
        raise CallerError(f"{path} has changed since it was recorded", "bring it back: cmf-agent artifact pull")
    if path.suffix == ".csv":
        found: pd.DataFrame = need_pandas("reading CSV").read_csv(path)
        return found
    return _parquet(path)


def _parquet(path: Path) -> "pd.DataFrame":
    pandas = need_pandas("reading parquet")
    try:
        found: pd.DataFrame = pandas.read_parquet(path)
    except ImportError as error:
        raise CallerError(f"reading {path} needs pyarrow, which is not installed", "pip install pyarrow") from error
    except (ValueError, OSError) as error:
        raise CallerError(f"{path} can't be read as parquet: {error}", "name a slice, or a parquet file") from error
    return found


# -- what nobody committed ---------------------------------------------------------------------------------------------


def _uncommitted(reading: Reading, name: str) -> "pd.DataFrame | None":
    """Return the newest execution's step metrics of the series `name`, as `log_metric` records them."""
    for state in _measured(reading):
        by_metric = {
            metric: points for (metric, series), points in state.steps(reading.chains).items() if series == name
        }
        if by_metric:
            steps = sorted({step for points in by_metric.values() for step in points})
            columns: dict[str, list[Any]] = {SEQUENCE: list(steps)}
            for metric, points in by_metric.items():
                columns[metric] = [points[step].shown.value if step in points else None for step in steps]
            return cells_frame(columns).set_index(SEQUENCE)
    return None


def _measured(reading: Reading) -> Iterator[NodeState]:
    """Yield the executions with metrics, the newest first."""
    numbers = [node for (node,) in reading.graph.rows(_MEASURED)]
    for start in range(0, len(numbers), _BATCH):
        yield from reading.states(numbers[start : start + _BATCH]).values()
