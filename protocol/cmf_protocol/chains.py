"""One chain of the push machine (`sync.py`): where it stands, and what whatever happens does to its pieces. Pure: times are arguments.

What was cut of a chain and is not confirmed is a *piece*:

                      acknowledged                  confirmed
    IN FLIGHT ───────────────────────▶ PUBLISHED ─────────────▶ gone
     ▲   │   broken off, no answer         │
     │   ├──────────▶ UNKNOWN ─────────────┤ an answer to hello says:
     │   │ not taken     ▲                 │
     │   ▼               └──── may wait ───┼──── in the stream ──▶ PUBLISHED, and waits on
    AGAIN ◀──── not there ─────────────────┤
     ▲          or decided, the earliest   │
     └───── what is before it is confirmed ┴ decided, not the earliest ──▶ HELD BACK (perhaps parked at the hub)

Rules
- Pieces stand in order, and with what is confirmed before them and what lies beyond the cursor they leave no hole.
- What an earlier process published is a piece that was never cut here: it can wait and be confirmed; to be sent again it is cut anew.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from cmf_protocol.messages import Refusal, StreamState

#: How long what was published may stay unconfirmed before the hub is asked, s; longer each time, up to the maximum.
CONFIRM_WAIT_S = 5.0
CONFIRM_WAIT_MAX_S = 20.0
#: How long what may be in the stream is waited for before the hub is asked again, and how long in all, s.
UNKNOWN_WAIT_S = 1.0
UNKNOWN_WAIT_MAX_S = 15.0
#: Where the hub can't say what its stream holds, that long something published is believed to be there, s.
STREAM_WAIT_MAX_S = 60.0
#: After so many answers in which nothing of a chain was confirmed, about 50 s, it does not count as on the way any more: the hub may never
#: come to it (what it stored of that log is damaged), and the other chains go on.
STUCK_ASKED = 4
#: The first wait until what a fault of the hub's program hit is sent again, and the longest, s.
HUB_ERROR_WAIT_S = 2.0
HUB_ERROR_WAIT_MAX_S = 60.0
#: A chain that was refused is tried again after that: its operator may have mended the reason, s.
REFUSED_AGAIN_S = 600.0


class Cut(NamedTuple):
    """Signed consecutive events of a chain; `size` is their bytes, uncompressed."""

    chain: bytes
    log_id: bytes
    first_sequence: int
    last_sequence: int
    last_id: bytes
    size: int


class Mark(NamedTuple):
    """Everything of a chain up to `sequence` was published, the last of it at this stream sequence of the stream with this id."""

    sequence: int
    stream_id: str
    stream_sequence: int


class Offer(NamedTuple):
    """A chain to be sent up to `head`; what was confirmed and published of it before, as far as that is known."""

    chain: bytes
    log_id: bytes
    head: int
    confirmed: int = 0
    mark: Mark | None = None


class State(Enum):
    """What is known of a piece; see the drawing above."""

    AGAIN = auto()
    IN_FLIGHT = auto()
    UNKNOWN = auto()
    PUBLISHED = auto()
    HELD_BACK = auto()


#: These may reach the hub by themselves: they count against the grant.
ON_THE_WAY = (State.IN_FLIGHT, State.UNKNOWN, State.PUBLISHED)


@dataclass
class Piece:
    """A cut that is not confirmed; `known_s` is when something was last learned of it, `sent_s` when it was sent."""

    cut: Cut
    state: State = State.AGAIN
    sent_s: float = 0.0
    known_s: float = 0.0
    not_before_s: float = 0.0
    #: (stream id, stream sequence) where it was acknowledged
    place: tuple[str, int] | None = None
    #: It stands for what an earlier process published: there is no such cut.
    remembered: bool = False
    hub_errors: int = 0
    #: How often it was decided and not confirmed, while refusals came that name no log.
    doubts: int = 0

    def holds(self, cut: Cut) -> bool:
        """Tell if it is that cut, or stands for it."""
        within = self.cut.first_sequence <= cut.first_sequence and cut.last_sequence <= self.cut.last_sequence
        return self.cut == cut or (self.remembered and within)


@dataclass
class Chain:
    """A chain with its pieces, in order; `cursor` is the sequence up to which it was cut."""

    offer: Offer
    confirmed: int
    cursor: int
    pieces: list[Piece] = field(default_factory=list)
    #: Whether the hub has answered about it on this connection, and how often since anything of it was sent or confirmed.
    known: bool = False
    asked: int = 0
    refused: Refusal | None = None
    refused_s: float = 0.0

    @classmethod
    def of(cls, offer: Offer) -> "Chain":
        """Return a chain of which nothing was sent by this process.

        What an earlier one published stands as a piece, until the hub says what became of it.
        """
        chain, mark = cls(offer, offer.confirmed, offer.confirmed), offer.mark
        if mark is not None and mark.sequence > chain.confirmed:
            cut = Cut(offer.chain, offer.log_id, chain.confirmed + 1, mark.sequence, b"", 0)
            place = (mark.stream_id, mark.stream_sequence)
            chain.pieces.append(Piece(cut, State.PUBLISHED, place=place, remembered=True))
            chain.cursor = mark.sequence
        return chain

    # -- where it stands -----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many of its events are not confirmed."""
        return max(self.offer.head - self.confirmed, 0)

    @property
    def done(self) -> bool:
        """Whether nothing of it is left to be sent, as the hub has said on this connection."""
        return self.known and (not self.pending or self.refused is not None)

    @property
    def hungry(self) -> bool:
        """Whether something of it is to be sent."""
        return self.refused is None and (self.again() is not None or self.cursor < self.offer.head)

    @property
    def stuck(self) -> bool:
        """Whether the hub has not come to what it was sent, however often it was asked: that holds up no other chain."""
        return self.asked >= STUCK_ASKED and bool(self.pieces) and self.pieces[0].state is State.PUBLISHED

    @property
    def on_the_way(self) -> int:
        """How many of its events may reach the hub by themselves and are not confirmed."""
        if self.stuck:
            return 0
        return sum(self.waiting_events(piece) for piece in self.pieces if piece.state in ON_THE_WAY)

    def waiting_events(self, piece: Piece) -> int:
        """Return how many events of a piece are not confirmed."""
        return piece.cut.last_sequence - max(piece.cut.first_sequence - 1, self.confirmed)

    def again(self) -> Piece | None:
        """Return the first piece that is to be sent again."""
        return next((piece for piece in self.pieces if piece.state is State.AGAIN), None)

    def piece_of(self, cut: Cut) -> Piece | None:
        """Return the piece that is a cut, or in which it lies."""
        return next((piece for piece in self.pieces if piece.holds(cut)), None)

    def mark(self) -> Mark | None:
        """Return up to where it is published without a hole; None if nothing unconfirmed is."""
        found = None
        for piece in self.pieces:
            reached = self.confirmed if found is None else found.sequence
            if piece.place is None or piece.state is State.AGAIN or piece.cut.first_sequence > reached + 1:
                break
            if found is not None and found.stream_id != piece.place[0]:
                break
            sequence = max(piece.place[1], 0 if found is None else found.stream_sequence)
            found = Mark(piece.cut.last_sequence, piece.place[0], sequence)
        return found

    def overdue(self, now_s: float) -> bool:
        """Tell if the hub should be asked what became of something."""
        wait_s = min(CONFIRM_WAIT_S * (1 + self.asked), CONFIRM_WAIT_MAX_S)
        if self.pieces and self.pieces[0].state is State.PUBLISHED and now_s - self.pieces[0].known_s >= wait_s:
            return True
        return any(p.state is State.UNKNOWN and now_s - p.known_s >= UNKNOWN_WAIT_S * self.asked for p in self.pieces)

    # -- what happens to it --------------------------------------------------------------------------------------------

    def add(self, cut: Cut) -> Piece | None:
        """Take the next cut and return its piece; None if it is known, where the hub was restored."""
        self.cursor = cut.last_sequence
        if self.piece_of(cut) is not None:
            return None
        piece = Piece(cut)
        self.pieces.append(piece)
        self.pieces.sort(key=lambda piece: piece.cut.first_sequence)
        return piece

    def break_off(self) -> None:
        """The connection is another one: what was in flight may have arrived or not."""
        self.known, self.asked = False, 0
        for piece in self.pieces:
            if piece.state is State.IN_FLIGHT:
                piece.state = State.UNKNOWN

    def confirm(self, sequence: int) -> None:
        """Everything up to there is confirmed."""
        self.confirmed, self.asked = sequence, 0
        self.cursor = max(self.cursor, sequence)
        self.pieces = [piece for piece in self.pieces if piece.cut.last_sequence > sequence]
        if not self.pending:
            self.refused = None

    def lose(self, sequence: int) -> None:
        """The hub holds no more than that."""
        self.confirmed = self.cursor = sequence

    def release(self) -> None:
        """Send again what was held back, now that what is before it is confirmed and it is not: it was not parked."""
        first = self.pieces[0] if self.pieces else None
        if first is not None and first.state is State.HELD_BACK and first.cut.first_sequence <= self.confirmed + 1:
            self._send_again(first)

    def on_parked(self, first_sequence: int) -> bool:
        """The hub lacks what is before a piece; return whether that should be confirmed, so that the hub has lost it."""
        parked = [p for p in self.pieces if p.cut.first_sequence == first_sequence and p.state is State.PUBLISHED]
        if first_sequence <= self.confirmed + 1:
            return bool(parked)
        for piece in parked:
            piece.state = State.HELD_BACK
        return False

    def settle(self, stream: StreamState | None, now_s: float, *, doubtful: bool) -> None:
        """Decide, by what the hub's answer says, which pieces wait on and which are sent again."""
        before = True
        for piece in list(self.pieces):
            earliest = before and piece.cut.first_sequence <= self.confirmed + 1
            piece.sent_s = piece.sent_s or now_s  # an earlier process sent it: from now on it is waited for
            if piece.state in (State.PUBLISHED, State.HELD_BACK, State.UNKNOWN):
                piece.state = verdict(piece, stream, now_s, earliest=earliest)
                piece.known_s = now_s
                piece.doubts += doubtful and piece.state is State.AGAIN
            if piece.remembered and piece.state is not State.PUBLISHED:
                self._send_again(piece)
            else:
                before = False

    def on_hub_error(self, piece: Piece, now_s: float) -> None:
        """The hub failed with a piece: send it again, later each time."""
        wait_s = min(HUB_ERROR_WAIT_S * 2**piece.hub_errors, HUB_ERROR_WAIT_MAX_S)
        piece.hub_errors = min(piece.hub_errors + 1, 8)
        piece.not_before_s = now_s + wait_s
        self._send_again(piece)

    def _send_again(self, piece: Piece) -> None:
        """Have a piece sent again; what stands for a piece is cut anew."""
        piece.state = State.AGAIN
        if piece.remembered:
            self.pieces.remove(piece)
            self.cursor = min(self.cursor, self.confirmed)

    def stop(self, refusal: Refusal, now_s: float) -> None:
        """Send nothing more of it."""
        self.refused, self.refused_s, self.pieces = refusal, now_s, []

    def try_again(self, now_s: float) -> None:
        """Begin anew with what was refused long ago."""
        if self.refused is not None and now_s - self.refused_s >= REFUSED_AGAIN_S:
            self.refused, self.cursor = None, self.confirmed


def verdict(piece: Piece, stream: StreamState | None, now_s: float, *, earliest: bool) -> State:
    """Return the state of a piece that is not confirmed, by what the hub says of its stream."""
    age_s = now_s - piece.sent_s
    if piece.state is State.UNKNOWN:
        may_wait = stream is not None and stream.waiting and age_s < UNKNOWN_WAIT_MAX_S
        return State.UNKNOWN if may_wait else State.AGAIN
    if stream is None or piece.place is None:
        if piece.state is State.PUBLISHED and age_s < STREAM_WAIT_MAX_S:
            return State.PUBLISHED
    elif piece.place[0] != stream.stream_id:
        return State.AGAIN
    elif piece.place[1] > stream.decided:
        return State.PUBLISHED
    return State.AGAIN if earliest else State.HELD_BACK
