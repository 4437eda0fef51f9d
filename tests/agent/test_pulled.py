"""What a site keeps of what a hub tells: only what holds, once, and where it stands; and what it asks for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.logs import EXECUTION, MadeLog
from tests.support.placed import ToldHub
from tests.support.strategies import SIGNERS

from cmf_agent import pull as pull_module
from cmf_agent.fetching import PullReport
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.listings import Listings
from cmf_agent.outbox import Outbox
from cmf_agent.pull import pull_all
from cmf_agent.pulled import Pulled
from cmf_agent.pulled_verify import verify_pulled
from cmf_agent.reading import LogReader
from cmf_agent.view import local_view
from cmf_graph.locks import try_lock
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError, IntegrityError, StoreError
from cmf_protocol.filters import filter_of
from cmf_protocol.pull import (
    EventsAnswer,
    EventsRequest,
    PullAnswer,
    ToldBranch,
    ToldTree,
    decode_events_request,
    encode_events_request,
    listing_digest,
)
from cmf_protocol.ranges import Ranges, count, last_of

MADE = filter_of(pipelines=["made"])
OTHER = filter_of(pipelines=["other"])


def hub_file(home: Home, hub: ToldHub) -> HubFile:
    return HubFile(
        home.hub_path, site="reader", url="nats://told:4222", hub_id=hub.hub_id, hub_key=bytes(32), login="SU", token=None, ca=None
    )  # fmt: skip


def pulled(home: Home, hub: ToldHub, *filters: Any, prove: bool = False) -> PullReport:
    return asyncio.run(pull_all(hub, home, hub_file(home, hub), list(filters) or [MADE], prove=prove))


def held(home: Home) -> set[bytes]:
    with Pulled(home.pulled_path) as store:
        return {event_id for (event_id,) in store.rows("SELECT event_id FROM events")}


def in_view(home: Home) -> set[bytes]:
    """Return the pulled events that the local view has folded."""
    with LogReader(home.log_path) as reader:
        own = {stored.event_id for stored in reader.all_events()}
    with local_view(home) as graph:
        return set(graph.event_ids()) - own


def generation(home: Home) -> int:
    with Pulled(home.pulled_path) as store:
        return store.generation


def ids(*logs: MadeLog) -> set[bytes]:
    return {event.event_id for log in logs for event in log.events}


def asked_events(hub: ToldHub) -> int:
    return sum(count(ranges) for r in hub.requests if isinstance(r, EventsRequest) for _, ranges in r.wanted)


@pytest.fixture
def log() -> MadeLog:
    return MadeLog(SIGNERS[0]).say(9)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_everything_that_is_listed_is_kept_and_folded_in_pages_of_any_size(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log, MadeLog(SIGNERS[1]).say(4))
    hub.page_events = 3
    report = pulled(home, hub)
    assert (report.events, report.complete, report.proven) == (15, True, False)
    assert held(home) == in_view(home) == ids(*hub.logs)
    hub.requests.clear()
    assert (pulled(home, hub).events, asked_events(hub)) == (0, 0)
    log.say(2)
    assert (pulled(home, hub).events, asked_events(hub)) == (2, 2)
    assert in_view(home) == ids(*hub.logs)


def test_the_root_of_a_tree_comes_before_its_other_events(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    first, *_ = [request.wanted for request in hub.requests if isinstance(request, EventsRequest)]
    assert first == ((log.events[0].event_id, ((1, 1),)),)


def test_a_line_that_fails_is_tried_again(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    hub.failures = 2
    assert pulled(home, hub).complete
    assert held(home) == ids(log)


def test_two_filters_share_what_both_list_and_forgetting_one_keeps_it(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    hub.listed = {event.event_id for event in log.events[:6]}
    pulled(home, hub, MADE)
    hub.listed = {log.events[0].event_id, *(event.event_id for event in log.events[4:8])}
    assert pulled(home, hub, OTHER).events == 2
    before = generation(home)
    with Pulled(home.pulled_path) as store:
        listings = Listings(store)
        found = listings.find(MADE)
        assert found is not None
        listings.unsubscribe(found.id, forget=False)
        assert (store.generation, len(listings.filters())) == (before, 2)
        listings.unsubscribe(found.id, forget=True)
    assert held(home) == in_view(home) == hub.listed
    assert generation(home) != before


def test_what_a_hub_lists_no_longer_is_not_shown_and_comes_again_with_it(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    assert in_view(home) == ids(log)
    lost, log.events = log.events, log.events[:4]
    pulled(home, hub)
    assert in_view(home) == ids(log)
    log.events = lost
    assert pulled(home, hub).events == 6
    assert in_view(home) == ids(log)


def test_another_hub_or_another_store_tells_everything_anew(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    other = ToldHub(log.fork(5).say(2))
    assert pulled(home, other).events == 7
    assert in_view(home) == ids(other.logs[0])
    other.incarnation = bytes(16)
    report = pulled(home, other)
    assert (report.events, "7 events" in report.warnings[0]) == (7, True)
    assert pulled(home, other).warnings == []


def test_a_fork_that_becomes_known_moves_what_stands_beyond_it(home: Home, log: MadeLog) -> None:
    run = t.execution_started(EXECUTION, "made", "train", params={"lr": 1})
    log.say(1, run)
    hub = ToldHub(log)
    pulled(home, hub)
    before = generation(home)
    copy = log.fork(6).say(1, run._replace(body={"params": {"lr": 2}}))
    hub.logs.append(copy)
    assert pulled(home, hub).complete
    assert generation(home) != before
    assert held(home) == in_view(home) == ids(log, copy)
    with local_view(home) as graph:
        node = graph.node_id(("execution", EXECUTION))
        assert node is not None
        assert len(graph.state(node).values["params", "lr"].candidates) == 2  # neither is later
        forks = graph.rows("SELECT parent_sequence FROM branches WHERE parent IS NOT NULL")
    assert forks == [(6,), (6,)]


def test_a_body_that_was_withheld_is_folded_when_it_comes(home: Home, log: MadeLog) -> None:
    last = log.events[-1]
    log.events[-1] = last._replace(body=None)
    hub = ToldHub(log)
    assert pulled(home, hub).complete
    with local_view(home) as graph:
        assert graph.digest().unfolded == 1
    log.events[-1] = last
    assert pulled(home, hub).events == 0
    with local_view(home) as graph:
        assert graph.digest().unfolded == 0


def test_a_damaged_view_is_made_anew(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    assert in_view(home) == ids(log)
    for file in home.path.glob("view.db*"):
        file.write_bytes(b"damaged" * 1_000)
    assert in_view(home) == ids(log)


def test_who_asks_while_the_view_is_made_anew_gets_a_whole_one(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    with local_view(home) as before:
        log.events[6:] = []
        hub.listed = ids(log) - {log.events[3].event_id}
        pulled(home, hub)
        with local_view(home) as after:
            assert set(after.event_ids()) & ids(log) == hub.listed
        assert len(set(before.event_ids())) == 11


def test_one_pull_at_a_time(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)

    async def both() -> list[PullReport | BaseException]:
        asking = [pull_all(hub, home, hub_file(home, hub), [MADE]) for _ in range(2)]
        return await asyncio.gather(*asking, return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, PullReport) and isinstance(second, PullReport)
    assert (first.events, second.events) == (10, 0)


def test_a_pull_that_goes_on_for_long_is_told_to_the_next(
    home: Home, log: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "LOCK_WAIT_S", 0.2)
    lock = try_lock(home.path / "pull.lock")
    assert lock is not None
    with lock, pytest.raises(StoreError, match="another pull"):
        pulled(home, ToldHub(log))
    assert pulled(home, ToldHub(log)).complete


def test_a_body_that_the_hub_has_not_is_asked_for_again_once_one_has_come(home: Home, log: MadeLog) -> None:
    first, last = log.events[2], log.events[-1]
    log.events[2], log.events[-1] = first._replace(body=None), last._replace(body=None)
    hub = ToldHub(log)
    pulled(home, hub)
    log.say(1)
    hub.requests.clear()
    assert pulled(home, hub).complete
    assert asked_events(hub) == 1
    log.events[2] = first
    assert pulled(home, hub).complete
    assert asked_events(hub) == 3
    with local_view(home) as graph:
        assert graph.digest().unfolded == 1


def test_what_was_forgotten_while_it_is_pulled_is_not_kept(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)

    def forget(answer: EventsAnswer) -> EventsAnswer:
        with Pulled(home.pulled_path) as store:
            for each in Listings(store).filters():
                Listings(store).unsubscribe(each.id, forget=True)
        return answer

    hub.alter = forget
    with pytest.raises(CallerError, match="forgotten"):
        pulled(home, hub)
    hub.alter = lambda answer: answer
    assert held(home) == set()
    assert pulled(home, hub, OTHER).events == 10
    with Pulled(home.pulled_path) as store:
        assert [each.complete for each in Listings(store).filters()] == [True]


def test_a_filter_that_was_never_pulled_is_pulled_from_another_store(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub, MADE)
    hub.incarnation = bytes(16)
    assert pulled(home, hub, OTHER).complete
    with Pulled(home.pulled_path) as store:
        assert [each.complete for each in Listings(store).filters()] == [False, True]


def test_a_fork_makes_those_filters_incomplete_that_lose_events_by_it(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub, MADE)
    hub.logs.append(log.fork(6).say(1))
    pulled(home, hub, OTHER)
    with Pulled(home.pulled_path) as store:
        assert [each.complete for each in Listings(store).filters()] == [False, True]
    pulled(home, hub, MADE)
    assert held(home) == in_view(home) == ids(*hub.logs)
    with Pulled(home.pulled_path) as store:
        assert [each.complete for each in Listings(store).filters()] == [True, True]


def test_a_branch_beyond_a_gap_that_was_filled_is_one_with_what_is_before_it(home: Home, log: MadeLog) -> None:
    root, beyond = log.events[0].event_id, log.events[6]

    def row(name: bytes, ranges: Ranges) -> ToldBranch:
        parent, before, first = (None, None, 1) if name == root else (root, 4, 7)
        upto = last_of(ranges)
        digest = listing_digest(parent, before, ranges, upto)
        return ToldBranch(name, root, parent, before, first, 0, ranges, upto, digest)

    def events(answer: EventsAnswer) -> EventsAnswer:
        rows = answer.events
        if gap:
            rows = tuple(r._replace(branch=beyond.event_id) if r.sequence >= 7 else r for r in rows)
        return answer._replace(events=rows)

    hub = ToldHub(log)
    hub.alter, gap = events, True
    hub.alter_list = lambda answer: answer._replace(
        branches=(row(root, ((1, 4),)), row(beyond.event_id, ((7, 10),))), gone=()
    )
    asks = hub.request

    async def in_one_piece(subject: str, data: bytes, *, timeout_s: float) -> bytes:
        if subject.endswith(".events"):
            asked = decode_events_request(data)
            data = encode_events_request(asked._replace(wanted=tuple((root, ranges) for _, ranges in asked.wanted)))
        return await asks(subject, data, timeout_s=timeout_s)

    hub.request = in_one_piece  # type: ignore[method-assign]
    pulled(home, hub, MADE)
    assert held(home) == {event.event_id for event in log.events if event.header.sequence not in (5, 6)}
    gap = False
    hub.alter_list = lambda answer: answer._replace(branches=(row(root, ((1, 10),)),), gone=())
    pulled(home, hub, OTHER)
    assert held(home) == in_view(home) == ids(log)
    with Pulled(home.pulled_path) as store:
        assert [each.complete for each in Listings(store).filters()] == [False, True]
        assert set(store.pieces()) == {root}


# -- proofs ------------------------------------------------------------------------------------------------------------


def test_proofs_come_without_the_bodies_that_are_here(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub)
    hub.requests.clear()
    report = pulled(home, hub, prove=True)
    assert (report.events, report.proven) == (0, True)
    assert [request.bodies for request in hub.requests if isinstance(request, EventsRequest)] == [(), ()]
    assert verify_pulled(home) == (10, [])
    log.say(3)
    assert pulled(home, hub, prove=True).events == 3
    assert verify_pulled(home) == (13, [])
    assert in_view(home) == ids(log)


def test_what_lies_altered_is_found(home: Home, log: MadeLog) -> None:
    pulled(home, ToldHub(log), prove=True)
    with Pulled(home.pulled_path) as store, store.writing():
        store.write("DELETE FROM proofs WHERE rowid = (SELECT max(rowid) FROM proofs)")
        store.write("UPDATE events SET body = x'00' WHERE sequence = 2")
    _, problems = verify_pulled(home)
    assert {problem.sequence for problem in problems} == {2, 10}


# -- hostile answers ---------------------------------------------------------------------------------------------------


def _with(answer: EventsAnswer, at: int, **changes: Any) -> EventsAnswer:
    events = list(answer.events)
    events[at] = events[at]._replace(**changes)
    return answer._replace(events=tuple(events))


def _row(answer: PullAnswer, ranges: Ranges) -> ToldBranch:
    told = answer.branches[0]
    return told._replace(ranges=ranges, digest=listing_digest(told.parent, told.parent_sequence, ranges, told.upto))


def _beyond(answer: PullAnswer, before: int, *, name: bytes = b"2" * 32, **changes: Any) -> ToldBranch:
    root = answer.branches[0].branch
    found = ToldBranch(name, root, root, before, before + 1, 0, (), 0, bytes(16))._replace(**changes)
    return found._replace(digest=listing_digest(found.parent, found.parent_sequence, (), 0))


_STRANGE = MadeLog(SIGNERS[2]).say(12)


@pytest.mark.parametrize(
    "alter",
    [
        lambda answer: _with(answer, -1, body=(answer.events[-1].body or b"")[:-1] + b"?"),
        lambda answer: _with(answer, -1, header_bytes=answer.events[-1].header_bytes + b"\0"),
        lambda answer: _with(answer, -1, header_bytes=b"\xc0"),
        lambda answer: _with(answer, -1, header_bytes=_STRANGE.events[9].header_bytes, body=_STRANGE.events[9].body),
        lambda answer: _with(answer, -1, sequence=500),
        lambda answer: _with(answer, -1, branch=b"?" * 32),
        lambda answer: _with(answer, -1, header_bytes=answer.events[0].header_bytes, body=answer.events[0].body),
        lambda answer: answer._replace(hub_id=bytes(16)),
        lambda answer: answer._replace(events=(), segments=(_STRANGE.cut(1, 2),)),
    ],
    ids=["body", "header", "no-header", "other-log", "not-asked", "no-branch", "sequence", "other-hub", "segments"],
)
def test_a_page_with_something_wrong_is_refused_whole(
    home: Home, log: MadeLog, alter: Callable[[EventsAnswer], EventsAnswer]
) -> None:
    hub = ToldHub(log)
    hub.alter = lambda answer: alter(answer) if len(answer.events) > 1 else answer
    with pytest.raises(IntegrityError, match="nats://told:4222") as raised:
        pulled(home, hub)
    assert raised.value.exit_code == 5
    assert held(home) == {log.events[0].event_id}


def test_a_root_of_another_key_is_refused(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    hub.alter_list = lambda answer: answer._replace(trees=(answer.trees[0]._replace(key=bytes(32)),))
    with pytest.raises(IntegrityError, match="another key"):
        pulled(home, hub)
    assert held(home) == set()


def test_a_tree_that_is_held_does_not_get_another_key(home: Home, log: MadeLog) -> None:
    hub = ToldHub(log)
    pulled(home, hub, prove=True)
    log.say(3)
    key = SIGNERS[2].public_key
    hub.alter_list = lambda answer: answer._replace(trees=(answer.trees[0]._replace(key=key),))
    hub.alter = lambda answer: answer._replace(segments=(log.forged(11, 13, SIGNERS[2]),))
    with pytest.raises(IntegrityError, match="another log or key"):
        pulled(home, hub, prove=True)
    assert held(home) == {event.event_id for event in log.events[:10]}


def test_a_sites_own_log_is_not_told_as_anothers(home: Home) -> None:
    with Outbox(home.log_path) as outbox, LogReader(home.log_path) as reader:
        (log_id,) = outbox.logs()
        root = outbox.event_id(log_id, 1)
        key = next(iter(reader.logs())).key
    assert root is not None
    ranges = ((1, 9),)
    branch = ToldBranch(root, root, None, None, 1, 0, ranges, 9, listing_digest(None, None, ranges, 9))

    def lists(key: bytes) -> Callable[[PullAnswer], PullAnswer]:
        return lambda answer: answer._replace(trees=(ToldTree(root, log_id, key, "me"),), branches=(branch,))

    hub = ToldHub()
    hub.alter_list = lists(SIGNERS[2].public_key)
    asking = pull_all(hub, home, hub_file(home, hub), [MADE], prove=True, confirmed={log_id: 9})
    with pytest.raises(IntegrityError, match="own log"):
        asyncio.run(asking)
    with Pulled(home.pulled_path) as store, store.writing():
        store.forget_told()
    hub.alter_list = lists(key)
    asking = pull_all(hub, home, hub_file(home, hub), [MADE], prove=True, confirmed={log_id: 9})
    assert asyncio.run(asking).complete


@pytest.mark.parametrize("forge", ["signature", "key", "chain", "elsewhere", "told"])
def test_a_forged_proof_is_refused(home: Home, log: MadeLog, forge: str) -> None:
    hub = ToldHub(log)
    stranger = MadeLog(SIGNERS[2], log_id=log.log_id).say(9)
    forged = {
        "signature": log.forged(2, 4, SIGNERS[1]),
        "key": stranger.cut(2, 4),
        "chain": log.cut(2, 4)[:-2] + b"??",
        "elsewhere": MadeLog(SIGNERS[0]).say(9).cut(2, 4),
    }

    def alter(answer: EventsAnswer) -> EventsAnswer:
        if len(answer.segments) == 1:  # the root
            return answer
        if forge == "told":
            return hub._events(EventsRequest(((log.events[0].event_id, ((2, 4),)),), 1_000))
        return answer._replace(segments=(forged[forge],))

    hub.alter = alter
    with pytest.raises(IntegrityError):
        pulled(home, hub, prove=True)
    with Pulled(home.pulled_path) as store:
        assert store.rows("SELECT sequence FROM events") == [(1,)]


@pytest.mark.parametrize(
    "alter",
    [
        lambda answer: answer._replace(branches=(answer.branches[0]._replace(digest=bytes(16)),)),
        lambda answer: answer._replace(trees=()),
        lambda answer: answer._replace(branches=(), complete=False),
        lambda answer: answer._replace(hub_id=bytes(16)),
        lambda answer: answer._replace(filter=filter_of()),
        lambda answer: answer._replace(branches=(_row(answer, ((2, 10),)),)),
        lambda answer: answer._replace(branches=(*answer.branches, _beyond(answer, 4, root=bytes(32)))),
        lambda answer: answer._replace(branches=(*answer.branches, _beyond(answer, 4, parent=b"2" * 32))),
        lambda answer: answer._replace(
            branches=(*answer.branches, _beyond(answer, 9), _beyond(answer, 4, name=b"3" * 32, parent=b"2" * 32))
        ),
    ],
    ids=[
        "digest",
        "no-tree",
        "endless",
        "other-hub",
        "filter",
        "no-root",
        "no-such-root",
        "its-own-parent",
        "before-its-parent",
    ],
)
def test_a_list_with_something_wrong_is_refused_whole(
    home: Home, log: MadeLog, alter: Callable[[PullAnswer], PullAnswer]
) -> None:
    hub = ToldHub(log)
    hub.alter_list = alter
    with pytest.raises(IntegrityError, match="nats://told:4222"):
        pulled(home, hub)
    with Pulled(home.pulled_path) as store:
        assert (store.rows("SELECT * FROM listings"), store.rows("SELECT * FROM events")) == ([], [])


def test_the_file_of_another_version_is_told(home: Home, tmp_path: Path) -> None:
    with Pulled(home.pulled_path) as store:
        store.write("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="another version"):
        Pulled(home.pulled_path)
