"""What hubs listed for each filter, and what of it is lacking here (protocol/README.md, section 10).

Theory of operation: for a filter the hub tells ranges of sequences in pieces of trees. They are kept per filter and piece,
and shown to the hub again as `known`, so that it tells only what is new. Events that no filter lists any more are dropped.
Of each list it is noted up to where all of it is `here`, so that the next pull looks only at what is new. Bodies that a hub has not
are asked for again when it says that such a one has come.

Rules
- The hub's digest of a list must be that of what is kept then; else it is an `IntegrityError`.
- When a piece turns out to end earlier (others go on from within it), what is held beyond is of no known place: it is
  dropped and asked for again. When one reaches beyond where another was told to go on from it (what was lost has come), that other one
  is no piece any more.
- What another filter listed and is dropped so makes that one incomplete.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cmf_agent.pull_checks import Piece, check_filter, check_places, check_trees, wrong
from cmf_agent.pulled import Pulled
from cmf_protocol.encoding import decode, encode
from cmf_protocol.errors import CallerError
from cmf_protocol.filters import Filter, decode_filter
from cmf_protocol.pull import KNOWN_MAX, Known, PullAnswer, PullRequest, ToldBranch, listing_digest
from cmf_protocol.ranges import Ranges, clip, intersect, last_of, subtract, union

_INFINITY = 2**63 - 1


class Asked(NamedTuple):
    """A filter that was asked for: as the user gave it, and as the hub understood it; `as_of_us` is the hub's time of the last pull."""

    id: int
    asked: Filter
    told: Filter
    subscribed: bool
    prove: bool
    as_of_us: int | None
    complete: bool


class Lacking(NamedTuple):
    """What is to be fetched of a piece: events that are lacking (or their proof), and of these the ones whose bodies are."""

    piece: Piece
    ranges: Ranges
    bodies: Ranges

    @property
    def is_root(self) -> bool:
        """Whether it is the first event of a tree: it is fetched before the others."""
        return self.ranges[0][0] == 1


#: Returns up to which sequence of a piece the hub holds events of this site's own logs: these are not fetched.
OwnUpto = Callable[[Piece], int]


