"""Where events stand while they are folded: in branches of trees, made as they come.

Theory of operation: nearly every event follows the newest one of a branch (`heads`). Each other one begins a tree or a branch, lies beyond
a hole (`holes.py`), or stands where somebody told (`placing.py`).

Rules
- It numbers trees and branches and writes their rows, no other; heads are written by the projection, once for a batch.
"""

from collections.abc import Mapping

from cmf_graph.graph import Graph
from cmf_graph.holes import Holes, Place
from cmf_graph.placing import PlacedBranches, Structure, told_piece
from cmf_graph.schema import id_prefix
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event, Header

#: What `place` returns of an event that begins no branch: it is held, or what stands before it has to be written first.
HELD, BEYOND_HOLE = -1, -2


class Branches:
    """The branches of one graph, as its writer knows them: `heads` is newest event → (branch, sequence), `trees` branch → tree.

    `signers` maps ids of events that lie beyond an accepted gap to the keys that signed them.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._connection = graph.connection
        rows = graph.rows
        self.heads: dict[bytes, Place] = {
            head: (branch, sequence)
            for branch, sequence, head in rows("SELECT id, head_sequence, head_id FROM branches")
        }
        self.log_ids: dict[int, bytes] = dict(rows("SELECT id, log_id FROM trees"))
        self.trees: dict[int, int] = dict(rows("SELECT id, tree FROM branches"))
        self._roots = {root for (root,) in rows("SELECT root FROM trees")}
        self._next: int = rows("SELECT coalesce(max(id), 0) + 1 FROM branches")[0][0]
        self.holes = Holes(graph)
        self.placed = PlacedBranches(graph)
        self.signers: Mapping[bytes, bytes] = {}

    def write_heads(self, heads: Mapping[int, tuple[int, bytes]]) -> None:
        """Write (sequence, event id) of the newest events of branches."""
        self._connection.executemany(
            "UPDATE branches SET head_sequence = ?, head_id = ? WHERE id = ?",
            [(sequence, head, branch) for branch, (sequence, head) in heads.items()],
        )

    def place(self, event: Event, known: Mapping[bytes, Place], *, first: bool) -> int:
        """Return the branch of an event, or `HELD`, or `BEYOND_HOLE` if it lies there and is not the `first` of its step."""
        header = event.header
        if header.previous is None:
            return HELD if event.event_id in self._roots else self._new_tree(event)
        if event.event_id in known or event.event_id in self.heads or self._graph.event(event.event_id):
            return HELD
        parent = self._right_before(header, known)
        if parent is not None and self.heads.get(header.previous) == parent:
            del self.heads[header.previous]
            self.heads[event.event_id] = (parent[0], header.sequence)
            return parent[0]
        if parent is None:
            if not first:
                return BEYOND_HOLE
            key = self.signers.get(event.event_id)
            parent = self.holes.place_before(event.event_id, header.sequence, header.log_id, key)
        if parent is None:
            raise IntegrityError(f"event {event.event_id.hex()} follows one that is not held")
        return self._new_branch(self.trees[parent[0]], event, parent)

    def _right_before(self, header: Header, known: Mapping[bytes, Place]) -> Place | None:
        """Return the place of the event that this one names as previous; None if it is missing."""
        previous = header.previous or b""
        place = known.get(previous) or self._graph.place(previous)
        if place is None or place[1] != header.sequence - 1 or self._log_id_at(place) != header.log_id:
            return None
        return place

    def _log_id_at(self, place: Place) -> bytes:
        return self.log_ids[self.trees[place[0]]]

    def _new_tree(self, event: Event) -> int:
        kind, id_ = event.header.about[0]
        key = id_ if kind == "key" and isinstance(id_, bytes) else b""  # what names no key proves nothing
        cursor = self._connection.execute(
            "INSERT INTO trees (log_id, root, key) VALUES (?, ?, ?)", (event.header.log_id, event.event_id, key)
        )
        self._roots.add(event.event_id)
        self.log_ids[int(cursor.lastrowid or 0)] = event.header.log_id
        return self._new_branch(int(cursor.lastrowid or 0), event, None)

    def _new_branch(self, tree: int, event: Event, parent: Place | None) -> int:
        """Begin a branch with an event that goes on from `parent`: right before it, or before a hole."""
        branch = self._next
        self._next += 1
        below, sequence = parent or (None, None)
        self._connection.execute(
            "INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?, ?)",
            (branch, tree, below, sequence, event.header.sequence, event.header.sequence, event.event_id),
        )
        if parent is not None and parent[1] < event.header.sequence - 1:
            self.holes.begin(branch, event, self.signers.get(event.event_id))
        self.heads[event.event_id] = (branch, event.header.sequence)
        self.trees[branch] = tree
        self._graph.forget_chains()
        return branch

    def move(self, branch: int, parent: Place) -> set[int]:
        """Let a branch that begins beyond a hole go on from another event; return the branches that stand in another tree by that."""
        self._connection.execute("UPDATE branches SET parent = ?, parent_sequence = ? WHERE id = ?", (*parent, branch))
        self._graph.forget_chains()
        tree = self.trees[parent[0]]
        if tree == self.trees[branch]:
            return set()
        above = "WITH RECURSIVE a(id) AS (SELECT ? UNION SELECT b.id FROM branches b JOIN a ON b.parent = a.id) "
        moved = {id_ for (id_,) in self._graph.rows(above + "SELECT id FROM a", (branch,))}
        self._connection.executemany("UPDATE branches SET tree = ? WHERE id = ?", [(tree, id_) for id_ in moved])
        self.trees.update(dict.fromkeys(moved, tree))
        return moved

    # -- places that were told (placing.py) ----------------------------------------------------------------------------

    def is_held(self, event_id: bytes) -> bool:
        """Tell if an event is held."""
        sql = (
            "SELECT 1 FROM event_ids i JOIN events e ON e.id = i.event WHERE i.prefix = ? AND substr(e.data, 1, 32) = ?"
        )
        return bool(self._graph.rows(sql, (id_prefix(event_id), event_id)))

    def told(
        self, name: bytes | None, event: Event, structure: Structure, known: dict[bytes, tuple[int, int]]
    ) -> int | None:
        """Return the branch of an event that is not held: of the piece `name`, or (None) where it follows its previous one."""
        header = event.header
        if header.previous is None:
            branch = self._new_tree(event)
            if name is not None:
                self.placed.add(name, branch)
            return branch
        if name is not None:
            return self._branch_of_piece(name, structure)
        told = self.placed.branch(event.event_id)
        if told is not None:
            return told
        head = self.heads.get(header.previous)
        follows = head is not None and head[1] + 1 == header.sequence and self._log_id_at(head) == header.log_id
        if head is not None and follows and header.previous not in self.holes.by_previous:
            return head[0]
        place = self._right_before(header, known)
        if place is not None and self.placed.has_room(place[0], header.sequence):
            return place[0]
        return self.place(event, known, first=True)

    def _branch_of_piece(self, name: bytes, structure: Structure) -> int:
        """Return the branch of a piece: its own, or that of its first event; made if there is none."""
        line = []
        while (branch := self.placed.branch(name)) is None:
            place = self._graph.place(name)
            if place is not None:
                branch = place[0]
                self.placed.add(name, branch)
                break
            parent, told = told_piece(name, structure)
            line.append((name, told))
            name = parent
        for piece, told in reversed(line):
            parent_branch, branch = branch, self._next
            self._next += 1
            before = told.first_sequence - 1
            row = (
                branch,
                self.trees[parent_branch],
                parent_branch,
                told.parent_sequence,
                told.first_sequence,
                before,
                piece,
            )
            self._connection.execute("INSERT INTO branches VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self.heads[piece] = branch, before  # as long as nothing of it is held
            self.trees[branch] = self.trees[parent_branch]
            self.placed.add(piece, branch)
            self._graph.forget_chains()
        return branch
