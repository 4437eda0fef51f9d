"""What is recorded of the code's version, in every state that a repository can be in."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cmf_agent.sources.code import capture_code

IDENTITY = ["-c", "user.name=Someone", "-c", "user.email=someone@example.org"]


def git(repo: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=repo, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def capture(start: Path, *, full_diff: bool = False) -> dict[str, object]:
    code = capture_code(start, full_diff=full_diff)
    assert code is not None
    return code


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in files}


@pytest.fixture(autouse=True)
def plain_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "train.py").write_text("print(1)\n", encoding="utf-8")
    (path / "weights.bin").write_bytes(b"\x00\x01\x02" * 50)
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "first")
    return path


def test_a_clean_repository_names_its_commit_and_branch(repo: Path) -> None:
    (repo / "sub").mkdir()
    (repo / "untracked").write_text("x", encoding="utf-8")
    expected = {
        "commit": git(repo, "rev-parse", "HEAD"),
        "branch": "main",
        "remote": None,
        "dirty": False,
        "diff_sha256": None,
    }
    for start in (repo, repo / "sub", repo / "train.py"):
        assert capture_code(start) == expected
    assert capture(repo, full_diff=True) == expected | {"diff": "", "diff_truncated": False}


def test_where_there_is_no_repository_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert capture_code(tmp_path) is None
    assert capture_code(tmp_path / "missing") is None


def test_packed_references_are_read(repo: Path) -> None:
    git(repo, "pack-refs", "--all")
    assert capture(repo)["commit"] == git(repo, "rev-parse", "HEAD")


def test_staged_and_unstaged_changes_are_dirty_and_have_one_digest(repo: Path) -> None:
    (repo / "train.py").write_text("print(2)\n", encoding="utf-8")
    unstaged = capture(repo, full_diff=True)
    git(repo, "add", "train.py")
    assert capture(repo, full_diff=True) == unstaged
    assert unstaged["dirty"] is True
    diff = str(unstaged["diff"])
    assert "-print(1)\n+print(2)\n" in diff
    assert unstaged["diff_sha256"] == hashlib.sha256(diff.encode()).hexdigest()
    assert "diff" not in capture(repo)


def test_a_binary_change_is_in_the_diff_so_that_it_can_be_applied(repo: Path, tmp_path: Path) -> None:
    git(repo, "clone", "-q", str(repo), str(tmp_path / "copy"))
    (repo / "weights.bin").write_bytes(b"\x00\xff" * 70)
    (repo / "train.py").unlink()
    (tmp_path / "patch").write_text(str(capture(repo, full_diff=True)["diff"]), encoding="utf-8")
    git(tmp_path / "copy", "apply", str(tmp_path / "patch"))
    assert (tmp_path / "copy" / "weights.bin").read_bytes() == b"\x00\xff" * 70
    assert capture(tmp_path / "copy")["diff_sha256"] == capture(repo)["diff_sha256"]


def test_our_own_folder_never_makes_code_dirty(repo: Path) -> None:
    (repo / ".cmf").mkdir()
    (repo / ".cmf" / "log.db").write_text("1", encoding="utf-8")
    git(repo, "add", "-f", ".cmf")
    git(repo, "commit", "-q", "-m", "by mistake")
    (repo / ".cmf" / "log.db").write_text("2", encoding="utf-8")
    assert capture(repo)["dirty"] is False


def test_a_touched_file_is_not_dirty_and_the_repository_is_not_written_to(repo: Path) -> None:
    os.utime(repo / "train.py", (1_000_000_000, 1_000_000_000))
    (repo / "weights.bin").write_bytes(b"other")
    before = snapshot(repo)
    diff = str(capture(repo, full_diff=True)["diff"])
    assert "train.py" not in diff
    assert snapshot(repo) == before


def test_the_users_configuration_and_environment_do_not_change_the_diff(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"line {number}\n" for number in range(50))
    (repo / "train.py").write_text(lines, encoding="utf-8")
    git(repo, "commit", "-q", "-am", "lines")
    (repo / "train.py").write_text(lines.replace("line 20\n", "\n"), encoding="utf-8")
    git(repo, "mv", "weights.bin", "näme.bin")
    plain = capture(repo)["diff_sha256"]
    configuration = tmp_path / "gitconfig"
    configuration.write_text(
        "[diff]\n noprefix = true\n mnemonicPrefix = true\n context = 9\n renames = copies\n external = false\n"
        " algorithm = patience\n interHunkContext = 9\n suppressBlankEmpty = true\n orderFile = /dev/null\n"
        "[color]\n ui = always\n[core]\n quotePath = false\n abbrev = 5\n pager = false\n"
        f" attributesFile = {tmp_path / 'attributes'}\n",
        encoding="utf-8",
    )
    (tmp_path / "attributes").write_text("* -diff\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=1")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert plain is not None
    assert capture(repo)["diff_sha256"] == plain


def test_inside_a_hook_of_another_repository_the_right_one_is_read(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = capture(repo)
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert capture_code(repo) == plain


def test_a_detached_head_has_no_branch(repo: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    code = capture(repo)
    assert code["branch"] is None
    assert code["commit"] == git(repo, "rev-parse", "HEAD")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_an_unborn_branch_has_no_commit(tmp_path: Path, object_format: str) -> None:
    git(tmp_path, "init", "-q", "-b", "new", f"--object-format={object_format}")
    code = capture(tmp_path)
    assert (code["commit"], code["branch"], code["dirty"]) == (None, "new", False)
    (tmp_path / "a").write_text("a\n", encoding="utf-8")
    git(tmp_path, "add", "a")
    assert capture(tmp_path)["dirty"] is True
    git(tmp_path, "commit", "-q", "-m", "first")
    code = capture(tmp_path)
    assert code["commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert (code["branch"], code["dirty"]) == ("new", False)


def test_a_linked_worktree_has_its_own_head(repo: Path, tmp_path: Path) -> None:
    git(repo, "remote", "add", "origin", "https://host/x.git")
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    (tmp_path / "side" / "train.py").write_text("print(3)\n", encoding="utf-8")
    code = capture(tmp_path / "side")
    assert (code["branch"], code["dirty"], code["remote"]) == ("side", True, "https://host/x.git")
    assert capture(repo)["dirty"] is False


def test_the_remote_is_that_of_the_branch_then_origin_then_the_first(repo: Path) -> None:
    git(repo, "remote", "add", "first", "git@host:first.git")
    assert capture(repo)["remote"] == "git@host:first.git"
    git(repo, "remote", "add", "origin", "https://me:pw@host/origin.git?private_token=x")
    assert capture(repo)["remote"] == "https://host/origin.git?private_token=***"
    git(repo, "remote", "add", "upstream", "ssh://git@host/up.git")
    git(repo, "config", "branch.main.remote", "upstream")
    assert capture(repo)["remote"] == "ssh://git@host/up.git"
    git(repo, "config", "branch.main.remote", ".")
    assert capture(repo)["remote"] == "https://host/origin.git?private_token=***"


def test_a_bare_repository_says_so(repo: Path, tmp_path: Path) -> None:
    git(repo, "clone", "-q", "--bare", str(repo), str(tmp_path / "bare"))
    assert "bare" in str(capture(tmp_path / "bare")["error"])


def test_a_repository_of_another_user_is_refused_as_git_does(repo: Path) -> None:
    assert os.getuid() == 0, "run this as root, as the build does"
    for path in (repo, repo / ".git"):
        os.chown(path, 65534, 65534)
    assert "safe.directory" in str(capture(repo)["error"])


def break_head(repo: Path) -> None:
    (repo / ".git" / "HEAD").write_text("nonsense", encoding="utf-8")


def break_reference(repo: Path) -> None:
    (repo / ".git" / "refs" / "heads" / "main").write_text("nonsense", encoding="utf-8")


def empty_reference(repo: Path) -> None:
    (repo / ".git" / "refs" / "heads" / "main").write_text("", encoding="utf-8")


def lose_objects(repo: Path) -> None:
    shutil.rmtree(repo / ".git" / "objects")
    (repo / ".git" / "objects").mkdir()


def break_index(repo: Path) -> None:
    (repo / ".git" / "index").write_bytes(b"nonsense" * 10)


def break_configuration(repo: Path) -> None:
    (repo / ".git" / "config").write_text("[core\nnonsense", encoding="utf-8")


def point_nowhere(repo: Path) -> None:
    shutil.rmtree(repo / ".git")
    (repo / ".git").write_text("gitdir: /nowhere\n", encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [break_head, break_reference, empty_reference, lose_objects, break_index, break_configuration, point_nowhere],
)
def test_a_damaged_repository_gives_a_short_reason(repo: Path, damage: object) -> None:
    assert callable(damage)
    damage(repo)
    code = capture(repo)
    assert code.keys() == {"error"}
    assert 10 < len(str(code["error"])) <= 250
    assert "\n" not in str(code["error"])


def test_without_a_git_program_the_reason_is_given(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert capture(repo) == {"error": "the git program is missing"}


def test_a_capture_takes_one_git_process(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture(repo)  # GitPython looks for git once
    program, calls = shutil.which("git"), tmp_path / "calls"
    wrapper = tmp_path / "bin" / "git"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {program} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    capture(repo)
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 1


def test_what_dvc_writes_makes_no_code_dirty(repo: Path) -> None:
    (repo / "sub").mkdir()
    written = [repo / "model.pkl.dvc", repo / "sub" / "dvc.lock", repo / "sub" / ".gitignore"]
    for path in written:
        path.write_text("first\n", encoding="utf-8")
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "data")
    for path in written:
        path.write_text("second\n", encoding="utf-8")
    assert capture(repo)["dirty"] is False
    (repo / "train.py").write_text("print(2)\n", encoding="utf-8")
    diff = capture(repo, full_diff=True)
    assert diff["dirty"] is True
    assert "train.py" in str(diff["diff"])
    assert "second" not in str(diff["diff"])
