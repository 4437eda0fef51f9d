"""Many runs at the same time, with DVC: each is recorded whole, and only by digests that its files really had."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import LIMIT_S, cli, environment, of_type, recorded
from tests.support.dvc import git, make_dvc_project

import cmf_agent as cmf
from cmf_agent.dvc.dvc_files import read_dvc_file
from cmf_agent.dvc.locations import is_cached
from cmf_agent.home import Home
from cmf_graph.content.files import hash_path
from cmf_protocol.errors import CallerError

MANY = 16
SHARED_FILE, SHARED_FOLDER, CONTENDED = "shared/data.csv", "shared/folder", "latest.txt"

#: One run as a program of its own: threads of it log files of their own, all the same inputs, and a file that everyone keeps changing.
PROGRAM = """
import sys, threading
from tests.agent.test_parallel_capture import one_run

threads = [threading.Thread(target=one_run, args=(f"{sys.argv[1]}-{at}",)) for at in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.fixture
def dvc_home(home: Home) -> Home:
    """A home in a git and DVC repository, which is also the working directory, with what all runs read."""
    make_dvc_project(home.root)
    (home.root / SHARED_FOLDER / "deep").mkdir(parents=True)
    for at in range(5):
        (home.root / SHARED_FOLDER / "deep" / f"{at}.txt").write_text(f"{at}\n")
    (home.root / SHARED_FILE).write_text("a,b\n1,2\n")
    return home


def one_run(name: str) -> None:
    """Record a run called `name` that reads what all read, writes a file of its own, and one that others write at the same time."""
    with cmf.run("parallel", "stage", {"name": name}, name=name) as run:
        run.input(SHARED_FILE)
        run.input(SHARED_FOLDER)
        own = Path(f"own-{name}.txt")
        own.write_text(content_of(name))
        run.output(own)
        new = Path(f".{name}.new")
        new.write_text(contended_by(name))
        new.replace(CONTENDED)
        try:
            run.output(CONTENDED)
        except CallerError as error:  # nobody could say what is in it
            run.property("contended", str(error))
        run.metric("loss", 0.5)
        run.metric("steps", 1, step=1)


def content_of(name: str) -> str:
    return f"made by {name}\n" * 100


def contended_by(name: str) -> str:
    return f"last of all was {name}\n" * 100


def in_threads(count: int, call: Callable[[int], object]) -> None:
    failed: list[BaseException] = []

    def guarded(at: int) -> None:
        try:
            call(at)
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(at,)) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert failed == []
    assert not any(thread.is_alive() for thread in threads)


def md5_id(folder: Path, text: str) -> str:
    """Return the content id of a text."""
    path = folder / ".cmf" / "probe"
    path.write_text(text)
    return hash_path(path).content_id


def check_all_is_there(home: Home, names: set[str]) -> None:
    """Check that each of these runs is recorded with all that it said, that DVC has it all, and that every digest is true."""
    root = home.root
    shared = {path: hash_path(root / path).content_id for path in (SHARED_FILE, SHARED_FOLDER)}
    may_be = {md5_id(root, contended_by(name)) for name in names}
    executions = {
        body["params"]["name"]: dict(header.about)["execution"] for header, body in of_type(home, "execution.started")
    }
    assert set(executions) == names
    said: dict[Any, list[tuple[str, Any, Any]]] = {execution: [] for execution in executions.values()}
    for header, body in recorded(home):
        nodes: dict[str, Any] = dict(header.about)
        if "execution" in nodes:
            said[nodes["execution"]].append((header.type, nodes.get("artifact"), body))
    for name, execution in executions.items():
        by_type: dict[str, list[tuple[Any, Any]]] = {}
        for type_, artifact, body in said[execution]:
            by_type.setdefault(type_, []).append((artifact, body))
        used = {body["name"]: artifact for artifact, body in by_type["artifact.used"]}
        produced = {body["name"]: artifact for artifact, body in by_type["artifact.produced"]}
        assert used == shared
        assert produced.pop(f"own-{name}.txt") == md5_id(root, content_of(name))
        assert set(produced) <= {CONTENDED}
        assert set(produced.values()) <= may_be
        assert produced or "contended" in str(by_type["execution.updated"])
        assert [body["status"] for _, body in by_type["execution.finished"]] == ["finished"]
        numbers = [body for _, body in by_type["metrics.recorded"]]
        assert [body["metrics"]["loss"] for body in numbers if "loss" in body.get("metrics", {})] == [0.5]
        assert [block[:4] for body in numbers for block in body.get("steps", ())] == [("steps", "", (1,), (1,))]
    assert not any(untracked(said[execution]) for execution in executions.values())
    check_tracked(home, [SHARED_FILE, SHARED_FOLDER, *(f"own-{name}.txt" for name in names)])
    check_cache(home)


