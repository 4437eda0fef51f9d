"""The push machine and admit against a link that lies, with copies of a log, wiped streams and restored hubs.

Everything goes wrong in any order: what is sent is lost, delayed, cut, stored without an acknowledgement or refused for want of room; what
the hub says is lost, repeated, reordered; agents are killed, their folders copied; the stream is wiped, the hub put back to an older
copy or emptied. Then the faults end, and all has to drain without anybody being started again.
"""

import copy
import dataclasses
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.held import MemoryHeld, MemoryRegistry
from tests.support.logs import MadeLog
from tests.support.strategies import SIGNERS

from cmf_protocol.admit import Enrolled, Parked, Refused
from cmf_protocol.chains import Cut, Mark, Offer
from cmf_protocol.errors import PeerError
from cmf_protocol.messages import Confirmation, Refusal, StreamState, points_of
from cmf_protocol.segments import decode_segment
from cmf_protocol.sync import PushMachine

SITE = "ana"
SIGNER = SIGNERS[0]
GRANT = 12
#: A round is a second. A chain that was refused for what the link had cut is tried again after ten minutes, all others at once.
DRAIN_ROUNDS = 2_000
PROMPT_ROUNDS = 30
#: A hello every few minutes.
HELLO_ROUNDS = 180

At = st.integers(0, 1_000)


class Message(NamedTuple):
    """A segment in the stream."""

    sequence: int
    data: bytes


class Said(NamedTuple):
    """A confirmation on its way."""

    confirmed: tuple[Confirmation, ...] = ()
    refused: tuple[Refusal, ...] = ()
    parked: tuple[tuple[bytes, int], ...] = ()


class MemoryHub:
    """A stream, a store, and what waits beyond a hole."""

    def __init__(self) -> None:
        self.held = MemoryHeld()
        self.registry = MemoryRegistry({SIGNER.public_key: Enrolled(SITE, revoked=False)})
        self.parked: list[bytes] = []
        self.stream: list[Message] = []
        self.stream_life = 0
        self.last_sequence = 0
        self.ever_held: set[bytes] = set()

    def store(self, data: bytes) -> int:
        self.last_sequence += 1
        self.stream.append(Message(self.last_sequence, data))
        return self.last_sequence

    def wipe(self) -> None:
        self.stream, self.last_sequence = [], 0
        self.stream_life += 1

    def snapshot(self) -> tuple[MemoryHeld, list[bytes]]:
        fields = {field.name: copy.copy(getattr(self.held, field.name)) for field in dataclasses.fields(self.held)}
        return MemoryHeld(**fields), list(self.parked)

    def decide(self, *, forgets: bool = True) -> Said:
        """Decide on the oldest message; it comes again unless the stream `forgets` it."""
        data = self.stream[0].data
        if forgets:
            del self.stream[0]
        said = self._decide(data)
        for waiting in list(self.parked):
            again = self._decide(waiting)
            if not again.parked:
                self.parked.remove(waiting)
                said = Said(said.confirmed + again.confirmed, said.refused + again.refused, said.parked)
        self.ever_held.update(self.held.events)
        return said

    def _decide(self, data: bytes) -> Said:
        try:
            segment = decode_segment(data)
        except PeerError as error:
            return Said(refused=(Refusal(b"", 0, b"", "malformed", str(error)),))
        statement = segment.statement
        decision = self.held.receive(segment, SITE, self.registry)
        if isinstance(decision, Refused):
            return Said(refused=(Refusal(statement.log_id, statement.first_sequence, statement.last_id, *decision),))
        if isinstance(decision, Parked):
            if data not in self.parked:
                self.parked.append(data)
            return Said(parked=((statement.log_id, statement.first_sequence),))
        last = (statement.log_id, statement.last_sequence, statement.last_id)
        return Said(confirmed=tuple(dict.fromkeys((last, self._head(statement.last_id)))))

    def _head(self, event_id: bytes) -> Confirmation:
        branch = self.held.places[event_id].branch
        on_branch = [key for key, place in self.held.places.items() if place.branch == branch]
        header = max((self.held.events[key].header for key in on_branch), key=lambda header: header.sequence)
        last = next(key for key in on_branch if self.held.events[key].header == header)
        return header.log_id, header.sequence, last

    def answer(self, log_id: bytes, points: list[tuple[int, bytes]]) -> tuple[Confirmation, ...]:
        for sequence, event_id in points:
            if self.held.find(log_id, sequence, event_id) is not None:
                return (log_id, sequence, event_id), self._head(event_id)
        return ()

    def stream_state(self) -> StreamState:
        decided = self.stream[0].sequence - 1 if self.stream else self.last_sequence
        return StreamState(str(self.stream_life), decided, len(self.stream))


