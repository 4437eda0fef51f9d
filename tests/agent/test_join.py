"""One run, many speakers: threads, forked children, worker processes that join it by its id."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from tests.agent.helpers import of_type, only, python, recorded

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.verify import verify
from cmf_agent.view import local_view
from cmf_protocol.errors import CallerError, StoreError

Points = dict[tuple[str, str], dict[int, float]]


def points(home: Home, execution: bytes) -> Points:
    """Return the step metrics that the local view shows: (metric, series) → step → value."""
    with local_view(home) as graph:
        node_id = graph.node_id(("execution", execution))
        assert node_id is not None
        series = graph.state(node_id).steps(graph.chains())
    return {key: {step: found.shown.value for step, found in steps.items()} for key, steps in series.items()}


def test_sixteen_threads_on_one_run_lose_nothing(home: Home) -> None:
    for at in range(16):
        Path(f"f{at}").write_text(str(at))
    together = threading.Barrier(16)

    def work(at: int) -> None:
        together.wait()
        run.input(f"f{at}")
        for step in range(50):
            run.metric("loss", step, step=step, series=str(at))
        run.params({f"p{at}": at})
        run.metric(f"m{at}", at)
        run.metrics_table(f"t{at}", [{"at": at}])

    with cmf.run("p", "s") as run, ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert points(home, run.execution) == {("loss", str(at)): {s: s for s in range(50)} for at in range(16)}
    assert len({header.about for header, _ in of_type(home, "artifact.used")}) == 16
    assert {key for _, body in of_type(home, "execution.updated") for key in body["params"]} == {
        f"p{at}" for at in range(16)
    }
    assert len(of_type(home, "table.recorded")) == 16
    assert not verify(home).problems


def test_whichever_thread_begins_a_run_its_start_is_recorded_first(home: Home) -> None:
    together = threading.Barrier(8)

    def work(at: int) -> None:
        together.wait()
        run.params({str(at): at})

    run = cmf.run("p", "s")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    run.finish()
    kinds = [header.type for header, _ in recorded(home) if ("execution", run.execution) in header.about]
    assert kinds == ["execution.started", *["execution.updated"] * 8, "execution.finished"]


def test_a_forked_child_goes_on_with_its_parents_run(home: Home) -> None:
    script = """
import os
from pathlib import Path
import cmf_agent as cmf
with cmf.run("p", "s") as run:
    run.metric("loss", 0, step=0)
    child = os.fork()
    if not child:
        Path("f").write_text("x")
        for step in range(1, 40):
            run.metric("loss", step, step=step)
        run.input("f")
        run.params(child=1)
        run.metrics_table("t", [{"a": 1}])
        with cmf.run("p", "inner"):
            pass
        os._exit(0)  # as multiprocessing's children end
    assert os.waitpid(child, 0)[1] == 0
"""
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    (outer, _), (_, inner) = of_type(home, "execution.started")
    execution = next(id_ for kind, id_ in outer.about if kind == "execution")
    assert isinstance(execution, bytes)
    assert points(home, execution) == {("loss", ""): {step: step for step in range(40)}}
    assert only(home, "artifact.used")[1]["name"] == "f"
    assert only(home, "execution.updated")[1]["params"] == {"child": 1}
    assert inner["facts"]["parent"] == execution
    assert not verify(home).problems


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.deep)])
def test_workers_join_a_run_by_its_id(home: Home, method: str) -> None:
    (home.root / "work.py").write_text("""
