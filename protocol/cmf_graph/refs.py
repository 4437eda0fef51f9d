"""What a user's REF means: any way to name one thing of a graph.

A REF is a content id or any other digest of an artifact, an execution's id, an event's id (each also by its first 6 or more hexadecimal
digits), the name of a pipeline, `pipeline/stage`, an artifact's name or the last component of it, the name of an execution or of a stage, a
tag, or the path of a file or folder. `pipeline:`, `stage:`, `execution:`, `artifact:`, `event:` before it say which kind is meant.

Rules
- An exact id wins over what it is a prefix of. What only a scan finds (last components, names of executions and stages, tags) is looked at
  if nothing else fits.
- A file is hashed if the REF is written as a path (`./x`, `/x`, `~/x`, `x/`), if nothing in the graph fits, or if what fits are artifacts
  of that name: then the file says which. If its content is unknown that is an error, whatever has its name.
- Several things are never chosen between: the error lists them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cmf_graph.aliases import claims
from cmf_graph.graph import Graph
from cmf_graph.reading import Reading, type_is
from cmf_graph.schema import KIND_CODES, id_prefix, node_of, unpack_event
from cmf_graph.summaries import execution_summaries
from cmf_graph.text import clean, execution_text, shorter
from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Node, trusted_header
from cmf_protocol.resolve import NodeState

#: Shorter prefixes are more likely a name.
PREFIX_CHARS_MIN = 6
CANDIDATES_SHOWN = 10
#: Where that many things begin alike, counting on helps nobody.
CANDIDATES_MAX = 1_000
#: Algorithms of content ids that a bare prefix is tried with.
_ALGORITHMS_MAX = 50
KINDS = ("pipeline", "stage", "execution", "artifact", "event")

_HEX = re.compile(r"[0-9a-f]+")
_HEX_OR_FOLDER = re.compile(r"[0-9a-f]+(\.dir|\.di|\.d|\.)?")
HashFile = Callable[[Path], str]


class Match(NamedTuple):
    """One thing that a REF may mean: a node, or (with `node` None) an event."""

    kind: str
    id: str
    label: str
    node: Node | None
    node_id: int | None = None
    event_id: bytes | None = None


def resolve_one(graph: Graph, ref: str, *, sites: Mapping[bytes, str], hash_file: HashFile | None = None) -> Match:
    """Return the one thing that `ref` means; raise `CallerError` with the candidates if there are several, or none."""
    found = find(graph, ref, sites=sites, hash_file=hash_file)
    if len(found) == 1:
        return found[0]
    if found:
        raise CallerError(_ambiguous(ref, found), _way_out(found))
    tried = "a digest, an execution or event id (or 6 or more of their first digits), a pipeline, pipeline/stage, "
    tried += "the name of an artifact or execution, a tag" + (" or an existing file" if hash_file else "")
    raise CallerError(f"nothing here is called {clean(ref)!r}: it is not {tried}", _unknown_hint(ref, hash_file))


def resolve_artifact(graph: Graph, ref: str, *, sites: Mapping[bytes, str]) -> Match:
    """Return the one artifact that `ref` names; raise `CallerError` like `resolve_one`."""
    name = ref.removeprefix("artifact:")
    found = find(graph, f"artifact:{name}", sites=sites)
    if len(found) == 1:
        return found[0]
    if found:
        raise CallerError(_ambiguous(name, found), _way_out(found))
    raise CallerError(
        f"no artifact here is called {clean(name)!r}: it is neither a digest (or 6 or more of its first digits), nor a name, nor a tag",
        "`query artifacts` lists what there is",
    )


def _unknown_hint(ref: str, hash_file: HashFile | None) -> str:
    if _is_path_text(ref) and hash_file is None:
        return "files can't be looked up here: give the file's digest"
    return "list what there is: query pipelines, executions or artifacts; what other sites recorded may not be here yet"


def _ambiguous(ref: str, found: Sequence[Match]) -> str:
    count = f"{len(found)}" if len(found) < CANDIDATES_MAX else f"{CANDIDATES_MAX} or more"
    lines = [f"{clean(ref)!r} can mean {count} things:"]
    lines += [f"  {m.kind} {clean(m.id)}  {shorter(m.label, 100)}".rstrip() for m in found[:CANDIDATES_SHOWN]]
    if len(found) > CANDIDATES_SHOWN:
        lines.append(f"  and {len(found) - CANDIDATES_SHOWN} more")
    return "\n".join(lines)


def _way_out(found: Sequence[Match]) -> str:
    if len({m.kind for m in found}) > 1:
        return f"say which kind you mean ({found[0].kind}:…), or give the id"
    return "give one of these ids"


def find(graph: Graph, ref: str, *, sites: Mapping[bytes, str], hash_file: HashFile | None = None) -> list[Match]:
    """Return everything that `ref` can mean; raise `CallerError` for no REF at all, and for a file of unknown content."""
    text = ref.strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CallerError(f"{ref!r} is not valid Unicode text") from error
    if not text or "\0" in text:
        raise CallerError("an empty REF names nothing", "give a digest, an id, a name or a path")
    if hash_file is not None and _is_path_text(text):
        found = _of_file(graph, text, hash_file, [])
        return _labelled(graph, found, sites)
    kind, _, rest = text.partition(":")
    only = kind if kind in KINDS and rest else None
    found = _in_graph(graph, rest if only else text, only)
    by_name = found and all(m.kind == "artifact" and not _names_content(text, m) for m in found)
    if hash_file is not None and only is None and (not found or by_name) and _exists(text):
        found = _of_file(graph, text, hash_file, found)
    return _labelled(graph, found, sites)


def _names_content(text: str, match: Match) -> bool:
    """Tell if an artifact was found by a digest, not by a name."""
    low = text.lower()
    return match.id.startswith(low) or match.id.partition(":")[2].startswith(low)


# -- files -------------------------------------------------------------------------------------------------------------


def _is_path_text(text: str) -> bool:
    return text.startswith(("./", "../", "/", "~")) or text in (".", "..") or (text.endswith("/") and _exists(text))


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, no such user, odd characters
        return False


def _of_file(graph: Graph, text: str, hash_file: HashFile, by_name: Sequence[Match]) -> list[Match]:
    if not _exists(text):
        raise CallerError(
            f"there is no file {clean(text)!r}",
            "a REF that begins like a path names a file here; leave out the ./ for a name",
        )
    content_id = hash_file(Path(text).expanduser())
    found = list(_of_digest(graph, content_id))
    if found:
        return found
    hint = "it has not been recorded, or not been pulled yet"
    if by_name:
        ids = ", ".join(clean(m.id) for m in by_name[:CANDIDATES_SHOWN])
        hint = f"artifacts recorded under that name have another content: {ids}"
    raise CallerError(f"the content of {clean(text)!r}, {content_id}, is unknown here", hint)


# -- what the graph knows ----------------------------------------------------------------------------------------------


def _in_graph(graph: Graph, text: str, only: str | None) -> list[Match]:
    found: dict[tuple[str, str], Match] = {}
    for finders in _FINDERS:
        for finder in finders:
            for match in finder(graph, text):
                if only in (None, match.kind) and len(found) < CANDIDATES_MAX:
                    found.setdefault((match.kind, match.id), match)
        if found:
            break
    return list(found.values())


def _by_id(graph: Graph, text: str) -> Iterator[Match]:
    """Yield what has exactly this id."""
    if ":" in text:
        yield from _of_digest(graph, text)
    compact = text.lower().replace("-", "")
    if not _HEX.fullmatch(compact):
        return
    if len(compact) == 2 * t.EXECUTION_BYTES:
        yield from _executions(graph, bytes.fromhex(compact), bytes.fromhex(compact))
    if len(compact) == 64 and graph.event(bytes.fromhex(compact)) is not None:
        yield _event(bytes.fromhex(compact))
    for algorithm in _algorithms(graph):
        yield from _of_digest(graph, f"{algorithm}:{text.lower()}")


def _by_indexed_name(graph: Graph, text: str) -> Iterator[Match]:
    """Yield pipelines, stages as `pipeline/stage`, and artifacts of this name."""
    name = unicodedata.normalize("NFC", text)
    nodes: list[Node] = [("pipeline", name)]
    nodes += [
        ("stage", (name[:at], name[at + 1 :])) for at, c in enumerate(name) if c == "/" and 0 < at < len(name) - 1
    ]
    for node in nodes:
        node_id = graph.node_id(node)
        if node_id is not None:
            yield _match(node, node_id)
    sql = (
        "SELECT n.id, n.key FROM artifact_names a JOIN nodes n ON n.id = a.node "
        "WHERE a.name IN (?, ?) ORDER BY n.key LIMIT ?"
    )
    yield from _artifacts(graph, graph.rows(sql, (text, name, CANDIDATES_MAX)))


def _by_prefix(graph: Graph, text: str) -> Iterator[Match]:
    """Yield what has an id that begins so."""
    low = text.lower()
    algorithm, colon, digest = low.rpartition(":")
    if len(digest) >= PREFIX_CHARS_MIN and _HEX_OR_FOLDER.fullmatch(digest):
        for each in [algorithm] if colon else _algorithms(graph):
            yield from _of_digest_prefix(graph, f"{each}:{digest}")
    compact = low.replace("-", "")
    if colon or len(compact) < PREFIX_CHARS_MIN or not _HEX.fullmatch(compact):
        return
    if len(compact) <= 2 * t.EXECUTION_BYTES:
        yield from _executions(graph, *_range(compact, t.EXECUTION_BYTES))
    if compact == low and len(compact) <= 64:
        yield from _events(graph, *_range(compact, 32))


def _range(digits: str, length: int) -> tuple[bytes, bytes]:
    return bytes.fromhex(digits.ljust(2 * length, "0")), bytes.fromhex(digits.ljust(2 * length, "f"))


def _by_scan(graph: Graph, text: str) -> Iterator[Match]:
    """Yield what no index finds: a name's last component, names of executions and of stages, tags."""
    sql = (
        "SELECT DISTINCT n.id, n.key FROM artifact_names a JOIN nodes n ON n.id = a.node "
        "WHERE substr(a.name, -length(?1)) = ?1 ORDER BY n.key LIMIT ?2"
    )
    yield from _artifacts(graph, graph.rows(sql, (f"/{text}", CANDIDATES_MAX)))
    name = unicodedata.normalize("NFC", text)
    for node_id, key in graph.rows("SELECT id, key FROM nodes WHERE kind = ?", (KIND_CODES["stage"],)):
        node = node_of(KIND_CODES["stage"], key)
        if node[1][1] == name:
            yield _match(node, node_id)
    starts = type_is(t.EXECUTION_STARTED, t.EXECUTION_UPDATED)
    yield from _resolved(graph, starts, {"name": text}, lambda state: state.value("name") == text)
    yield from _resolved(graph, type_is(t.TAG_ADDED), {"tag": name}, lambda state: name in state.tags)


