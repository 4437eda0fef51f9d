"""What is listed for a filter, by pieces of trees, and what of it an asker does not know yet (protocol/README.md, section 10).

Rules
- A listing is the same on every hub that holds the same events: nothing in it is this hub's numbering.
- Those who ask for the same while nothing has changed share one listing; what is remembered is bounded.
- An answer names what is new, and where that is too much for one message, says so.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

import msgpack

from cmf_graph.graph import Graph
from cmf_graph.reading import site_name
from cmf_graph.selection import Standing, own_events, stand, with_roots
from cmf_hub.extracts import Extracts, Piece
from cmf_protocol.encoding import INTEGER_MAX
from cmf_protocol.filters import Filter
from cmf_protocol.pull import Known, ToldBranch, ToldTree, listing_digest
from cmf_protocol.ranges import Ranges, clip, last_of, merged

#: Room in an answer (`ANSWER_BYTES_MAX`) for what is not a row: filter, ids, lengths.
ROWS_BYTES_MAX = 800_000
#: Ranges in one row: with its fields less than what an answer holds, whatever the sequences.
ROW_RANGES_MAX = 20_000
#: Listings that are remembered, and numbers of nodes and ranges in them together (50 to 100 bytes each).
LISTINGS_MAX = 256
REMEMBERED_MAX = 1_000_000
#: Fields of a row beside its ranges, bytes.
_ROW_BYTES = 200
_TREE_BYTES = 200
_RANGE_BYTES = 19
_ID_BYTES = 34


class Listed(NamedTuple):
    """A piece and the sequences in it that are listed; none of one that others go on from."""

    piece: Piece
    ranges: Ranges

    @property
    def upto(self) -> int:
        """The last listed sequence."""
        return last_of(self.ranges)

    def digest(self, upto: int) -> bytes:
        """Return the digest of what is listed up to a sequence."""
        return listing_digest(self.piece.parent, self.piece.parent_sequence, self.ranges, upto)


class Listing:
    """All that is listed for a filter: trees by root, branches in the order in which they are told."""

    def __init__(self, trees: Mapping[bytes, ToldTree], branches: Sequence[Listed]) -> None:
        self.trees = trees
        self.branches = branches

    @cached_property
    def digests(self) -> list[bytes]:
        """The digest of each branch's whole list."""
        return [listed.digest(listed.upto) for listed in self.branches]

    @cached_property
    def names(self) -> set[bytes]:
        """The names of the branches."""
        return {listed.piece.name for listed in self.branches}

    @cached_property
    def size(self) -> int:
        """How many ranges and branches there are."""
        return sum(len(listed.ranges) + 2 for listed in self.branches)

    def version(self, without: str | None) -> bytes:
        """Return what changes with the listing, leaving out the trees of one site."""
        found = sha256()
        for listed, digest in zip(self.branches, self.digests, strict=True):
            if self.trees[listed.piece.root].site != without:
                found.update(listed.piece.name + digest)
        return found.digest()


class Told(NamedTuple):
    """What an asker is told: see `PullAnswer`."""

    trees: tuple[ToldTree, ...]
    branches: tuple[ToldBranch, ...]
    gone: tuple[bytes, ...]
    complete: bool


