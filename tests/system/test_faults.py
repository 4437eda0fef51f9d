"""Bad lines between an agent and a real hub: once the line works, everything drains by itself, and nearly nothing goes twice.

Where a fault costs a few segments, a site's log is cut into small ones beforehand: then it costs the same on every machine.

How bytes are counted: `log_bytes` are all payloads that the agent sent on `cmf.v1.log.…`, whether they arrived or not; `new_bytes`
are the site's segments, each once. How soon something drains is told by the connections that it took, not by a clock: an agent
tries at least twice within the 30 s after a fault. `DRAIN_LIMIT_S` only ends a test that would wait for ever.
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.faults import (
    BEFORE_ACK,
    BEFORE_CONFIRMATION,
    IN_CONFIRMATION,
    IN_HEADER_LINE,
    IN_INFO,
    IN_PAYLOAD,
    FaultProxy,
    fault_proxy,
)
from tests.support.forwarding import Cut, How
from tests.support.hubs import Hub
from tests.support.programs import until
from tests.support.replaying import Replaying
from tests.support.sites import PIPELINE, SiteFolder, folded

from cmf_agent.cutting import Cutter
from cmf_agent.hub_file import hub_in_force
from cmf_agent.outbox import Outbox
from cmf_agent.push import PushReport, push
from cmf_hub.registry import Registry
from cmf_link.link import connect
from cmf_link.stream import STREAM
from cmf_protocol.segments import SEGMENT_BYTES_MAX

MakeSite = Callable[[str], SiteFolder]
DRAIN_LIMIT_S = 90.0
SENT_MAX = 1.15
SMALL_CUT = 100
#: Of this seed's first 34 connections four are reset, after 195, 142, 2,983 and 3,551 bytes; a push takes about 15,000.
RESETS_SEED = 613
PUSHES = 30
EVENTS_A_FAULT = 1_000


def record(site: SiteFolder, events: int, cut_into: int | None = SMALL_CUT) -> None:
    """Record about so many events, signed in segments of `cut_into` events, or left to the agent to be cut."""
    site.record(1, metrics=events - 3)
    if cut_into is None:
        return
    with Outbox(site.home.log_path) as outbox:
        cutter = Cutter(site.home.log_path, outbox, site.signer)
        for log_id in outbox.logs():
            head, at = outbox.head(log_id), 0
            while at < head[0]:
                cut = cutter.next_cut(log_id, at, head, events_max=cut_into, bytes_max=SEGMENT_BYTES_MAX)
                at = cut.statement.last_sequence


def new_bytes(site: SiteFolder) -> int:
    """Return the size of the site's signed segments, each counted once."""
    with Outbox(site.home.log_path, read_only=True) as outbox:
        cutter = Cutter(site.home.log_path, outbox, site.signer)
        cuts = [cut for log_id in outbox.logs() for cut in cutter.cuts(log_id, 0, outbox.head(log_id), keep=False)]
        return sum(len(cutter.encode(cut)) for cut in cuts)


def push_through(site: SiteFolder, proxy: FaultProxy, limit_s: float = DRAIN_LIMIT_S) -> PushReport:
    """Push once, in this thread."""
    return push(site.home, hub_in_force(site.home, url=proxy.url), timeout_s=limit_s)


def sent_twice(site: SiteFolder, proxy: FaultProxy) -> float:
    """Return the bytes that were sent beside those of the new data: 1 if nothing went twice."""
    return proxy.counts.log_bytes / new_bytes(site)


def holds_all(hub: Hub, sites: list[SiteFolder], graph: Path) -> None:
    """Check that the hub holds each event of these sites once, and means by them what their logs say."""
    assert hub.events() == sum(len(site.events()) for site in sites)
    assert hub.digest() == folded(graph, sites)


def push_at_once(lines: Mapping[SiteFolder, FaultProxy], limit_s: float = DRAIN_LIMIT_S) -> dict[str, PushReport]:
    """Push all sites at once, each through its own proxy, and return the reports by name."""
    with ThreadPoolExecutor(len(lines)) as pool:
        running = {site.name: pool.submit(push_through, site, proxy, limit_s) for site, proxy in lines.items()}
        return {name: found.result() for name, found in running.items()}