def _resolved(graph: Graph, type_: str, stated: dict[str, str], holds: Callable[[NodeState], bool]) -> Iterator[Match]:
    """Yield the nodes of which an event of that type states this key and value, if it still holds."""
    sql = (
        f"SELECT e.id FROM events e WHERE instr(e.data, ?) AND {type_} "
        f"AND e.id NOT IN (SELECT event FROM unfolded) LIMIT {CANDIDATES_MAX}"
    )
    seen: set[int] = set()
    for (event,) in graph.rows(sql, (encode(stated)[1:],)):
        for node_id in _nodes_of(graph, event):
            if node_id not in seen:
                seen.add(node_id)
                state = graph.state(node_id)
                if state.node[0] in KINDS and holds(state):
                    yield _match(state.node, node_id)


def _nodes_of(graph: Graph, event: int) -> list[int]:
    header_size, data = graph.rows("SELECT header_size, data FROM events WHERE id = ?", (event,))[0]
    _, header, _ = unpack_event(header_size, data)
    found = [graph.node_id(node) for node in trusted_header(header).about if node[0] in KIND_CODES]
    return [node_id for node_id in found if node_id is not None]


#: Each group is tried only if those before it found nothing.
_FINDERS = ((_by_id, _by_indexed_name), (_by_prefix,), (_by_scan,))


