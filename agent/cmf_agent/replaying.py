"""A site's logs as what is replayed to its hub: the port of `cmf_link.replay`, for a push and for the daemon.

Rules
- Each log is a chain. A push takes the heads as they were when it began; with `follow`, each look finds what is new.
- A signature is stored before its segment is sent (`cutting.py`); a segment's bytes are made when it is sent.
- What was published and confirmed is kept a second late at most, in one commit: nothing rests on it but what is asked and sent again.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from cmf_agent.cutting import Cutter
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.keys import read_signer
from cmf_agent.log import now_us
from cmf_agent.outbox import Cut as SignedCut
from cmf_agent.outbox import Outbox
from cmf_agent.place import another_writer, mark_forked
from cmf_agent.version import AGENT
from cmf_link.link import Link
from cmf_link.replay import Target
from cmf_protocol.chains import Cut, Mark, Offer
from cmf_protocol.encoding import Value
from cmf_protocol.errors import IntegrityError
from cmf_protocol.messages import Confirm, Confirmation, HelloAnswer, Refusal, decode_answer, points_of, sign_hello
from cmf_protocol.sync import Moves

#: Clocks further apart than this are told, µs.
CLOCK_WARNING_US = 60_000_000


class Sent(NamedTuple):
    """What was handed to the hub's buffer: events, segments, bytes on the wire."""

    events: int = 0
    segments: int = 0
    bytes: int = 0


def target_of(hub: HubFile, bytes_per_s: float | None = None) -> Target:
    """Return where a site replays to; raise `CallerError` if it has no link."""
    return Target(hub.url, hub.login, f"cmf-agent {hub.site}", hub.site, hub.hub_id, ca=hub.ca, bytes_per_s=bytes_per_s)


async def ask_hub(link: Link, hub: HubFile, hello: bytes, timeout_s: float) -> HelloAnswer:
    """Say one hello, for a command that replays nothing, and return the answer; raise `IntegrityError` if another hub answers."""
    answer = decode_answer(await link.request(f"cmf.v1.rpc.{hub.site}.hello", hello, timeout_s=timeout_s))
    if answer.hub_id != hub.hub_id:
        raise IntegrityError("another hub answers at this address", "join the hub that is meant: cmf-agent join FILE")
    return answer