CUTS: dict[str, Cut] = {
    "in-info": IN_INFO,
    "in-header-line": replace(IN_HEADER_LINE, skip=10),
    "in-payload": replace(IN_PAYLOAD, skip=15),
    "in-payload-fin": replace(IN_PAYLOAD, how="close", skip=15),
    "before-ack": replace(BEFORE_ACK, skip=20),
    "before-confirmation": replace(BEFORE_CONFIRMATION, skip=1),
    "in-confirmation": replace(IN_CONFIRMATION, skip=1),
    "silent-in-info": replace(IN_INFO, how="stall"),
    "silent-in-payload": replace(IN_PAYLOAD, how="stall", skip=15),
    "silent-before-ack": replace(BEFORE_ACK, how="stall", skip=20),
    "silent-before-confirmation": replace(BEFORE_CONFIRMATION, how="stall", skip=1),
}


def test_a_line_that_is_cut_or_falls_silent_at_any_point_costs_one_more_connection(
    hub: Hub, site: MakeSite, tmp_path: Path
) -> None:
    sites = {name: site(name) for name in CUTS}
    for each in sites.values():
        hub.join(each)
        record(each, 2_000, cut_into=40)
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(fault_proxy(hub.port)) for name in CUTS}
        for name, cut in CUTS.items():
            proxies[name].cut_next(cut)
        reports = push_at_once({sites[name]: proxies[name] for name in CUTS})
        assert {name: report.pending for name, report in reports.items()} == dict.fromkeys(CUTS, 0)
        # what was spared is counted down
        assert {name: len(proxy.hits) for name, proxy in proxies.items()} == dict.fromkeys(CUTS, 1)
        assert {name: proxy.counts.connections for name, proxy in proxies.items()} == dict.fromkeys(CUTS, 2)
        shares = {name: sent_twice(sites[name], proxies[name]) for name in CUTS}
        assert {name: share for name, share in shares.items() if not 1 <= share <= SENT_MAX} == {}
    holds_all(hub, [*sites.values()], tmp_path / "graph.db")


