"""What a hub lists and hands out: forks, bodies that come late, restored stores, other orders of arrival, bounds."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.logs import EXECUTION, MadeLog
from tests.support.model import Model
from tests.support.programs import ask, call
from tests.support.pulling import BYTES, Asker, each, first_of
from tests.support.store import ANA, BORIS, NOW_US, Store
from tests.support.strategies import History, histories, segmentations

from cmf_graph import selection as selection_module
from cmf_graph.database import connect
from cmf_hub import extracts as extracts_module
from cmf_hub import listings as listings_module
from cmf_hub import pulls as pulls_module
from cmf_hub.projector import caught_up_graph
from cmf_hub.pulls import Pulls
from cmf_link.login import new_login
from cmf_protocol import types as t
from cmf_protocol.errors import AccessDenied, CallerError, IntegrityError
from cmf_protocol.filters import filter_of
from cmf_protocol.pull import EventsRequest, PullRequest
from cmf_protocol.segments import SEGMENT_BYTES_MAX, decode_segment

PIPELINE = filter_of(pipelines=["p"])
STARTED = t.execution_started(EXECUTION, "p", "s")


class Hub:
    """A store, its graph, and what answers pulls over them."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.store.registry.identity(new_login().seed)
        self.pulls = Pulls(self.store.data)

    def take(self, *segments: bytes) -> None:
        """Store segments, and project them."""
        self.store.take(*segments)
        self.project()

    def project(self) -> None:
        graph, behind = caught_up_graph(self.store.data, wait_s=60.0)
        graph.connection.close()
        assert behind == 0

    def close(self) -> None:
        self.pulls.close()
        self.store.close()


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Sequence[Hub]]:
    made = [Hub(tmp_path / "one"), Hub(tmp_path / "two")]
    yield made
    for hub in made:
        hub.close()


@pytest.fixture
def hub(hubs: Sequence[Hub]) -> Hub:
    return hubs[0]


def started_log() -> MadeLog:
    """Return a log whose second event starts the execution that its others are about."""
    return MadeLog(ANA).say(1, STARTED).say(8)


def ids(*logs: MadeLog) -> set[bytes]:
    return {event.event_id for log in logs for event in log.events}


# -- listing -----------------------------------------------------------------------------------------------------------


def test_a_pull_brings_what_is_listed_and_the_next_one_only_what_is_new(hub: Hub) -> None:
    log, other = started_log(), MadeLog(BORIS).say(5, t.note_added(("pipeline", "q"), "no"))
    hub.take(log.cut(1, 10), other.cut(1, 6))
    asker = Asker("chen")
    (answer,) = asker.pull(hub.pulls, PIPELINE)
    assert asker.event_ids == ids(log)
    assert [(tree.root, tree.log_id, tree.site) for tree in answer.trees] == [
        (log.events[0].event_id, log.log_id, "ana")
    ]
    (again,) = asker.pull(hub.pulls, PIPELINE)
    assert (again.trees, again.branches, again.gone) == ((), (), ())
    hub.take(log.say(3).cut(11, 13))
    (more,) = asker.pull(hub.pulls, PIPELINE)
    assert [(each.after, each.ranges, each.upto) for each in more.branches] == [(10, ((11, 13),), 13)]
    assert more.trees == ()
    assert asker.event_ids == ids(log)


def test_old_events_come_when_they_become_listed(hub: Hub) -> None:
    log = MadeLog(ANA).say(4).say(2, t.note_added(("pipeline", "p"), "x")).say(1, t.pipeline_described("p", {"a": 1}))
    hub.take(log.cut(1, 8))
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    assert asker.event_ids == set()
    hub.take(log.say(1, STARTED).cut(9, 9))
    asker.pull(hub.pulls, PIPELINE)
    assert asker.event_ids == ids(log)
    # another filter with what is known for this one
    wide = asker.pull(hub.pulls, filter_of(sites=["boris"]))
    assert [len(answer.gone) for answer in wide] == [1]
    assert asker.event_ids == set()


def test_a_fork_found_later_splits_a_branch_and_what_follows_it(hub: Hub) -> None:
    log = started_log()
    late = log.fork(8).say(2)
    hub.take(log.cut(1, 10), late.cut(9, 10))
    asker, fresh = Asker("chen"), Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    assert len(asker.told) == 3
    early = log.fork(5).say(4)
    hub.take(early.cut(6, 9))
    asker.pull(hub.pulls, PIPELINE)
    fresh.pull(hub.pulls, PIPELINE)
    assert asker.told == {name: each._replace(after=asker.told[name].after) for name, each in fresh.told.items()}
    assert asker.event_ids == fresh.event_ids == ids(log, late, early)
    middle = log.events[5].event_id
    assert {each.parent_sequence for each in asker.told.values() if each.parent == middle} == {8}
    assert asker.told[middle].ranges == ((6, 8),)


