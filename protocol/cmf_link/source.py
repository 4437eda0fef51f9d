"""What is replayed (`replay.py`): the port behind which an agent's logs stand, or a hub's store.

Rules
- Everything is called in the event loop, one call at a time; what it raises ends a push, and is tried again by a daemon.
- A `PeerError` of `next_cut` or `data` is about that chain alone: it stops, the others go on.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from cmf_protocol.chains import Cut, Mark, Offer
from cmf_protocol.messages import Confirm, HelloAnswer
from cmf_protocol.sync import Moves


class Source(Protocol):
    """What is replayed, and who keeps what the hub says about it; a chain is named by bytes."""

    def offers(self) -> Iterable[Offer]:
        """Return what there is to send now: asked at the beginning, and after each `poke`."""

    def event_id_at(self, chain: bytes, sequence: int) -> bytes | None:
        """Return the id of a chain's event, None where it has none."""

    def next_cut(self, chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:
        """Return the cut of a chain that follows the sequence `after`; see `PushMachine`."""

    def data(self, cut: Cut) -> bytes:
        """Return the bytes of a cut, as they travel."""

    def hello(self, chains: Mapping[bytes, int]) -> bytes:
        """Return a hello about these chains (at most `HELLO_LOGS_MAX`), each with the sequence up to which it is confirmed."""

    def on_answer(self, answer: HelloAnswer) -> None:
        """Take who answered: contact, clock, token; and what it holds, before that is applied."""

    def on_confirm(self, confirm: Confirm) -> None:
        """Take what the hub says of a batch of segments, before that is applied."""

    def on_moves(self, moves: Moves) -> None:
        """Take what was confirmed, lost by the hub, or refused."""

    def on_marks(self, marks: Mapping[bytes, Mark]) -> None:
        """Keep how far these chains were published; at most once a second, and at the end."""

    def on_sent(self, cut: Cut, size: int) -> None:
        """Take that a cut, of so many bytes as sent, has reached the hub's buffer, or the hub itself."""
