"""What a hub tells of a site's own logs becomes logs again only if it holds together; which chain of each log, in which order."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.logs import MadeLog
from tests.support.placed import ToldHub
from tests.support.strategies import SIGNERS

from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.opening import has_log
from cmf_agent.outbox import Outbox
from cmf_agent.pull import pull_all
from cmf_agent.reading import LogReader
from cmf_agent.restoring import OWN, Restored, build, prepare, staging_of
from cmf_agent.verify import verify
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event
from cmf_protocol.pull import EventsAnswer
from cmf_protocol.segments import decode_segment, encode_segment

OLD, NEW = SIGNERS[0], SIGNERS[1]

Alter = Callable[[EventsAnswer], EventsAnswer]


@pytest.fixture
def staging(tmp_path: Path) -> Home:
    """Where a log is brought back, made."""
    made = staging_of(Home(tmp_path, tmp_path))
    made.path.mkdir()
    prepare(made)
    return made


def file_of(staging: Home, hub: ToldHub) -> HubFile:
    return HubFile(
        staging.hub_path, site="lost", url="nats://told:4222", hub_id=hub.hub_id, hub_key=bytes(32), login="SU", token=None, ca=None
    )  # fmt: skip


def restored(staging: Home, hub: ToldHub, *, has_key: bool = False) -> Restored:
    """Pull what the hub tells, and build the logs of it."""
    file = file_of(staging, hub)
    report = asyncio.run(pull_all(hub, staging, file, [OWN], prove=True, confirmed={}))
    assert report.complete
    return build(staging, file, OLD if has_key else NEW)


def back(staging: Home) -> list[list[Event]]:
    """Return the events of each log but the new one."""
    with LogReader(staging.log_path) as reader:
        return [[stored.decoded() for stored in reader.events(log.number)] for log in reader.logs()[:-1]]


# -- what is wrong -----------------------------------------------------------------------------------------------------


def other_bytes(log: MadeLog) -> Alter:
    """Return what sends a body with one bit turned."""

    def alter(answer: EventsAnswer) -> EventsAnswer:
        segments = []
        for data in answer.segments:
            made = decode_segment(data)
            event = made.events[0]
            if event.event_id == log.events[4].event_id:
                body = event.body or b""
                pairs = [(event.header_bytes, body[:-1] + bytes([body[-1] ^ 1]))]
                segments.append(encode_segment(made.statement, made.signature, pairs))
            else:
                segments.append(data)
        return answer._replace(segments=tuple(segments))

    return alter


def other_signer(log: MadeLog) -> Alter:
    """Return what sends one event with a signature that its key did not make."""

    def alter(answer: EventsAnswer) -> EventsAnswer:
        real = log.cut(5, 5)
        return answer._replace(
            segments=tuple(log.forged(5, 5, SIGNERS[2]) if data == real else data for data in answer.segments)
        )

    return alter


def other_branch(log: MadeLog) -> Alter:
    """Return what sends, in the place of one event, another one that the same key signed there."""
    copy = log.fork(4).say(1)

    def alter(answer: EventsAnswer) -> EventsAnswer:
        real = log.cut(5, 5)
        return answer._replace(segments=tuple(copy.cut(5, 5) if data == real else data for data in answer.segments))

    return alter


@pytest.mark.parametrize("lie", [other_bytes, other_signer, other_branch])
def test_nothing_is_built_of_what_does_not_hold(staging: Home, lie: Callable[[MadeLog], Alter]) -> None:
    log = MadeLog(OLD).say(9)
    hub = ToldHub(log)
    hub.alter = lie(log)
    with pytest.raises(IntegrityError):
        restored(staging, hub)
    assert not has_log(staging.log_path)


def test_a_hub_that_lists_less_than_it_sent_signatures_for_restores_what_it_lists(staging: Home) -> None:
    log = MadeLog(OLD).say(9)
    hub = ToldHub(log)
    hub.listed = {event.event_id for event in log.events[:6]}
    assert restored(staging, hub, has_key=True).events == 6
    assert back(staging) == [log.events[:6]]


# -- which chain -------------------------------------------------------------------------------------------------------


def test_events_bodies_signatures_and_the_hubs_word_are_back(staging: Home) -> None:
    log = MadeLog(OLD).say(3).say(2, withheld=True).say(2)
    hub = ToldHub(log)
    done = restored(staging, hub, has_key=True)
    assert done == Restored("lost", 1, 8, 0, True, True)
    (events,) = back(staging)
    assert events == log.events
    assert [event.body is None for event in events] == [False] * 4 + [True] * 2 + [False] * 2
    with Outbox(staging.log_path) as outbox:
        assert len(outbox.cuts(log.log_id)) == 8
        assert outbox.confirmed(hub.hub_id, log.log_id) == log.head
    report = verify(staging)
    assert (report.problems, report.logs, report.signatures) == ([], 2, 9)  # the ninth is the succession's


def test_of_a_fork_the_latest_head_is_taken_and_only_its_signatures(staging: Home) -> None:
    log = MadeLog(OLD).say(5)
    longer = log.fork(3).say(4)
    hub = ToldHub(log, longer)
    done = restored(staging, hub, has_key=True)
    assert (done.events, done.left) == (7, 1)
    assert back(staging) == [longer.events]
    assert verify(staging).problems == []


def test_without_the_key_a_chain_that_can_be_sent_again_comes_before_a_later_one(staging: Home) -> None:
    log = MadeLog(OLD).say(5)
    longer = log.fork(3).say(4)
    hub = ToldHub(log, longer)
    spanning = log.cut(2, 5)  # the only signature of events 2 and 3

    def alter(answer: EventsAnswer) -> EventsAnswer:
        found = [
            spanning if decode_segment(data).statement.last_sequence in (2, 3) else data for data in answer.segments
        ]
        return answer._replace(segments=tuple(found))

    hub.alter = alter
    assert restored(staging, hub).events == 6
    assert back(staging) == [log.events]


def test_logs_come_in_the_order_of_their_opening(staging: Home) -> None:
    logs = [MadeLog(OLD).say(count) for count in (1, 2, 3)]
    done = restored(staging, ToldHub(*logs), has_key=True)
    assert (done.logs, done.events) == (3, 9)
    assert sorted(map(len, back(staging))) == [2, 3, 4]


def test_of_nothing_nothing_is_built(staging: Home) -> None:
    assert restored(staging, ToldHub()) == Restored("lost", is_complete=True)
    assert not has_log(staging.log_path)