def test_a_branch_in_which_nothing_is_listed_is_told_where_others_go_on_from_it(hub: Hub) -> None:
    log = MadeLog(ANA).say(9, t.note_added(("pipeline", "q"), "no"))
    one, two = log.fork(6).say(3, t.note_added(("pipeline", "q"), "no")), log.fork(6).say(1)
    inner = one.fork(8).say(1, STARTED)
    hub.take(log.cut(1, 10), one.cut(7, 9), two.cut(7, 7), inner.cut(9, 9))
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    assert asker.listed() == {
        log.events[0].event_id: ((1, 1),), one.events[6].event_id: (), inner.events[8].event_id: ((9, 9),),
        two.events[6].event_id: ((7, 7),),
    }  # fmt: skip


def test_what_lies_beyond_an_accepted_gap_is_a_branch_until_what_was_missing_comes(
    hub: Hub, hubs: Sequence[Hub]
) -> None:
    log = started_log()
    before, after = log.events[5], log.events[8]
    hub.store.registry.allow("boris", operator=True)
    hub.take(log.cut(1, 6), log.cut(9, 10))
    accepted = t.gap_accepted(ANA.public_key, log.log_id, before.event_id, after.event_id)
    hub.take(MadeLog(BORIS).say(1, accepted).cut(1, 2))
    hub.store.bring(None)
    hub.project()
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    beyond = asker.told[after.event_id]
    assert (beyond.parent, beyond.parent_sequence, beyond.first_sequence) == (log.events[0].event_id, 6, 9)
    assert asker.event_ids == ids(log) - {event.event_id for event in log.events[6:8]}
    hub.take(log.cut(7, 8))
    hubs[1].take(log.cut(1, 10))
    asker.pull(hub.pulls, PIPELINE)
    whole = Asker("chen")
    whole.pull(hubs[1].pulls, PIPELINE)
    assert asker.listed() == whole.listed() == {log.events[0].event_id: ((1, 10),)}
    assert asker.event_ids == ids(log)


def test_a_store_restored_from_an_older_copy_takes_back_what_it_told(hub: Hub, hubs: Sequence[Hub]) -> None:
    log, other = started_log(), MadeLog(BORIS).say(1, STARTED)
    hubs[1].take(log.cut(1, 6))
    hub.take(log.cut(1, 6), log.cut(7, 10), other.cut(1, 2))
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    known = asker.event_ids
    asker.pull(hubs[1].pulls, PIPELINE)
    assert asker.event_ids == {event.event_id for event in log.events[:6]}
    hubs[1].take(log.cut(7, 10), other.cut(1, 2))
    asker.pull(hubs[1].pulls, PIPELINE)
    assert asker.event_ids == known


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.data(), histories(min_size=8, max_size=30, odd=False), st.randoms(use_true_random=False))
def test_hubs_tell_the_same_whatever_came_first(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, history: History, chance: random.Random
) -> None:
    segments = data.draw(segmentations(history))
    askers = []
    for shuffle in (False, True):
        made = Hub(tmp_path_factory.mktemp("hub"))
        order = list(segments)
        if shuffle:
            chance.shuffle(order)
        made.take(*order)  # what waits for others is parked, and taken when they come
        while made.store.custody.has_ready():
            made.store.bring(None)
        made.project()
        for wanted in (filter_of(), filter_of(sites=["ana"]), filter_of(own=True)):
            asker = Asker("ana")
            asker.pull(made.pulls, wanted)
            askers.append(asker)
        made.close()
    for one, other in zip(askers[:3], askers[3:], strict=True):
        assert one.told == other.told
        assert one.trees == other.trees
        assert one.events == other.events


