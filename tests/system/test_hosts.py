"""A hub and a site on hosts of their own: network namespaces, joined by a cable (veth) that can be cut.

Where a machine allows no namespaces (a container without the right), the same tests run between two addresses of it.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import START_LIMIT_S, Hub, hub_at
from tests.support.nats import free_port
from tests.support.programs import BIN, COMMAND_LIMIT_S, Done, environment, until
from tests.support.sites import SiteFolder, folded

pytestmark = pytest.mark.extended


@dataclass(frozen=True)
class Host:
    """Where commands run: a namespace, or this machine where it has none; and the address by which others reach it."""

    namespace: str | None
    address: str

    def words(self, program: str, *arguments: object) -> list[str]:
        inside = [] if self.namespace is None else ["ip", "netns", "exec", self.namespace]
        return [*inside, str(BIN / program), *map(str, arguments)]

    def call(self, program: str, *arguments: object, cwd: Path) -> Done:
        return subprocess.run(
            self.words(program, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True,
            timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip

    def ask(self, program: str, *arguments: object, cwd: Path) -> Any:
        done = self.call(program, *arguments, "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def plug(self, state: str) -> None:
        """Set the cable at this host "up" or "down"; nothing to cut on one machine."""
        if self.namespace is not None:
            _ip("-n", self.namespace, "link", "set", "cable", state)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other: the hub's and the site's."""
    if shutil.which("ip") is None:
        raise RuntimeError("the program `ip` is missing: apt-get install iproute2")
    near, far = f"cmf-{os.getpid()}-hub", f"cmf-{os.getpid()}-site"
    if not _namespaces(near, far):
        print("this machine allows no network namespaces: between two of its addresses instead")
        yield Host(None, "127.0.0.2"), Host(None, "127.0.0.3")
        return
    try:
        _ip("link", "add", "cable", "netns", near, "type", "veth", "peer", "name", "cable", "netns", far)
        for name, address in ((near, "10.213.7.1"), (far, "10.213.7.2")):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")
        yield Host(near, "10.213.7.1"), Host(far, "10.213.7.2")
    finally:
        for name in (near, far):
            _ip("netns", "del", name)


def _namespaces(*names: str) -> bool:
    """Make namespaces, all or none; False if this machine does not allow it."""
    made: list[str] = []
    for name in names:
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
        if done.returncode != 0:
            for each in made:
                _ip("netns", "del", each)
            return False
        made.append(name)
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def served(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Hub]:
    """A hub that serves on its host, at every address of it."""
    with hub_at(tmp_path / "hub", free_port()) as hub:
        words = ["serve", "--data", hub.folder, "--nats", f"0.0.0.0:{hub.port}", "--ready-file", hub.ready_file]
        advertised = f"{hosts[0].address}:{hub.port}"
        with hub.log_file.open("ab") as log:
            hub.process = subprocess.Popen(
                hosts[0].words("cmf-hub", *words, "--advertise", advertised),
                env=environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(lambda: hub.ready_file.exists() or not hub.runs, "the hub to answer", START_LIMIT_S)
        assert hub.runs, hub.said()
        yield hub


def joined(hosts: tuple[Host, Host], hub: Hub, folder: Path) -> SiteFolder:
    site = SiteFolder(folder)
    file = folder.with_suffix(".join")
    hosts[0].ask("cmf-hub", "site", "add", site.name, "-o", file, "--data", hub.folder, cwd=folder)
    assert json.loads(file.read_text())["url"] == f"tls://{hosts[0].address}:{hub.port}"
    hosts[1].ask("cmf-agent", "join", file, cwd=folder)
    return site


def test_a_site_on_another_host_joins_pushes_and_is_confirmed(
    hosts: tuple[Host, Host], served: Hub, tmp_path: Path
) -> None:
    ana = joined(hosts, served, tmp_path / "ana")
    ana.record(10, metrics=20)
    assert hosts[1].ask("cmf-agent", "push", cwd=ana.folder)["pending"] == 0
    status = hosts[1].ask("cmf-agent", "status", cwd=ana.folder)
    assert (status["hub"], status["pending"]) == (f"tls://{hosts[0].address}:{served.port}", 0)
    assert served.digest() == folded(tmp_path / "graph.db", [ana])


def test_a_cable_that_is_cut_in_a_push_costs_nothing_but_time(
    hosts: tuple[Host, Host], served: Hub, tmp_path: Path
) -> None:
    ana = joined(hosts, served, tmp_path / "ana")
    ana.record(100, metrics=500)
    with subprocess.Popen(
        hosts[1].words("cmf-agent", "push", "--timeout", 80, "--json"), cwd=ana.folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as pushing:  # fmt: skip
        until(lambda: served.events() > 0 or pushing.poll() is not None, "the push to arrive")
        hosts[0].plug("down")
        hosts[0].plug("up")
        out, err = pushing.communicate(timeout=COMMAND_LIMIT_S)
    assert pushing.returncode == 0, err
    assert json.loads(out)["pending"] == 0
    assert served.digest() == folded(tmp_path / "graph.db", [ana])


def test_a_host_that_is_off_the_net_is_told_and_a_later_push_brings_everything(
    hosts: tuple[Host, Host], served: Hub, tmp_path: Path
) -> None:
    ana = joined(hosts, served, tmp_path / "ana")
    ana.record(5)
    hosts[1].plug("down")
    done = hosts[1].call("cmf-agent", "push", "--timeout", 3, cwd=ana.folder)
    if hosts[1].namespace is not None:
        assert done.returncode == 4
        assert f"nobody answers at {hosts[0].address}:{served.port}" in done.stderr
    hosts[1].plug("up")
    assert hosts[1].ask("cmf-agent", "push", cwd=ana.folder)["pending"] == 0
    assert served.digest() == folded(tmp_path / "graph.db", [ana])
