"""Finds what a REF on the command line names, in this site's own logs.

A REF is, in this order: the whole id of an execution or event, a content id, a path to a file or folder that exists (its
content now); else whatever fits of: the first digits (6 or more) of such an id or digest, an artifact's name, a
pipeline, `pipeline/stage`.

Rules
- Several that fit are an error that lists them; none is an error that says what was tried.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from cmf_agent.home import Home
from cmf_agent.naming import describe_node
from cmf_agent.reading import LogReader, StoredEvent
from cmf_graph.content.files import hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import CallerError, DecodeError
from cmf_protocol.events import Event, Node, decode_body
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_USED

PREFIX_MIN = 6
CANDIDATES_MAX = 10

Target = Node | Event

_HEX = re.compile(r"[0-9a-f]+(\.dir)?")
_CONTENT_ID = re.compile(r"md5:[0-9a-f]{32}(\.dir)?|sha256:[0-9a-f]{64}")


def resolve_ref(home: Home, ref: str) -> Target:
    """Return the node or the event that `ref` names; raise `CallerError` if that is none, or several."""
    if _CONTENT_ID.fullmatch(ref.lower()):
        return "artifact", ref.lower()
    on_disk = _content_at(home, ref)
    if on_disk is not None:
        return on_disk
    with LogReader(home.log_path) as reader:
        found = _Candidates(ref)
        for stored in reader.all_events():
            found.look_at(stored)
    return found.only_one(home)


def _content_at(home: Home, ref: str) -> Node | None:
    if "\0" in ref or not Path(ref).exists():
        return None
    with DigestMemory(home.digests_path) as memory:
        return "artifact", hash_path(Path(ref), memory=memory).content_id


class _Candidates:
    """What fits a REF, gathered event by event."""

    def __init__(self, ref: str) -> None:
        self._ref = ref
        self._name = unicodedata.normalize("NFC", ref)
        digits = ref.lower().removeprefix("md5:").removeprefix("sha256:")
        hexadecimal = digits.replace("-", "")
        self._digits = digits if len(digits) >= PREFIX_MIN and _HEX.fullmatch(digits) else None
        self._id = hexadecimal if len(hexadecimal) >= PREFIX_MIN and _HEX.fullmatch(hexadecimal) else None
        self._nodes: dict[Node, None] = {}
        self._events: dict[bytes, StoredEvent] = {}

    def look_at(self, stored: StoredEvent) -> None:
        """Note what of an event fits: itself, the nodes that it is about, the name it gives an artifact."""
        if self._id is not None and stored.event_id.hex().startswith(self._id):
            self._events[stored.event_id] = stored
        header = stored.header
        for node in header.about:
            if self._fits(node):
                self._nodes[node] = None
        if header.type in (ARTIFACT_USED, ARTIFACT_PRODUCED) and _name_in(stored) == self._ref:
            self._nodes[header.about[0]] = None

    def _fits(self, node: Node) -> bool:
        kind, id_ = node
        if kind == "execution":
            return self._id is not None and isinstance(id_, bytes) and id_.hex().startswith(self._id)
        if kind == "artifact":
            return self._digits is not None and str(id_).partition(":")[2].startswith(self._digits)
        if kind == "stage" and isinstance(id_, tuple) and len(id_) == 2:
            if id_[0] == self._name:
                self._nodes["pipeline", id_[0]] = None
            return f"{id_[0]}/{id_[1]}" == self._name
        return kind == "pipeline" and id_ == self._name

    def only_one(self, home: Home) -> Target:
        """Return the one that fits."""
        if len(self._nodes) + len(self._events) == 1:
            return next(iter(self._nodes), None) or next(iter(self._events.values())).decoded()
        texts = [*map(describe_node, self._nodes), *(_describe_event(event) for event in self._events.values())]
        if not texts:
            raise CallerError(
                f"nothing here is called {self._ref!r}",
                f"tried as a file, an id or digest (6 digits or more), a name, a pipeline, a stage, in {home.log_path}",
            )
        shown = "".join(f"\n  {text}" for text in texts[:CANDIDATES_MAX])
        more = f"\n  and {len(texts) - CANDIDATES_MAX} more" if len(texts) > CANDIDATES_MAX else ""
        raise CallerError(f"{self._ref!r} may be any of:{shown}{more}", "give more of the id")


def _name_in(stored: StoredEvent) -> object:
    try:
        return decode_body(stored.body).get("name") if stored.body is not None else None
    except DecodeError:
        return None


def _describe_event(stored: StoredEvent) -> str:
    return f"event {stored.event_id.hex()} ({stored.header.type})"


def events_about(home: Home, node: Node, types: tuple[str, ...]) -> Iterator[StoredEvent]:
    """Yield this site's events of these types that are about `node`."""
    with LogReader(home.log_path) as reader:
        for stored in reader.all_events():
            header = stored.header
            if header.type in types and node in header.about:
                yield stored