def test_known_lists_that_are_not_this_hubs_are_replaced(hub: Hub) -> None:
    log = started_log()
    hub.take(log.cut(1, 10))
    asker, root = Asker("chen"), log.events[0].event_id
    asker.pull(hub.pulls, PIPELINE)
    right = asker.told[root]
    for wrong in ({"upto": 2**63 - 1}, {"upto": 0}, {"digest": bytes(16)}, {"upto": 5}):
        asker.told[root] = right._replace(**wrong)
        asker.pull(hub.pulls, PIPELINE)
        assert asker.told[root].ranges == right.ranges
    asker.told[b"?" * 32] = right._replace(branch=b"?" * 32)
    (answer,) = asker.pull(hub.pulls, PIPELINE)
    assert answer.gone == (b"?" * 32,)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_list_too_long_for_one_answer_comes_in_several(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MadeLog(ANA).say(1, STARTED)
    for _ in range(60):
        log.say(1).say(1, t.note_added(("pipeline", "q"), "no"))
    forks = [log.fork(at).say(1) for at in range(4, 40, 3)]
    other = MadeLog(BORIS).say(3)
    hub.take(log.cut(1, 122), other.cut(1, 4), *[fork.cut(len(fork.events), len(fork.events)) for fork in forks])
    whole = Asker("chen")
    assert len(whole.pull(hub.pulls, PIPELINE)) == 1
    monkeypatch.setattr(listings_module, "ROW_RANGES_MAX", 4)
    monkeypatch.setattr(listings_module.tell, "__defaults__", (1_000,))
    paged = Asker("chen")
    answers = paged.pull(hub.pulls, PIPELINE)
    assert len(answers) > 10
    assert [answer.complete for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert paged.listed() == whole.listed()
    assert paged.event_ids == whole.event_ids
    assert answers[0].trees[0].root == other.events[0].event_id  # who has forked most does not stop the others


def test_events_come_in_answers_that_fit_a_message(hub: Hub) -> None:
    noise = random.Random(1)
    log = MadeLog(ANA).say(1, STARTED)
    for _ in range(12):
        log.say(1, t.note_added(("execution", EXECUTION), noise.randbytes(100_000).hex()))
    log.say(5_000)
    hub.take(
        *[log.cut(at, at) for at in range(1, 15)], *[log.cut(at, min(at + 999, 5014)) for at in range(15, 5015, 1000)]
    )
    asker = Asker("chen")
    assert not [answer for answer in asker.pull(hub.pulls, PIPELINE) if not answer.complete]
    assert asker.event_ids == ids(log)
    root = log.events[0].event_id
    found = asker.request(hub.pulls, EventsRequest(((root, ((3, 14),)),), 1)).events
    assert [event.sequence for event in found] == [3]
    found = asker.request(hub.pulls, EventsRequest(((root, ((3, 14),)),), BYTES)).events
    assert [event.sequence for event in found] == [3, 4, 5, 6]


def test_one_answer_decodes_a_bounded_number_of_segments(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracts_module, "SEGMENTS_PER_ANSWER_MAX", 3)
    log = started_log()
    hub.take(*log.singles())
    asker = Asker("chen")
    root = log.events[0].event_id
    found = asker.request(hub.pulls, EventsRequest(((root, ((1, 10),)),), BYTES)).events
    assert [event.sequence for event in found] == [1, 2, 3]
    asker.pull(hub.pulls, PIPELINE)
    assert asker.event_ids == ids(log)


def test_what_is_not_held_as_it_is_wanted_is_left_out(hub: Hub) -> None:
    log = started_log()
    hub.take(log.cut(1, 10), log.fork(5).say(2).cut(6, 7))
    asker, root = Asker("chen"), log.events[0].event_id
    found = asker.request(hub.pulls, EventsRequest(((root, ((4, 9),)), (b"?" * 32, ((1, 2),))), BYTES)).events
    assert [event.sequence for event in found] == [4, 5]  # beyond the fork they are another branch's
    for wanted in (((root, ((6, 9),)),), ((log.events[2].event_id, ((3, 4),)),), ((root, ((2**62, 2**62),)),), ()):
        with pytest.raises(CallerError) as refused:
            asker.request(hub.pulls, EventsRequest(wanted, BYTES))
        assert "pull again" in refused.value.hint


def test_only_enrolled_sites_that_are_not_revoked_may_read(hub: Hub) -> None:
    log = started_log()
    hub.take(log.cut(1, 10))
    hub.store.registry.revoke("chen", NOW_US)
    for site in ("chen", "stranger"):
        with pytest.raises(AccessDenied, match=site):
            Asker(site).pull(hub.pulls, PIPELINE)
        with pytest.raises(AccessDenied, match=site):
            hub.pulls.events(site, EventsRequest(((log.events[0].event_id, ((1, 1),)),), BYTES))


def test_a_graph_of_another_store_is_told(hub: Hub, hubs: Sequence[Hub]) -> None:
    hub.take(started_log().cut(1, 10))
    hubs[1].take(started_log().cut(1, 10))
    with connect(hubs[1].store.data.graph_file()) as graph:
        graph.execute("UPDATE trees SET root = ?", (b"x" * 32,))
    with pytest.raises(IntegrityError, match="branch 1 is not the store's") as told:
        Asker("chen").pull(hubs[1].pulls, PIPELINE)
    assert "rebuild" in told.value.hint


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_artifacts_are_named_in_any_way_and_the_answer_says_which_they_are(hub: Hub) -> None:
    content = "md5:" + "ab" * 16
    log = MadeLog(ANA).say(1, STARTED).say(1, t.usage(t.ARTIFACT_PRODUCED, EXECUTION, content, name="out/model.pkl"))
    hub.take(log.cut(1, 3))
    asker = Asker("chen")
    for name in (content, "abababab", "out/model.pkl", "artifact:model.pkl"):
        (answer,) = asker.pull(hub.pulls, filter_of(artifacts=[name]))
        assert answer.filter == filter_of(artifacts=[content])
        assert asker.event_ids == ids(log)
    unknown = filter_of(artifacts=["md5:" + "00" * 16])
    (answer,) = Asker("chen").pull(hub.pulls, unknown)  # nobody has recorded it yet
    assert (answer.filter, answer.branches) == (unknown, ())
    for wrong, said in ((["nobody.pkl"], "nobody.pkl"), ([f"name {number}" for number in range(17)], "16")):
        with pytest.raises(CallerError, match=said):
            hub.pulls.pull("chen", PullRequest(filter_of(artifacts=wrong)))


# -- bodies and proofs -------------------------------------------------------------------------------------------------


def test_a_body_that_came_later_is_handed_out(hub: Hub) -> None:
    log = started_log()
    bare = MadeLog(ANA, events=[event._replace(body=None) if at > 3 else event for at, event in enumerate(log.events)])
    hub.take(bare.cut(1, 10))
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    assert [asker.events[log.events[0].event_id, at].body is None for at in range(1, 11)] == [False] * 4 + [True] * 6
    (before,) = asker.pull(hub.pulls, PIPELINE)
    hub.take(log.cut(6, 8))
    (after,) = asker.pull(hub.pulls, PIPELINE)
    assert (before.branches, after.branches) == ((), ())
    assert before.withheld != after.withheld
    again = Asker("chen")
    assert again.pull(hub.pulls, PIPELINE)[0].withheld == after.withheld
    assert [again.events[log.events[0].event_id, at].body for at in range(6, 9)] == [e.body for e in log.events[5:8]]
    root = log.events[0].event_id
    (segment,) = again.request(
        hub.pulls, EventsRequest(((root, ((5, 9),)),), BYTES, ((root, ((6, 6), (9, 9))),))
    ).segments
    found = decode_segment(segment)
    assert found.signature_holds()
    assert [at for at, event in enumerate(found.events, 1) if event.body] == [6]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.data(), histories(min_size=8, max_size=30, odd=False))
def test_segments_verify_and_have_the_bodies_that_were_asked_for(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, history: History
) -> None:
    made = Hub(tmp_path_factory.mktemp("hub"))
    made.take(*data.draw(segmentations(history)))
    asker = Asker("ana")
    asker.pull(made.pulls, filter_of())
    wanted = first_of(tuple((name, ranges) for name, ranges in asker.listed().items() if ranges))
    bodies = tuple((name, ranges) for name, ranges in wanted if data.draw(st.booleans()))
    asked_for = {asker.events[name, at].event_id for name, ranges in bodies for at in each(ranges)}
    segments = asker.request(made.pulls, EventsRequest(wanted, BYTES, bodies)).segments if wanted else ()
    found = [decode_segment(segment) for segment in segments]
    assert all(segment.signature_holds() for segment in found)
    events = [event for segment in found for event in segment.events]
    assert {event.event_id for event in events} >= asker.event_ids
    assert {event.event_id for event in events if event.body is not None} == asked_for
    made.close()


def test_bodies_that_do_not_fit_one_segment_come_in_several(hub: Hub) -> None:
    noise = random.Random(2)
    log = MadeLog(ANA).say(1, STARTED)
    for _ in range(9):
        log.say(1, t.note_added(("execution", EXECUTION), noise.randbytes(50_000).hex()))
    bare = MadeLog(ANA, events=[event._replace(body=None) for event in log.events])
    hub.take(bare.cut(1, 11), *[log.cut(at, at) for at in range(1, 12)])
    root, whole = log.events[0].event_id, ((1, 11),)
    segments = Asker("chen").request(hub.pulls, EventsRequest(((root, whole),), BYTES, ((root, whole),))).segments
    found = [decode_segment(segment) for segment in segments]
    assert len(found) == 2
    assert all(segment.signature_holds() for segment in found)
    assert all(sum(event.size for event in segment.events) <= SEGMENT_BYTES_MAX for segment in found)
    assert [event.body for event in log.events] == [
        next((segment.events[at].body for segment in found if segment.events[at].body), None) for at in range(11)
    ]


def test_the_digest_of_a_pipeline_is_that_of_the_events_that_a_pull_brings(hub: Hub) -> None:
    log, other = started_log(), MadeLog(BORIS).say(5, t.note_added(("pipeline", "q"), "no"))
    hub.take(log.cut(1, 10), log.fork(5).say(2).cut(6, 7), other.cut(1, 6))
    asker = Asker("chen")
    asker.pull(hub.pulls, PIPELINE)
    said = ask("cmf-hub", "digest", "-p", "p", "--data", hub.store.data.root, cwd=hub.store.data.root)
    assert said["events"] == 12
    assert said["events_digest"] == Model(asker.events.values()).events_digest().hex()
    assert said["digest"] == Model(asker.events.values()).digest().hex()
    assert ask("cmf-hub", "digest", "--data", hub.store.data.root, cwd=hub.store.data.root)["events"] == 18
    nothing = call("cmf-hub", "digest", "-p", "nobody's", "--data", hub.store.data.root, cwd=hub.store.data.root)
    assert (nothing.returncode, "nobody's" in nothing.stderr) == (2, True)


# -- notices -----------------------------------------------------------------------------------------------------------


def test_who_listens_hears_of_what_others_bring_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "NOTICE_EVERY_S", 0.0)
    log, other = started_log(), MadeLog(BORIS).say(2, STARTED)
    hub.take(log.cut(1, 6))
    for site in ("ana", "chen"):
        Asker(site).pull(hub.pulls, PIPELINE, listen=True)
    Asker("boris").pull(hub.pulls, PIPELINE)

    def heard() -> list[str]:
        return [site for wanted in hub.pulls.due() for site in hub.pulls.heard(wanted)]

    heard()
    assert hub.pulls.due() == []
    hub.take(log.cut(7, 10))
    assert heard() == ["chen"]  # ana brought it
    hub.take(MadeLog(BORIS).say(2, t.note_added(("pipeline", "q"), "no")).cut(1, 3))
    assert heard() == []
    hub.take(other.cut(1, 3))
    assert heard() == ["ana", "chen"]
    assert heard() == []