class LogSource:
    """The logs of `home`, replayed to `hub`; `outbox` is this thread's own."""

    def __init__(self, home: Home, hub: HubFile, outbox: Outbox, *, follow: bool = False) -> None:
        self.sent = Sent()
        #: What was refused last of each log.
        self.refused: dict[bytes, Refusal] = {}
        self.warnings: list[str] = []
        #: Whether the site is about to go for good: the next hello says so.
        self.leaving = False
        self._home = home
        self._hub = hub
        self._outbox = outbox
        self._follow = follow
        self._signer = read_signer(home.key_path)
        self._cutter = Cutter(home.log_path, outbox, self._signer)
        self._heads: dict[bytes, tuple[int, bytes]] = {}
        self._before: dict[bytes, int] = {}
        self._confirmed: dict[bytes, int] = {}
        self._to_keep: dict[bytes, tuple[int, bytes]] = {}
        self._signed: dict[Cut, SignedCut] = {}

    @property
    def confirmed(self) -> int:
        """How many events were confirmed since the beginning."""
        return sum(self._confirmed[log_id] - before for log_id, before in self._before.items())

    # -- what there is to send -----------------------------------------------------------------------------------------

    def offers(self) -> Iterator[Offer]:
        """Yield the logs, the oldest first."""
        if self._follow or not self._heads:
            self._heads = {log_id: self._outbox.head(log_id) for log_id in self._outbox.logs()}
        for log_id, head in self._heads.items():
            known = self._outbox.confirmed(self._hub.hub_id, log_id)
            confirmed = min(known[0], head[0]) if known else 0
            self._before.setdefault(log_id, confirmed)
            self._confirmed.setdefault(log_id, confirmed)
            yield Offer(log_id, log_id, head[0], confirmed, self._outbox.mark(self._hub.hub_id, log_id))

    def event_id_at(self, chain: bytes, sequence: int) -> bytes | None:
        """Return the id of a log's event, None beyond its head."""
        return self._outbox.event_id(chain, sequence)

    def next_cut(self, chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:
        """Return the cut that follows `after`."""
        signed = self._cutter.next_cut(chain, after, self._heads[chain], events_max=events_max, bytes_max=bytes_max)
        first, last = signed.statement.first_sequence, signed.statement.last_sequence
        size = sum(self._outbox.sizes_after(chain, first - 1, last - first + 1))
        made = Cut(chain, chain, first, last, signed.statement.last_id, size)
        self._signed[made] = signed
        return made

    def data(self, cut: Cut) -> bytes:
        """Return the segment of a cut."""
        return self._cutter.encode(self._signed[cut])

    def estimate(self) -> Iterator[tuple[int, int]]:
        """Yield (events, bytes on the wire) of each segment that is to be sent, by what this site knows of the hub."""
        for offer in self.offers():
            for signed in self._cutter.cuts(offer.log_id, offer.confirmed, self._heads[offer.log_id], keep=False):
                statement = signed.statement
                yield statement.last_sequence - statement.first_sequence + 1, len(self._cutter.encode(signed))

    def hello(self, chains: Mapping[bytes, int]) -> bytes:
        """Return a hello about these logs."""
        logs: list[Value] = []
        for log_id, confirmed in chains.items():
            points = points_of(self._heads[log_id][0], confirmed)
            logs.append([log_id, [[at, self._outbox.event_id(log_id, at)] for at in points]])
        hub = self._hub
        return sign_hello(
            self._signer, site=hub.site, hub_id=hub.hub_id, token=hub.token, time_us=now_us(), agent=AGENT, logs=logs,
            leaving=self.leaving,
        )  # fmt: skip

    # -- what the hub says ---------------------------------------------------------------------------------------------

    def on_answer(self, answer: HelloAnswer) -> None:
        """Note the contact, and what the answer tells besides."""
        self._outbox.record_contact(self._hub.hub_id, answer.incarnation)
        self._hub.forget_token()
        ahead = now_us() - answer.time_us
        if abs(ahead) > CLOCK_WARNING_US and not any("clock" in warning for warning in self.warnings):
            self.warnings.append(f"this site's clock is {ahead / 1e6:+.0f} s from the hub's: check both")
        self._look_for_copies(answer.confirmed)

    def on_confirm(self, confirm: Confirm) -> None:
        """See whether it tells of a copy of this site."""
        self._look_for_copies(confirm.confirmed)

    def _look_for_copies(self, confirmed: Iterable[Confirmation]) -> None:
        own = [confirmation for confirmation in confirmed if confirmation[0] in self._heads]
        for log_id in another_writer(own, self._outbox.event_id):
            mark_forked(self._home, log_id)

    def on_moves(self, moves: Moves) -> None:
        """Take what was confirmed, lost, refused."""
        for log_id, place in moves.confirmed.items():
            self._confirmed[log_id] = place[0]
            self._to_keep[log_id] = place
            if place[0] >= self._heads[log_id][0]:
                self.refused.pop(log_id, None)
        self.refused.update(moves.refused)
        for log_id, held in moves.restored.items():
            self._before[log_id] = min(self._before[log_id], held)
            self._confirmed[log_id] = held
            self._to_keep.pop(log_id, None)
        for cut in [c for c in self._signed if c.last_sequence <= self._confirmed[c.chain]]:
            del self._signed[cut]
        for log_id, held in moves.restored.items():  # last: a full disk must not leave the rest undone
            self._keep_restored(log_id, held)

    def _keep_restored(self, log_id: bytes, held: int) -> None:
        warning = "the hub holds less than it confirmed earlier (was it restored?): sending it again"
        if warning not in self.warnings:
            self.warnings.append(warning)
        event_id = self._outbox.event_id(log_id, held)
        if event_id is None:
            self._outbox.forget_confirmed(self._hub.hub_id, log_id)
        else:
            self._outbox.record_confirmed(self._hub.hub_id, log_id, held, event_id, reset=True)

    def on_marks(self, marks: Mapping[bytes, Mark]) -> None:
        """Keep how far the logs were published and confirmed."""
        self._outbox.record_progress(self._hub.hub_id, self._to_keep, marks)
        self._to_keep.clear()

    def on_sent(self, cut: Cut, size: int) -> None:
        """Count what is in the hub's buffer."""
        events = cut.last_sequence - cut.first_sequence + 1
        self.sent = Sent(self.sent.events + events, self.sent.segments + 1, self.sent.bytes + size)