def untracked(events: list[tuple[str, Any, Any]]) -> list[str]:
    """Return what the events about a run say that DVC could not track."""
    errors: dict[str, str] = {}
    for _, _, body in events:
        errors = body.get("properties", {}).get("tracking_errors", errors)
    return list(errors)


def check_tracked(home: Home, paths: list[str]) -> None:
    """Check that DVC has all of these, under the digests that they have."""
    for path in paths:
        content_id = hash_path(home.root / path).content_id
        assert read_dvc_file(str(home.root / f"{path}.dvc"))[0].content_id == content_id, path
        assert is_cached(str(home.root), content_id), path


def check_cache(home: Home) -> None:
    """Check that every object in DVC's cache has the content that it is named by."""
    objects = [path for path in (home.root / ".dvc" / "cache" / "files" / "md5").glob("*/*") if path.is_file()]
    assert objects
    for path in objects:
        named = (path.parent.name + path.name).removesuffix(".dir")
        assert hash_path(path).content_id == f"md5:{named}"


def test_sixteen_runs_in_threads_are_recorded_whole(dvc_home: Home) -> None:
    in_threads(MANY, lambda at: one_run(str(at)))
    check_all_is_there(dvc_home, {str(at) for at in range(MANY)})


def run_programs(folder: Path, processes: int, threads: int) -> None:
    """Run so many programs of so many runs each, at the same time."""
    path = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(at), str(threads)],
            cwd=folder,
            env=environment(PYTHONPATH=path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for at in range(processes)
    ]
    try:
        said = [process.communicate(timeout=4 * LIMIT_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * processes, said
    assert said == [""] * processes


def run_forked(processes: int, threads: int) -> None:
    """Do the same in forked children, which don't have to import DVC."""
    children = []
    for at in range(processes):
        child = os.fork()
        if not child:
            code = 1
            try:
                in_threads(threads, lambda thread, at=at: one_run(f"{at}-{thread}"))  # type: ignore[misc]
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * processes


def test_processes_of_some_threads_are_recorded_whole(dvc_home: Home) -> None:
    run_forked(2, 3)
    check_all_is_there(dvc_home, {f"{at}-{thread}" for at in range(2) for thread in range(3)})


@pytest.mark.deep
def test_sixteen_programs_of_sixteen_threads_are_recorded_whole(dvc_home: Home) -> None:
    run_programs(dvc_home.root, MANY, MANY)
    check_all_is_there(dvc_home, {f"{at}-{thread}" for at in range(MANY) for thread in range(MANY)})
    assert cli("verify", cwd=dvc_home.root).returncode == 0


def test_what_dvc_refuses_shows_on_the_runs_that_it_concerns_and_no_others(
    dvc_home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    for at in range(8):
        Path(f"{at}").mkdir()
        Path(f"{at}/file").write_text(content_of(str(at)))
        Path(f"{at}/other").write_text("")
    git(dvc_home.root, "add", *(f"{at}/file" for at in (1, 3, 5, 7)))  # a part of these folders: so DVC can't have them

    def log(at: int) -> None:
        with cmf.run("parallel", "stage", {"at": at, "odd": object()}) as run:
            run.output(f"{at}")

    in_threads(8, log)
    started = of_type(dvc_home, "execution.started")
    names = {dict(header.about)["execution"]: body["params"]["at"] for header, body in started}
    errors = {
        names[dict(header.about)["execution"]]: body["properties"]["tracking_errors"]
        for header, body in of_type(dvc_home, "execution.updated")
    }
    assert {at: list(said) for at, said in errors.items()} == {at: [f"{at}"] for at in (1, 3, 5, 7)}
    produced = {body["name"]: dict(header.about)["artifact"] for header, body in of_type(dvc_home, "artifact.produced")}
    assert produced == {f"{at}": hash_path(dvc_home.root / f"{at}").content_id for at in range(8)}
    check_tracked(dvc_home, ["0", "2", "4", "6"])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("not tracked by DVC") == 4
    assert os.getcwd() == str(dvc_home.root)  # noqa: PTH109