class Listings:
    """The filters and lists of one `Pulled`."""

    def __init__(self, pulled: Pulled) -> None:
        self._pulled = pulled

    # -- filters -------------------------------------------------------------------------------------------------------

    def filters(self) -> list[Asked]:
        """Return all filters that were asked for and not forgotten."""
        sql = "SELECT id, asked, told, subscribed, prove, as_of_us, complete FROM filters ORDER BY id"
        return [
            Asked(
                row[0], decode_filter(row[1]), decode_filter(row[2]), bool(row[3]), bool(row[4]), row[5], bool(row[6])
            )
            for row in self._pulled.rows(sql)
        ]

    def find(self, wanted: Filter) -> Asked | None:
        """Return the filter that was asked for, or understood, as this one."""
        return next((each for each in self.filters() if wanted in (each.asked, each.told)), None)

    def ask(self, wanted: Filter, *, subscribe: bool = False, prove: bool = False) -> Asked:
        """Note a filter, or that it is subscribed to or to be proven from now on."""
        with self._pulled.writing():
            known = self.find(wanted)
            if known is None:
                row = (wanted.canonical(), wanted.canonical(), int(subscribe), int(prove))
                self._pulled.write("INSERT INTO filters (asked, told, subscribed, prove) VALUES (?, ?, ?, ?)", row)
            else:
                sql = "UPDATE filters SET subscribed = max(subscribed, ?), prove = max(prove, ?) WHERE id = ?"
                self._pulled.write(sql, (int(subscribe), int(prove), known.id))
                if prove and not known.prove:
                    self._pulled.write("UPDATE listings SET here = 0 WHERE filter = ?", (known.id,))
            found = self.find(wanted)
        assert found is not None, "it was noted just now"
        return found

    def unsubscribe(self, filter_id: int, *, forget: bool) -> None:
        """Pull a filter no longer; with `forget` drop the events too that no other one lists."""
        with self._pulled.writing():
            self._pulled.write("UPDATE filters SET subscribed = 0 WHERE id = ?", (filter_id,))
            if not forget:
                return
            for piece, ranges in self._lists(filter_id).items():
                self._remove(filter_id, piece, ranges)
            self._pulled.write("DELETE FROM filters WHERE id = ?", (filter_id,))
            if not self._pulled.rows("SELECT 1 FROM listings LIMIT 1"):
                self._pulled.forget_told()

    def check_asked(self, filter_id: int) -> None:
        """Raise `CallerError` if a filter was forgotten meanwhile."""
        if not self._pulled.rows("SELECT 1 FROM filters WHERE id = ?", (filter_id,)):
            raise CallerError("what was being pulled was forgotten meanwhile", "subscribe again if it is wanted")

    def begin(self, filter_id: int, as_of_us: int) -> None:
        """Note that not all that was listed at a time of the hub is here yet."""
        with self._pulled.writing():
            self._pulled.write("UPDATE filters SET as_of_us = ?, complete = 0 WHERE id = ?", (as_of_us, filter_id))

    def finish(self, filter_id: int, answer: PullAnswer, own_upto: "OwnUpto", *, proven: bool) -> None:
        """Note that all that is listed is here, as far as the hub has it, as of its last answer; where `proven`, with its proofs."""
        pieces = {piece.id: piece for piece in self._pulled.pieces().values()}
        with self._pulled.writing():
            sql = "UPDATE filters SET complete = 1, as_of_us = ?, withheld = ? WHERE id = ?"
            self._pulled.write(sql, (answer.time_us, answer.withheld, filter_id))
            if not proven and self._pulled.rows("SELECT 1 FROM filters WHERE id = ? AND prove", (filter_id,)):
                return  # to be proven is what was asked for meanwhile
            for number, upto in self._pulled.rows("SELECT piece, upto FROM listings WHERE filter = ?", (filter_id,)):
                row = (upto, own_upto(pieces[number]), filter_id, number)
                sql = "UPDATE listings SET here = ?1, own = ?2 WHERE filter = ?3 AND piece = ?4 AND (here, own) != (?1, ?2)"
                self._pulled.write(sql, row)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def known(self, filter_id: int) -> tuple[Known, ...]:
        """Return what the hub is to be told that it told."""
        sql = (
            "SELECT p.name, l.upto, l.digest FROM listings l JOIN pieces p ON p.id = l.piece WHERE l.filter = ? "
            "ORDER BY p.id LIMIT ?"
        )
        return tuple(Known._make(row) for row in self._pulled.rows(sql, (filter_id, KNOWN_MAX)))

    def told(self, filter_id: int) -> Filter:
        """Return a filter as the hub understood it."""
        self.check_asked(filter_id)
        return decode_filter(self._pulled.rows("SELECT told FROM filters WHERE id = ?", (filter_id,))[0][0])

    def _lists(self, filter_id: int) -> dict[int, Ranges]:
        rows = self._pulled.rows("SELECT piece, ranges FROM listings WHERE filter = ?", (filter_id,))
        return {piece: decode(ranges) for piece, ranges in rows}

    def take(self, asked: Asked, request: PullRequest, answer: PullAnswer, hub: str) -> bool:
        """Keep what a hub told for a filter, all of it or, where something is wrong, nothing; tell if that was all.

        What another store says is new, compared with what was told before, is dropped with that: it is to be asked again.
        """
        pulled = self._pulled
        with pulled.writing():
            self.check_asked(asked.id)
            check_filter(answer.filter, request.filter, hub)
            if pulled.come_from(answer.hub_id, answer.incarnation) and request.known:
                return False
            check_trees(answer.trees, pulled.trees(), hub)
            for tree in answer.trees:
                pulled.write("INSERT OR REPLACE INTO trees VALUES (?, ?, ?, ?)", tree)
            for told in answer.branches:
                self._place(told, hub)
            pieces = pulled.pieces()
            check_places(answer.branches, pieces, hub)
            for told in answer.branches:
                self._list(asked.id, pieces[told.branch].id, told, hub)
            self._check_roots(asked.id, answer, pieces, hub)
            for name in answer.gone:
                if name in pieces:
                    self._remove(asked.id, pieces[name].id, self._listed(asked.id, pieces[name].id))
            as_before = not answer.branches and not answer.gone
            sql = "UPDATE filters SET told = ?, complete = complete AND ? WHERE id = ?"
            pulled.write(sql, (answer.filter.canonical(), int(as_before), asked.id))
        return answer.complete

    def _check_roots(self, filter_id: int, answer: PullAnswer, pieces: Mapping[bytes, Piece], hub: str) -> None:
        """Check that the first event of each tree is listed: it names the key by which the others are checked."""
        for root in {told.root for told in answer.branches}:
            listed = self._listed(filter_id, pieces[root].id) if root in pieces else ()
            if listed[:1] == () or listed[0][0] != 1:
                raise wrong(hub, f"it does not list the first event of the tree {root.hex()[:12]}")

    def _place(self, told: ToldBranch, hub: str) -> None:
        """Keep where a piece stands; what was told differently before is not shown until the view is made anew."""
        pulled = self._pulled
        place = (told.root, told.parent, told.parent_sequence, told.first_sequence)
        sql = "SELECT root, parent, parent_sequence, first_sequence FROM pieces WHERE name = ?"
        before = pulled.rows(sql, (told.branch,))
        if before and (before[0][0], before[0][3]) != (told.root, told.first_sequence):
            raise wrong(hub, f"branch {told.branch.hex()[:12]} begins elsewhere than it did")
        if not before:
            sql = "INSERT INTO pieces (name, root, parent, parent_sequence, first_sequence) VALUES (?, ?, ?, ?, ?)"
            pulled.write(sql, (told.branch, *place))
        elif before[0] != place:
            sql = "UPDATE pieces SET parent = ?, parent_sequence = ? WHERE name = ?"
            pulled.write(sql, (told.parent, told.parent_sequence, told.branch))
            pulled.renew()
        for (parent,) in pulled.rows("SELECT id FROM pieces WHERE name = ?", (told.parent,)):
            self._lose(parent, (((told.parent_sequence or 0) + 1, _INFINITY),))

    def _lose(self, piece: int, ranges: Ranges) -> None:
        """Drop events that may be listed: those who list them are not complete any more."""
        if not self._pulled.drop(piece, ranges):
            return
        incomplete = "UPDATE filters SET complete = 0 WHERE id IN (SELECT filter FROM listings WHERE piece = ?)"
        self._pulled.write(incomplete, (piece,))
        self._pulled.write("UPDATE listings SET here = 0 WHERE piece = ?", (piece,))

    def _forget_following(self, piece: bytes, sequence: int) -> None:
        """Forget the pieces that were told to go on from within what is one piece up to `sequence`, and all that follow them."""
        sql = "SELECT id, name FROM pieces WHERE parent = ? AND parent_sequence < ?"
        due = self._pulled.rows(sql, (piece, sequence))
        while due:
            number, name = due.pop()
            due += self._pulled.rows(sql, (name, _INFINITY))
            self._lose(number, ((1, _INFINITY),))
            self._pulled.write("DELETE FROM listings WHERE piece = ?", (number,))
            self._pulled.write("DELETE FROM pieces WHERE id = ?", (number,))

    def _listed(self, filter_id: int, piece: int) -> Ranges:
        found = self._pulled.rows("SELECT ranges FROM listings WHERE filter = ? AND piece = ?", (filter_id, piece))
        return decode(found[0][0]) if found else ()

    def _list(self, filter_id: int, piece: int, told: ToldBranch, hub: str) -> None:
        before = self._listed(filter_id, piece)
        now = union(clip(before, 1, told.after), told.ranges)
        if listing_digest(told.parent, told.parent_sequence, now, told.upto) != told.digest:
            raise wrong(hub, f"its list of branch {told.branch.hex()[:12]} does not have the digest that it states")
        row = (filter_id, piece, told.upto, told.digest, encode(now), told.after)
        self._pulled.write(
            "INSERT INTO listings VALUES (?1, ?2, ?3, ?4, ?5, 0, 0) ON CONFLICT DO UPDATE "
            "SET upto = ?3, digest = ?4, ranges = ?5, here = min(here, ?6)",
            row,
        )
        self._drop_unlisted(piece, subtract(before, now))
        self._forget_following(told.branch, last_of(now))

    def _remove(self, filter_id: int, piece: int, ranges: Ranges) -> None:
        self._pulled.write("DELETE FROM listings WHERE filter = ? AND piece = ?", (filter_id, piece))
        self._drop_unlisted(piece, ranges)

    def _drop_unlisted(self, piece: int, ranges: Ranges) -> None:
        for (others,) in self._pulled.rows("SELECT ranges FROM listings WHERE piece = ?", (piece,)) if ranges else ():
            ranges = subtract(ranges, decode(others))
        self._pulled.drop(piece, ranges)

    # -- what is lacking -----------------------------------------------------------------------------------------------

    def lacking(self, asked: Asked, own_upto: OwnUpto, withheld: bytes, *, prove: bool = False) -> list[Lacking]:
        """Return what of a filter's lists is not held, the roots of trees first; with `prove` also what is not proven.

        Events that came without their bodies are lacking if the hub says that it has another set `withheld` than at the last pull.
        """
        pieces = {piece.id: piece for piece in self._pulled.pieces().values()}
        before = self._pulled.rows("SELECT withheld FROM filters WHERE id = ?", (asked.id,))
        bare = self._pulled.bare() if before != [(withheld,)] else {}
        roots, others = [], []
        sql = "SELECT piece, ranges, here, own FROM listings WHERE filter = ? ORDER BY piece"
        for number, ranges, here, own_then in self._pulled.rows(sql, (asked.id,)):
            own = own_upto(pieces[number])
            seen = here if own_then <= own and (asked.prove or not prove) else 0
            foreign = clip(decode(ranges), own + 1, _INFINITY)
            fresh = clip(foreign, seen + 1, _INFINITY)
            bodies = union(subtract(fresh, self._pulled.held(number, seen)), intersect(foreign, bare.get(number, ())))
            unproven = subtract(fresh, self._pulled.held(number, seen, proven=True)) if prove else ()
            wanted = union(bodies, unproven)
            root, rest = clip(wanted, 1, 1), clip(wanted, 2, _INFINITY)
            roots += [Lacking(pieces[number], root, clip(bodies, 1, 1))] if root else []
            others += [Lacking(pieces[number], rest, clip(bodies, 2, _INFINITY))] if rest else []
        return [*roots, *others]
