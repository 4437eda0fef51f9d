"""`cmf-agent reproduce`: what it takes to run an execution again, what is missing, and the folder in which it runs again."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.agent.helpers import CLI, called, environment

from cmf_agent.home import Home, find_home, future_home, init_home
from cmf_agent.log import Log
from cmf_agent.reproduce.layout import check, lay_out
from cmf_agent.reproduce.plan import is_fetchable, plan_of, safe_path
from cmf_agent.reproduce.script import requirements, script
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_USED, environment_recorded, execution_started, usage

EXECUTION = bytes.fromhex("01980f3e4c217000a000000000000001")
REF = "01980f3e-4c21"
#: What it writes depends on a file of git, one of DVC, a variable and a change that is not committed.
PROGRAM = """
import os, sys
from pathlib import Path
parts = [Path("../in/n.txt").read_text(), Path("../in/dir/s/b").read_text(), Path("../code.txt").read_text(), os.environ["SEED"]]
Path("it's a model.pkl").write_text(repr([*parts, sys.argv[1:]]))
Path("m.json").write_text('{"loss": 0.5}')
print("ran")
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


class Made(NamedTuple):
    """A repository, the project in it, and the execution that was recorded there."""

    root: Path
    home: Home
    id: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A run with DVC, in a subfolder of a project that is a subfolder of a repository with uncommitted changes."""
    root = tmp_path_factory.mktemp("made") / "repo"
    work = root / "proj" / "work"
    (root / "proj" / "in" / "dir" / "s").mkdir(parents=True)
    work.mkdir()
    git(root.parent, "init", "-q", str(root))
    (root / ".dvc").mkdir()  # as `dvc init` leaves it
    (root / ".dvc" / "config").write_text("")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (work / "train.py").write_text(PROGRAM)
    (work / "p.yaml").write_text("lr: 1e-3\n")
    (root / "proj" / "code.txt").write_text("committed\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    git(root, "config", "user.name", "a")
    git(root, "config", "user.email", "a@b")
    (root / "proj" / "code.txt").write_text("not committed\n")
    (root / "proj" / "in" / "n.txt").write_text("1\n")
    (root / "proj" / "in" / "dir" / "s" / "b").write_text("2\n")
    home = future_home(root / "proj")
    init_home(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for name, value in {"SEED": "7", "CMF_CAPTURE_ENV": "SEED", "CMF_CAPTURE_DIFF": "full"}.items():
            patch.setenv(name, value)
        assert called("run", "-p", "p", "-s", "it's", "-i", "../in/n.txt", "-i", "../in/dir", "-i", "../code.txt",
                      "--params", "p.yaml", "--commit", "--param", "text='1'", "-m", "it's a model.pkl", "--metrics", "m.json",
                      "--name", "the run", "--", sys.executable, "train.py", "a b", "$(touch x)", "'") == 0  # fmt: skip
    yield Made(root, home, plan_of(home, "the run").execution["id"])


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """The same, to be damaged."""
    root = tmp_path / "repo"
    shutil.copytree(made.root, root, symlinks=True)
    return Made(root, find_home(root / "proj", {}), made.id)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Made], None]:
    """Go to a project."""
    monkeypatch.delenv("CMF_HOME", raising=False)
    return lambda made: monkeypatch.chdir(made.home.root)


At = Callable[[Made], None]
Captured = pytest.CaptureFixture[str]


def reproduced(ref: str, *options: str, capsys: Captured, code: int = 0) -> Any:
    """Return what the command prints as JSON, in the project that one works in."""
    capsys.readouterr()
    assert called("reproduce", ref, *options, "--json") == code
    return json.loads(capsys.readouterr().out)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_plan_says_where_everything_is(made: Made, at: At, capsys: Captured) -> None:
    at(made)
    found = reproduced(made.id, "--check", capsys=capsys)
    assert found["missing"] == []
    assert found["execution"]["id"] == made.id
    assert found["code"]["commit"] == git(made.root, "rev-list", "--max-parents=0", "HEAD")
    assert "+not committed" in found["code"]["diff"]
    assert (found["code"]["project_dir"], found["working_dir"]) == ("proj", "work")
    assert {each["name"] for each in found["inputs"]} == {"in/n.txt", "in/dir", "code.txt", "work/p.yaml"}
    assert all(each["at_hand"] for each in found["inputs"])
    assert found["params"] == {"lr": 0.001, "text": "'1'"}
    assert found["environment"]["variables"] == {"SEED": "7"}
    assert found["command"] == [sys.executable, "train.py", "a b", "$(touch x)", "'"]
    assert called("reproduce", made.id[:8]) == 0
    text = capsys.readouterr().out
    assert "code, inputs and command are at hand" in text
    for word in (
        "train.py",
        "lr = 0.001",
        "in/dir",
        "SEED=7",
        "work/it's a model.pkl",
        f"Python {sys.version.split()[0]}",
    ):
        assert word in text


def test_commit_has_just_the_dvc_files_committed(made: Made) -> None:
    added = git(
        made.root,
        "diff",
        "--name-only",
        "--diff-filter=A",
        "HEAD",
        git(made.root, "rev-list", "--max-parents=0", "HEAD"),
        "-R",
    )
    assert {"proj/in/n.txt.dvc", "proj/in/dir.dvc", "proj/work/m.json.dvc"} <= set(added.splitlines())
    assert git(made.root, "status", "--porcelain", "--untracked-files=no") == "M proj/code.txt"


def test_what_was_laid_out_runs_again_and_gives_the_same_digests(
    copy: Made, at: At, capsys: Captured, tmp_path: Path
) -> None:
    at(copy)
    shutil.rmtree(copy.root / "proj" / "in")  # it comes from DVC's cache
    (copy.root / "proj" / "code.txt").write_text("something else\n")  # it comes from the commit and the diff
    before = (
        git(copy.root, "status", "--porcelain"),
        git(copy.root, "rev-parse", "HEAD"),
        git(copy.root, "worktree", "list"),
    )
    into = tmp_path / "again"
    assert reproduced(copy.id, "--into", str(into), capsys=capsys)["missing"] == []
    done = run_again(into)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    home = find_home(into / "project" / "proj", {})
    assert outputs(home, "the run") == outputs(copy.home, copy.id)
    assert inputs(home, "the run") == inputs(copy.home, copy.id)
    again, first = plan_of(home, "the run"), plan_of(copy.home, copy.id)
    assert (again.params, again.command, again.working_dir) == (first.params, first.command, first.working_dir)
    assert again.code.commit == first.code.commit
    assert again.code.is_dirty
    after = (
        git(copy.root, "status", "--porcelain"),
        git(copy.root, "rev-parse", "HEAD"),
        git(copy.root, "worktree", "list"),
    )
    assert before == after


def run_again(into: Path, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run what was laid out, with our command line found as `cmf-agent`."""
    programs = into.parent / "bin"
    programs.mkdir(exist_ok=True)
    words = " ".join(f"'{word}'" for word in CLI)
    (programs / "cmf-agent").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (programs / "cmf-agent").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    env = environment(PATH=path, CMF_HOME="/nonexistent", CMF_DVC_TRACK="never", **changes)
    return subprocess.run([into / "run.sh"], cwd="/", env=env, capture_output=True, text=True, timeout=120, check=False)


