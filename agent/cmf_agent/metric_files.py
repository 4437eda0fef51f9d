"""Reads the files in which programs leave their metrics.

Rules
- JSON, YAML and TOML: numbers, those of nested maps under dotted names, as DVC flattens them; texts, booleans and lists are no
  metrics. A list of maps is a table.
- CSV and TSV with a heading, and such lists: each numeric column is a step metric. The steps are the column `step`, `iteration` or
  `epoch`, the first that there is, else the row's number from 0. An empty cell is no point.
- A file without any number is an error: whoever named it expects some.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.parameters import DOCUMENT_SUFFIXES, read_document, read_text
from cmf_protocol.errors import CallerError

Number = int | float
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: What a column of steps is called, whatever the case; the first that is there counts.
_STEP_COLUMNS = ("step", "iteration", "epoch")
_SUFFIXES = ", ".join((*DOCUMENT_SUFFIXES, *_DELIMITERS))


class Metrics(NamedTuple):
    """What a file says: numbers by name, and points (name, number, step)."""

    values: dict[str, Number]
    points: list[tuple[str, Number, int]]


def read_metrics(path: Path) -> Metrics:
    """Return the metrics in a file; raise `CallerError` if it can't be read, or holds none."""
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        found = _of_table(_rows_of_text(read_text(path), _DELIMITERS[suffix], path), path)
    elif suffix in DOCUMENT_SUFFIXES:
        found = _of_document(read_document(path), path)
    else:
        raise CallerError(f"{path} is no file of metrics", f"give a {_SUFFIXES} file")
    if not found.values and not found.points:
        raise CallerError(f"{path} holds no number", "check that the program has written it")
    return found


def _of_document(document: Any, path: Path) -> Metrics:
    if isinstance(document, list) and document and all(isinstance(row, Mapping) for row in document):
        return _of_table(document, path)
    return Metrics(dict(_flat("", document)), [])


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Number]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif prefix and _is_number(value):
        yield prefix, value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- tables ------------------------------------------------------------------------------------------------------------


def _rows_of_text(text: str, delimiter: str, path: Path) -> list[dict[str, object]]:
    try:
        head, *rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row
        ]
    except ValueError:  # not even a heading
        return []
    except csv.Error as error:
        raise CallerError(f"{path} is not valid {path.suffix[1:].upper()}: {error}", "mend that line") from error
    names = [name.strip() for name in head]
    return [{name: _cell(cell) for name, cell in zip(names, row, strict=False) if name} for row in rows]


def _cell(text: str) -> object:
    """Return the number that a cell holds, None for an empty one, else its text."""
    text = text.strip()
    for read in (int, float):
        try:
            return None if not text else text if "_" in text else read(text)
        except ValueError:
            continue
    return text


def _of_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Metrics:
    names = list(dict.fromkeys(name for row in rows for name in row))
    step_name = next((name for wanted in _STEP_COLUMNS for name in names if name.lower() == wanted), None)
    numeric = [name for name in names if name != step_name and _is_numeric(rows, name)]
    points = []
    for at, row in enumerate(rows):
        step = at if step_name is None else _step(row.get(step_name), step_name, at, path)
        points += [(name, row[name], step) for name in numeric if row.get(name) is not None]
    return Metrics({}, points)


def _is_numeric(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    cells = [row[name] for row in rows if row.get(name) is not None]
    return bool(cells) and all(map(_is_number, cells))


def _step(value: Any, name: str, at: int, path: Path) -> int:
    if _is_number(value) and value == value and abs(value) != float("inf") and int(value) == value:
        return int(value)
    raise CallerError(f"{path}: in row {at + 1} the {name} is {value!r}, no whole number", "mend that row")
