"""Which trees go on from which: the successions that roots claim, proven once the event that one names is held.

Rules
- A claim is decided on whenever its root is folded, or the event that it names comes or stands in another tree.
- What a tree's events say is resolved again when what it is later than has changed.
"""

from collections.abc import Collection, Mapping

from cmf_graph.branches import Branches
from cmf_graph.graph import Graph, Tree
from cmf_graph.holes import Place
from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.events import Event
from cmf_protocol.signing import Succession


class Claims:
    """The claims of one graph's trees, and which of them are due."""

    def __init__(self, graph: Graph, branches: Branches) -> None:
        self._graph = graph
        self._connection = graph.connection
        self._branches = branches
        self._due: set[int] = set()
        self._changed: set[int] = set()
        self._by_event: dict[bytes, list[int]] = {}
        for claimed, tree in graph.rows("SELECT claim_event, id FROM trees WHERE claim IS NOT NULL"):
            self._by_event.setdefault(claimed, []).append(tree)

    def on_held(self, new: Mapping[bytes, Place]) -> None:
        """Have those claims decided that name one of these events."""
        for claimed in self._by_event.keys() & new.keys():
            self._due.update(self._by_event[claimed])

    def on_moved(self, tree: int, moved: Collection[int]) -> None:
        """Note that a branch of a tree goes on from elsewhere, and that these branches have come into it."""
        self._changed.add(tree)
        for claimed, trees in self._by_event.items() if moved else ():
            place = self._graph.place(claimed)
            if place is not None and place[0] in moved:
                self._due.update(trees)

    def note_root(self, root: Event, body: dict[str, Value]) -> None:
        """Note that a root is folded, and what it claims."""
        self._connection.execute("UPDATE trees SET folded = 1 WHERE root = ?", (root.event_id,))
        succession = Succession.from_body(body.get("succeeds"))
        if succession is None or succession.signature is None:
            return
        self._connection.execute(
            "UPDATE trees SET claim_event = ?, claim = ? WHERE root = ?",
            (succession.event_id, encode(succession.body()), root.event_id),
        )
        tree = self._graph.rows("SELECT id FROM trees WHERE root = ?", (root.event_id,))[0][0]
        self._by_event.setdefault(succession.event_id, []).append(tree)
        self._due.add(tree)

    def prove(self) -> None:
        """Decide on the claims that are new, or name an event that is new or stands in another tree now."""
        if not self._due:
            return
        trees = self._graph.trees()
        for tree in (trees[number] for number in sorted(self._due)):
            place = None if tree.claim_event is None else self._graph.place(tree.claim_event)
            if place is not None and tree.claim is not None:
                self._decide_claim(tree, trees[self._branches.trees[place[0]]], place[1])
        self._due.clear()

    def _decide_claim(self, tree: Tree, before: Tree, sequence: int) -> None:
        succession = Succession.from_body(decode(tree.claim or b""))
        fits = succession is not None and (succession.sequence, succession.log_id) == (sequence, before.log_id)
        proven = succession is not None and fits and succession.proven_by(before.key, tree.log_id, tree.key)
        predecessor = before.id if proven else None
        if predecessor != tree.predecessor:
            self._connection.execute("UPDATE trees SET predecessor = ? WHERE id = ?", (predecessor, tree.id))
            self._graph.forget_chains()
            self._changed.add(tree.id)

    def changed_nodes(self) -> set[int]:
        """Return, once, all nodes that a changed tree, or one that succeeds it, speaks of: what is later than what has changed."""
        followers = (
            "WITH RECURSIVE f(id) AS (SELECT ?1 UNION SELECT t.id FROM trees t JOIN f ON t.predecessor = f.id), "
            "said(id) AS (SELECT e.id FROM events e JOIN branches b ON b.id = e.branch WHERE b.tree IN f) "
            "SELECT node FROM about WHERE event IN said UNION SELECT execution FROM edges WHERE event IN said "
            "UNION SELECT artifact FROM edges WHERE event IN said"
        )
        nodes = {node for tree in self._changed for (node,) in self._graph.rows(followers, (tree,))}
        self._changed.clear()
        return nodes
