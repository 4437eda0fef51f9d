"""What the parts of the event store have in common: the one connection, and chunks of ids that fit a query.

Rules
- A part has tables of its own and asks no other part; `custody.py` puts them together, in one transaction.
"""

from collections.abc import Iterator, Sequence

from cmf_graph.database import Connection, store_errors

#: Ids in one query, well below what SQLite takes.
_CHUNK = 500


class Part:
    """Some tables of the store in the file called `name`."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:  # type: ignore[type-arg]
        """Return the rows of a query."""
        with store_errors(self.name):
            return self._connection.execute(sql, parameters).fetchall()


def chunks(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the values, as many at a time as one query takes."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[bytes]) -> str:
    """Return the placeholders for these values."""
    return ",".join("?" * len(values))
