"""What the push machine decides where nothing lies: the order of sending, bounds, refusals."""

from cmf_protocol.chains import (
    CONFIRM_WAIT_S,
    HUB_ERROR_WAIT_S,
    REFUSED_AGAIN_S,
    STUCK_ASKED,
    UNKNOWN_WAIT_S,
    Cut,
    Mark,
    Offer,
)
from cmf_protocol.messages import Confirmation, Refusal, StreamState
from cmf_protocol.sync import DOUBTFUL_S, DOUBTS_MAX, HUB_ERROR, PushMachine

ONE, OTHER = b"1" * 16, b"2" * 16
LIFE = "life"


def id_at(chain: bytes, sequence: int) -> bytes:
    return chain + sequence.to_bytes(16, "big")


def next_cut(chain: bytes, after: int, events_max: int, _bytes_max: int) -> Cut:
    last = min(after + events_max, 10_000)
    return Cut(chain, chain, after + 1, last, id_at(chain, last), 100 * (last - after))


def machine_of(*chains: bytes, head: int = 10_000, grant: int = 4_000) -> PushMachine:
    """Return a machine whose hub has answered that it holds nothing."""
    machine = PushMachine(id_at, next_cut)
    for chain in chains:
        machine.offer(Offer(chain, chain, head))
    machine.on_connected()
    answer(machine, 0, grant=grant)
    return machine


def answer(machine: PushMachine, decided: int, *, grant: int = 4_000, now_s: float = 0.0) -> None:
    machine.on_answer(machine.to_ask(now_s), (), StreamState(LIFE, decided, 0), grant, now_s)


def confirm(machine: PushMachine, cut: Cut, now_s: float = 0.0) -> None:
    confirmed = [(cut.chain, cut.last_sequence, cut.last_id)]
    machine.on_confirm(confirmed, (), (), machine.grant, now_s)


def refusal(cut: Cut, code: str) -> Refusal:
    return Refusal(cut.log_id, cut.first_sequence, cut.last_id, code, "")


def send(machine: PushMachine, now_s: float = 0.0, sequence: int = 1) -> Cut:
    cut = machine.next_to_send(now_s)
    assert cut is not None
    machine.on_published(cut, sequence, now_s)
    return cut


def test_nothing_is_sent_before_the_hub_has_answered() -> None:
    machine = PushMachine(id_at, next_cut)
    machine.offer(Offer(ONE, ONE, 10))
    machine.on_connected()
    assert machine.next_to_send(0.0) is None
    answer(machine, 0)
    assert machine.next_to_send(0.0) is not None


def test_on_a_new_connection_nothing_is_sent_and_nothing_done_before_the_hub_has_answered_again() -> None:
    machine = machine_of(ONE, head=100)
    confirm(machine, send(machine))
    assert machine.done
    machine.offer(Offer(ONE, ONE, 200))
    machine.on_connected()
    assert not machine.done
    assert machine.next_to_send(0.0) is None
    machine.on_answer(machine.to_ask(0.0), [(ONE, 100, id_at(ONE, 100))], StreamState(LIFE, 1, 0), 4_000, 0.0)
    assert send(machine).first_sequence == 101


def test_what_is_still_in_the_stream_is_not_sent_again_by_the_process_that_sent_it_either() -> None:
    machine = machine_of(ONE, head=1_000)
    confirm(machine, send(machine))
    waiting = send(machine, sequence=2)
    machine.ask_all()  # the hub was restored, and holds nothing any more
    machine.on_answer(machine.to_ask(0.0), (), StreamState(LIFE, 1, 1), 4_000, 0.0)
    firsts = []
    while (cut := machine.next_to_send(0.0)) is not None:
        firsts.append(cut.first_sequence)
        machine.on_published(cut, 2 + len(firsts), 0.0)
        if cut.last_sequence < waiting.first_sequence:
            confirm(machine, cut)
    assert firsts[0] == 1
    assert waiting.first_sequence not in firsts
    confirm(machine, waiting)
    assert machine.chains[ONE].confirmed == waiting.last_sequence


def test_what_is_parked_though_all_before_it_was_confirmed_has_the_hub_asked_at_once() -> None:
    machine = machine_of(ONE)
    confirm(machine, send(machine))
    cut = send(machine)
    assert not machine.to_ask(0.0)
    machine.on_confirm((), (), [(ONE, cut.first_sequence)], 4_000, 0.0)
    assert machine.to_ask(0.0) == {ONE: cut.first_sequence - 1}


def test_what_was_in_flight_when_the_connection_broke_is_sent_again_at_once_if_the_stream_holds_nothing() -> None:
    machine = machine_of(ONE)
    cut = machine.next_to_send(0.0)
    machine.on_connected()
    answer(machine, 0, now_s=1.0)
    assert machine.next_to_send(1.0) == cut