# -- matches -----------------------------------------------------------------------------------------------------------


def _algorithms(graph: Graph) -> list[str]:
    """Return the algorithms of the content ids in a graph: one look into the index for each."""
    found: list[str] = []
    for sql in (
        f"SELECT min(key) FROM nodes WHERE kind = {KIND_CODES['artifact']} AND key >= ?",
        "SELECT min(digest) FROM aliases WHERE digest >= ?",
    ):
        beyond = ""
        while len(found) < _ALGORITHMS_MAX and (key := graph.rows(sql, (beyond,))[0][0]) is not None:
            algorithm = str(key).partition(":")[0]
            found.append(algorithm)
            beyond = f"{algorithm};"  # the character after the colon
    return sorted(set(found))


def _of_digest(graph: Graph, content_id: str) -> Iterator[Match]:
    """Yield the artifact with this digest: claimed of one md5 that one, else its own node, else all that claim it."""
    for spelling in dict.fromkeys((content_id, content_id.lower())):
        claimed = claims(graph, [spelling]).get(spelling, [])
        for key in claimed if len(claimed) == 1 else []:
            node_id = graph.node_id(("artifact", key))
            if node_id is not None:
                yield _match(("artifact", key), node_id)
                return
        node_id = graph.node_id(("artifact", spelling))
        if node_id is not None:
            yield _match(("artifact", spelling), node_id)
            return
        sql = (
            "SELECT n.id, n.key FROM aliases a JOIN nodes n ON n.id = a.node WHERE a.digest = ? ORDER BY n.key LIMIT ?"
        )
        found = list(_artifacts(graph, graph.rows(sql, (spelling, CANDIDATES_MAX))))
        yield from found
        if found:
            return


