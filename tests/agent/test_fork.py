"""Processes that are forked while runs are open: nothing is lost, nothing hangs, the chain holds."""

import pytest
from tests.agent.helpers import of_type, python

from cmf_agent.home import Home
from cmf_agent.verify import verify


def run_script(home: Home, script: str) -> str:
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert not verify(home).problems
    return done.stderr


def metrics(home: Home) -> list[dict[str, float]]:
    return [body["metrics"] for _, body in of_type(home, "metrics.recorded")]


def test_a_worker_with_a_run_of_its_own_outlives_its_parents_run(home: Home) -> None:
    run_script(
        home,
        """
import multiprocessing
import cmf_agent as cmf
context = multiprocessing.get_context("fork")
def work(go):
    with cmf.run("p", "worker") as run:
        go.wait(120)
        run.metric("m", 1)
go = context.Event()
with cmf.run("p", "parent") as run:
    run.input(__import__("os").__file__)
    worker = context.Process(target=work, args=(go,))
    worker.start()
go.set()
worker.join()
assert worker.exitcode == 0
""",
    )
    assert metrics(home) == [{"m": 1}]
    assert len(of_type(home, "execution.finished")) == 2


def test_a_child_writes_while_its_parent_records_runs(home: Home) -> None:
    run_script(
        home,
        """
import os
import cmf_agent as cmf
with cmf.run("p", "s") as run:
    child = os.fork()
    if not child:
        for at in range(1500):
            run.metric("m", at)
        os._exit(0)
for _ in range(20):
    with cmf.run("p", "more") as more:
        more.metric("own", 1)
assert os.waitpid(child, 0)[1] == 0
""",
    )
    assert [said["m"] for said in metrics(home) if "m" in said] == list(range(1500))
    assert len(of_type(home, "execution.finished")) == 21


def test_children_that_are_forked_while_a_thread_records_end(home: Home) -> None:
    run_script(
        home,
        """
import os, threading
import cmf_agent as cmf
def record():
    while not over.is_set():
        run.metric("thread", 1)
over = threading.Event()
with cmf.run("p", "s") as run:
    thread = threading.Thread(target=record)
    thread.start()
    children = []
    for at in range(12):
        child = os.fork()
        if not child:
            run.metric("child", at)
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    over.set()
    thread.join()
assert codes == [0] * 12, codes
""",
    )
    assert sorted(said["child"] for said in metrics(home) if "child" in said) == list(range(12))


def test_points_of_forked_workers_are_recorded_at_once(home: Home) -> None:
    run_script(
        home,
        """
import multiprocessing
import cmf_agent as cmf
def work(at):
    run.metric("loss", at, step=at)
with cmf.run("p", "s") as run:
    run.metric("parents", 1, step=1)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(work, range(9), chunksize=1)
""",
    )
    assert sorted(said["loss"] for said in metrics(home) if "loss" in said) == list(range(9))
    assert [said for said in metrics(home) if "parents" in said] == [{"parents": 1}]


@pytest.mark.parametrize("after", ["", "run.finish()\n"])
def test_points_that_wait_when_the_script_ends_are_recorded(home: Home, after: str) -> None:
    run_script(
        home, f"import cmf_agent as cmf\nrun = cmf.run('p', 's').start()\n{after}run.metric('loss', 1, step=1)\n"
    )
    assert metrics(home) == [{"loss": 1}]


@pytest.mark.parametrize("end", ["", "run.finish()\n"])
def test_what_is_lost_when_the_script_ends_is_named(home: Home, end: str) -> None:
    script = f"""
import os
import cmf_agent as cmf
run = cmf.run("p", "s").start()
run._recorder._held.close()
os.rename({str(home.log_path)!r}, {str(home.log_path)!r} + ".aside")
{end}run.metric("loss", 1, step=1)
run.metric("f1", 1)
"""
    done = python(script, cwd=home.root)
    assert done.returncode == 0
    for words in ("NOT recorded", "log.db is missing", "(loss)", "(f1)"):
        assert words in done.stderr


def test_a_signal_handler_may_end_the_run_at_any_moment(home: Home) -> None:
    said = run_script(
        home,
        """
import os, signal, sys, threading
import cmf_agent as cmf
def end(number, frame):
    run.metric("signal", 1)
    run.finish("interrupted")
    sys.exit(143)
def work():
    try:
        for at in range(10**6):
            run.metric("loss", at)
            run.metric("step", at, step=at)
    except SystemExit:
        return
signal.signal(signal.SIGALRM, end)
for at in range(20):
    run = cmf.run("p", "s").start()
    signal.setitimer(signal.ITIMER_REAL, 0.01 + at / 5000)
    work()
""",
    )
    assert said == ""
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["interrupted"] * 20
    assert len([1 for one in metrics(home) if "signal" in one]) == 20
