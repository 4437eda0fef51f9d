"""What is read out of the event store for others: trees in pieces, and the stored bytes of some of their events.

Theory of operation: custody numbers its branches as they came, which differs from hub to hub. A *piece* is what lies between two forks (or
accepted gaps), named by its first event: the same on every hub that holds the same events. A piece may lie in several branches of custody,
one after the other, and a branch may hold several pieces. The graph replays the store in its order, so that its branches have custody's
numbers.

Rules
- Only reads. Segments are decoded one at a time, and only those that hold what is asked for.
- A body that a stored segment lacks, but which came later, is in the graph.
- A segment is cut down only by leaving bodies out: statement, signature and headers stay as its site made them.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from cmf_graph.graph import Graph
from cmf_hub.custody import Custody
from cmf_protocol.encoding import INTEGER_MAX
from cmf_protocol.errors import IntegrityError
from cmf_protocol.pull import ToldEvent, Wanted
from cmf_protocol.ranges import Ranges, clip, contains, merged
from cmf_protocol.segments import SEGMENT_BYTES_MAX, Statement, encode_segment, unpack_segment

#: Segments that one answer may have decoded: about half a second's work; the rest is asked for again.
SEGMENTS_PER_ANSWER_MAX = 256
#: Decoded segments that are kept, for those who ask for the same or go on in the same: at most 16 MB.
_DECODED_MAX = 16
#: Names of pieces that begin within a branch of custody, remembered: to find one costs decoding a segment.
_NAMES_MAX = 100_000

Pairs = Sequence[tuple[bytes, bytes | None]]


class Span(NamedTuple):
    """Consecutive events in one branch of custody."""

    branch: int
    first: int
    last: int


class Piece(NamedTuple):
    """A piece of a tree between forks: its name, its tree's root, what it goes on from (None for a root's), and where it is stored."""

    name: bytes
    root: bytes
    parent: bytes | None
    parent_sequence: int | None
    spans: tuple[Span, ...]

    @property
    def first(self) -> int:
        """Sequence of the first event."""
        return self.spans[0].first

    @property
    def last(self) -> int:
        """Sequence of the last event that is held."""
        return self.spans[-1].last


class Row(NamedTuple):
    """A branch as custody keeps it."""

    id: int
    parent: int | None
    parent_sequence: int | None
    first: int
    first_id: bytes
    head: int


class Extracts:
    """Reads the store of a hub; not for several threads at once."""

    def __init__(self, custody: Custody, graph: Graph) -> None:
        self._custody = custody
        self.graph = graph
        self._names: dict[tuple[int, int], bytes] = {}
        self._pieces: dict[int, dict[bytes, Piece]] = {}
        self._decoded: OrderedDict[int, tuple[Statement, bytes, Pairs]] = OrderedDict()

    # -- pieces --------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Read the trees anew: branches have grown or forked, maybe."""
        self._pieces.clear()

    def pieces(self, branch: int) -> dict[bytes, Piece]:
        """Return the pieces of the tree of which the graph's branch is a part, by name, each after the one that it goes on from.

        They are as of the last `forget`. Raises `IntegrityError` if the graph is not one of this store.
        """
        if branch not in self._pieces:
            rows = self._tree_rows(branch)
            first = next(row for row in rows.values() if row.parent is None)
            self._check_same(branch, rows[branch], first.first_id)
            children: dict[tuple[int, int], list[Row]] = {}
            for row in rows.values():
                if row.parent is not None and row.parent_sequence is not None:
                    children.setdefault((row.parent, row.parent_sequence), []).append(row)
            found = {piece.name: piece for piece in self._walk(first, _cuts(rows, children), children)}
            self._pieces.update(dict.fromkeys(rows, found))
        return self._pieces[branch]

    def _tree_rows(self, branch: int) -> dict[int, Row]:
        found = self._custody.rows(
            "SELECT b.id, b.parent, b.parent_sequence, b.first_sequence, b.first_id, b.head_sequence FROM branches b "
            "WHERE b.log = (SELECT log FROM branches WHERE id = ?) ORDER BY b.id",
            (branch,),
        )
        if not found:
            raise _not_this_store(self.graph, branch)
        rows = {row[0]: Row._make(row) for row in found}
        self._names.update({(row.id, row.first): row.first_id for row in rows.values()})
        return rows

    def _check_same(self, branch: int, row: Row, root: bytes) -> None:
        """Check that a number means the same branch in graph and custody."""
        sql = "SELECT t.root, b.first_sequence, b.head_sequence FROM branches b JOIN trees t ON t.id = b.tree WHERE b.id = ?"
        found = self.graph.rows(sql, (branch,))
        if not found or found[0][:2] != (root, row.first) or found[0][2] > row.head:
            raise _not_this_store(self.graph, branch)

    def _walk(
        self, row: Row, cuts: Mapping[int, list[int]], children: Mapping[tuple[int, int], list[Row]]
    ) -> Iterator[Piece]:
        """Yield the piece that begins with a row, and all that follow it."""
        due: list[tuple[Span, bytes | None, int | None]] = [(_span_from(row.id, row.first, cuts), None, None)]
        while due:
            span, parent, parent_sequence = due.pop()
            spans = [span]
            name = self._name(span)
            while len(following := _following(span, cuts, children)) == 1 and following[0].first == span.last + 1:
                span = following[0]
                spans.append(span)
            yield Piece(name, row.first_id, parent, parent_sequence, tuple(spans))
            due += [(each, name, span.last) for each in following]

    def _name(self, span: Span) -> bytes:
        place = span.branch, span.first
        if place not in self._names:
            if len(self._names) > _NAMES_MAX:
                self._names.clear()
            self._names[place] = self._custody.event_id_at(*place)
        return self._names[place]

    def piece(self, name: bytes) -> Piece | None:
        """Return the piece of this name, None if no piece has it (any more)."""
        place = self.graph.place(name)
        return None if place is None else self.pieces(place[0]).get(name)

    # -- events --------------------------------------------------------------------------------------------------------

    def events(self, wanted: Wanted, bytes_max: int) -> list[ToldEvent]:
        """Return events in the order in which they are wanted: as many as have about `bytes_max` bytes, but one at least.

        Those that are not held as they are wanted are left out.
        """
        found: list[ToldEvent] = []
        size = 0
        for name, segment in self._segments(wanted):
            for event in self._told(name, segment):
                size += len(event.header_bytes) + len(event.body or b"") + _EVENT_OVERHEAD
                if found and size > bytes_max:
                    return found
                found.append(event)
        return found

    def _told(self, name: bytes, segment: "_Stored") -> Iterator[ToldEvent]:
        statement, _, pairs = self._decode(segment.id)
        for first, last in segment.wanted:
            for sequence in range(first, last + 1):
                header, body = pairs[sequence - statement.first_sequence]
                yield ToldEvent(name, sequence, header, self._body(header, body))

    def _body(self, header: bytes, body: bytes | None) -> bytes | None:
        """Return a body that was stored, or came later."""
        if body is not None:
            return body
        row = self.graph.event(sha256(header).digest())
        return None if row is None else row.body

    def _segments(self, wanted: Wanted) -> Iterator["tuple[bytes, _Stored]"]:
        """Yield (piece, segment) of the stored segments that hold what is wanted, up to `SEGMENTS_PER_ANSWER_MAX`."""
        count = 0
        for name, ranges in wanted:
            piece = self.piece(name)
            for span in () if piece is None else piece.spans:
                for segment in self._stored(span.branch, clip(ranges, span.first, span.last)):
                    yield name, segment
                    count += 1
                    if count >= SEGMENTS_PER_ANSWER_MAX:
                        return

    def _stored(self, branch: int, ranges: Ranges) -> Iterator["_Stored"]:
        """Yield the stored segments of a branch that hold these sequences, each with those that it holds."""
        sql = (
            "SELECT id, first_sequence, last_sequence FROM segments WHERE branch = ? AND last_id IS NOT NULL "
            "AND first_sequence <= ? ORDER BY first_sequence DESC LIMIT 1"
        )
        while ranges:
            rows = self._custody.rows(sql, (branch, ranges[0][0]))
            if not rows or rows[0][2] < ranges[0][0]:
                raise IntegrityError(
                    f"{self._custody.name}: branch {branch} lacks event {ranges[0][0]}", "see cmf-hub verify"
                )
            number, first, last = rows[0]
            here = clip(ranges, first, last)
            yield _Stored(number, branch, first, here)
            ranges = clip(ranges, last + 1, INTEGER_MAX)

    def _decode(self, number: int) -> tuple[Statement, bytes, Pairs]:
        found = self._decoded.get(number)
        if found is None:
            found = unpack_segment(self._custody.rows("SELECT data FROM segments WHERE id = ?", (number,))[0][0])
            self._decoded[number] = found
            if len(self._decoded) > _DECODED_MAX:
                self._decoded.popitem(last=False)
        return found

    # -- proofs --------------------------------------------------------------------------------------------------------

    def segments(self, wanted: Wanted, bodies: Wanted, bytes_max: int) -> list[bytes]:
        """Return the signed segments that hold what is wanted, with these bodies only: about `bytes_max` bytes, one at least."""
        kept = self._by_branch(bodies)
        found: list[bytes] = []
        seen: set[int] = set()
        size = 0
        for _, segment in self._segments(wanted):
            if segment.id in seen:
                continue
            seen.add(segment.id)
            cut = list(self._cut_down(segment, kept))
            size += sum(map(len, cut))
            if found and size > bytes_max:
                return found
            found += cut
        return found

    def _by_branch(self, wanted: Wanted) -> dict[int, Ranges]:
        found: dict[int, list[tuple[int, int]]] = {}
        for name, ranges in wanted:
            piece = self.piece(name)
            for span in () if piece is None else piece.spans:
                found.setdefault(span.branch, []).extend(clip(ranges, span.first, span.last))
        return {branch: merged(pairs) for branch, pairs in found.items()}

    def _cut_down(self, segment: "_Stored", kept: Mapping[int, Ranges]) -> Iterator[bytes]:
        """Yield a stored segment with the bodies that are kept, several times where these don't fit one segment."""
        statement, signature, pairs = self._decode(segment.id)
        ranges = clip(kept.get(segment.branch, ()), segment.first, statement.last_sequence)
        headers = sum(len(header) for header, _ in pairs)
        cut: list[tuple[bytes, bytes | None]] = [(header, None) for header, _ in pairs]
        size = headers
        for at, (header, stored) in enumerate(pairs):
            if not contains(ranges, statement.first_sequence + at):
                continue
            body = self._body(header, stored)
            if body is not None and size + len(body) > SEGMENT_BYTES_MAX:
                yield encode_segment(statement, signature, cut)
                cut = [(each, None) for each, _ in pairs]
                size = headers
            cut[at] = header, body
            size += len(body or b"")
        yield encode_segment(statement, signature, cut)


