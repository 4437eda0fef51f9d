"""What a script that logs with `Cmf` leaves behind when it ends in one way or another, and where it logs to."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import LIMIT_S, environment, of_type, only, python

from cmf_agent.cmflib.homes import home_for
from cmf_agent.home import Home, home_at
from cmf_agent.sources.code import capture_code

SCRIPT = """
from cmf_agent.cmflib import Cmf
writer = Cmf(pipeline_name="mnist")
writer.create_execution("first", {"a": 1})
writer.create_execution("last")
"""


def git(project: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=project, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("ending", "status", "error"),
    [
        ("", "finished", None),
        ("raise ValueError('no data')", "failed", {"type": "ValueError", "message": "no data"}),
        ("raise KeyboardInterrupt", "interrupted", {"type": "KeyboardInterrupt", "message": ""}),
        ("writer.finalize()\nraise ValueError", "finished", None),
        ("writer.finalize()\nraise SystemExit(1)", "finished", None),
    ],
)
def test_an_execution_ends_as_its_script_does(
    home: Home, ending: str, status: str, error: dict[str, Any] | None
) -> None:
    done = python(SCRIPT + ending, cwd=home.root)
    assert done.stdout == ""
    ends = [body for _, body in of_type(home, "execution.finished")]
    assert [end["status"] for end in ends] == ["finished", status]
    assert ends[1].get("error") == error


@pytest.mark.parametrize(
    "ending", ["import sys; sys.exit(1)", pytest.param("raise SystemExit", marks=pytest.mark.deep)]
)
def test_after_an_exit_whose_code_is_not_known_no_end_is_claimed(home: Home, ending: str) -> None:
    done = python(SCRIPT + "writer.log_metric('m', {'loss': 1})\n" + ending, cwd=home.root)
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["finished"]  # the first
    assert "stays running" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert len(of_type(home, "metrics.recorded")) == 1


@pytest.mark.deep
def test_a_module_that_runs_to_its_end_has_finished_whoever_ran_it(home: Home) -> None:
    (home.root / "script.py").write_text(SCRIPT)
    launcher = "import runpy, sys\nrunpy.run_path('script.py', run_name='__main__')\nsys.exit(0)"
    done = python(launcher, cwd=home.root)
    assert done.stderr == ""
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["finished"] * 2


WORKERS = """
import multiprocessing, sys
from cmf_agent.cmflib import Cmf
def work(number):
    writer = Cmf(pipeline_name="mnist")
    writer.create_execution(str(number), {"number": number})
    writer.log_metric("m", {"loss": number})
    if number == 1:
        sys.exit(3)
    if number == 2:
        raise ValueError("no data")
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.deep)])
def test_processes_that_begin_together_in_a_project_without_a_home_lose_nothing(project: Path, method: str) -> None:
    (project / "workers.py").write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, "workers.py", method],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    home = home_at(project / ".cmf", project)
    assert len(of_type(home, "execution.started")) == 4, done.stderr
    assert len(of_type(home, "metrics.recorded")) == 4
    ends = [(body["status"], body.get("exit_code")) for _, body in of_type(home, "execution.finished")]
    assert sorted(ends, key=str) == [("failed", 3), ("failed", None), ("finished", None), ("finished", None)]
    assert "NOT recorded" not in done.stderr and "can't record" not in done.stderr, done.stderr


def test_a_home_that_was_not_finished_is(project: Path) -> None:
    (project / ".cmf").mkdir()
    home = home_for("mlmd")
    assert home is not None and home.root == project
    assert len(of_type(home, "log.opened")) == 1


def test_a_log_that_was_lost_is_not_replaced_unasked(home: Home) -> None:
    home.log_path.unlink()
    assert home_for("mlmd") == home
    assert not home.log_path.exists()


def test_an_error_that_was_shown_before_ends_nothing(home: Home) -> None:
    done = python("import sys\nsys.last_value = ValueError('a typo, in a notebook')\n" + SCRIPT, cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["finished"] * 2


@pytest.mark.parametrize("ending", ["raise SystemExit", "writer.finalize(); os._exit(0)"])
def test_a_forked_child_that_ends_first_ends_nothing(home: Home, ending: str) -> None:
    git(home.root, "init", "-q")
    git(home.root, "commit", "-q", "--allow-empty", "-m", "first")
    done = python(SCRIPT + f"import os\nif os.fork():\n    os.wait()\nelse:\n    {ending}", cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert len(of_type(home, "execution.finished")) == 2
    assert len(of_type(home, "execution.updated")) == 2  # the commits that they ended at


def test_a_project_without_a_home_gets_one_in_its_root_and_is_told(project: Path) -> None:
    git(project, "init", "-q", "-b", "main")
    git(project, "commit", "-q", "--allow-empty", "-m", "first")
    (project / "src").mkdir()
    script = "from cmf_agent.cmflib import Cmf\nCmf('mlmd', 'p').create_execution('x')"
    for told in (True, False):
        done = python(script, cwd=project / "src")
        assert done.returncode == 0, done.stderr
        assert (f"made {project / '.cmf'}" in done.stderr) is told, done.stderr
        assert done.stdout == ""
    home = home_at(project / ".cmf", project)
    assert len(of_type(home, "execution.started")) == 2
    code = capture_code(project, diff=False)
    assert code is not None and code["branch"] == "main"
    ended = [body["properties"]["Git_End_Commit"] for _, body in of_type(home, "execution.updated")]
    assert ended == [code["commit"]] * 2
    assert git(project, "status", "--porcelain") == ""


def test_where_nothing_can_be_recorded_the_script_goes_on(project: Path) -> None:
    (project / ".cmf").write_text("in the way")
    (project / "data.csv").write_text("1\n")
    script = (
        "from cmf_agent.cmflib import Cmf\nwriter = Cmf('mlmd', 'p')\n"
        "print(writer.log_dataset('data.csv', 'input').uri)\nwriter.log_metric('m', {'a': 1})\n"
        "writer.commit_metrics('m')\nwriter.log_execution_metrics('n', {'a': 1})\nwriter.finalize()"
    )
    done = python(script, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "b026324c6904b2a9cb4b88d6d61c81d1\n"
    assert "NOTHING is recorded" in done.stderr


def test_a_dvc_lock_is_committed_and_nothing_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmf_agent.cmflib import Cmf

    project = home.root
    for name, value in (("AUTHOR", "x"), ("COMMITTER", "x")):
        monkeypatch.setenv(f"GIT_{name}_NAME", value)
        monkeypatch.setenv(f"GIT_{name}_EMAIL", f"{value}@example.org")
    git(project, "init", "-q")
    for name in ("dvc.lock", "staged.txt", "other.txt"):
        (project / name).write_text(name)
    git(project, "add", "other.txt")
    git(project, "commit", "-q", "-m", "first")
    git(project, "add", "staged.txt")
    (project / "other.txt").write_text("changed")
    writer = Cmf(pipeline_name="p")
    first = writer.log_dvc_lock("dvc.lock")
    again = writer.log_dvc_lock(os.fspath(project / "dvc.lock"))
    writer.finalize()
    assert first == again == f"commit {git(project, 'rev-parse', 'HEAD')}"
    assert git(project, "rev-list", "--count", "HEAD") == "2"
    assert git(project, "show", "--name-only", "--format=", "HEAD") == "dvc.lock"
    assert git(project, "status", "--porcelain").split() == ["M", "other.txt", "A", "staged.txt"]
    assert {body["name"] for _, body in of_type(home, "artifact.produced")} == {"dvc.lock"}
    only(home, "execution.started")
