"""CPU and memory of a run's processes as step metrics, when asked for."""

import subprocess
import sys
import threading
from typing import Any

import pytest
from tests.agent.helpers import of_type, only, python, wait_until

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_protocol.errors import CallerError

EVERY_S = 0.05
#: Takes memory and CPU until its standard input closes, so that it ends with these tests however they end.
BUSY = """
import os, sys, threading
big = bytearray(200_000_000)
def work():
    while True: pass
threading.Thread(target=work, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""


def samples(home: Home) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of all points, by metric."""
    found: dict[str, list[tuple[int, float]]] = {}
    for _, body in of_type(home, "metrics.recorded"):
        for name, _, steps, values, _ in body["steps"]:
            found.setdefault(name, []).extend(zip(steps, values, strict=True))
    return found


def test_a_run_of_no_time_has_a_sample_of_its_start_and_of_its_end(home: Home) -> None:
    with cmf.run("p", "s", machine_metrics=True):
        pass
    found = samples(home)
    assert [step for step, _ in found["machine/memory_bytes"]] == [0, 1]
    assert all(value > 1_000_000 for _, value in found["machine/memory_bytes"])
    assert all(0 < value < 100 for _, value in found["machine/host_memory_percent"])
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name == "cmf-machine"]


def test_a_wait_without_end_is_none_of_the_hosts_business(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with cmf.run("p", "s", machine_metrics=float("inf")):
        pass
    assert [step for step, _ in samples(home)["machine/memory_bytes"]] == [0, 1]
    assert capsys.readouterr().err == ""


def test_children_count_and_the_run_says_how_much_cpu_they_took(home: Home) -> None:
    with (
        cmf.run("p", "s", machine_metrics=EVERY_S) as run,
        subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE),  # closed at the end, and waited for
    ):
        wait_until(lambda: _is_busy(home))
    found = samples(home)
    memory = [value for _, value in found["machine/memory_bytes"]]
    assert max(memory) - memory[0] > 150_000_000
    assert max(value for _, value in found["machine/cpu_percent"]) > 5
    assert run.is_ended


def _is_busy(home: Home) -> bool:
    found = samples(home)
    memory = [value for _, value in found.get("machine/memory_bytes", [])]
    busy = any(value > 5 for _, value in found.get("machine/cpu_percent", []))
    return busy and max(memory) - memory[0] > 150_000_000


def test_they_are_off_unless_asked_for_and_nonsense_is_refused(home: Home) -> None:
    with cmf.run("p", "s"):
        pass
    assert not of_type(home, "metrics.recorded")
    wrong: list[Any] = [0, -1, "often"]
    for value in wrong:
        with pytest.raises(CallerError, match="machine_metrics"):
            cmf.run("p", "s", machine_metrics=value)


def test_a_forked_child_samples_nothing(home: Home) -> None:
    script = f"""
import os
import cmf_agent as cmf
with cmf.run("p", "s", machine_metrics={EVERY_S}) as run:
    child = os.fork()
    if not child:
        run.finish()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    steps = [step for step, _ in samples(home)["machine/memory_bytes"]]
    assert steps == list(range(len(steps)))
    assert only(home, "execution.finished")


def test_without_psutil_it_is_said_once_and_the_run_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with cmf.run("p", "s", machine_metrics=EVERY_S) as run:
        run.metric("m", 1)
    said = capsys.readouterr().err
    assert said.count("cmf-sync[machine]") == 1
    assert only(home, "execution.finished")[1]["status"] == "finished"
