"""Where events stand whose previous ones are missing: in pieces of trees, as somebody who holds them all has told.

Theory of operation: a hub tells of a pulled event in which piece of which tree it stands, and from which piece and
sequence each piece goes on. So *later* is known between events that no chain of held ones joins. A piece is named by the
id of its first event. If that event is held, the piece is a part of the branch that holds it; else it is a branch of its
own, with holes.

Rules
- What was told is believed, and not checked against previous ids: who sees that it has changed (a fork became known) projects anew.
- Events that come later with their chain fill the holes, so that both ways give the same graph.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cmf_graph.graph import Graph
from cmf_protocol.errors import IntegrityError


class Placement(NamedTuple):
    """A piece of a tree between forks: the tree's root, the piece and sequence that it goes on from, its first sequence.

    The root's piece goes on from None.
    """

    root: bytes
    parent: bytes | None
    parent_sequence: int | None
    first_sequence: int


#: A piece's name (the id of its first event) → where it stands.
Structure = Mapping[bytes, Placement]


class PlacedBranches:
    """Which branches of a graph hold pieces that were told, and which of their sequences are taken."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._named: dict[bytes, int] = dict(graph.rows("SELECT name, branch FROM placed"))
        self._branches = set(self._named.values())
        self._taken: set[tuple[int, int]] | None = None

    def __bool__(self) -> bool:
        return bool(self._named)

    def branch(self, name: bytes) -> int | None:
        """Return the branch that holds a piece; None if it was not told, or has none yet."""
        return self._named.get(name)

    def add(self, name: bytes, branch: int) -> None:
        """Note that a branch holds a piece."""
        self._graph.connection.execute("INSERT INTO placed VALUES (?, ?)", (name, branch))
        self._named[name] = branch
        self._branches.add(branch)
        self._taken = None

    def take(self, branch: int, sequence: int) -> None:
        """Note that an event stands there."""
        if self._taken is not None:
            self._taken.add((branch, sequence))

    def has_room(self, branch: int, sequence: int) -> bool:
        """Tell if a branch holds told pieces and no event at that sequence: what follows the one before stands there."""
        if branch not in self._branches:
            return False
        if self._taken is None:
            sql = "SELECT branch, sequence FROM events WHERE branch IN (SELECT branch FROM placed)"
            self._taken = {(row[0], row[1]) for row in self._graph.rows(sql)}
        return (branch, sequence) not in self._taken


def told_piece(name: bytes, structure: Structure) -> tuple[bytes, Placement]:
    """Return the piece that this one goes on from, and where this one stands; raise `IntegrityError` if nobody told."""
    told = structure.get(name)
    if told is None or told.parent is None:  # a root's piece has a branch once the root is held
        raise IntegrityError(f"nobody told where the branch {name.hex()} stands, or its tree's first event is missing")
    return told.parent, told