class Agent:
    """A site's folder, or a copy of it: a log, its signed cuts, what was kept; and the process that replays it."""

    def __init__(self, log: MadeLog, cut_events: int) -> None:
        self.log = log
        self.cut_events = cut_events
        self.signed: list[tuple[int, int]] = []
        self.kept: tuple[int, Mark | None] = (0, None)
        self.start()

    def copied(self, sequence: int) -> "Agent":
        """Return a copy of the folder as it was when the log ended at `sequence`, or later."""
        made = Agent(self.log.fork(sequence), self.cut_events)
        made.signed = [ends for ends in self.signed if ends[1] <= sequence]
        confirmed, mark = self.kept
        made.kept = (min(confirmed, sequence), mark if mark and mark.sequence <= sequence else None)
        made.start()
        return made

    def start(self) -> None:
        self.machine = PushMachine(self.event_id_at, self.next_cut)
        self.asked: dict[bytes, int] | None = None
        #: Stream life and sequence where this process knows a cut's last event to be.
        self.places: dict[bytes, tuple[str, int]] = {}
        mark = self.kept[1]
        if mark is not None:
            at = (mark.stream_id, mark.stream_sequence)
            self.places = {self.log.events[last - 1].event_id: at for _, last in self.signed if last == mark.sequence}
        self.offer()
        self.machine.on_connected()

    def offer(self) -> None:
        confirmed, mark = self.kept
        self.machine.offer(Offer(self.log.log_id, self.log.log_id, self.log.head[0], confirmed, mark))

    @property
    def confirmed(self) -> int:
        return self.machine.chains[self.log.log_id].confirmed

    def event_id_at(self, _chain: bytes, sequence: int) -> bytes | None:
        return self.log.events[sequence - 1].event_id if 1 <= sequence <= len(self.log.events) else None

    def next_cut(self, chain: bytes, after: int, events_max: int, _bytes_max: int) -> Cut:
        ends = next((ends for ends in sorted(self.signed) if ends[0] <= after + 1 <= ends[1]), None)
        if ends is None:
            later = [first for first, _ in self.signed if first > after + 1]
            stop = min([after + min(events_max, self.cut_events), self.log.head[0], *(first - 1 for first in later)])
            ends = (after + 1, stop)
            self.signed.append(ends)
        return Cut(chain, chain, *ends, self.log.events[ends[1] - 1].event_id, 100)

    def data(self, cut: Cut) -> bytes:
        assert (cut.first_sequence, cut.last_sequence) in self.signed, "sent with ends that were never signed"
        return self.log.cut(cut.first_sequence, cut.last_sequence)

    def points(self, confirmed: int) -> list[tuple[int, bytes]]:
        return self.log.points(*points_of(self.machine.chains[self.log.log_id].offer.head, confirmed))

    def keep(self) -> None:
        """Keep what a push keeps every second."""
        self.kept = (self.confirmed, self.machine.mark_of(self.log.log_id))


