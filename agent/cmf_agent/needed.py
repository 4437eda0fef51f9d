"""Which contents are meant, where bytes are pushed, pulled or listed: those of REFs, of pipelines, of this site, all that are known.

Rules
- A REF is a content, or what an execution, a stage or a pipeline used and produced.
- Tables and environments are told by events and have no bytes elsewhere: they are no needed contents.
- A content is known by the names that the executions in question gave it; one that was named itself by that name, or its first one.
- A digest that is claimed of one md5 is that md5.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cmf_agent.home import Home
from cmf_agent.reading import LogReader
from cmf_agent.refs import resolve_ref
from cmf_agent.view import local_view
from cmf_graph.aliases import claims
from cmf_graph.filters import ARTIFACT_KIND_DEFAULT, normal_name
from cmf_graph.graph import EventRow, Graph
from cmf_graph.items import text_of
from cmf_graph.lineage import roots_of
from cmf_graph.parts import locations_of
from cmf_graph.reading import Reading, id_list, type_is
from cmf_graph.refs import find, resolve_one
from cmf_graph.schema import unpack_event
from cmf_graph.selection import select
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Node, trusted_body
from cmf_protocol.filters import Filter
from cmf_protocol.resolve import NodeState

#: Contents that are resolved at a time.
_BATCH = 500
_USAGES = {"used": (0,), "produced": (1,), "": (0, 1)}


class Asked(NamedTuple):
    """What is asked for; `usage` is `used`, `produced` or, for both, empty. Nothing at all is nothing."""

    refs: Sequence[str] = ()
    pipelines: Sequence[str] = ()
    stage: str | None = None
    kind: str | None = None
    usage: str = ""


class Needed(NamedTuple):
    """A content that is meant: `names` may be empty, `size` in bytes, `locations` as events tell them; `is_known` if any does."""

    content_id: str
    kind: str
    size: int | None
    names: tuple[str, ...]
    locations: tuple[dict[str, str], ...] = ()
    is_known: bool = True

    @property
    def urls(self) -> list[str]:
        """The addresses of remotes that are told to hold the bytes."""
        return [place["url"] for place in self.locations if place["kind"] == "remote" and place.get("url")]

    @property
    def in_git(self) -> str:
        """Where git holds it, if the file itself is told to be in git; else empty."""
        place = next((place for place in self.locations if place["kind"] == "git"), None)
        if place is None:
            return ""
        where = place.get("repo") or "its repository"
        return f"{place.get('path')} in git, at {place.get('commit', 'no known commit')[:10]} of {where}"


def needed(home: Home, asked: Asked, *, by_name: bool = False) -> list[Needed]:
    """Return the contents of REFs and pipelines; `by_name`: a file's name means what was recorded so, whatever it holds now.

    Raises `CallerError` for what is not known here, or means several things.
    """
    nodes = [(ref, (_recorded(home, ref) if by_name else None) or resolve_ref(home, ref)) for ref in asked.refs]
    with local_view(home) as graph, graph.snapshot():
        reading = Reading(graph, {})
        artifacts: dict[int, set[str]] = {}
        unknown: list[Needed] = []
        named: dict[str, str] = {}
        executions = _of_pipelines(graph, asked)
        for ref, target in nodes:
            if isinstance(target, EventRow):
                raise CallerError(
                    f"{ref} is an event, which has no bytes", "name an artifact, an execution or a pipeline"
                )
            node = _canonical(graph, target)
            id_ = graph.node_id(node)
            if node[0] == "artifact" and id_ is None:
                unknown.append(Needed(node[1], ARTIFACT_KIND_DEFAULT, None, (), is_known=False))
            elif node[0] == "artifact" and id_ is not None:
                named[node[1]] = ref
                own = reading.names([id_]).get(id_, [])
                fitting = [name for name in own if name == ref or name.endswith(f"/{ref}")]
                artifacts.setdefault(id_, set()).update(fitting or own[:1])
            elif id_ is None:
                raise CallerError(f"{ref} is not known here", "pull what is recorded of it: cmf-agent pull -p PIPELINE")
            else:
                executions |= set(roots_of(id_, None, reading)[0])
        for id_, names in _usages(reading, executions, _USAGES[asked.usage]).items():
            artifacts.setdefault(id_, set()).update(names)
        found = _described(reading, artifacts)
        _refuse_told(named, {each.content_id for each in found})
    return [each for each in [*found, *unknown] if asked.kind in (None, each.kind)]


def _refuse_told(named: Mapping[str, str], found: Collection[str]) -> None:
    """Raise `CallerError` for a content that was named, by its id, and is not found: a table or an environment."""
    for content_id, ref in named.items():
        if content_id not in found:
            raise CallerError(
                f"{ref} is a table or an environment: it is recorded in events, and has no bytes elsewhere",
                f"`cmf-agent query show {ref}` shows it, cmf.read_table(None, {content_id!r}) reads a table",
            )


def _recorded(home: Home, ref: str) -> Node | None:
    """Return the one thing that is recorded under a name, or under that of a path in the project; None if nothing is."""
    try:
        name = Path(ref).expanduser().absolute().relative_to(home.root.absolute()).as_posix()
    except (ValueError, RuntimeError, OSError):
        name = ref
    with local_view(home) as graph:
        for text in dict.fromkeys((ref, name)):
            if "\0" not in text and find(graph, text, sites={}):
                return resolve_one(graph, text, sites={}).node
    return None


def own_contents(home: Home) -> list[Needed]:
    """Return what this site itself has said that it used or produced."""
    with LogReader(home.log_path) as reader:
        keys = {log.key for log in reader.logs()}
    with local_view(home) as graph, graph.snapshot():
        trees = [tree.id for tree in graph.trees().values() if tree.key in keys]
        sql = (
            "SELECT DISTINCT x.execution FROM edges x CROSS JOIN events e ON e.id = x.event CROSS JOIN branches b ON b.id = e.branch "
            "WHERE x.said = 1 AND b.tree IN (SELECT value FROM json_each(?))"
        )
        return _of_executions(graph, {id_ for (id_,) in graph.rows(sql, (id_list(trees),))})


def known_contents(home: Home) -> list[Needed]:
    """Return everything that is known here to have been used or produced."""
    with local_view(home) as graph, graph.snapshot():
        return _of_executions(
            graph, {id_ for (id_,) in graph.rows("SELECT DISTINCT execution FROM edges WHERE said = 1")}
        )


def selected_contents(graph: Graph, filters: Iterable[Filter], sites: Mapping[bytes, str]) -> list[Needed]:
    """Return the contents of the executions that filters of a pull select; `sites` names the site of each key."""
    with graph.snapshot():
        numbers: set[int] = set().union(*(select(graph, each, sites) for each in filters))
        sql = "SELECT x.node FROM json_each(?) j CROSS JOIN executions x ON x.node = j.value"
        return _of_executions(graph, {id_ for (id_,) in graph.rows(sql, (id_list(numbers),))})


def _of_executions(graph: Graph, executions: set[int]) -> list[Needed]:
    reading = Reading(graph, {})
    return _described(reading, _usages(reading, executions, (0, 1)))


def _canonical(graph: Graph, node: Any) -> Node:
    """Return the node, or the md5 that its digest is claimed of."""
    claimed = claims(graph, [node[1]]).get(node[1], []) if node[0] == "artifact" else []
    return ("artifact", claimed[0]) if len(claimed) == 1 else node


def _of_pipelines(graph: Graph, asked: Asked) -> set[int]:
    found: set[int] = set()
    for name in asked.pipelines:
        pipeline = normal_name(name)
        if graph.node_id(("pipeline", pipeline)) is None:
            raise CallerError(f"no pipeline {name!r} is known here", f"pull it: cmf-agent pull -p {name}")
        node = ("pipeline", pipeline) if asked.stage is None else ("stage", (pipeline, normal_name(asked.stage)))
        id_ = graph.node_id(node)
        if id_ is None:
            raise CallerError(
                f"the pipeline {name!r} has no stage {asked.stage!r} here", "cmf-agent query stages lists them"
            )
        found |= {row for (row,) in graph.rows(f"SELECT node FROM executions WHERE {node[0]} = ?", (id_,))}
    return found


def _usages(reading: Reading, executions: Collection[int], produced: Sequence[int]) -> dict[int, set[str]]:
    """Return the contents that these executions used or produced, with the names that they gave them."""
    sql = (
        "SELECT x.artifact, e.data, e.header_size FROM json_each(?) j CROSS JOIN edges x ON x.execution = j.value "
        "CROSS JOIN events e ON e.id = x.event WHERE x.said = 1 AND x.produced IN (SELECT value FROM json_each(?))"
    )
    found: dict[int, set[str]] = {}
    for artifact, data, header_size in reading.graph.connection.execute(sql, (id_list(executions), id_list(produced))):
        own = found.setdefault(reading.aliases.canonical(artifact), set())
        body = trusted_body(unpack_event(header_size, data)[2] or b"")
        if "name" in body:
            own.add(body["name"])
    return found


def _described(reading: Reading, artifacts: dict[int, set[str]]) -> list[Needed]:
    sql = (
        "SELECT DISTINCT a.node FROM json_each(?) j CROSS JOIN about a ON a.node = j.value CROSS JOIN events e ON e.id = a.event "
        f"WHERE {type_is(t.TABLE_RECORDED, t.ENVIRONMENT_RECORDED)}"
    )
    told = {node for (node,) in reading.graph.rows(sql, (id_list(artifacts),))}
    ids = [id_ for id_ in artifacts if id_ not in told]
    found = []
    for start in range(0, len(ids), _BATCH):
        states = reading.states(ids[start : start + _BATCH], tables=False)
        found += [_needed(state, artifacts[id_]) for id_, state in states.items()]
    return sorted(found, key=lambda each: (each.names, each.content_id))


def _needed(state: NodeState, names: set[str]) -> Needed:
    size = state.value("size")
    kind = text_of(state.value("kind")) or ARTIFACT_KIND_DEFAULT
    return Needed(
        state.node[1], kind, size if type(size) is int else None, tuple(sorted(names)), tuple(locations_of(state))
    )
