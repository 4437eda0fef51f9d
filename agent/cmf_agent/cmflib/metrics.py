"""Metrics: of an execution as a whole, of its steps, and what a validation says. Each is a table, an artifact by itself.

Rules
- `log_metric` records its numbers as step metrics of the series `metrics_name`: the number of the row, from 1 on, is the step.
  They wait up to a second, which is what a kill can lose, and not at all in a process of `multiprocessing`.
- `commit_metrics` records all rows as a table; what is no number is only there.
- Numbers of `log_execution_metrics` are metrics of the execution too.
- What is too large for a table is written to a file below `cmf_artifacts/`, and that is recorded.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmf_agent.callbacks import numbers
from cmf_agent.cmflib.artifacts import log_file
from cmf_agent.cmflib.endings import is_child_process
from cmf_agent.cmflib.entities import Artifact, artifact_entity
from cmf_agent.cmflib.executions import current_run
from cmf_agent.cmflib.session import Edge, Session
from cmf_agent.describing import checked_mapping
from cmf_agent.recording import Recording
from cmf_agent.steps import check_metric_name, flush_all
from cmf_agent.tables import TABLE_BYTES_MAX, Rows, make_table
from cmf_protocol.errors import CallerError
from cmf_protocol.types import ARTIFACT_PRODUCED

#: The column that numbers the rows.
SEQUENCE = "SequenceNumber"
VALIDATION_NAME = "validation_output"
#: What a cell takes at least, bytes: so many of them are not even tried as a table.
_CELLS_MAX = TABLE_BYTES_MAX // 2


def log_execution_metrics(session: Session, name: str, custom_properties: Mapping[str, object] | None) -> Artifact:
    """Record metrics of the current execution, and a table of one row."""
    check_metric_name(name)
    values = checked_mapping(custom_properties, "custom_properties") or {}
    run = current_run(session)
    found, row = _with_numbers(values)
    if found:
        run.metrics(found)
    row = dict(sorted(row.items()))  # as an import of such metrics has them: one content
    return _table(session, run, name, [row], {**row, "metrics_name": name})


def log_metric(session: Session, name: str, custom_properties: Mapping[str, object] | None) -> None:
    """Record one row of step metrics."""
    check_metric_name(name)
    values = checked_mapping(custom_properties, "custom_properties") or {}
    found, row = _with_numbers(values)
    run = current_run(session)
    with session.lock:
        rows = session.rows.setdefault((run.id, name), [])
        rows.append(row)
        step = len(rows)
    if found:
        run.metrics(found, step=step, series=name)
        if is_child_process():
            flush_all()


def commit_metrics(session: Session, name: str) -> Artifact:
    """Record all rows that the current execution has logged under a name as a table; raise `CallerError` if there are none."""
    run = current_run(session)
    with session.lock:
        rows = [{SEQUENCE: number, **row} for number, row in enumerate(session.rows.get((run.id, name), []), start=1)]
    if not rows:
        raise CallerError(
            f"no metrics {name!r} were logged in this execution", "call log_metric first, with the same name"
        )
    if _takes_too_much(rows):
        return _file(session, run, name, rows)
    return _table(session, run, name, rows, {})


def log_validation_output(
    session: Session, version: object, custom_properties: Mapping[str, object] | None
) -> Artifact:
    """Record the outcome of a validation."""
    values = checked_mapping(custom_properties, "custom_properties") or {}
    properties = {**values, "version": version}
    return _table(session, current_run(session), VALIDATION_NAME, [properties], properties)


def _with_numbers(values: Mapping[str, object]) -> tuple[dict[str, float], dict[str, object]]:
    """Return the numbers among the values, in nested dictionaries too, and all values with plain numbers in place of others."""
    found = dict(numbers(values))
    return found, {key: found.get(key, value) for key, value in values.items()}


def _table(session: Session, run: Recording, name: str, rows: Rows, properties: Mapping[str, object]) -> Artifact:
    table = run.metrics_table(name, rows, properties)
    artifact = artifact_entity(table.content_id, name, "metrics", properties, run.id)
    return session.remember(artifact, Edge(ARTIFACT_PRODUCED, run.execution, name, "metrics"))


def _takes_too_much(rows: Sequence[Mapping[str, object]]) -> bool:
    if sum(map(len, rows)) > _CELLS_MAX:
        return True
    try:
        make_table("metrics", SEQUENCE, rows)
    except CallerError:
        return True
    return False


def _file(session: Session, run: Recording, name: str, rows: Sequence[Mapping[str, object]]) -> Artifact:
    folder = (session.home.root if session.home else Path.cwd()) / "cmf_artifacts" / run.id / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '_')}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return log_file(session, path, "output", "metrics", {})
