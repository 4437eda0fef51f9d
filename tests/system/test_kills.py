"""Agent, hub, broker and projector killed with -9 in the middle of a push, again and again; at the end nothing is lost or doubled.

A run is repeated with `--hypothesis-seed=N`; the seed stands in the header of each run and in the message of a failure.
"""

import contextlib
import fnmatch
import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.programs import until
from tests.support.sites import PIPELINE, SiteFolder, folded

from cmf_agent.identity import id_text

VICTIMS = ("agent", "hub", "broker", "projector")
#: No push takes longer to send what a round records, s: a kill that comes later hits nothing.
LATEST_S = 1.2
PUSH_S = 120.0
Signature = Callable[[], object]


def files_of(folder: Path, pattern: str) -> list[tuple[int, int]]:
    """Return what changes when something is written below a folder; what vanishes meanwhile is left out."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in fnmatch.filter(names, pattern):
            with contextlib.suppress(FileNotFoundError):
                state = Path(parent, name).stat()
                found.append((state.st_size, state.st_mtime_ns))
    return sorted(found)


def moments(hub: Hub, site: SiteFolder) -> dict[str, Signature]:
    """Return what changes at a named moment of a push: then somebody is killed."""
    return {
        "signed": lambda: files_of(site.home.path, "log.db-wal"),
        "published": lambda: files_of(hub.data.nats, "*.blk"),
        "stored": lambda: files_of(hub.folder, "store.db-wal"),
        "projected": lambda: files_of(hub.folder / "graph", "*-wal"),
    }


def wait_for_moment(chance: random.Random, hub: Hub, site: SiteFolder, pushing: "subprocess.Popen[str]") -> str:
    """Wait for a random time, or until something happens (and a random little longer); return what it was."""
    name = chance.choice(("later", "later", *moments(hub, site)))
    began = time.monotonic()
    wait_s = chance.uniform(0, LATEST_S)
    if name != "later":
        changing = moments(hub, site)[name]
        before = changing()
        until(lambda: changing() != before or pushing.poll() is not None, name)
        began, wait_s = time.monotonic(), chance.choice((0.0, 0.0, 0.005, 0.05))
    until(lambda: time.monotonic() - began >= wait_s or pushing.poll() is not None, "the time to kill")
    return f"{name}+{wait_s:.3f}"


def kill(victim: str, hub: Hub, pushing: "subprocess.Popen[str]") -> None:
    if victim == "agent":
        pushing.kill()
    elif victim == "hub":
        hub.kill()
    else:
        for pid in hub.pids("nats-server" if victim == "broker" else "cmf_hub.projector"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def end_push(pushing: "subprocess.Popen[str]", allowed: Iterable[int]) -> None:
    """Wait until a push ends; only one that was not logged in yet may have reached no hub."""
    _, err = pushing.communicate(timeout=PUSH_S + 60)
    reached = not any(text in err for text in ("broke off the login", "nobody answers at", "nothing was sent to ping"))
    assert pushing.returncode in allowed or not reached, f"push ended with {pushing.returncode}: {err}"
    assert "Traceback" not in err, err


def restart(chance: random.Random, hub: Hub) -> None:
    """Start the hub again; sometimes it is killed once more while it starts."""
    if chance.random() < 0.3:
        hub.spawn()
        began, wait_s = time.monotonic(), chance.uniform(0, 0.8)
        until(lambda: time.monotonic() - began >= wait_s, "the time to kill")
        hub.kill()
    hub.start()


def play_round(chance: random.Random, hub: Hub, site: SiteFolder) -> str:
    """Push and kill somebody in the middle; what was not killed drains by itself, or is left for the next round."""
    pushing = site.start_push(PUSH_S)
    victims = chance.sample(VICTIMS, chance.choice((1, 1, 1, 2)))
    moment = wait_for_moment(chance, hub, site, pushing)
    for victim in victims:
        kill(victim, hub, pushing)
    if "hub" in victims:
        restart(chance, hub)
    told = f"{site.name}: {'+'.join(victims)} killed at {moment}"
    if "agent" in victims:
        end_push(pushing, (0, -signal.SIGKILL))
    elif chance.random() < 0.3:
        pushing.kill()
        end_push(pushing, (0, -signal.SIGKILL))
    else:
        end_push(pushing, (0,))
    return told


@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.deep)])
def test_whoever_is_killed_in_the_middle_of_a_push_nothing_is_lost_or_doubled(
    request: pytest.FixtureRequest, tmp_path: Path, rounds: int
) -> None:
    seed = int(request.config.option.hypothesis_seed)
    chance = random.Random(seed)
    executions: set[str] = set()
    story = []
    with running_hub(tmp_path / "hub") as hub:
        sites = [SiteFolder(tmp_path / name) for name in ("ana", "boris")]
        for site in sites:
            hub.join(site)
        try:
            for number in range(rounds):
                site = chance.choice(sites)
                executions.update(map(id_text, site.record(chance.randint(1, 4), metrics=chance.randint(0, 900))))
                story.append(f"{number}: {play_round(chance, hub, site)}")
            check(hub, sites, executions, tmp_path / "folded.db")
        except BaseException as error:
            for site in sites:
                site.end()
            error.add_note(f"--hypothesis-seed={seed}\n" + "\n".join(story) + f"\n{hub.said()[-5000:]}")
            raise


def is_pushed(site: SiteFolder) -> bool:
    done = site.call("push", "--json")
    assert done.returncode in (0, 4), done.stderr
    return done.returncode == 0


def check(hub: Hub, sites: list[SiteFolder], executions: set[str], file: Path) -> None:
    for site in sites:  # a broker that was killed often is started again later and later
        until(functools.partial(is_pushed, site), f"{site.name} to be able to push", 240)
        status = site.status()
        assert (status["confirmed"], status["pending"]) == (len(site.events()), 0)
        assert site.ask("verify")["ok"] is True
    held = hub.digest()
    assert held == folded(file, sites)
    assert held.events == sum(len(site.events()) for site in sites)
    listed = [item["id"] for item in hub.ask("query", "executions", "--pipeline", PIPELINE, "--limit", 10_000)["items"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == executions
    assert hub.ask("verify")["problems"] == []
    status = hub.ask("status")
    assert (status["parked_segments"], status["quarantine"]) == (0, 0)
    for item in hub.ask("query", "sites")["items"]:
        assert item["state"] == "complete"
    hub.ask("rebuild")
    assert hub.digest() == held