class LyingLink(RuleBasedStateMachine):
    @initialize(cut_events=st.integers(1, 4))
    def begin(self, cut_events: int) -> None:
        self.now_s = 0.0
        self.hub = MemoryHub()
        self.old = self.hub.snapshot()
        self.agents = [Agent(MadeLog(SIGNER), cut_events)]
        #: What the hub says, on its way to one agent each.
        self.on_the_way: list[tuple[Agent, Said]] = []
        self.delayed: list[tuple[Agent, Cut, bytes]] = []

    def agent(self, at: int) -> Agent:
        return self.agents[at % len(self.agents)]

    # -- what is meant to happen

    @rule(at=At, count=st.integers(1, 6))
    def records(self, at: int, count: int) -> None:
        agent = self.agent(at)
        agent.log.say(count)
        agent.offer()

    @rule(at=At)
    def asks(self, at: int) -> None:
        agent = self.agent(at)
        agent.asked = agent.machine.to_ask(self.now_s) or None

    @rule(at=At)
    def asks_as_it_is_time(self, at: int) -> None:
        agent = self.agent(at)
        agent.machine.ask_all()
        agent.asked = agent.machine.to_ask(self.now_s)

    @rule(at=At)
    def is_answered(self, at: int) -> None:
        self.answer(self.agent(at))

    def answer(self, agent: Agent) -> None:
        asked, agent.asked = agent.asked, None
        if not asked:
            return
        (before,) = asked.values()
        stream = self.hub.stream_state()
        confirmed = self.hub.answer(agent.log.log_id, agent.points(before))
        agent.machine.on_answer(asked, confirmed, stream, GRANT, self.now_s)
        self.what_is_confirmed_was_held()

    @rule(
        at=At, fate=st.sampled_from(("stored", "stored", "stored", "unacknowledged", "lost", "full", "cut", "delayed"))
    )
    def sends(self, at: int, fate: str) -> None:
        agent = self.agent(at)
        cut = self.next_to_send(agent)
        if cut is None:
            return
        data = agent.data(cut)
        if fate == "delayed":
            self.delayed.append((agent, cut, data))
            return
        sequence = (
            self.hub.store(data[:-7] if fate == "cut" else data) if fate in ("stored", "unacknowledged", "cut") else 0
        )
        if fate in ("stored", "cut"):
            self.acknowledge(agent, cut, sequence)
        elif fate == "full":
            agent.machine.on_not_taken(cut, self.now_s)
        else:
            agent.machine.on_unknown(cut, self.now_s)

    def next_to_send(self, agent: Agent) -> Cut | None:
        cut = agent.machine.next_to_send(self.now_s)
        if cut is not None:
            assert (
                agent.machine.on_the_way <= GRANT
                or agent.machine.on_the_way <= cut.last_sequence - cut.first_sequence + 1
            )
            life, sequence = agent.places.get(cut.last_id, ("", 0))
            there = life == str(self.hub.stream_life) and any(m.sequence == sequence for m in self.hub.stream)
            assert not there, "sent again, although the stream still holds it"
        return cut

    def acknowledge(self, agent: Agent, cut: Cut, sequence: int) -> None:
        agent.machine.on_published(cut, sequence, self.now_s)
        known = next((p for p in agent.machine.chains[cut.chain].pieces if p.cut == cut and p.place is not None), None)
        if known is not None and known.place is not None:
            agent.places[cut.last_id] = known.place

    @rule(at=At, count=st.integers(1, 6), lost=st.integers(0, 3))
    def sends_all_but(self, at: int, count: int, lost: int) -> None:
        """All that may be on the way gets into the stream, but for one cut."""
        self.records(at, count)
        agent = self.agent(at)
        agent.asked = agent.machine.to_ask(self.now_s)
        self.answer(agent)
        number = 0
        while (cut := self.next_to_send(agent)) is not None and number < GRANT:
            if number == lost:
                agent.machine.on_unknown(cut, self.now_s)
            else:
                self.acknowledge(agent, cut, self.hub.store(agent.data(cut)))
            number += 1

    @precondition(lambda self: self.delayed)
    @rule(at=At)
    def arrives_late(self, at: int) -> None:
        agent, cut, data = self.delayed.pop(at % len(self.delayed))
        self.acknowledge(agent, cut, self.hub.store(data))

    @precondition(lambda self: self.hub.stream)
    @rule(forgets=st.sampled_from((True, True, True, False)))
    def hub_decides(self, forgets: bool) -> None:
        said = self.hub.decide(forgets=forgets)
        self.on_the_way += [(agent, said) for agent in self.agents]

    @precondition(lambda self: self.on_the_way)
    @rule(at=At, fate=st.sampled_from(("comes", "comes", "comes", "is lost", "comes twice")))
    def confirmation(self, at: int, fate: str) -> None:
        agent, said = self.on_the_way.pop(at % len(self.on_the_way))
        if fate != "is lost":
            self.hear(agent, said)
        if fate == "comes twice":
            self.on_the_way.append((agent, said))

    def hear(self, agent: Agent, said: Said) -> None:
        agent.machine.on_confirm(said.confirmed, said.refused, said.parked, GRANT, self.now_s)
        self.what_is_confirmed_was_held()

    @rule(seconds=st.sampled_from((0.1, 1.0, 6.0, 30.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(at=At, count=st.integers(1, 6), rounds=st.integers(1, 4))
    def all_goes_well(self, at: int, count: int, rounds: int) -> None:
        self.records(at, count)
        for _ in range(rounds):
            self.time_passes(1.0)
            self.drain_round()

    # -- what goes wrong

    @rule(at=At, arrive=st.booleans())
    def connection_breaks(self, at: int, arrive: bool) -> None:
        agent = self.agent(at)
        self.break_off(agent, arrive=arrive)
        agent.machine.on_connected()

    def break_off(self, agent: Agent, *, arrive: bool) -> None:
        """What was in flight arrives or not; what the hub said meanwhile is lost."""
        for sender, _, data in self.delayed:
            if sender is agent and arrive:
                self.hub.store(data)
        self.delayed = [one for one in self.delayed if one[0] is not agent]
        self.on_the_way = [one for one in self.on_the_way if one[0] is not agent]
        agent.asked = None

    @rule(at=At)
    def keeps(self, at: int) -> None:
        self.agent(at).keep()

    @rule(at=At, arrive=st.booleans(), kept=st.booleans())
    def agent_is_killed(self, at: int, arrive: bool, kept: bool) -> None:
        agent = self.agent(at)
        if kept:
            agent.keep()
        self.break_off(agent, arrive=arrive)
        agent.start()

    @precondition(lambda self: len(self.agents) < 3)
    @rule(at=At, sequence=At)
    def folder_is_copied(self, at: int, sequence: int) -> None:
        agent = self.agent(at)
        self.agents.append(agent.copied(sequence % len(agent.log.events) + 1))

    @rule()
    def stream_is_wiped(self) -> None:
        self.hub.wipe()
        for agent in self.agents:  # its server was started again
            self.break_off(agent, arrive=False)
            agent.machine.on_connected()

    @rule()
    def hub_is_backed_up(self) -> None:
        self.old = self.hub.snapshot()

    @rule()
    def hub_is_put_back(self) -> None:
        self.hub.held, self.hub.parked = self.old
        self.old = self.hub.snapshot()

    @rule()
    def hub_is_lost(self) -> None:
        self.hub.held, self.hub.parked = MemoryHeld(), []
        self.stream_is_wiped()

    # -- what must hold

    @invariant()
    def what_is_confirmed_was_held(self) -> None:
        for agent in getattr(self, "agents", ()):
            if agent.confirmed:
                assert agent.event_id_at(b"", agent.confirmed) in self.hub.ever_held

    @invariant()
    def what_is_counted_is_there(self) -> None:
        for machine in [agent.machine for agent in getattr(self, "agents", ())]:
            assert machine.pending == sum(chain.pending for chain in machine.chains.values())
            assert machine.on_the_way == sum(chain.on_the_way for chain in machine.chains.values())

    def teardown(self) -> None:
        """The faults end: all drains by itself; every event is held once, what is confirmed is held."""
        for agent in self.agents:
            agent.offer()
        stopped = any(chain.refused for agent in self.agents for chain in agent.machine.chains.values())
        for number in range(DRAIN_ROUNDS if stopped else PROMPT_ROUNDS):
            self.now_s += 1.0
            if number % HELLO_ROUNDS == 0:
                self.say_hello_as_it_is_time()
            self.drain_round()
            if all(agent.machine.done and not agent.machine.pending for agent in self.agents) and not self.hub.stream:
                break
        else:
            raise AssertionError("it does not drain")
        self.check_drained()

    def say_hello_as_it_is_time(self) -> None:
        for agent in self.agents:
            agent.machine.ask_all()

    def drain_round(self) -> None:
        while self.delayed:
            self.arrives_late(0)
        for agent in self.agents:
            agent.asked = agent.machine.to_ask(self.now_s) or None
            self.answer(agent)
            while (cut := self.next_to_send(agent)) is not None:
                self.acknowledge(agent, cut, self.hub.store(agent.data(cut)))
        while self.hub.stream:
            self.hub_decides(True)
        while self.on_the_way:
            self.hear(*self.on_the_way.pop(0))

    def check_drained(self) -> None:
        for agent in self.agents:
            assert agent.confirmed == agent.log.head[0]
            assert {event.event_id for event in agent.log.events} <= self.hub.held.events.keys()


TestLyingLink = LyingLink.TestCase
TestLyingLink.settings = settings(stateful_step_count=40)
