"""What one question reads of a graph, many nodes at a time, all of one moment.

Rules
- A question makes one `Reading` inside `Graph.snapshot` and drops it at its end.
- Nodes are resolved here as `Graph.state` would resolve them; where an artifact is one with others (`aliases`), what is said of these is
  said of it.
- Lists of numbers go to SQLite as one JSON array: no limit on how many, no text made of values.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from cmf_graph.aliases import Aliases
from cmf_graph.graph import Graph, no_collector, said
from cmf_graph.schema import node_of, unpack_event
from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.events import Node, trusted_body, trusted_header
from cmf_protocol.resolve import NodeState, Said, resolve

SHORT_KEY_CHARS = 12
_EVENT = "e.branch, e.header_size, e.data"


def type_is(*types: str) -> str:
    """Return the SQL condition that the folded event `e` is of one of these types: its header names the type in its first bytes."""
    return "(" + " OR ".join(f"instr(substr(e.data, 33, 40), x'{encode(type_).hex()}')" for type_ in types) + ")"


_FROM_ABOUT = "FROM json_each(?1) j CROSS JOIN about a ON a.node = j.value CROSS JOIN events e ON e.id = a.event"
_FROM_EDGES = "FROM json_each(?1) j CROSS JOIN edges x ON x.{end} = j.value CROSS JOIN events e ON e.id = x.event"
#: An execution's start says nothing of the other nodes that it is about, and a stage has as many as executions.
_NO_STARTS = f"WHERE NOT {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED)}"
_STATEMENTS = {
    "execution": (
        f"SELECT j.value, {_EVENT} {_FROM_ABOUT}",
        f"SELECT j.value, {_EVENT} {_FROM_EDGES.format(end='execution')}",
    ),
    "artifact": (
        f"SELECT j.value, {_EVENT} {_FROM_ABOUT} {_NO_STARTS}",
        f"SELECT j.value, {_EVENT} {_FROM_EDGES.format(end='artifact')}",
    ),
}
#: Artifacts where the blocks of tables, megabytes for each, are not asked for.
_TABLELESS = "artifact without table"
_STATEMENTS[_TABLELESS] = (
    f"SELECT j.value, {_EVENT} {_FROM_ABOUT} WHERE NOT {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED, t.TABLE_RECORDED)}",
    _STATEMENTS["artifact"][1],
)
_OTHERS = (f"SELECT j.value, {_EVENT} {_FROM_ABOUT} {_NO_STARTS}",)
_ARTIFACT_BRANCHES = (
    f"SELECT DISTINCT j.value, e.branch {_FROM_EDGES.format(end='artifact')} WHERE x.said = 1 "
    f"UNION SELECT j.value, e.branch {_FROM_ABOUT} "
    f"WHERE {type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED, t.ENVIRONMENT_RECORDED)}"
)


def site_name(key: bytes, sites: Mapping[bytes, str]) -> str:
    """Return the name of the site that a signing key belongs to; `key:…` for a key that no site is known for."""
    return sites.get(key) or f"key:{key.hex()[:SHORT_KEY_CHARS] or 'none'}"


class Reading:
    """One moment of a graph; `sites` maps signing keys to the names of their sites."""

    def __init__(self, graph: Graph, sites: Mapping[bytes, str]) -> None:
        self.graph = graph
        self.chains = graph.chains()
        self.aliases = Aliases(graph)
        self.known_sites = sites
        found = graph.rows("SELECT b.id, t.key FROM branches b JOIN trees t ON t.id = b.tree")
        self._sites: dict[int, str] = {branch: site_name(key, sites) for branch, key in found}

    # -- sites ---------------------------------------------------------------------------------------------------------

    def site(self, branch: int | None) -> str | None:
        """Return the site to which a branch of a log belongs."""
        return None if branch is None else self._sites[branch]

    def branches(self, site: str) -> list[int]:
        """Return the branches of all logs of a site."""
        return [branch for branch, name in self._sites.items() if name == site]

    def site_names(self) -> list[str]:
        """Return all sites that can be asked for."""
        return sorted({*self._sites.values(), *self.known_sites.values()})

    def artifact_sites(self, node_ids: Iterable[int]) -> dict[int, list[str]]:
        """Return the sites that used, produced or recorded these artifacts."""
        owners = self.aliases.with_members(node_ids)
        found: dict[int, set[str]] = {owner: set() for owner in owners.values()}
        for node, branch in self.graph.rows(_ARTIFACT_BRANCHES, (id_list(owners),)):
            found[owners[node]].add(self._sites[branch])
        return {owner: sorted(names) for owner, names in found.items()}

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def nodes(self, node_ids: Iterable[int]) -> dict[int, Node]:
        """Return the nodes of these numbers."""
        sql = "SELECT n.id, n.kind, n.key FROM json_each(?) j CROSS JOIN nodes n ON n.id = j.value"
        return {id_: node_of(kind, key) for id_, kind, key in self.graph.rows(sql, (id_list(node_ids),))}

    def artifacts(self, content_ids: Iterable[str]) -> dict[str, tuple[int, str | None]]:
        """Return number and stated kind of the artifacts with these content ids."""
        sql = (
            "SELECT n.key, n.id, a.kind FROM json_each(?) j CROSS JOIN nodes n ON n.kind = 4 AND n.key = j.value "
            "JOIN artifacts a ON a.node = n.id"
        )
        return {key: (id_, kind) for key, id_, kind in self.graph.rows(sql, (json.dumps(list(content_ids)),))}

    def names(self, node_ids: Iterable[int]) -> dict[int, list[str]]:
        """Return the names of these artifacts, sorted."""
        owners = self.aliases.with_members(node_ids)
        found: dict[int, set[str]] = {}
        sql = "SELECT n.node, n.name FROM json_each(?) j CROSS JOIN artifact_names n ON n.node = j.value"
        for node, name in self.graph.rows(sql, (id_list(owners),)):
            found.setdefault(owners[node], set()).add(name)
        return {owner: sorted(names) for owner, names in found.items()}

    # -- states --------------------------------------------------------------------------------------------------------

    def states(self, node_ids: Sequence[int], *, tables: bool = True) -> dict[int, NodeState]:
        """Return these nodes, in the same order, as all that is said of each; without `tables`, but for what the tables among them hold."""
        nodes = self.nodes(node_ids)
        groups: dict[str, list[int]] = {}
        for node_id in node_ids:
            groups.setdefault(nodes[node_id][0], []).append(node_id)
        statements: dict[int, list[Said]] = {node_id: [] for node_id in node_ids}
        with no_collector():
            for kind, ids in groups.items():
                self._read(_TABLELESS if kind == "artifact" and not tables else kind, ids, nodes, statements)
            return {id_: resolve(nodes[id_], statements[id_], self.chains) for id_ in node_ids}

    def _read(
        self, kind: str, node_ids: Sequence[int], nodes: Mapping[int, Node], statements: dict[int, list[Said]]
    ) -> None:
        is_artifact = kind in ("artifact", _TABLELESS)
        owners = self.aliases.with_members(node_ids) if is_artifact else {id_: id_ for id_ in node_ids}
        for sql in _STATEMENTS.get(kind, _OTHERS):
            for node_id, branch, header_size, data in self.graph.rows(sql, (id_list(owners),)):
                statements[owners[node_id]].append(_said(branch, header_size, data))
        if kind != "execution":
            for node_id in node_ids:
                self._add_retracted_starts(nodes[node_id], statements[node_id])

    def _add_retracted_starts(self, node: Node, statements: list[Said]) -> None:
        """Read those starts of executions that were left out but are needed to tell a retraction from a dispute."""
        held = {s.event_id for s in statements}
        targets = {event for s in statements if s.type == t.RETRACTED and (event := s.body.get("event"))} - held
        for event_id in targets:
            row = self.graph.event(event_id)
            if row is not None and node in row.header.about and self.unfolded(row.id) is None:
                statements.append(said(row))

    def unfolded(self, event: int) -> str | None:
        """Return why the event of this number is not folded, or None if it is."""
        found = self.graph.rows("SELECT reason FROM unfolded WHERE event = ?", (event,))
        return found[0][0] if found else None


def _said(branch: int, header_size: int, data: bytes) -> Said:
    event_id, header_bytes, body = unpack_event(header_size, data)
    header = trusted_header(header_bytes)
    values = trusted_body(body or b"")
    return Said(branch, header.sequence, header.clock, event_id, header.wall_us, header.type, header.about, values)


def id_list(node_ids: Iterable[int]) -> str:
    """Return numbers as SQLite's json_each reads them."""
    return json.dumps(list(node_ids))