def _of_digest_prefix(graph: Graph, prefix: str) -> Iterator[Match]:
    beyond = prefix + "\U0010ffff"
    sql = (
        f"SELECT id, key FROM nodes WHERE kind = {KIND_CODES['artifact']} AND key >= ?1 AND key < ?2 UNION "
        "SELECT n.id, n.key FROM aliases a JOIN nodes n ON n.id = a.node WHERE a.digest >= ?1 AND a.digest < ?2 LIMIT ?3"
    )
    yield from _artifacts(graph, graph.rows(sql, (prefix, beyond, CANDIDATES_MAX)))


def _artifacts(graph: Graph, rows: Sequence[tuple[int, str]]) -> Iterator[Match]:
    """Yield artifacts, each as the node that it is."""
    claimed = claims(graph, [key for _, key in rows])
    for node_id, key in rows:
        md5 = claimed.get(key, [])
        canonical = graph.node_id(("artifact", md5[0])) if len(md5) == 1 else None
        if canonical is not None:
            yield _match(("artifact", md5[0]), canonical)
        else:
            yield _match(("artifact", key), node_id)


def _executions(graph: Graph, first: bytes, last: bytes) -> Iterator[Match]:
    sql = "SELECT id, key FROM nodes WHERE kind = ? AND key BETWEEN ? AND ? ORDER BY key LIMIT ?"
    for node_id, key in graph.rows(sql, (KIND_CODES["execution"], first, last, CANDIDATES_MAX)):
        yield _match(("execution", key), node_id)


def _events(graph: Graph, first: bytes, last: bytes) -> Iterator[Match]:
    sql = (
        "SELECT substr(e.data, 1, 32) FROM event_ids i JOIN events e ON e.id = i.event "
        "WHERE i.prefix BETWEEN ? AND ? ORDER BY i.prefix LIMIT ?"
    )
    for (event_id,) in graph.rows(sql, (id_prefix(first), id_prefix(last), CANDIDATES_MAX)):
        if first <= event_id <= last:
            yield _event(event_id)


def _event(event_id: bytes) -> Match:
    return Match("event", event_id.hex(), "", None, None, event_id)


def _match(node: Node, node_id: int) -> Match:
    return Match(node[0], node_text(node), "", node, node_id)


def node_text(node: Node) -> str:
    """Return a node's id as people and JSON see it."""
    kind, id_ = node
    if kind == "execution":
        return execution_text(id_)
    if kind == "stage":
        return "/".join(id_)
    return id_.hex() if isinstance(id_, bytes) else str(id_)


def _labelled(graph: Graph, found: Sequence[Match], sites: Mapping[bytes, str]) -> list[Match]:
    """Add to several candidates what helps to tell them apart."""
    if len(found) < 2:
        return list(found)
    with graph.snapshot():
        reading = Reading(graph, sites)
        shown = found[:CANDIDATES_SHOWN]
        ids = {kind: [m.node_id for m in shown if m.kind == kind and m.node_id] for kind in ("execution", "artifact")}
        names = reading.names(ids["artifact"])
        executions = execution_summaries(ids["execution"], reading)
    labels = {node_id: ", ".join(own) for node_id, own in names.items()}
    for node_id, item in executions.items():
        parts = [item["label"], item["name"], item["status"], item["site"], item["started_at"]]
        labels[node_id] = "  ".join(str(part) for part in parts if part)
    for m in shown:
        if m.kind == "event" and m.event_id is not None and (row := graph.event(m.event_id)) is not None:
            found = [other._replace(label=row.header.type) if other is m else other for other in found]
    return [m._replace(label=labels.get(m.node_id or 0, m.label)) for m in found]