def outputs(home: Home, ref: str) -> list[tuple[str | None, str, str]]:
    return [(file.name, file.content_id, file.kind) for file in plan_of(home, ref).outputs]


def inputs(home: Home, ref: str) -> list[tuple[str | None, str]]:
    return [(file.name, file.content_id) for file in plan_of(home, ref).inputs]


def test_what_is_not_here_or_damaged_is_missing_and_the_rest_is_laid_out(
    copy: Made, at: At, capsys: Captured, tmp_path: Path
) -> None:
    at(copy)
    shutil.rmtree(copy.root / "proj" / "in")
    plan = plan_of(copy.home, copy.id)
    ids = {file.name: file.content_id.removeprefix("md5:") for file in plan.inputs}
    cache = copy.root / ".dvc" / "cache" / "files" / "md5"
    member = hashlib.md5(b"2\n").hexdigest()
    for digest in (ids["in/n.txt"] or "", member):
        path = cache / digest[:2] / digest[2:]
        path.chmod(0o644)
        path.write_text("damaged\n")
    missing = reproduced(copy.id, "--check", capsys=capsys, code=1)["missing"]
    assert [line.partition(" ")[0] for line in missing] == ["in/dir", "in/n.txt"]
    into = tmp_path / "again"
    assert reproduced(copy.id, "--into", str(into), capsys=capsys, code=1)["missing"] == missing
    assert (into / "project" / "proj" / "code.txt").read_text() == "not committed\n"
    assert not (into / "project" / "proj" / "in" / "n.txt").exists()
    assert json.loads((into / "reproduce.json").read_text())["missing"] == missing


