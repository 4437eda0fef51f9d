"""What a hub answers to pulls: what is listed for a filter, the events themselves, and who wants to hear of more.

Rules
- Every enrolled site that is not revoked may read everything.
- What is asked is bounded by `cmf_protocol.pull`, what is answered by a message.
- Only reads; an answer is of one moment of the graph.
- Who listens is kept in memory only: when the hub has started it says so to all sites, and they pull again.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cmf_graph.graph import Graph
from cmf_graph.refs import resolve_artifact
from cmf_hub.consumer import now_us
from cmf_hub.custody import Custody
from cmf_hub.data import DataFolder
from cmf_hub.extracts import Extracts
from cmf_hub.listings import Listing, Listings, tell
from cmf_hub.projector import SOURCE, caught_up_graph
from cmf_hub.registry import Registry
from cmf_protocol.errors import AccessDenied, CallerError
from cmf_protocol.filters import Filter, filter_of
from cmf_protocol.fold import WITHHELD
from cmf_protocol.messages import NOTICE_NEW, Notice, encode_notice
from cmf_protocol.pull import EventsAnswer, EventsRequest, PullAnswer, PullRequest

#: Bytes of events in one answer: uncompressed, so that it fits a message even if nothing can be compressed.
EVENTS_BYTES_MAX = 850_000
#: Texts of one filter that are not content ids: to find what one means can cost a look at all names.
NAMES_MAX = 16
#: Filters that a site may listen to; the oldest is forgotten.
LISTENED_MAX = 64
#: How often those who listen are thought of, s.
NOTICE_EVERY_S = 1.0


class _Ear(NamedTuple):
    """Who listens to what."""

    site: str
    filter: Filter


class Pulls:
    """Answers requests over one hub's data; not for several threads at once."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._registry = Registry(data.registry)
        self._custody = Custody(data.store, self._registry)
        self._hub_id, _ = self._registry.identity()
        self._incarnation = self._custody.incarnation
        self._open: tuple[Path, Extracts, Listings] | None = None
        self._ears: OrderedDict[_Ear, bytes] = OrderedDict()
        self._looked: tuple[object, float] = (None, 0.0)

    def close(self) -> None:
        """Close all that is open."""
        if self._open is not None:
            self._open[1].graph.connection.close()
        self._custody.close()
        self._registry.close()

    # -- what there is -------------------------------------------------------------------------------------------------

    def stored(self) -> int:
        """Return the number of the newest stored segment."""
        return self._custody.last_segment()

    def projected(self) -> int:
        """Return the number of the segment up to which the graph has read the store."""
        return self._opened()[0].graph.checkpoint(SOURCE)

    def _opened(self) -> tuple[Extracts, Listings]:
        """Return what reads the graph in use, opened anew if another has taken its place."""
        file = self._data.graph_file()
        if self._open is None or self._open[0] != file:
            graph, _ = caught_up_graph(self._data, wait_s=0.0)
            if self._open is not None:
                self._open[1].graph.connection.close()
            extracts = Extracts(self._custody, graph)
            self._open = file, extracts, Listings(extracts)
        return self._open[1:]

    @contextmanager
    def _reading(self) -> Iterator[Extracts]:
        """Let everything read in the block be of one moment of the graph, and of a later one of the store."""
        extracts, _ = self._opened()
        with extracts.graph.snapshot():
            extracts.graph.checkpoint(SOURCE)  # from here on
            with self._custody.snapshot():
                extracts.forget()
                yield extracts

    def _as_of(self, extracts: Extracts) -> tuple[int, int]:
        """Return what changes whenever a listing may."""
        branches = self._custody.rows("SELECT coalesce(max(id), 0) FROM branches")[0][0]
        return extracts.graph.checkpoint(SOURCE), branches

    def _listing(self, wanted: Filter, asker: str, sites: dict[bytes, str]) -> Listing:
        extracts, listings = self._opened()
        return listings.listing(wanted, asker, sites, self._as_of(extracts))

    def _check_reader(self, site: str) -> None:
        found = next((each for each in self._registry.sites() if each.name == site), None)
        if found is None or found.revoked:
            raise AccessDenied(f"the site {site} may not read here", "ask the hub's operator: cmf-hub site list")

    # -- answers -------------------------------------------------------------------------------------------------------

    def pull(self, site: str, request: PullRequest) -> PullAnswer:
        """Return what is listed that the site does not know; with `listen`, remember that it wants to know more."""
        self._check_reader(site)
        sites = self._registry.names_by_key()
        with self._reading() as extracts:
            wanted = resolved(request.filter, extracts, sites)
            listing = self._listing(wanted, site, sites)
            withheld = _withheld(extracts.graph)
        if request.listen:
            self._listen(_Ear(site, wanted), listing)
        told = tell(listing, request.known)
        return PullAnswer(self._hub_id, self._incarnation, now_us(), wanted, *told, withheld)

    def events(self, site: str, request: EventsRequest) -> EventsAnswer:
        """Return the events that the site wants, as many as fit; raise `CallerError` if none of them is here as it says."""
        self._check_reader(site)
        size = min(request.bytes_wanted, EVENTS_BYTES_MAX)
        with self._reading() as extracts:
            if request.bodies is None:
                answer = EventsAnswer(self._hub_id, events=tuple(extracts.events(request.wanted, size)))
            else:
                segments = extracts.segments(request.wanted, request.bodies, size)
                answer = EventsAnswer(self._hub_id, segments=tuple(segments))
        if not answer.events and not answer.segments:
            raise CallerError("none of these events is held as it is asked for", "pull again: branches have changed")
        return answer

    # -- notices -------------------------------------------------------------------------------------------------------

    def _listen(self, ear: _Ear, listing: Listing) -> None:
        self._ears.pop(ear, None)
        self._ears[ear] = _version(ear, listing)
        mine = [each for each in self._ears if each.site == ear.site]
        for each in mine[:-LISTENED_MAX]:
            del self._ears[each]

    def due(self) -> list[Filter]:
        """Return the filters that somebody listens to, if anything has arrived since they were last returned."""
        if not self._ears or time.monotonic() < self._looked[1] + NOTICE_EVERY_S:
            return []
        as_of = self._as_of(self._opened()[0])
        if as_of == self._looked[0]:
            return []
        self._looked = as_of, time.monotonic()
        return list(dict.fromkeys(ear.filter for ear in self._ears))

    def heard(self, wanted: Filter) -> list[str]:
        """Return the sites that listen to a filter for which something has been listed since they last knew, or which can't be listed."""
        sites = self._registry.names_by_key()
        found = []
        with self._reading():
            for ear in [each for each in self._ears if each.filter == wanted]:
                try:
                    version = _version(ear, self._listing(wanted, ear.site, sites))
                except CallerError:  # its lineage has grown too large: the site is told why when it pulls
                    version = b""
                if version != self._ears[ear]:
                    self._ears[ear] = version
                    found.append(ear.site)
        return found

    def notice(self) -> bytes:
        """Return the bytes of the notice that there is more."""
        return encode_notice(Notice(self._hub_id, self._incarnation, NOTICE_NEW))


