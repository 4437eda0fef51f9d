"""Which commit is checked out is read from git's own files."""

from pathlib import Path

import pytest
from tests.support.dvc import git

from cmf_agent.dvc.git_folders import checked_out, object_format


def repository(folder: Path, *options: str) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=deep/branch", *options)
    git(folder, "config", "user.name", "A")
    git(folder, "config", "user.email", "a@example.org")
    return folder


def commit(folder: Path) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


def test_head_is_found_however_git_keeps_it(tmp_path: Path) -> None:
    top = repository(tmp_path / "r")
    assert checked_out(str(top)) is None  # there is no commit yet
    first = commit(top)
    assert checked_out(str(top)) == first
    git(top, "branch", "branch")  # whose name is the end of the other's
    git(top, "pack-refs", "--all")
    assert not (top / ".git" / "refs" / "heads" / "deep" / "branch").exists()
    assert checked_out(str(top)) == first
    second = commit(top)  # beside the packed one
    assert checked_out(str(top)) == second
    git(top, "symbolic-ref", "refs/heads/other", "refs/heads/deep/branch")
    git(top, "symbolic-ref", "HEAD", "refs/heads/other")
    assert checked_out(str(top)) == second
    git(top, "checkout", "--quiet", "--detach", first)
    assert checked_out(str(top)) == first


def test_a_linked_working_tree_has_its_own_head_and_the_references_of_all(tmp_path: Path) -> None:
    top = repository(tmp_path / "r")
    first = commit(top)
    linked = tmp_path / "linked"
    git(top, "worktree", "add", "--quiet", "-b", "second", str(linked))
    second = commit(linked)
    assert (checked_out(str(linked)), checked_out(str(top))) == (second, first)
    git(top, "pack-refs", "--all")
    assert (checked_out(str(linked)), checked_out(str(top))) == (second, first)


def test_a_repository_may_name_its_objects_by_sha256(tmp_path: Path) -> None:
    top = repository(tmp_path / "r", "--object-format=sha256")
    head = commit(top)
    assert (object_format(str(top)), checked_out(str(top)), len(head)) == ("sha256", head, 64)


@pytest.mark.parametrize("head", ["", "ref: refs/heads/../../loop", "ref: HEAD", "no reference", "ref: refs/heads"])
def test_what_files_do_not_tell_is_not_known(tmp_path: Path, head: str) -> None:
    top = repository(tmp_path / "r")
    (top / ".git" / "HEAD").write_text(head)
    assert checked_out(str(top)) is None
    assert checked_out(str(tmp_path)) is None