def test_what_only_the_remote_has_is_fetched_and_checked(copy: Made, tmp_path: Path) -> None:
    shutil.rmtree(copy.root / "proj" / "in")
    remote = tmp_path / "remote"
    (copy.root / ".dvc" / "cache").rename(remote)
    (copy.root / ".dvc" / "config").write_text(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {remote}\n")
    plan = plan_of(copy.home, copy.id)
    found = check(copy.home, plan)
    assert not found.missing
    assert [source.where for source in found.sources if source and source.how == "remote"] == [
        f"DVC remote {remote}"
    ] * 2
    assert not (copy.root / ".dvc" / "cache").exists()
    damaged = remote / "files" / "md5" / md5(b"1\n")[4:6] / md5(b"1\n")[6:]
    damaged.chmod(0o644)
    damaged.write_text("2\n")
    missing = lay_out(copy.home, plan, tmp_path / "again")
    assert len(missing) == 1
    assert missing[0].startswith("in/n.txt")
    assert (tmp_path / "again" / "project" / "proj" / "in" / "dir" / "s" / "b").read_text() == "2\n"


def test_why_no_remote_could_be_asked_is_told(home: Home) -> None:
    record(home, used("a", b"a"))
    assert "no DVC project is around here" in "\n".join(check(home, plan_of(home, REF)).missing)
    (home.root / ".dvc").mkdir()
    (home.root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    assert "has no default remote" in "\n".join(check(home, plan_of(home, REF)).missing)


def test_it_is_laid_out_in_a_new_or_empty_folder_only(made: Made, at: At, capsys: Captured, tmp_path: Path) -> None:
    at(made)
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "file"):
        assert called("reproduce", made.id, "--into", str(folder)) == 2
        assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert called("reproduce", made.id, "--into", "x", "--check") == 2
    assert called("reproduce", "nothing") == 2
    assert "no execution here is called 'nothing'" in capsys.readouterr().err


# -- what is recorded elsewhere, and may be hostile --------------------------------------------------------------------


def record(home: Home, *drafts: Draft, **facts: Any) -> None:
    """Record an execution with these facts, and what else is said of it."""
    facts = {"command": ("true",)} | facts
    params = facts.pop("params", {})
    environment_id = facts.pop("environment", None)
    started = execution_started(EXECUTION, "p", "s", environment=environment_id, facts=facts, params=params)
    with Log(home.log_path) as log:
        log.append([started, *drafts])


def used(name: str | None, content: bytes, type_: str = ARTIFACT_USED) -> Draft:
    return usage(type_, EXECUTION, md5(content), name=name, facts={"size": len(content)})


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


HOSTILE_NAMES = [
    "../out",
    "a/../../out",
    "/out",
    ".git/hooks/post-checkout",
    "sub/.GIT/config",
    ".dvc/config",
    ".cmf/log.db",
    ".",
]


def test_names_that_lead_out_or_into_what_is_obeyed_are_refused(home: Home, tmp_path: Path) -> None:
    (home.root.parent / "out").write_bytes(b"x")
    (home.root / ".dvc" / "cache" / "files" / "md5" / "9d").mkdir(parents=True)
    (home.root / ".dvc" / "cache" / "files" / "md5" / "9d" / md5(b"x")[6:]).write_bytes(b"x")
    record(
        home, *(used(name, b"x") for name in HOSTILE_NAMES), used("fine", b"x"), working_dir="../..", project_dir="/"
    )
    into = tmp_path / "again"
    missing = lay_out(home, plan_of(home, REF), into)
    assert [path.relative_to(into).as_posix() for path in sorted(into.rglob("*")) if path.is_file()] == [
        "params.json", "project/fine", "reproduce.json", "run.sh",
    ]  # fmt: skip
    refused = [line for line in missing if "can't be put in place" in line]
    assert len(refused) == len(HOSTILE_NAMES)
    assert sum("is no folder of a project" in line for line in missing) == 2
    text = (into / "run.sh").read_text()
    assert "--input=fine" in text
    assert "out" not in text.replace("/out", "")
    assert all(safe_path(name) is None for name in HOSTILE_NAMES)
    assert sum("can't be put in place" in line for line in check(home, plan_of(home, REF)).missing) == len(
        HOSTILE_NAMES
    )


@pytest.mark.parametrize(
    "repo",
    [
        "ext::sh -c touch% {here}/ran",
        "--upload-pack=touch {here}/ran",
        "ssh://-oProxyCommand=touch/x",
        "-c",
        "fd::3",
        "../rel",
        "a b:c",
    ],
)
def test_addresses_that_git_would_obey_are_refused(home: Home, tmp_path: Path, repo: str) -> None:
    address = repo.format(here=tmp_path)
    assert not is_fetchable(address)
    record(home, git_commit="a" * 40, git_repo=address)
    missing = lay_out(home, plan_of(home, REF), tmp_path / "again")
    assert any("is refused" in line for line in missing)
    assert any("is refused" in line for line in check(home, plan_of(home, REF)).missing)
    assert not (tmp_path / "ran").exists()


def test_a_commit_that_is_none_is_refused(home: Home, tmp_path: Path) -> None:
    record(home, git_commit="--output=x", git_repo="https://example.org/x.git")
    assert any("it is no commit's id" in line for line in lay_out(home, plan_of(home, REF), tmp_path / "again"))


def test_code_that_is_not_here_is_cloned_and_a_link_in_it_leads_nowhere_out(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, outside = tmp_path / "other", tmp_path / "outside"
    outside.mkdir()
    git(tmp_path, "init", "-q", str(other))
    (other / "link").symlink_to(outside)
    (other / "a").write_text("a")
    hook = tmp_path / "hooks" / "post-checkout"
    git(other, "add", "-A")
    git(other, "commit", "-qm", "x")
    commit = git(other, "rev-parse", "HEAD")
    git(other, "checkout", "-q", "--orphan", "elsewhere")
    git(other, "commit", "-qm", "y")
    git(
        other,
        "branch",
        "-qD",
        *[b for b in git(other, "branch", "--format=%(refname:short)").split() if b != "elsewhere"],
    )
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    (home.root / "link").mkdir()
    (home.root / "link" / "x").write_bytes(b"x")
    record(
        home,
        used("link/x", b"x"),
        used("a", b"a"),
        git_commit=commit,
        git_repo=f"file://{other}",
        environment=md5(b"e"),
    )
    assert any("can be cloned from" in line for line in check(home, plan_of(home, REF)).missing)
    (tmp_path / "gitconfig").write_text(f"[core]\n    hooksPath = {hook.parent}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    missing = lay_out(home, plan_of(home, REF), tmp_path / "again")
    monkeypatch.delenv("GIT_CONFIG_GLOBAL")
    assert git(tmp_path / "again" / "project", "rev-parse", "HEAD") == commit
    assert [line for line in missing if line.startswith("link/x") and "by a link" in line]
    assert not [line for line in missing if line.startswith("a ")]
    assert not list(outside.iterdir())
    assert not (tmp_path / "hooked").exists()


def test_a_link_in_the_code_leads_neither_into_git_nor_to_folders_elsewhere(home: Home, tmp_path: Path) -> None:
    other, outside = tmp_path / "other", tmp_path / "outside"
    outside.mkdir()
    git(tmp_path, "init", "-q", str(other))
    git(other, "commit", "-q", "--allow-empty", "-m", "x")
    blobs = {"hooks": ".git/hooks", "away": str(outside), "same": "."}
    for name, target in blobs.items():  # as git itself would refuse to add them in some versions
        (other / "target").write_text(target)
        git(other, "update-index", "--add", "--cacheinfo", f"120000,{git(other, 'hash-object', '-w', 'target')},{name}")
    git(other, "commit", "-qm", "links")
    for name in ("hooks", "same"):
        (home.root / name).mkdir()
        (home.root / name / "post-commit").write_bytes(b"x")
    record(home, used("hooks/post-commit", b"x"), used("same/post-commit", b"x"),
           git_commit=git(other, "rev-parse", "HEAD"), git_repo=str(other), working_dir="away/new")  # fmt: skip
    missing = lay_out(home, plan_of(home, REF), tmp_path / "again")
    assert [line for line in missing if line.startswith("hooks/post-commit") and "by a link" in line]
    assert not (tmp_path / "again" / "project" / ".git" / "hooks" / "post-commit").exists()
    assert [line for line in missing if "away/new leads out of the project" in line]
    assert not list(outside.iterdir())
    assert (tmp_path / "again" / "project" / "post-commit").read_bytes() == b"x"


def test_a_manifest_that_leads_out_of_its_folder_is_refused(home: Home, tmp_path: Path) -> None:
    manifest = json.dumps([{"md5": md5(b"x")[4:], "relpath": "../evil"}]).encode()
    content_id = f"{md5(manifest)}.dir"
    cache = home.root / ".dvc" / "cache" / "files" / "md5"
    for digest, content in ((content_id[4:], manifest), (md5(b"x")[4:], b"x")):
        (cache / digest[:2]).mkdir(parents=True)
        (cache / digest[:2] / digest[2:]).write_bytes(content)
    record(home, usage(ARTIFACT_USED, EXECUTION, content_id, name="folder"))
    missing = lay_out(home, plan_of(home, REF), tmp_path / "again")
    assert any(line.startswith("folder ") and "not at hand" in line for line in missing)
    assert not list(tmp_path.rglob("evil"))


# -- the script --------------------------------------------------------------------------------------------------------

NASTY = [
    "",
    "-x",
    "a b",
    "it's",
    '"',
    "$(touch ran)",
    "`touch ran`",
    "a\nb",
    "tab\t",
    "\\",
    "*",
    "ü",
    "x\x1b[31my",
    "\u202eabc",
    "!!",
    "#",
    "~",
]


def test_every_word_reaches_the_command_as_it_was_recorded(home: Home, tmp_path: Path) -> None:
    params = {f"k{at}": word for at, word in enumerate(NASTY)} | {
        "n": float("nan"),
        "m": {"a": (1, 2)},
        "k=v": 1,
        "it's $x": 2,
    }
    facts = {"command": (sys.executable, "-c", DUMP, *NASTY), "name": "a 'name'\n$(touch ran)", "kind": "deploy"}
    record(home, used("a 'b' $(touch ran).txt", b"x"), used("o.pkl", b"y", ARTIFACT_PRODUCED), params=params, **facts)
    plan = plan_of(home, REF)
    assert any("'k=v'" in line for line in plan.problems)
    (home.root / "a 'b' $(touch ran).txt").write_bytes(b"x")
    into = tmp_path / "again"
    lay_out(home, plan, into)
    init_home(future_home(into / "project"))
    text = (into / "run.sh").read_text()
    assert not any(character in text for character in "\x1b\u202e")
    done = run_again(into)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == NASTY
    again = plan_of(find_home(into / "project", {}), "execution:a 'name'\n$(touch ran)")
    assert repr(again.params) == repr({key: value for key, value in plan.params.items() if key != "k=v"})
    assert [file.name for file in again.inputs] == ["a 'b' $(touch ran).txt"]
    assert again.execution["kind"] == "deploy"
    assert not list(tmp_path.rglob("ran"))


DUMP = "import json, sys; print(json.dumps(sys.argv[1:]))"


def test_masked_values_must_be_supplied(home: Home, tmp_path: Path) -> None:
    command = (sys.executable, "-c", DUMP, "--password", "***", "url://u:***@h", "plain")
    content = {
        "python": "3.11",
        "packages": {},
        "variables": {"API_TOKEN": "***", "SHOWN": "a 'b'", "x; touch ran": "1"},
    }
    record(
        home,
        environment_recorded("md5:" + "e" * 32, content),
        command=command,
        environment="md5:" + "e" * 32,
        params={"api_key": "***"},
        self_recorded=True,
    )
    missing = lay_out(home, plan_of(home, REF), tmp_path / "again")
    assert sum("masked" in line for line in missing) == 4
    init_home(future_home(tmp_path / "again" / "project"))
    refused = run_again(tmp_path / "again", CMF_MASKED_1="hidden")
    assert refused.returncode == 2
    assert "CMF_MASKED_2" in refused.stderr
    done = run_again(tmp_path / "again", CMF_MASKED_1="it's", CMF_MASKED_2="$x")
    assert json.loads(done.stdout) == ["--password", "it's", "url://u:$x@h", "plain"]
    text = (tmp_path / "again" / "run.sh").read_text()
    assert "export SHOWN='a '\"'\"'b'\"'\"''" in text
    assert "touch ran" not in text
    assert "cmf-agent run" not in text  # what records itself needs nobody to record it


def test_packages_are_pinned_and_what_no_index_has_is_marked() -> None:
    packages = {
        "torch": "2.1+cpu",
        "mine": "1.0",
        "numpy": "2.0.1",
        "-r /etc/x": "1",
        "a": "1\n--index-url=http://x",
        "b": "@ file:///x",
    }
    text = requirements({"python": "3.11.7", "implementation": "CPython", "packages": packages}, {"mine": "1.0"})
    lines = text.splitlines()
    assert lines[0] == "# Python 3.11.7 (CPython)"
    assert "numpy==2.0.1" in lines
    assert any(line.startswith("torch==2.1+cpu  # a local build") for line in lines)
    assert any(line.startswith("mine==1.0  # here it is installed from a folder") for line in lines)
    assert sum(line.startswith("# left out") for line in lines) == 3
    assert all(line.startswith("#") or "==" in line for line in lines)


def test_a_run_that_recorded_little_says_what_is_unknown(home: Home, tmp_path: Path) -> None:
    with Log(home.log_path) as log:
        log.append(
            [
                execution_started(
                    EXECUTION, "p", "s", facts={"git_dirty": True, "git_diff": "sha256:00", "git_diff_text": "x"}
                )
            ]
        )
    plan = plan_of(home, f"execution:{REF}")
    told = "\n".join(check(home, plan).missing)
    for word in ("no version of the code", "only in part, or masked", "no environment", "no command"):
        assert word in told
    lay_out(home, plan, tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["params.json", "project", "reproduce.json"]


def test_a_recorded_table_needs_no_file(home: Home, tmp_path: Path) -> None:
    import cmf_agent as cmf

    with cmf.run("p", "first", home=home.path) as run:
        table = run.metrics_table("rows", [{"a": 1}])
    with cmf.run("p", "second", name="second", home=home.path) as run:
        run.input(table)
    plan = plan_of(home, "second")
    assert [source.how for source in check(home, plan).sources if source] == ["events"]
    assert not [line for line in lay_out(home, plan, tmp_path / "again") if "rows" in line]
    assert plan.is_self_recorded
    assert "--input" not in script(plan)


def test_of_two_contents_of_one_name_only_one_is_laid_out_and_that_is_told(home: Home, tmp_path: Path) -> None:
    (home.root / "x").write_bytes(b"now")
    record(home, used("x", b"before"), used("x", b"now"))
    told = [line for line in lay_out(home, plan_of(home, REF), tmp_path / "again") if "several contents" in line]
    assert len(told) == 1


def test_a_clear_error_for_what_is_no_execution(home: Home) -> None:
    record(home)
    with pytest.raises(CallerError, match="no execution here is called 'p/s'"):
        plan_of(home, "p/s")


def test_a_program_that_was_not_committed_is_missing(home: Home, tmp_path: Path) -> None:
    git(home.root, "init", "-q")
    (home.root / "work").mkdir()
    (home.root / "work" / "known.py").write_text("")
    git(home.root, "add", "work")
    git(home.root, "commit", "-qm", "first")
    given = used("work/given.py", b"print()")
    (home.root / "work" / "given.py").write_bytes(b"print()")
    words = ("python", "known.py", "given.py", "new.py", "/elsewhere/x.py", "../../y.py", "data.csv")
    commit = git(home.root, "rev-parse", "HEAD")
    record(home, given, command=words, git_commit=commit, git_dirty=False, working_dir="work")
    plan = plan_of(home, f"execution:{REF}")
    for missing in (check(home, plan).missing, lay_out(home, plan, tmp_path / "again")):
        told = [line for line in missing if "not committed" in line]
        assert told == [f"work/new.py is not in the code at {commit}: it was not committed when this ran"]