def test_what_was_in_flight_when_the_connection_broke_is_waited_for_while_the_stream_holds_something() -> None:
    machine = machine_of(ONE)
    cut = machine.next_to_send(0.0)
    machine.on_connected()
    machine.on_answer(machine.to_ask(1.0), (), StreamState(LIFE, 0, 1), 4_000, 1.0)
    assert machine.next_to_send(1.0) is None
    assert machine.to_ask(1.0 + UNKNOWN_WAIT_S)
    answer(machine, 1, now_s=1.0 + UNKNOWN_WAIT_S)
    assert machine.next_to_send(2.0) == cut


def test_a_connection_begins_with_one_small_cut_and_grows_with_confirmations() -> None:
    machine = machine_of(ONE)
    first = send(machine)
    assert first.last_sequence == 100
    assert machine.next_to_send(0.0) is None
    confirm(machine, first)
    sizes = [send(machine).size for _ in range(5)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 100 * 1_000
    machine.on_connected()
    answer(machine, 99)
    assert machine.next_to_send(0.0) is not None
    assert machine.next_to_send(0.0) is None


def test_no_more_than_the_grant_is_on_the_way_and_always_one_piece() -> None:
    machine = machine_of(ONE, grant=300)
    confirm(machine, send(machine))
    while machine.next_to_send(0.0) is not None:
        assert machine.on_the_way <= 300
    assert machine.on_the_way > 150
    assert machine_of(ONE, grant=0).next_to_send(0.0) is not None


def test_a_refused_chain_stops_no_other_one_and_is_tried_again_much_later() -> None:
    machine = machine_of(ONE, OTHER)
    bad = send(machine)
    moves = machine.on_confirm((), [refusal(bad, "revoked")], (), 4_000, 0.0)
    assert list(moves.refused) == [bad.chain]
    good = send(machine)
    assert good.chain != bad.chain
    confirm(machine, good)
    machine.ask_all()
    answer(machine, 9, now_s=REFUSED_AGAIN_S - 1)
    assert machine.chains[bad.chain].refused is not None
    machine.ask_all()
    answer(machine, 9, now_s=REFUSED_AGAIN_S)
    assert machine.chains[bad.chain].refused is None


def test_a_fault_of_the_hub_is_no_refusal_the_same_is_sent_again_later() -> None:
    machine = machine_of(ONE)
    cut = send(machine)
    machine.on_confirm((), [refusal(cut, HUB_ERROR)], (), 4_000, 0.0)
    assert machine.next_to_send(HUB_ERROR_WAIT_S / 2) is None
    assert machine.next_to_send(HUB_ERROR_WAIT_S) == cut


def test_what_the_hub_can_not_read_is_found_by_sending_it_again() -> None:
    machine = machine_of(ONE, OTHER)
    unreadable = Refusal(b"", 0, b"", "malformed", "")
    bad, others = send(machine), []
    for sent in range(1, DOUBTS_MAX + 1):
        assert machine.chains[bad.chain].refused is None
        machine.on_confirm((), [unreadable], (), 4_000, 0.0)
        answer(machine, sent)
        while sent < DOUBTS_MAX and (cut := send(machine, sequence=sent + 1)) != bad:
            confirm(machine, cut)
            others.append(cut)
    assert machine.chains[bad.chain].refused == unreadable
    assert others
    assert send(machine, sequence=9).chain != bad.chain


def test_a_segment_that_nobody_could_read_long_ago_makes_nothing_suspect() -> None:
    machine = machine_of(ONE)
    machine.on_confirm((), [Refusal(b"", 0, b"", "malformed", "")], (), 4_000, 0.0)
    for sent in range(1, 2 * DOUBTS_MAX):  # a stream that is wiped again and again, say
        send(machine, DOUBTFUL_S + sent, sent)
        machine.ask_all()
        answer(machine, sent, now_s=DOUBTFUL_S + sent)
    assert machine.chains[ONE].refused is None


def test_an_acknowledgement_that_takes_long_makes_cuts_small() -> None:
    machine = machine_of(ONE)
    machine.line.on_round_trip(0.1)
    first = machine.next_to_send(0.0)
    assert first is not None
    machine.on_published(first, 1, 5.0)
    confirm(machine, first, 5.0)
    second = machine.next_to_send(5.0)
    assert second is not None
    assert second.size < first.size


# -- chains beside each other


def test_chains_take_turns() -> None:
    machine = machine_of(ONE, OTHER)
    confirm(machine, send(machine))
    assert [send(machine).chain for _ in range(4)] == [OTHER, ONE, OTHER, ONE]


def test_a_large_piece_waits_for_its_turn_and_is_not_overtaken_for_ever() -> None:
    def cut_of(chain: bytes, after: int, events_max: int, bytes_max: int) -> Cut:
        return next_cut(chain, after, 1 if chain == OTHER else events_max, bytes_max)

    machine = PushMachine(id_at, cut_of)
    machine.offer(Offer(OTHER, OTHER, 1))
    machine.offer(Offer(ONE, ONE, 10_000))
    machine.on_connected()
    answer(machine, 0, grant=100)
    confirm(machine, send(machine))
    sent = []
    for head in range(2, 40):  # one event after the other is recorded there
        machine.offer(Offer(OTHER, OTHER, head))
        if (cut := machine.next_to_send(0.0)) is not None:
            machine.on_published(cut, 1, 0.0)
            sent.append(cut.chain)
    assert set(sent) == {ONE, OTHER}
    assert sent.count(OTHER) <= 3


def test_what_the_hub_never_comes_to_stops_no_other_chain() -> None:
    """Its stored part of a log may be damaged: then a segment of it comes again and again, and is never decided."""
    machine = machine_of(ONE, OTHER)
    stuck, now_s = send(machine), 0.0
    for _ in range(STUCK_ASKED):
        assert machine.next_to_send(now_s) is None
        now_s += 60.0
        answer(machine, 0, now_s=now_s)
    for _ in range(5):
        cut = send(machine, now_s)
        assert cut.chain != stuck.chain
        confirm(machine, cut, now_s)
    confirm(machine, stuck, now_s)
    assert {send(machine, now_s).chain for _ in range(3)} == {ONE, OTHER}


def test_idle_hellos_do_not_put_off_the_first_question_about_what_is_sent_next() -> None:
    machine = machine_of(ONE, head=100)
    confirm(machine, send(machine))
    for _ in range(50):
        machine.ask_all()
        answer(machine, 1)
    machine.offer(Offer(ONE, ONE, 200))
    send(machine, 0.0)
    assert not machine.to_ask(CONFIRM_WAIT_S - 1)
    assert machine.to_ask(CONFIRM_WAIT_S)


# -- what an earlier process published


def machine_after_a_kill(held: int) -> PushMachine:
    """Return a machine whose log is confirmed up to 400 and published up to 800; the hub answers that it holds `held`."""
    machine = PushMachine(id_at, next_cut)
    machine.offer(Offer(ONE, ONE, 1_000, 400, Mark(800, LIFE, 7)))
    machine.on_connected()
    answer_about(machine, [(ONE, held, id_at(ONE, held))])
    return machine


def answer_about(machine: PushMachine, confirmed: list[Confirmation]) -> None:
    """Answer that this is held, and that the stream still holds what was published."""
    machine.on_answer(machine.to_ask(0.0), confirmed, StreamState(LIFE, 3, 4), 4_000, 0.0)


def sent_until(machine: PushMachine, head: int) -> list[int]:
    """Send and confirm until nothing more can be sent; return the first sequences."""
    firsts = []
    while (cut := machine.next_to_send(0.0)) is not None:
        firsts.append(cut.first_sequence)
        machine.on_published(cut, 8, 0.0)
        if cut.last_sequence <= head:
            confirm(machine, cut)
    return firsts


def test_what_the_stream_still_holds_is_not_sent_again_to_a_hub_that_was_restored() -> None:
    machine = machine_after_a_kill(held=400)
    machine.offer(Offer(OTHER, OTHER, 100))
    answer_about(machine, [(ONE, 400, id_at(ONE, 400))])
    machine.on_confirm([(ONE, 500, id_at(ONE, 500))], (), (), 4_000, 0.0)
    machine.ask_all()
    answer_about(machine, [(ONE, 300, id_at(ONE, 300))])
    firsts = sent_until(machine, 500)
    assert 301 in firsts
    assert [first for first in firsts if 400 < first <= 800] == []


def test_what_was_published_before_a_kill_and_parked_and_dropped_is_cut_anew() -> None:
    machine = machine_after_a_kill(held=300)
    machine.on_confirm((), (), [(ONE, 401)], 4_000, 0.0)  # parked: the hub lacks what is before
    assert 401 in sent_until(machine, 400)


def test_a_fault_of_the_hub_with_what_was_published_before_a_kill_has_it_cut_anew() -> None:
    machine = machine_after_a_kill(held=400)
    machine.on_confirm((), [Refusal(ONE, 501, id_at(ONE, 600), HUB_ERROR, "")], (), 4_000, 0.0)
    assert sent_until(machine, 10_000)[0] == 401
    assert machine.done