def _version(ear: _Ear, listing: Listing) -> bytes:
    """Return what changes when there is more for a site: not by what it has brought itself, unless it asks for its own."""
    return listing.version(None if ear.filter.own else ear.site)


def _withheld(graph: Graph) -> bytes:
    """Return what changes when a body comes for an event that had none: one of later events takes a higher number."""
    sql = "SELECT count(*), coalesce(sum(event), 0) FROM unfolded WHERE reason = ?"
    return ":".join(map(str, graph.rows(sql, (WITHHELD,))[0])).encode()


def resolved(wanted: Filter, extracts: Extracts, sites: dict[bytes, str]) -> Filter:
    """Return the filter with content ids in the place of what else names an artifact; raise `CallerError` for what names none."""
    graph = extracts.graph
    names = [text for text in wanted.artifacts if not _is_content_id(text) and not graph.node_id(("artifact", text))]
    if not names:
        return wanted
    if len(names) > NAMES_MAX:
        raise CallerError(f"a pull names at most {NAMES_MAX} artifacts by name", "give the content ids of the others")
    found = {text: resolve_artifact(graph, text, sites=sites).id for text in names}
    return filter_of(
        pipelines=wanted.pipelines,
        sites=wanted.sites,
        since_us=wanted.since_us,
        artifacts=[found.get(text, text) for text in wanted.artifacts],
    )


def _is_content_id(text: str) -> bool:
    """Tell if a text is a whole content id, whether its artifact is known here or not yet."""
    algorithm, _, digest = text.partition(":")
    return len(digest.removesuffix(".dir")) == {"md5": 32, "sha256": 64}.get(algorithm)
