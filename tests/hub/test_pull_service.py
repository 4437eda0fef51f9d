"""Pulls over a real link: a hub's process answers a site, tells it that there is more, and comes back when it was killed."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.logs import EXECUTION, MadeLog
from tests.support.store import ANA, BORIS, NOW_US

from cmf_hub.custody import Custody
from cmf_hub.pull_service import WAITING_MAX
from cmf_hub.registry import Registry
from cmf_link.link import Link, connect
from cmf_protocol import types as t
from cmf_protocol.errors import AccessDenied, BackPressure, CmfError, DecodeError, LinkError
from cmf_protocol.filters import filter_of
from cmf_protocol.messages import decode_notice
from cmf_protocol.pull import (
    EventsRequest,
    PullAnswer,
    PullRequest,
    decode_events_answer,
    decode_pull_answer,
    encode_events_request,
    encode_pull,
)

PIPELINE = filter_of(pipelines=["p"])
STARTED = t.execution_started(EXECUTION, "p", "s")
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("pulls") / "hub") as running:
        yield running


class Asking:
    """A site's end of the link."""

    def __init__(self, link: Link, site: str) -> None:
        self.link = link
        self.site = site
        self.notices: list[str] = []

    async def request(self, verb: str, data: bytes) -> bytes:
        return await self.link.request(f"cmf.v1.rpc.{self.site}.{verb}", data, timeout_s=LIMIT_S)

    async def pull(self, *, listen: bool = False) -> PullAnswer:
        return decode_pull_answer(await self.request("pull", encode_pull(PullRequest(PIPELINE, (), listen))))

    async def hear(self, _subject: str, data: bytes) -> None:
        self.notices.append(decode_notice(data).what)


@asynccontextmanager
async def asking(hub: Hub, site: str) -> AsyncIterator[Asking]:
    join: dict[str, Any] = json.loads(hub.enrol(site).read_text())
    link = await connect(join["url"], seed=join["login"], name=site, ca=join["ca"])
    try:
        made = Asking(link, site)
        await link.subscribe(f"cmf.v1.notice.{site}", made.hear)
        yield made
    finally:
        await link.close()


def bring(hub: Hub, *segments: bytes) -> None:
    """Store segments as an import does, while the hub serves."""
    with closing(Registry(hub.data.registry)) as registry, closing(Custody(hub.data.store, registry)) as custody:
        for segment in segments:
            (answer,) = custody.receive([(None, segment)], NOW_US)
            assert not answer.refused


def enrol_keys(hub: Hub) -> None:
    with closing(Registry(hub.data.registry)) as registry:
        if "ana" not in {site.name for site in registry.sites()}:
            registry.add("ana", login=None, key=ANA.public_key, now_us=NOW_US)
            registry.add("boris", login=None, key=BORIS.public_key, now_us=NOW_US)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        await asyncio.sleep(0.02)


def test_a_site_pulls_hears_of_more_and_pulls_again(hub: Hub) -> None:
    async def run() -> None:
        enrol_keys(hub)
        log = MadeLog(ANA).say(1, STARTED).say(8)
        bring(hub, log.cut(1, 10))
        async with asking(hub, "chen") as site:
            answer = await site.pull(listen=True)  # waits until what was stored is projected
            (branch,) = [each for each in answer.branches if each.root == log.events[0].event_id]
            assert branch.ranges == ((1, 10),)
            wanted = EventsRequest(((branch.branch, branch.ranges),), 10**6)
            found = decode_events_answer(await site.request("events", encode_events_request(wanted)))
            assert [event.header_bytes for event in found.events] == [event.header_bytes for event in log.events]
            proof = wanted._replace(bodies=())
            assert decode_events_answer(await site.request("events", encode_events_request(proof))).segments
            bring(hub, log.say(2).cut(11, 12))
            await eventually(lambda: site.notices == ["new"], "a notice")
            assert ((1, 12),) in [each.ranges for each in (await site.pull()).branches]

    asyncio.run(run())


def test_what_can_not_be_answered_is_answered_with_the_reason(hub: Hub) -> None:
    async def run() -> None:
        async with asking(hub, "dora") as site:
            for verb in ("pull", "events"):
                with pytest.raises(LinkError, match=r"canonical|not msgpack"):
                    decode_pull_answer(await site.request(verb, b"rubbish"))
            many = [site.request("pull", encode_pull(PullRequest(PIPELINE))) for _ in range(WAITING_MAX * 4)]
            answers = [_error_of(answer) for answer in await asyncio.gather(*many)]
            assert None in answers
            assert {type(error) for error in answers} <= {type(None), BackPressure}
            with closing(Registry(hub.data.registry)) as registry:
                registry.revoke("dora", NOW_US)
            with pytest.raises(AccessDenied, match="dora"):
                await site.pull()

    asyncio.run(run())


def _error_of(answer: bytes) -> CmfError | None:
    try:
        decode_pull_answer(answer)
    except DecodeError:
        raise
    except CmfError as error:
        return error
    return None


def test_pulls_are_answered_again_after_their_process_was_killed(hub: Hub) -> None:
    async def run() -> None:
        enrol_keys(hub)
        (before,) = hub.pids("cmf_hub.pull_service")
        os.kill(before, 9)
        await eventually(lambda: hub.pids("cmf_hub.pull_service") not in ([], [before]), "another process")
        async with asking(hub, "emil") as site:
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    assert (await site.pull()).complete
                    return
                except LinkError:
                    assert time.monotonic() < deadline, "nobody answers"
                    await asyncio.sleep(0.1)

    asyncio.run(run())


def test_nothing_of_pulls_is_left_when_the_hub_is_killed(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as killed:
        assert killed.pids("cmf_hub.pull_service")
        killed.kill()
        asyncio.run(eventually(lambda: not killed.pids("cmf_hub.pull_service"), "the process to end"))
