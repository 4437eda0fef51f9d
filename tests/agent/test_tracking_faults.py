"""What goes wrong with DVC or git is told on the execution; the file is recorded all the same, and only by a digest that is true."""

import fcntl
import hashlib
import os
import resource
import signal
import stat
import subprocess
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.helpers import LIMIT_S, of_type, python, wait_until
from tests.support.dvc import git, log_input, make_dvc_project, told, tracking_errors, written

import cmf_agent as cmf
from cmf_agent.dvc import adding
from cmf_agent.dvc.dvc_files import cached_path, read_dvc_file
from cmf_agent.dvc.locations import Place, is_cached, locate
from cmf_agent.dvc.tracking import ERRORS_MAX, Tracker
from cmf_agent.home import Home
from cmf_agent.settings import Settings
from cmf_graph.content.files import Content, hash_path
from cmf_protocol.errors import StoreError


def md5_of(text: str) -> str:
    return "md5:" + hashlib.md5(text.encode()).hexdigest()


# -- commit=True -------------------------------------------------------------------------------------------------------


def test_a_wanted_commit_holds_just_what_dvc_wrote(dvc_home: Home) -> None:
    root = dvc_home.root
    written(root / "code.py")
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "-m", "code")
    written(root / "code.py", "changed and staged")
    written(root / "new.py", "staged")
    git(root, "add", "code.py", "new.py")
    written(root / "code.py", "changed once more")
    index = git(root, "diff", "--cached")
    content_id = log_input(written(root / "data" / "x"), commit=True)
    assert git(root, "show", "--name-only", "--format=%an %s", "HEAD").split("\n") == [
        "A Track data/x with DVC",
        "",
        "data/.gitignore",
        "data/x.dvc",
    ]
    assert git(root, "diff", "--cached") == index
    assert (root / "code.py").read_text() == "changed once more"
    (place,) = told(dvc_home, content_id)
    assert place["commit"] == git(root, "rev-parse", "HEAD")
    log_input(root / "data" / "x", commit=True)
    assert place["commit"] == git(root, "rev-parse", "HEAD")  # nothing was left to commit
    assert tracking_errors(dvc_home) == {}


def test_the_users_own_lines_of_gitignore_are_not_committed(dvc_home: Home) -> None:
    written(dvc_home.root / ".gitignore", "/mine\n")
    log_input(written(dvc_home.root / "x"), commit=True)
    assert git(dvc_home.root, "show", "--name-only", "--format=", "HEAD") == "x.dvc"
    assert (dvc_home.root / ".gitignore").read_text().splitlines() == ["/mine", "/x"]


def test_a_commit_comes_first_in_a_repository_without_one(home: Home) -> None:
    make_dvc_project(home.root)
    git(home.root, "update-ref", "-d", "HEAD")
    content_id = log_input(written(home.root / "x"), commit=True)
    assert told(home, content_id)[0]["commit"] == git(home.root, "rev-parse", "HEAD")


def test_during_a_merge_nothing_is_committed(dvc_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    root = dvc_home.root
    git(root, "checkout", "--quiet", "-b", "other")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "other")
    git(root, "checkout", "--quiet", "main")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "main")
    git(root, "merge", "--no-commit", "other")
    head = git(root, "rev-parse", "HEAD")
    content_id = log_input(written(root / "x"), commit=True)
    assert git(root, "rev-parse", "HEAD") == head
    assert (root / ".git" / "MERGE_HEAD").exists()
    assert git(root, "diff", "--cached", "--name-only") == ""
    assert "in the midst of a merge" in tracking_errors(dvc_home)["x"]
    assert "finish it" in capfd.readouterr().err
    (place,) = told(dvc_home, content_id)  # tracked it is
    assert "commit" not in place


def test_a_hook_that_refuses_leaves_the_index_as_it_was(dvc_home: Home) -> None:
    hook = written(dvc_home.root / ".git" / "hooks" / "pre-commit", "#!/bin/sh\necho no commits today >&2\nexit 1\n")
    hook.chmod(0o755)
    head = git(dvc_home.root, "rev-parse", "HEAD")
    log_input(written(dvc_home.root / "x"), commit=True)
    assert git(dvc_home.root, "rev-parse", "HEAD") == head
    assert git(dvc_home.root, "diff", "--cached", "--name-only") == ""
    assert "no commits today" in tracking_errors(dvc_home)["x"]
    hook.unlink()
    log_input("x", commit=True)
    assert git(dvc_home.root, "rev-parse", "HEAD") != head