import multiprocessing, os, sys
import cmf_agent as cmf
def work(rank, id_):
    os.environ["RANK"] = str(rank)
    with cmf.join(id_) as run:
        for step in range(30):
            run.metric("loss", step * rank, step=step)
    cmf.join(id_).metric("late", 1, step=rank)  # without `with`: at once, since this process ends without a word
    os._exit(0)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with cmf.run("p", "train") as run:
        workers = [context.Process(target=work, args=(rank, run.id)) for rank in range(3)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
""")
    done = python(
        f"import runpy, sys; sys.argv[1:] = ['{method}']; runpy.run_path('work.py', run_name='__main__')", cwd=home.root
    )
    assert done.returncode == 0, done.stderr
    header, _ = only(home, "execution.started")
    assert only(home, "execution.finished")[1]["status"] == "finished"
    execution = next(id_ for kind, id_ in header.about if kind == "execution")
    assert isinstance(execution, bytes)
    losses = {("loss", str(rank)): {step: step * rank for step in range(30)} for rank in range(3)}
    assert points(home, execution) == losses | {("late", str(rank)): {rank: 1} for rank in range(3)}
    assert not verify(home).problems


def test_joining_records_neither_start_nor_end_nor_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with cmf.run("p", "s") as run:
        pass
    before = len(recorded(home))
    monkeypatch.setenv("CMF_EXECUTION", run.id)
    with cmf.join() as joined:
        assert joined.execution == run.execution
        joined.metric("m", 1)
    assert len(recorded(home)) == before + 1


def test_the_run_of_the_body_goes_before_that_of_the_process(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMF_EXECUTION", raising=False)
    with pytest.raises(CallerError, match="no run to join"):
        cmf.join()
    monkeypatch.setenv("CMF_EXECUTION", "00000000-0000-7000-8000-000000000000")
    assert cmf.join().id == "00000000-0000-7000-8000-000000000000"
    with cmf.run("p", "s") as run:
        assert cmf.join().execution == run.execution


def test_a_workers_error_is_noted_and_ends_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with cmf.run("p", "s") as run:
        with pytest.raises(ValueError, match="hunter2"), cmf.join(run.id) as joined:
            joined.metric("loss", 1, step=1)
            raise ValueError("password=hunter2 " + "x" * 10_000)
        assert not of_type(home, "execution.finished")
    error = only(home, "execution.updated")[1]["properties"]["worker_error[3]"]
    assert (error["type"], error["message"]) == ("ValueError", f"password=*** {'x' * 3_987}")
    assert points(home, run.execution) == {("loss", "3"): {1: 1}}


def test_a_worker_that_leaves_by_exiting_is_noted_if_that_is_a_failure(home: Home) -> None:
    with cmf.run("p", "s") as run:
        for code in (0, 3):
            with pytest.raises(SystemExit), cmf.join(run.id, series=str(code)):
                raise SystemExit(code)
    properties = only(home, "execution.updated")[1]["properties"]
    assert properties == {"worker_error[3]": {"type": "SystemExit", "message": "exit code 3"}}


def test_a_run_that_is_to_be_pickled_says_how_to_join_it(home: Home) -> None:
    with cmf.run("p", "s") as run:
        for wrong in (run, cmf.join(run.id)):
            with pytest.raises(TypeError, match=r"cmf\.join"):
                pickle.dumps(wrong)


def test_a_thread_is_in_the_body_of_a_run_only_with_its_context(home: Home) -> None:
    found: list[object] = []

    def look() -> None:
        found.append(cmf.current_run())

    with cmf.run("p", "s") as run:
        for thread in (threading.Thread(target=look), threading.Thread(target=copy_context().run, args=(look,))):
            thread.start()
            thread.join()
    assert found == [None, run]


def test_a_join_that_cannot_record_does_not_hide_the_workers_error(home: Home) -> None:
    joined = cmf.join("00000000-0000-7000-8000-000000000000", strict=True)
    home.log_path.unlink()
    with pytest.raises(StoreError, match="missing"):
        joined.metric("m", 1)
    with pytest.raises(ValueError, match="mine"), joined:
        raise ValueError("mine")


def test_a_generator_may_hold_a_run(home: Home) -> None:
    def steps() -> "object":
        with cmf.run("p", "inside") as run:
            for step in range(3):
                run.metric("m", step, step=step)
                yield step

    whole = list(steps())  # type: ignore[call-overload]
    assert whole == [0, 1, 2]
    part = steps()
    next(part)  # type: ignore[call-overload]
    del part
    with cmf.run("p", "after"):
        pass
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == [
        "finished",
        "interrupted",
        "finished",
    ]
    assert [body["facts"].get("parent") for _, body in of_type(home, "execution.started")] == [None, None, None]


def test_runs_that_were_each_started_inside_the_other_end(home: Home) -> None:
    first, second = cmf.run("p", "a"), cmf.run("p", "b").start()
    first.start()
    second.finish()
    second.start()
    assert (first.outer, second.outer) == (second, first)
    second.finish()
    assert cmf.current_run() is first
    first.finish()
    assert cmf.current_run() is None
    assert len(of_type(home, "execution.finished")) == 3