def tell(listing: Listing, known: Iterable[Known], bytes_max: int = ROWS_BYTES_MAX) -> Told:
    """Return what of a listing is not known, as far as it fits."""
    by_name = {row.branch: row for row in known}
    gone = tuple(sorted(name for name in by_name if name not in listing.names))
    room = bytes_max - _ID_BYTES * len(gone)
    told_roots = {each.piece.root for each in listing.branches if each.piece.name in by_name}
    trees: list[ToldTree] = []
    branches: list[ToldBranch] = []
    for listed, whole in _news(listing, by_name):
        ranges_max = min(ROW_RANGES_MAX, (room - _ROW_BYTES - _TREE_BYTES) // _RANGE_BYTES)
        if ranges_max < 1 and branches:
            return Told(tuple(trees), tuple(branches), gone, False)
        if listed.piece.root not in told_roots:
            told_roots.add(listed.piece.root)
            trees.append(listing.trees[listed.piece.root])
            room -= _TREE_BYTES
        row = _row(listed, by_name.get(listed.piece.name), max(ranges_max, 1), whole)
        branches.append(row)
        room -= _ROW_BYTES + _RANGE_BYTES * len(row.ranges)
        if row.upto < listed.upto:
            return Told(tuple(trees), tuple(branches), gone, False)
    return Told(tuple(trees), tuple(branches), gone, True)


def _news(listing: Listing, known: Mapping[bytes, Known]) -> Iterator[tuple[Listed, bytes]]:
    """Yield the branches of which something is not known, each with its whole digest."""
    for listed, whole in zip(listing.branches, listing.digests, strict=True):
        row = known.get(listed.piece.name)
        up_to_date = row is not None and row.upto >= listed.upto and row.digest == whole
        if not up_to_date:
            yield listed, whole


def _row(listed: Listed, known: Known | None, ranges_max: int, whole: bytes) -> ToldBranch:
    """Return what is told of a branch: beyond what is known, if that still holds, else all of it."""
    piece = listed.piece
    after = known.upto if known is not None and known.digest == listed.digest(known.upto) else 0
    fresh = clip(listed.ranges, after + 1, INTEGER_MAX)
    ranges = fresh[:ranges_max]
    upto = max(after, last_of(ranges))
    digest = whole if len(ranges) == len(fresh) else listed.digest(upto)
    before = (piece.name, piece.root, piece.parent, piece.parent_sequence, piece.first)
    return ToldBranch(*before, after, ranges, upto, digest)


class _Made(NamedTuple):
    """A listing, of which moment it is, and what makes the next one cheap (None of own events)."""

    moment: object
    sites: Mapping[bytes, str]
    listing: Listing
    standing: Standing | None
    size: int


class Listings:
    """Makes listings and remembers them; not for several threads at once."""

    def __init__(self, extracts: Extracts) -> None:
        self._extracts = extracts
        self._made: OrderedDict[bytes, _Made] = OrderedDict()

    def listing(self, wanted: Filter, asker: str, sites: Mapping[bytes, str], as_of: object) -> Listing:
        """Return what is listed for a filter; `as_of` is another value whenever the graph or the store's branches have changed.

        `sites` names the site of each signing key. Raises like `listed_events`, and `IntegrityError`.
        """
        key = msgpack.packb([wanted.canonical(), asker if wanted.own else None])
        made = self._made.pop(key, None)
        if made is None or (made.moment, made.sites) != (as_of, sites):
            before = made.standing if made is not None and made.sites == sites else None
            made = self._make(wanted, asker, sites, as_of, before)
        self._made[key] = made
        size = sum(each.size for each in self._made.values())
        while len(self._made) > 1 and (len(self._made) > LISTINGS_MAX or size > REMEMBERED_MAX):
            size -= self._made.popitem(last=False)[1].size
        return made.listing

    def _make(
        self, wanted: Filter, asker: str, sites: Mapping[bytes, str], as_of: object, before: Standing | None
    ) -> _Made:
        graph = self._extracts.graph
        if wanted.own:
            standing, ranges = None, own_events(graph, {key for key, site in sites.items() if site == asker})
        else:
            standing = stand(graph, wanted, sites, before)
            ranges = with_roots(graph, standing.ranges)
        listing = in_pieces(self._extracts, ranges, sites)
        return _Made(as_of, sites, listing, standing, listing.size + (standing.size if standing else 0))


def in_pieces(extracts: Extracts, ranges: Mapping[int, Ranges], sites: Mapping[bytes, str]) -> Listing:
    """Return what is listed in the graph's branches by pieces; raises `IntegrityError` if the graph is not the store's."""
    found: list[list[Listed]] = []
    seen: set[bytes] = set()
    for branch in ranges:
        pieces = extracts.pieces(branch)
        root = next(iter(pieces))
        if root not in seen:
            seen.add(root)
            found.append(_listed_of(pieces, ranges))
    found.sort(key=lambda tree: (len(tree), tree[0].piece.root))
    return Listing(_trees(extracts.graph, seen, sites), [listed for tree in found for listed in tree])


def _listed_of(pieces: Mapping[bytes, Piece], ranges: Mapping[int, Ranges]) -> list[Listed]:
    """Return the pieces of a tree with what is listed in them, and those from which such a one goes on."""
    found: dict[bytes, Ranges] = {}
    for piece in pieces.values():
        spans = (clip(ranges.get(span.branch, ()), span.first, span.last) for span in piece.spans)
        here = merged(pair for span in spans for pair in span)
        if not here:
            continue
        found[piece.name] = here
        parent = piece.parent
        while parent is not None and parent not in found:
            found[parent] = ()
            parent = pieces[parent].parent
    listed = [Listed(pieces[name], here) for name, here in found.items()]
    return sorted(listed, key=lambda each: (each.piece.first, each.piece.name))


def _trees(graph: Graph, roots: set[bytes], sites: Mapping[bytes, str]) -> dict[bytes, ToldTree]:
    return {
        tree.root: ToldTree(tree.root, tree.log_id, tree.key, site_name(tree.key, sites))
        for tree in graph.trees().values()
        if tree.root in roots
    }
