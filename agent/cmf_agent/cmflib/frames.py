"""Answers as pandas DataFrames, with the peer's column names.

Rules
- The columns that every thing of a kind has come first, and are there even if no row is; then the others that a row has, by name.
- Custom properties are `custom_properties_<key>`. What a row lacks is missing (NaN).
- Rows are gathered first and become one frame: the time grows with their number, no faster.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmf_protocol.errors import CallerError

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

CUSTOM = "custom_properties_"


def need_pandas(what: str) -> Any:
    """Return the module pandas; raise `CallerError` if it is not installed: `what` needs it."""
    try:
        import pandas as pd
    except ImportError as error:
        raise CallerError(f"{what} needs pandas, which is not installed", "pip install 'cmf-sync[pandas]'") from error
    return pd


def frame(rows: Iterable[Row], columns: Sequence[str]) -> "pd.DataFrame":
    """Return rows as a DataFrame: `columns` first, then what else they have, by name."""
    gathered = list(rows)
    own = set(columns)
    others = sorted({key for row in gathered for key in row if key not in own})
    return cells_frame({name: [row.get(name) for row in gathered] for name in (*columns, *others)})


def cells_frame(columns: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """Return columns of equal length as a DataFrame."""
    pandas = need_pandas("a DataFrame")
    found: pd.DataFrame = pandas.DataFrame({name: _series(pandas, cells) for name, cells in columns.items()})
    return found


def _series(pandas: Any, cells: Sequence[Any]) -> Any:
    """Return cells as pandas would have them, but whole numbers beyond 2^53 beside missing ones as they are, not rounded."""
    has_holes = any(cell is None for cell in cells)
    if has_holes and any(type(cell) is int and abs(cell) > _EXACT_MAX for cell in cells):
        return pandas.Series(list(cells), dtype=object)
    return pandas.Series(list(cells)) if cells else pandas.Series([], dtype=object)


#: Up to here a float holds every whole number.
_EXACT_MAX = 2**53


def custom_columns(custom_properties: Row) -> dict[str, Any]:
    """Return custom properties under the names of their columns."""
    return {f"{CUSTOM}{key}": value for key, value in custom_properties.items()}