def test_a_commit_of_what_dvc_does_not_track_is_told_as_a_failure(dvc_home: Home) -> None:
    log_input(written(dvc_home.root.parent / "away"), commit=True)
    assert any("no DVC project" in str(reason) for reason in tracking_errors(dvc_home).values())


# -- locks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_lock(dvc_home: Home, monkeypatch: pytest.MonkeyPatch) -> int:
    """DVC's own lock, held as `dvc repro` in another shell holds it; a descriptor, closing it lets go."""
    import dvc.lock

    monkeypatch.setattr(dvc.lock, "DEFAULT_TIMEOUT", 0.06)
    (dvc_home.root / ".dvc" / "tmp").mkdir(exist_ok=True)
    descriptor = os.open(dvc_home.root / ".dvc" / "tmp" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_lock_that_dvc_holds_is_waited_for(dvc_home: Home, held_lock: int) -> None:
    threading.Timer(0.5, os.close, [held_lock]).start()
    log_input(written(dvc_home.root / "x"))
    assert (dvc_home.root / "x.dvc").exists()
    assert tracking_errors(dvc_home) == {}


def test_a_lock_that_stays_held_is_told_and_not_waited_for_again(
    dvc_home: Home, held_lock: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CMF_DVC_LOCK_TIMEOUT_S", "0.1")
    written(dvc_home.root / "y", "two\n")
    with cmf.run("p", "s") as run:
        first = run.input(written(dvc_home.root / "x"))
        second = run.input("y")
    os.close(held_lock)
    assert [first.content_id, second.content_id] == [md5_of("one\n"), md5_of("two\n")]
    errors = tracking_errors(dvc_home)
    assert "another DVC process" in errors["x"]
    assert "a moment ago" in errors["y"]
    assert len(of_type(dvc_home, "artifact.used")) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1  # once per run
    assert said[0].startswith("cmf: not tracked by DVC: x: ")
    assert not (dvc_home.root / "x.dvc").exists()


# -- files that change -------------------------------------------------------------------------------------------------


def tracked(home: Home, path: Path, after_hash: Callable[[], object]) -> Content:
    """Track a file that is changed after it was hashed."""

    def hash_now() -> Content:
        content = hash_path(path)
        after_hash()
        return content

    done = Tracker(home, Settings()).track(str(path), hash_now, commit=False)
    assert done.error is None
    return done.content


def test_a_file_that_changed_before_dvc_read_it_is_read_again(dvc_home: Home) -> None:
    path = written(dvc_home.root / "x")
    changes = iter(["two, longer\n"])

    def change() -> None:
        path.write_text(next(changes, path.read_text()))

    content = tracked(dvc_home, path, change)
    assert content.content_id == md5_of("two, longer\n")
    assert read_dvc_file(f"{path}.dvc")[0].content_id == content.content_id
    cache = str(dvc_home.root / ".dvc" / "cache")
    assert Path(cached_path(cache, content.content_id)).read_text() == "two, longer\n"


def test_a_file_that_changes_while_dvc_copies_it_leaves_no_false_object(
    dvc_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    path = written(dvc_home.root / "x")
    cache = str(dvc_home.root / ".dvc" / "cache")
    add, changes = Repo.add, iter(["two, longer\n"])

    def add_a_file_that_is_being_written(self: Repo, *arguments: object, **options: object) -> object:
        added = add(self, *arguments, **options)
        for text in changes:
            path.write_text(text)
            stored = Path(cached_path(cache, md5_of("one\n")))
            stored.chmod(0o644)
            stored.write_text("half of one, half of two")
        return added

    monkeypatch.setattr(Repo, "add", add_a_file_that_is_being_written)
    content_id = log_input("x")
    assert content_id == md5_of("two, longer\n")
    assert not is_cached(str(dvc_home.root), md5_of("one\n"))
    assert is_cached(str(dvc_home.root), content_id)
    assert len(of_type(dvc_home, "artifact.used")) == 1


def test_of_a_file_that_changes_all_the_time_a_state_that_the_cache_holds_is_recorded(dvc_home: Home) -> None:
    path = written(dvc_home.root / "x")
    content = tracked(dvc_home, path, lambda: path.write_text(path.read_text() + "more\n"))
    entry = read_dvc_file(f"{path}.dvc")[0]
    assert content.content_id == entry.content_id
    stored = Path(cached_path(str(dvc_home.root / ".dvc" / "cache"), entry.content_id)).read_text()
    assert md5_of(stored) == content.content_id


def test_what_dvc_believes_of_an_older_content_is_not_taken_over(dvc_home: Home) -> None:
    path = written(dvc_home.root / "x", "one\n")
    log_input("x")
    before = path.stat()
    path.write_text("two\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # DVC looks at nothing else
    content_id = log_input("x")
    assert content_id == md5_of("two\n")
    entry = read_dvc_file(f"{path}.dvc")[0]
    assert entry.content_id == content_id or "which it is not" in tracking_errors(dvc_home)["x"]
    assert told(dvc_home, content_id) == [] or entry.content_id == content_id


def test_a_place_that_others_have_written_since_tells_nothing(dvc_home: Home) -> None:
    path = written(dvc_home.root / "x")
    content_id = log_input("x")
    place = Place("dvc", f"{path}.dvc")
    assert locate(place, str(path), content_id) is not None
    written(path, "two\n")
    log_input("x")  # another run's
    assert locate(place, str(path), content_id) is None
    tracked_by_git = written(dvc_home.root / "code.py")
    git(dvc_home.root, "add", "code.py")
    assert locate(Place("git", str(tracked_by_git)), str(tracked_by_git), md5_of("one\n")) is not None
    assert locate(Place("git", str(tracked_by_git)), str(tracked_by_git), md5_of("two\n")) is None


# -- disks, rights, broken files ---------------------------------------------------------------------------------------


def in_child(body: Callable[[], object]) -> None:
    """Run `body` in a forked child, which must succeed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            body()
            code = 0
        except BaseException:  # noqa: BLE001 - the child ends here
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_cache_that_can_take_no_more_is_told(dvc_home: Home) -> None:
    path = dvc_home.root / "big"
    path.write_bytes(b"x" * 4_000_000)

    def record() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        log_input("big")

    in_child(record)
    assert len(of_type(dvc_home, "artifact.used")) == 1
    assert "File too large" in tracking_errors(dvc_home)["big"]
    assert told(dvc_home) == []
    assert not (dvc_home.root / "big.dvc").exists()
    assert not is_cached(str(dvc_home.root), hash_path(path).content_id)


@pytest.mark.extended
def test_a_full_cache_disk_is_told(dvc_home: Home) -> None:
    cache = dvc_home.root / ".dvc" / "cache"
    cache.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", cache], check=True)
    try:
        (dvc_home.root / "big").write_bytes(b"x" * 4_000_000)
        content_id = log_input("big")
        assert "No space left" in tracking_errors(dvc_home)["big"]
        assert told(dvc_home, content_id) == []
    finally:
        subprocess.run(["umount", cache], check=True)


def test_a_cache_that_may_not_be_written_is_told(dvc_home: Home) -> None:
    log_input(written(dvc_home.root / "x"))
    cache = dvc_home.root / ".dvc" / "cache"
    folders = [path for path in (cache, *cache.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    for folder in (dvc_home.root, *dvc_home.root.rglob("*")):
        os.chown(folder, 65534, 65534, follow_symlinks=False)
    opened = [parent for parent in dvc_home.root.parents if not parent.stat().st_mode & stat.S_IXOTH]
    for parent in opened:
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    written(dvc_home.root / "y", "two\n").chmod(0o666)

    def record() -> None:
        if not os.getuid():
            os.setgid(65534)
            os.setuid(65534)
        log_input("y")

    in_child(record)
    for folder in folders:
        folder.chmod(0o755)
    assert "Permission denied" in tracking_errors(dvc_home)["y"]
    assert len(of_type(dvc_home, "artifact.used")) == 2


def test_merge_markers_in_a_dvc_file_are_told(dvc_home: Home) -> None:
    written(dvc_home.root / "x.dvc", "<<<<<<< HEAD\nouts:\n=======\n>>>>>>> other\n")
    assert log_input(written(dvc_home.root / "x")) == md5_of("one\n")
    assert "x.dvc is not valid YAML" in tracking_errors(dvc_home)["x"]


@pytest.mark.parametrize(
    ("name", "text"), [("broken.dvc", "outs: ["), ("broken.dvc", "nonsense: 1\n"), ("sub/dvc.yaml", "a: [")]
)
def test_a_file_for_which_dvc_refuses_everything_is_named_with_the_way_out(
    dvc_home: Home, name: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = written(dvc_home.root / name, text)
    log_input(written(dvc_home.root / "x"))
    assert str(broken) in tracking_errors(dvc_home)["x"]
    assert "(mend that file, bring it back from git, or remove it)" in capfd.readouterr().err
    broken.unlink()
    content_id = log_input("x")
    assert len(told(dvc_home, content_id)) == 1


def test_of_very_many_failures_some_are_named_and_that_there_are_more(dvc_home: Home) -> None:
    tracker = Tracker(dvc_home, Settings())
    for at in range(2 * ERRORS_MAX):
        said = tracker.errors_with(f"{at}", StoreError("the disk is full"))
        assert (said is None) == (at > ERRORS_MAX)
    assert tracker.errors_with("0", StoreError("the disk is full")) is None
    errors = tracker.errors_with("0", StoreError("something else"))
    assert errors is not None
    assert (len(errors), errors["0"]) == (ERRORS_MAX + 1, "something else")


def test_an_overlap_with_what_is_tracked_inside_is_told(dvc_home: Home) -> None:
    log_input(written(dvc_home.root / "data" / "x"))
    log_input("data")
    assert "overlapping" in tracking_errors(dvc_home)["data"]
    assert len(of_type(dvc_home, "artifact.used")) == 2


def test_what_failed_and_then_succeeds_is_no_longer_an_error(dvc_home: Home) -> None:
    broken = written(dvc_home.root / "x.dvc", "a: [")
    with cmf.run("p", "s") as run:
        run.input(written(dvc_home.root / "x"))
        assert list(tracking_errors(dvc_home)) == ["x"]
        broken.unlink()
        run.input("x")
    assert tracking_errors(dvc_home) == {}


# -- at the same time --------------------------------------------------------------------------------------------------


def add_together(home: Home, held_lock: int, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record each path in a thread, all at the same time, and return what each `Repo.add` was asked for."""
    from dvc.repo import Repo

    add: Callable[..., object] = Repo.add
    asked: list[list[str]] = []

    def noted(self: Repo, targets: list[str], **options: object) -> object:
        asked.append([Path(target).name for target in targets])
        return add(self, targets, **options)

    monkeypatch.setattr(Repo, "add", noted)
    with cmf.run("p", "s") as run:
        threads = [threading.Thread(target=run.output, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(adding._waiting.requests) == len(paths))
        os.close(held_lock)
        for thread in threads:
            thread.join(LIMIT_S)
    return asked


def test_what_threads_add_at_the_same_time_is_one_add(
    dvc_home: Home, held_lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [written(dvc_home.root / f"{at}", f"{at}\n") for at in range(8)]
    asked = add_together(dvc_home, held_lock, paths, monkeypatch)
    assert len(asked) <= 2  # the first thread may have begun alone
    assert sorted(name for names in asked for name in names) == [path.name for path in paths]
    assert tracking_errors(dvc_home) == {}
    assert len(told(dvc_home)) == len(paths) == len((dvc_home.root / ".gitignore").read_text().splitlines())


def test_what_fails_among_others_fails_alone(dvc_home: Home, held_lock: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (dvc_home.root / "data").mkdir()
    for name in ("data", "gone"):
        written(dvc_home.root / name / "inner.dvc", f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: inner\n")
    paths = [written(dvc_home.root / f"{at}", f"{at}\n") for at in range(6)]
    add_together(dvc_home, held_lock, [*paths, dvc_home.root / "data", dvc_home.root / "gone"], monkeypatch)
    errors = tracking_errors(dvc_home)
    assert sorted(errors) == ["data", "gone"]
    assert all("overlapping" in reason and f"'{name}'" in reason for name, reason in errors.items())
    assert len(told(dvc_home)) == len(paths)
    for path in paths:
        assert read_dvc_file(f"{path}.dvc")[0].content_id == md5_of(path.read_text())


def test_a_dvc_file_is_read_once_and_again_when_it_changes(dvc_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo.index import Index

    read: list[str] = []
    from_file = Index.from_file.__func__

    def noted(cls: type, repo: object, path: str) -> object:
        read.append(Path(path).name)
        return from_file(cls, repo, path)

    monkeypatch.setattr(Index, "from_file", classmethod(noted))
    odd = written(dvc_home.root / "odd.dvc", f"outs:\n- md5: {'a' * 32}\n  hash: md5\n  path: one\n")
    for name in "abc":
        log_input(written(dvc_home.root / name, name))
    assert sorted(read) == ["a.dvc", "b.dvc", "odd.dvc"]
    written(odd, f"outs:\n- md5: {'a' * 32}.dir\n  hash: md5\n  path: data\n")
    log_input(written(dvc_home.root / "data" / "x"))  # in what the file tells of now
    assert sorted(read) == ["a.dvc", "b.dvc", "c.dvc", "odd.dvc", "odd.dvc"]
    assert not (dvc_home.root / "data" / "x.dvc").exists()


@pytest.mark.parametrize("count", [2, pytest.param(16, marks=pytest.mark.deep)])
def test_processes_that_commit_lose_nothing(dvc_home: Home, count: int) -> None:
    log_input(written(dvc_home.root / "before"))  # DVC is imported and open when the process forks
    children = []
    for at in range(count):
        child = os.fork()
        if not child:
            code = 1
            try:
                log_input(written(dvc_home.root / f"{at}", f"{at}\n"), commit=at % 2 == 0)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes: list[int] = []

    def all_ended() -> bool:
        for child in children[len(codes) :]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                return False
            codes.append(os.waitstatus_to_exitcode(status))
        return True

    wait_until(all_ended)
    assert codes == [0] * count
    assert tracking_errors(dvc_home) == {}
    for at in range(count):
        assert read_dvc_file(str(dvc_home.root / f"{at}.dvc"))[0].content_id == md5_of(f"{at}\n")
        assert is_cached(str(dvc_home.root), md5_of(f"{at}\n"))
        assert any(("commit" in place) == (at % 2 == 0) for place in told(dvc_home, md5_of(f"{at}\n")))
    assert git(dvc_home.root, "diff", "--cached", "--name-only") == ""


@pytest.mark.deep
def test_a_stage_that_records_itself_does_not_block_dvc_repro(dvc_home: Home) -> None:
    written(dvc_home.root / "raw.csv", "1\n")  # known to nobody: DVC holds it while the stage runs
    script = """
import cmf_agent as cmf
with cmf.run("p", "train") as run:
    run.input("raw.csv")
    open("model.pkl", "w").write("model")
    run.output("model.pkl", kind="model")
    open("extra.txt", "w").write("no output of the stage's")
    run.output("extra.txt")
"""
    written(dvc_home.root / "train.py", script)
    text = "stages:\n  train:\n    cmd: python train.py\n    deps: [raw.csv]\n    outs: [model.pkl]\n"
    written(dvc_home.root / "dvc.yaml", text)
    program = "import sys; from dvc.cli import main; sys.exit(main(['repro', '--quiet']))"
    folder = str(Path(os.sys.executable).parent)  # type: ignore[attr-defined]
    done = python(program, cwd=dvc_home.root, PATH=f"{folder}:{os.environ['PATH']}", DVC_NO_ANALYTICS="1")
    assert done.returncode == 0, done.stderr
    assert tracking_errors(dvc_home) == {}
    assert told(dvc_home, md5_of("model")) == []
    assert (dvc_home.root / "extra.txt.dvc").exists()
    log_input("model.pkl")
    assert [place["kind"] for place in told(dvc_home, md5_of("model"))] == ["dvc.lock"]