#: What an event costs in an answer beside its header and body: branch, sequence, lengths.
_EVENT_OVERHEAD = 60


class _Stored(NamedTuple):
    """A stored segment: its number, its branch, the first event that it brought there, and which of its events are asked for."""

    id: int
    branch: int
    first: int
    wanted: Ranges


def _cuts(rows: Mapping[int, Row], children: Mapping[tuple[int, int], list[Row]]) -> dict[int, list[int]]:
    """Return, for each branch, the sequences after which it forks, and its head's, ascending."""
    cuts = {row.id: {row.head} for row in rows.values()}
    for branch, sequence in children:
        cuts[branch].add(sequence)
    return {branch: sorted(found) for branch, found in cuts.items()}


def _span_from(branch: int, first: int, cuts: Mapping[int, list[int]]) -> Span:
    ends = cuts[branch]
    return Span(branch, first, ends[bisect_left(ends, first)])


def _following(span: Span, cuts: Mapping[int, list[int]], children: Mapping[tuple[int, int], list[Row]]) -> list[Span]:
    """Return the spans that go on from a span's last event, in custody's order."""
    found = [_span_from(span.branch, span.last + 1, cuts)] if span.last < cuts[span.branch][-1] else []
    return found + [_span_from(row.id, row.first, cuts) for row in children.get((span.branch, span.last), ())]


def _not_this_store(graph: Graph, branch: int) -> IntegrityError:
    return IntegrityError(f"{graph.name}: branch {branch} is not the store's", "run cmf-hub rebuild")
