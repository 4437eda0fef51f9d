"""The push machine: what of which chain to send next, when to ask the hub, and when all is confirmed. Pure: times are arguments.

A *chain* is a log's events up to one head: an agent's log, or a branch that a hub forwards. It is sent in *cuts*, which are asked for one
at a time, so that their size can follow the line and the hub's grant. What becomes of a cut until it is confirmed: `chains.py`.

Rules
- Nothing of a chain is sent before the hub has said on this connection what it holds of it.
- A confirmation counts only where it names the chain's own event at that sequence; it then confirms everything before it.
- An answer that names less than was confirmed when it was asked for means that the hub was restored: what is missing is sent again.
- On the way are at most `grant` events, but always one piece; until the first confirmation of a connection, one piece only.
- Chains take turns, one cut each; the one whose turn it is waits until it fits, so that none waits for ever behind the others.
- A refusal stops its chain and no other one; a fault of the hub's program (`hub-error`) is sent again later. Where one names no log (the
  segment could not be read), it is about what is decided and not confirmed, again and again.
- Sending twice is harmless, since the hub decides by event ids; it is avoided, since it costs.
- What happens to one chain costs nothing for the others: a hub may forward ten thousand.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cmf_protocol.chains import STREAM_WAIT_MAX_S, Chain, Cut, Mark, Offer, Piece, State
from cmf_protocol.line import Line
from cmf_protocol.messages import Confirmation, Refusal, StreamState

#: How often a piece is decided and not confirmed, while refusals come that name no log, until it is taken to be what they are about.
DOUBTS_MAX = 3
#: That long after such a refusal something may turn out to be decided, s.
DOUBTFUL_S = 2 * STREAM_WAIT_MAX_S
#: The code of a refusal that is the hub's own fault.
HUB_ERROR = "hub-error"


class Moves(NamedTuple):
    """What an answer or a confirmation changed: chains whose watermark moved, those of which the hub holds less than it did."""

    confirmed: dict[bytes, tuple[int, bytes]]
    restored: dict[bytes, int]
    refused: dict[bytes, Refusal]


class PushMachine:
    """Sends chains until each is confirmed.

    `event_id_at` returns the own event's id at (chain, sequence), or None. `next_cut` returns the cut of (chain, after this sequence, at
    most so many events, so many bytes): at least one event, and what was signed before as it was signed, whatever its size.
    """

    def __init__(
        self,
        event_id_at: Callable[[bytes, int], bytes | None],
        next_cut: Callable[[bytes, int, int, int], Cut],
    ) -> None:
        self.line = Line()
        self.grant = 0
        self.chains: dict[bytes, Chain] = {}
        #: How many events are not confirmed; and how many of them are published, or being published.
        self.pending = 0
        self.on_the_way = 0
        self._event_id_at = event_id_at
        self._next_cut = next_cut
        self._by_log: dict[bytes, list[bytes]] = {}
        self._counted: dict[bytes, tuple[int, int]] = {}
        self._hungry: dict[bytes, Chain] = {}
        self._open: dict[bytes, Chain] = {}
        self._stopped: dict[bytes, Chain] = {}
        self._asking: dict[bytes, Chain] = {}
        self._in_flight: dict[Cut, float] = {}
        self._stream_id: str | None = None
        self._heard = False
        self._suspect: tuple[Refusal, float] | None = None

    # -- what there is to send -----------------------------------------------------------------------------------------

    def offer(self, offer: Offer) -> None:
        """Take a chain, or the new head of one."""
        chain = self.chains.get(offer.chain)
        if chain is not None:
            chain.offer = offer._replace(head=max(offer.head, chain.offer.head))
        else:
            chain = self.chains[offer.chain] = Chain.of(offer)
            self._by_log.setdefault(offer.log_id, []).append(offer.chain)
            self._asking[offer.chain] = chain
        self._sort_in(chain)

    def _sort_in(self, chain: Chain) -> None:
        """Keep the sums, and the short lists of chains that have something to send, something on the way, or are refused."""
        key = chain.offer.chain
        belongs = (chain.hungry, bool(chain.pieces), chain.refused is not None)
        for chains, among in zip((self._hungry, self._open, self._stopped), belongs, strict=True):
            if among:
                chains[key] = chain
            else:
                chains.pop(key, None)
        before, now = self._counted.get(key, (0, 0)), (chain.pending, chain.on_the_way)
        self.pending += now[0] - before[0]
        self.on_the_way += now[1] - before[1]
        self._counted[key] = now

    @property
    def done(self) -> bool:
        """Whether all that was offered is confirmed or refused, as the hub has said on this connection."""
        return all(chain.done for chain in self.chains.values())

    @property
    def busy(self) -> bool:
        """Whether something is to be sent or on the way, so that time alone may change what is to be done."""
        return bool(self._hungry or self._open or self._in_flight)

    @property
    def refused(self) -> Refusal | None:
        """Why a chain is not sent, if one is."""
        return next((chain.refused for chain in self._stopped.values()), None)

    def mark_of(self, chain_id: bytes) -> Mark | None:
        """Return up to where a chain is published without a hole; None if nothing unconfirmed is."""
        return self.chains[chain_id].mark()

    # -- sending -------------------------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """A new connection: what was in flight may have arrived or not, and the hub is asked before anything is sent."""
        self.line.begin()
        self._heard = False
        self._in_flight.clear()
        self._suspect = None
        for chain in self.chains.values():
            chain.break_off()
            self._sort_in(chain)
        self.ask_all()

    def next_to_send(self, now_s: float) -> Cut | None:
        """Return the cut to publish now; None if the window or the grant is full, or nothing waits."""
        room = self._room()
        if len(self._in_flight) >= self.line.window or room <= 0:
            return None
        for chain in list(self._hungry.values()):
            if not chain.known or chain.stuck:
                continue
            again = chain.again()
            if again is not None and again.not_before_s > now_s:
                continue
            piece = again or self._cut(chain, room)
            if not chain.hungry and piece is None:
                continue
            if piece is None or chain.waiting_events(piece) > room:
                return None
            return self._send(chain, piece, now_s)
        return None

    def _room(self) -> float:
        """Return how many events may be sent now."""
        if not self.on_the_way:
            return math.inf
        return self.grant - self.on_the_way if self._heard else 0

    def _cut(self, chain: Chain, room: float) -> Piece | None:
        """Return a new piece of a chain; None if there is no room for it, or nothing is left."""
        # Halves of the grant: while one is decided on, the next is on its way.
        events_max = max(min(self.line.events_max, self.grant // 2), 1)
        if room < min(events_max, chain.offer.head - chain.cursor):
            return None
        piece = None
        while piece is None and chain.cursor < chain.offer.head:
            piece = chain.add(self._next_cut(chain.offer.chain, chain.cursor, events_max, self.line.bytes_max))
        self._sort_in(chain)
        return piece

    def _send(self, chain: Chain, piece: Piece, now_s: float) -> Cut:
        piece.state, piece.sent_s, piece.known_s = State.IN_FLIGHT, now_s, now_s
        self._in_flight[piece.cut] = now_s
        self._hungry.pop(chain.offer.chain, None)  # and, if more is left of it, behind the others
        self._sort_in(chain)
        return piece.cut

    def on_published(self, cut: Cut, stream_sequence: int, now_s: float) -> None:
        """JetStream has it: not yet confirmed."""
        sent_s = self._in_flight.pop(cut, None)
        if sent_s is not None:
            self.line.on_acknowledged(sent_s, now_s)
        piece = self._change(cut, State.PUBLISHED, now_s)
        if piece is not None and self._stream_id is not None:
            piece.place = (self._stream_id, stream_sequence)

    def on_unknown(self, cut: Cut, now_s: float) -> None:
        """It may have arrived or not: the hub is asked."""
        self._in_flight.pop(cut, None)
        if self._change(cut, State.UNKNOWN, now_s) is not None:
            self._asking[cut.chain] = self.chains[cut.chain]

    def on_not_taken(self, cut: Cut, now_s: float) -> None:
        """It was not stored, or never left: send it again."""
        self._in_flight.pop(cut, None)
        self._change(cut, State.AGAIN, now_s)

    def _change(self, cut: Cut, state: State, now_s: float) -> Piece | None:
        chain = self.chains[cut.chain]
        piece = chain.piece_of(cut)
        if piece is None or piece.state not in (State.IN_FLIGHT, State.UNKNOWN):
            return None
        piece.state, piece.known_s = state, now_s
        self._sort_in(chain)
        return piece

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask_all(self) -> None:
        """Have the hub asked about every chain: it is time, or it said that it has started."""
        self._asking.update(self.chains)

    def to_ask(self, now_s: float) -> dict[bytes, int]:
        """Return the chains that the hub is to be asked about, each with the sequence up to which it is confirmed."""
        late = {key: chain for key, chain in self._open.items() if chain.overdue(now_s)}
        return {key: chain.confirmed for key, chain in (self._asking | late).items()}

    def on_answer(
        self,
        asked: Mapping[bytes, int],
        confirmed: Iterable[Confirmation],
        stream: StreamState | None,
        grant: int,
        now_s: float,
    ) -> Moves:
        """Take the answer to a hello that asked about these chains, which were confirmed up to there when it was said."""
        self.grant = grant
        self._stream_id = None if stream is None else stream.stream_id
        named: dict[bytes, list[Confirmation]] = {}
        for confirmation in confirmed:
            named.setdefault(confirmation[0], []).append(confirmation)
        moves = Moves({}, {}, {})
        for key, before in asked.items():
            chain = self.chains[key]
            self._asking.pop(key, None)
            chain.known = True
            held = max(self._own(chain, named.get(chain.offer.log_id, ())), default=(0, b""))
            # Of what was sent only now nothing can be overdue: idle hellos do not count.
            chain.asked = chain.asked + 1 if chain.pieces else 0
            if held[0] > chain.confirmed:
                self._confirm(chain, held, moves)
            elif held[0] < before:
                moves.restored[key] = held[0]
                chain.lose(held[0])
            self._settle(chain, stream, moves, now_s)
        return moves

    def _own(self, chain: Chain, named: Sequence[Confirmation]) -> list[tuple[int, bytes]]:
        return [(at, event_id) for _, at, event_id in named if self._event_id_at(chain.offer.chain, at) == event_id]

    def _settle(self, chain: Chain, stream: StreamState | None, moves: Moves, now_s: float) -> None:
        if self._suspect is not None and now_s - self._suspect[1] > DOUBTFUL_S:
            self._suspect = None
        chain.settle(stream, now_s, doubtful=self._suspect is not None)
        if self._suspect is not None and any(piece.doubts >= DOUBTS_MAX for piece in chain.pieces):
            moves.refused[chain.offer.chain] = self._suspect[0]
            self.stop(chain.offer.chain, self._suspect[0], now_s)
        chain.try_again(now_s)
        self._sort_in(chain)

    # -- confirmations -------------------------------------------------------------------------------------------------

    def on_confirm(
        self,
        confirmed: Iterable[Confirmation],
        refused: Iterable[Refusal],
        parked: Iterable[tuple[bytes, int]],
        grant: int,
        now_s: float,
    ) -> Moves:
        """Take what a batch of segments came to."""
        self.grant = grant
        moves = Moves({}, {}, {})
        for confirmation in confirmed:
            for chain in self._of_log(confirmation[0]):
                for place in self._own(chain, [confirmation]):
                    if place[0] > chain.confirmed:
                        self._confirm(chain, place, moves)
        for key in moves.confirmed:
            self.chains[key].release()
            self._sort_in(self.chains[key])
        for log_id, first_sequence in parked:
            self._on_parked(log_id, first_sequence)
        for refusal in refused:
            self._on_refused(refusal, moves, now_s)
        return moves

    def _of_log(self, log_id: bytes) -> list[Chain]:
        return [self.chains[key] for key in self._by_log.get(log_id, ())]

    def _confirm(self, chain: Chain, place: tuple[int, bytes], moves: Moves) -> None:
        chain.confirm(place[0])
        moves.confirmed[chain.offer.chain] = place
        self._heard = True
        self._sort_in(chain)

    def _on_parked(self, log_id: bytes, first_sequence: int) -> None:
        """The hub lacks what is before a piece; if that should be confirmed, it has lost it."""
        for chain in self._of_log(log_id):
            if chain.on_parked(first_sequence):
                self._asking[chain.offer.chain] = chain
            self._sort_in(chain)

    def _on_refused(self, refusal: Refusal, moves: Moves, now_s: float) -> None:
        """Stop the chain of what was refused for good."""
        if not refusal.log_id and refusal.code != HUB_ERROR:
            self._suspect = refusal, now_s
            self.ask_all()
        for chain in self._of_log(refusal.log_id):
            for piece in _refused_pieces(chain, refusal):
                if refusal.code == HUB_ERROR:
                    chain.on_hub_error(piece, now_s)
                    self._sort_in(chain)
                else:
                    self.stop(chain.offer.chain, refusal, now_s)
                    moves.refused[chain.offer.chain] = refusal

    def stop(self, chain_id: bytes, refusal: Refusal, now_s: float) -> None:
        """Send nothing more of a chain: it is refused, or can't be sent for a reason that was found here."""
        chain = self.chains[chain_id]
        chain.stop(refusal, now_s)
        for cut in [cut for cut in self._in_flight if cut.chain == chain_id]:
            del self._in_flight[cut]
        self._sort_in(chain)


def _refused_pieces(chain: Chain, refusal: Refusal) -> list[Piece]:
    """Return what of a chain a refusal is about."""
    return [
        piece
        for piece in chain.pieces
        if piece.cut.last_id == refusal.last_id
        or (piece.remembered and piece.cut.first_sequence <= refusal.first_sequence <= piece.cut.last_sequence)
    ]