def test_of_many_connections_some_are_reset_and_each_push_ends_well(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    with fault_proxy(hub.port, seed=RESETS_SEED) as proxy:
        proxy.reset_some(0.05)
        for _ in range(PUSHES):
            ana.record(1, metrics=98)
            assert push_through(ana, proxy).pending == 0
        assert proxy.counts.resets == 4
        assert proxy.counts.connections == PUSHES + proxy.counts.resets
        assert 1 <= sent_twice(ana, proxy) <= SENT_MAX
    holds_all(hub, [ana], tmp_path / "graph.db")


# --- lines that are slow


def check_slow_lines(
    hub: Hub, sites: Mapping[str, SiteFolder], shapes: Mapping[str, Mapping[str, float]], limit_s: float = DRAIN_LIMIT_S
) -> None:
    """Push all at once, each over its own slow line: nothing goes twice, and no line is taken for a dead one."""
    with ExitStack() as stack:
        proxies = {name: stack.enter_context(fault_proxy(hub.port)) for name in shapes}
        for name, shape in shapes.items():
            hub.join(sites[name])
            proxies[name].shape(**shape)
        reports = push_at_once({sites[name]: proxies[name] for name in shapes}, limit_s)
        assert {name: report.pending for name, report in reports.items()} == dict.fromkeys(shapes, 0)
        assert {name: proxy.counts.connections for name, proxy in proxies.items()} == dict.fromkeys(shapes, 1)
        assert {name: sent_twice(sites[name], proxies[name]) for name in shapes} == dict.fromkeys(shapes, 1.0)


def test_slow_lines_are_used_and_not_taken_for_dead_ones(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    shapes = {
        "near": {"round_trip_s": 0.2},
        "far": {"round_trip_s": 2.0},
        "narrow": {"bytes_per_s": 8_000.0},
        "far-and-narrow": {"round_trip_s": 0.6, "bytes_per_s": 8_000.0},
    }
    sites = {name: site(name) for name in shapes}
    for name, events in {"near": 20_000, "far": 3_000, "narrow": 500, "far-and-narrow": 500}.items():
        record(sites[name], events, cut_into=None)
    check_slow_lines(hub, sites, shapes)
    holds_all(hub, [*sites.values()], tmp_path / "graph.db")


@pytest.mark.deep
def test_large_backlogs_drain_over_slow_lines(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    shapes = {"far": {"round_trip_s": 2.0}, "narrow": {"bytes_per_s": 8_000.0}}
    sites = {name: site(name) for name in shapes}
    record(sites["far"], 100_000, cut_into=None)
    record(sites["narrow"], 20_000, cut_into=None)
    check_slow_lines(hub, sites, shapes, limit_s=1_200.0)
    holds_all(hub, [*sites.values()], tmp_path / "graph.db")


# --- one fault after the other


@contextmanager
def daemon_of(site: SiteFolder, url: str) -> Iterator[Replaying]:
    daemon = Replaying(site, url)
    try:
        yield daemon
    finally:
        daemon.end()


def cut_somewhere(proxy: FaultProxy, chance: random.Random) -> str:
    cut = chance.choice([IN_HEADER_LINE, IN_PAYLOAD, BEFORE_ACK, BEFORE_CONFIRMATION, IN_CONFIRMATION])
    cut = replace(cut, how=chance.choice(["reset", "close"]), skip=chance.randrange(3))
    hits = len(proxy.hits)
    proxy.cut_next(cut)
    until(lambda: len(proxy.hits) > hits, f"{cut}", DRAIN_LIMIT_S)
    return str(cut)


def cut_all(proxy: FaultProxy, chance: random.Random) -> str:
    connections = proxy.counts.connections
    proxy.cut_all(chance.choice(["reset", "close"]))
    until(lambda: proxy.counts.connections > connections, "a new connection", DRAIN_LIMIT_S)
    return "all connections cut"


def refuse(proxy: FaultProxy, chance: random.Random) -> str:
    attempts = proxy.counts.connections + chance.randrange(1, 4)
    proxy.refuse()
    until(lambda: proxy.counts.connections >= attempts, "attempts to connect", DRAIN_LIMIT_S)
    proxy.accept()
    return f"no line until {attempts} connections"


def go_silent(proxy: FaultProxy, chance: random.Random) -> str:
    connections, open_too = proxy.counts.connections, chance.random() < 0.5
    proxy.stall()
    until(lambda: proxy.counts.connections > connections, "the silence to be noticed", DRAIN_LIMIT_S)
    proxy.resume(open_too=open_too)
    return f"silent, then {'all' if open_too else 'only new ones'} go on"


def get_slow(proxy: FaultProxy, chance: random.Random) -> str:
    round_trip_s = chance.uniform(0, 0.3)
    proxy.shape(round_trip_s=round_trip_s)
    return f"round trip {round_trip_s:.2f} s from now on"


QUICK_FAULTS = (cut_somewhere, cut_all, refuse, get_slow)
ALL_FAULTS = (*QUICK_FAULTS, go_silent)


def suffer(
    hub: Hub, ana: SiteFolder, faults: tuple[Callable[[FaultProxy, random.Random], str], ...], seed: int
) -> None:
    """Record and let `faults` happen in a random order, each while something is sent; then it drains by itself."""
    chance, story = random.Random(seed), []  # type: random.Random, list[str]
    order = [*faults]
    chance.shuffle(order)
    try:
        with fault_proxy(hub.port, seed) as proxy, daemon_of(ana, proxy.url) as daemon:
            for fault in order:
                record(ana, EVENTS_A_FAULT, SMALL_CUT // 4)
                daemon.poke()
                story.append(fault(proxy, chance))
            proxy.heal()
            until(lambda: hub.events() == len(ana.events()) and daemon.idle, "the backlog to drain", DRAIN_LIMIT_S)
            assert sent_twice(ana, proxy) <= SENT_MAX
    except BaseException as error:
        error.add_note(f"--hypothesis-seed={seed}\n" + "\n".join(story) + f"\n{hub.said()[-5000:]}")
        raise


def test_after_many_faults_in_a_row_everything_drains_by_itself(
    hub: Hub, site: MakeSite, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ana = site("ana")
    hub.join(ana)
    suffer(hub, ana, QUICK_FAULTS * 2, int(request.config.option.hypothesis_seed))
    holds_all(hub, [ana], tmp_path / "graph.db")


@pytest.mark.deep
@pytest.mark.parametrize("more", range(2))
def test_after_very_many_faults_everything_drains_by_itself(
    hub: Hub, site: MakeSite, tmp_path: Path, request: pytest.FixtureRequest, more: int
) -> None:
    ana = site("ana")
    hub.join(ana)
    suffer(hub, ana, ALL_FAULTS * 3, int(request.config.option.hypothesis_seed) + more)
    holds_all(hub, [ana], tmp_path / "graph.db")


# --- pulling


def test_a_pull_goes_on_over_a_line_that_is_cut_again_and_again(hub: Hub, site: MakeSite) -> None:
    ana, boris = site("ana"), site("boris")
    for each in (ana, boris):
        hub.join(each)
    record(ana, 20_000, cut_into=None)
    ana.push()
    hub.digest()  # what is pulled is listed by the graph
    with fault_proxy(hub.port) as proxy:
        cuts: list[tuple[How, int]] = [("reset", 2), ("close", 4), ("reset", 6)]
        for how, skip in cuts:
            proxy.cut_next(Cut("MSG", "payload", how=how, subject="_INBOX.", skip=skip))
        pulled = boris.ask("pull", "-p", PIPELINE, "--hub", proxy.url, "--timeout", DRAIN_LIMIT_S)
        assert (pulled["complete"], pulled["events"]) == (True, len(ana.events()))
        assert (len(proxy.hits), proxy.counts.connections) == (3, 4)
    again = boris.ask("pull", "-p", PIPELINE)
    assert (again["complete"], again["events"]) == (True, 0)


# --- a hub that can't keep up


async def let_wait_at_most(hub: Hub, messages: int) -> None:
    """Make the hub's buffer so small that it takes no more than these messages of one site."""
    with closing(Registry(hub.data.registry)) as registry:
        _, seed = registry.identity()
    link = await connect(f"nats://{hub.address}", seed=seed, name="test")
    try:
        told = json.loads(await link.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout_s=DRAIN_LIMIT_S))
        small = json.dumps(told["config"] | {"max_msgs_per_subject": messages}).encode()
        said = json.loads(await link.request(f"$JS.API.STREAM.UPDATE.{STREAM}", small, timeout_s=DRAIN_LIMIT_S))
        assert said["config"]["max_msgs_per_subject"] == messages
    finally:
        await link.close()


@pytest.mark.deep
def test_a_full_buffer_slows_the_agent_and_loses_nothing(hub: Hub, site: MakeSite, tmp_path: Path) -> None:
    ana = site("ana")
    hub.join(ana)
    record(ana, 20_000, cut_into=400)  # far more than a fast hub stores before it is stopped
    asyncio.run(let_wait_at_most(hub, messages=4))
    with fault_proxy(hub.port) as proxy:
        proxy.shape(round_trip_s=0.02)  # time enough to stop the hub in the middle
        with daemon_of(ana, proxy.url) as daemon:
            until(lambda: hub.events() > 1, "the first events to be stored", DRAIN_LIMIT_S)
            assert hub.process is not None
            os.kill(hub.process.pid, signal.SIGSTOP)
            try:
                until(
                    lambda: daemon.says("waiting", "buffer is full"),
                    "it to hear that the buffer is full",
                    DRAIN_LIMIT_S,
                )
            finally:
                os.kill(hub.process.pid, signal.SIGCONT)
            until(lambda: hub.events() == len(ana.events()) and daemon.idle, "it to drain", DRAIN_LIMIT_S)
        assert proxy.counts.connections == 1
        assert daemon.sent == len(ana.events()), "what was taken was sent again"
    holds_all(hub, [ana], tmp_path / "graph.db")