def test_a_filter_that_can_be_listed_no_longer_is_told_once_and_stops_no_other(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulls_module, "NOTICE_EVERY_S", 0.0)
    log, data = started_log(), "md5:" + 32 * "a"
    hub.take(log.cut(1, 10))
    Asker("boris").pull(hub.pulls, filter_of(artifacts=[data]), listen=True)
    Asker("chen").pull(hub.pulls, PIPELINE, listen=True)
    monkeypatch.setattr(selection_module, "CLOSURE_NODES_MAX", 0)

    def heard() -> list[str]:
        return [site for wanted in hub.pulls.due() for site in hub.pulls.heard(wanted)]

    hub.take(log.say(1, t.usage(t.ARTIFACT_USED, EXECUTION, data)).cut(11, 11))
    assert heard() == ["boris", "chen"]
    hub.take(log.say(1).cut(12, 12))
    assert heard() == ["chen"]


def test_a_site_is_listened_for_a_bounded_number_of_filters(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "NOTICE_EVERY_S", 0.0)
    monkeypatch.setattr(pulls_module, "LISTENED_MAX", 2)
    hub.take(started_log().cut(1, 10))
    Asker("boris").pull(hub.pulls, filter_of(pipelines=["b"]), listen=True)
    for name in ("1", "2", "3", "2"):
        Asker("chen").pull(hub.pulls, filter_of(pipelines=[name]), listen=True)
    assert hub.pulls.due() == [filter_of(pipelines=[name]) for name in ("b", "3", "2")]
