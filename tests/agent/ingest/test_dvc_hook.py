"""Git's hooks that ingest what a commit or a merge brings; real git runs them."""

import os
from pathlib import Path

import pytest
from tests.agent.helpers import cli, of_type
from tests.agent.ingest.dvc_projects import entry, git, write_lock

from cmf_agent.commands.ingesting_dvc import dvc
from cmf_agent.home import Home
from cmf_agent.ingest.dvc_hook import install_hooks, uninstall_hooks
from cmf_protocol.errors import CallerError
from cmf_protocol.types import EXECUTION_STARTED

STAGE = {"cmd": "python train.py", "outs": [entry("model.pkl", b"weights")]}


@pytest.fixture
def repository(project: Path) -> Path:
    git(project, "init", "-q", "-b", "main")
    (project / ".gitignore").write_text(".cmf/\ncalls\nagent\n")
    return project


@pytest.fixture
def calls(repository: Path) -> Path:
    """The file in which a program that stands in the hooks for cmf-agent writes what it was called with."""
    agent = repository / "agent"
    agent.write_text(f'#!/bin/sh\necho "$(pwd) $*" >>{repository}/calls\ncat >/dev/null\nexit 3\n')
    agent.chmod(0o755)
    for path in install_hooks(repository, ["-p", "it's", "--model", "*.pkl"]):
        lines = path.read_text().splitlines(keepends=True)
        with path.open("w") as file:
            file.writelines(
                f"    cmf_agent={agent}; :\n" if line.lstrip().startswith("cmf_agent=") else line for line in lines
            )
    return repository / "calls"


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    return git(folder, "commit", "-m", "x")


def test_a_commit_of_a_lock_is_ingested(repository: Path, home: Home) -> None:
    installed = cli("ingest", "dvc", "--install-hook", "-p", "iris", cwd=repository)
    assert installed.returncode == 0, installed.stderr
    write_lock(repository, {"train": STAGE})
    said = commit(repository)
    started = of_type(home, EXECUTION_STARTED)
    assert [body["facts"]["git_commit"] for _, body in started] == [git(repository, "rev-parse", "HEAD")]
    assert ("stage", ("iris", "train")) in started[0][0].about
    assert "error" not in said


def test_hooks_run_only_for_locks_and_never_fail_a_commit(repository: Path, calls: Path) -> None:
    (repository / "other.txt").write_text("x")
    commit(repository)
    assert not calls.exists()
    write_lock(repository / "a b" / "ü", {"train": STAGE})
    write_lock(repository, {"train": STAGE})
    commit(repository)  # the agent fails with exit code 3
    expected = [
        f"{repository} ingest dvc --quiet -p it's --model *.pkl -- {lock}" for lock in ("a b/ü/dvc.lock", "dvc.lock")
    ]
    assert sorted(calls.read_text().splitlines()) == expected
    calls.unlink()
    (repository / "dvc.lock").unlink()
    commit(repository)
    assert not calls.exists()


def test_a_merge_that_brings_a_lock_runs_the_hook(repository: Path, calls: Path) -> None:
    commit(repository)
    git(repository, "checkout", "-q", "-b", "side")
    write_lock(repository, {"train": STAGE})
    commit(repository)
    git(repository, "checkout", "-q", "main")
    calls.unlink()
    git(repository, "merge", "-q", "side")
    assert calls.read_text().count("dvc.lock") == 1


@pytest.mark.parametrize("shell", ["/usr/bin/env bash", "/bin/sh -e"])
def test_hooks_that_are_there_go_on_and_installing_again_changes_nothing(
    repository: Path, calls: Path, shell: str
) -> None:
    uninstall_hooks(repository)
    hook = repository / ".git" / "hooks" / "post-commit"
    own = f"#!{shell}\necho own >>{calls}\nexec true\n"
    hook.write_text(own)
    hook.chmod(0o755)
    paths = install_hooks(repository, [])
    texts = [path.read_text() for path in paths]
    assert install_hooks(repository, []) == paths
    assert [path.read_text() for path in paths] == texts
    hook.write_text(texts[0].replace("cmf_agent=", f"cmf_agent={repository}/agent; : ", 1))
    write_lock(repository, {"train": STAGE})
    commit(repository)
    assert [line.split()[-1] for line in calls.read_text().splitlines()] == ["dvc.lock", "own"]
    assert uninstall_hooks(repository) == paths
    assert hook.read_text() == own
    assert [path.exists() for path in paths] == [True, False]
    assert uninstall_hooks(repository) == []


def test_hooks_are_put_where_git_looks_for_them(repository: Path) -> None:
    git(repository, "config", "core.hooksPath", "own/hooks")
    assert install_hooks(repository, []) == [
        repository / "own" / "hooks" / name for name in ("post-commit", "post-merge")
    ]
    (repository / "sub").mkdir()
    assert install_hooks(repository / "sub", [])[0] == repository / "own" / "hooks" / "post-commit"


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("#!/usr/bin/python3\n", 0o755, "no shell script"),
        ("echo x\n", 0o755, "no shell script"),
        ("#!/bin/sh\n", 0o644, "not executable"),
    ],
    ids=["python", "nothing", "off"],
)
def test_a_hook_that_can_not_hold_ours_is_left_alone(repository: Path, text: str, mode: int, message: str) -> None:
    hook = repository / ".git" / "hooks" / "post-merge"
    hook.write_text(text)
    hook.chmod(mode)
    with pytest.raises(CallerError, match=message):
        install_hooks(repository, [])
    assert hook.read_text() == text
    assert not os.path.lexists(hook.with_name("post-commit"))


def test_husky_s_own_folder_is_left_alone(repository: Path) -> None:
    git(repository, "config", "core.hooksPath", ".husky/_")
    with pytest.raises(CallerError, match="husky writes") as raised:
        install_hooks(repository, [])
    assert ".husky/post-commit" in raised.value.hint
    assert not (repository / ".husky").exists()


def test_outside_a_repository_the_way_out_is_told(project: Path) -> None:
    with pytest.raises(CallerError, match="in no git repository"):
        install_hooks(project, [])
    with pytest.raises(CallerError, match="opposites"):
        dvc(install_hook=True, uninstall_hook=True)
