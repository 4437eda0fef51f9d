"""What a run records is tracked by DVC, in the same process, and the event says where its bytes are."""

import hashlib
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import of_type, python, recorded
from tests.support.dvc import git, init_dvc, log_input, told, tracking_errors, written

import cmf_agent as cmf
from cmf_agent.dvc.dvc_files import cached_path, read_dvc_file
from cmf_agent.dvc.locations import is_cached
from cmf_agent.dvc.stored import tell_commits
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.push import push
from cmf_agent.settings import load_settings
from cmf_protocol.errors import CallerError, CmfError


def test_a_new_file_is_tracked_and_told_of_after_its_use(dvc_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    written(dvc_home.root / "data" / "x.csv")
    content_id = log_input("data/x.csv")
    assert content_id == "md5:" + hashlib.md5(b"one\n").hexdigest()
    (entry,) = read_dvc_file(str(dvc_home.root / "data" / "x.csv.dvc"))
    assert entry.content_id == content_id
    assert Path(cached_path(str(dvc_home.root / ".dvc" / "cache"), content_id)).read_text() == "one\n"
    assert told(dvc_home) == [
        {"kind": "dvc", "path": "data/x.csv.dvc", "blob": git(dvc_home.root, "hash-object", "data/x.csv.dvc")}
    ]
    types = [header.type for header, _ in recorded(dvc_home)]
    assert types.index("artifact.stored") == types.index("artifact.used") + 1
    assert git(dvc_home.root, "diff", "--cached", "--name-only") == ""  # nothing was staged
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_tracked_under_the_digest_that_dvc_gives_it(dvc_home: Home) -> None:
    for at in range(5):
        written(dvc_home.root / "data" / "raw" / f"{at}", f"{at}\n")
    content_id = log_input("data/raw")
    (entry,) = read_dvc_file(str(dvc_home.root / "data" / "raw.dvc"))
    assert entry.content_id == content_id
    assert content_id.endswith(".dir")
    assert is_cached(str(dvc_home.root), content_id)
    assert [place["path"] for place in told(dvc_home, content_id)] == ["data/raw.dvc"]


def test_the_process_is_left_as_it_was(dvc_home: Home) -> None:
    written(dvc_home.root / "x")
    done = python(
        """
import logging, sys
import cmf_agent as cmf
streams = sys.stdout, sys.stderr
levels = [logging.getLogger(name).level for name in ("asyncio", "aiohttp")]
with cmf.run("p", "s") as run:
    run.input("x")
assert "dvc.repo" in sys.modules
assert (sys.stdout, sys.stderr) == streams
assert [logging.getLogger(name).level for name in ("asyncio", "aiohttp")] == levels
assert logging.getLogger("dvc").level == logging.INFO
""",
        cwd=dvc_home.root,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_unchanged_is_neither_read_nor_told_again_and_dvc_is_not_imported(dvc_home: Home) -> None:
    written(dvc_home.root / "data" / "a")
    log_input("data")
    count = len(told(dvc_home))
    later = "import time, cmf_graph.content.memory as m; m.DigestMemory.__init__.__kwdefaults__['clock_ns'] = "
    later += "lambda: time.time_ns() + 10**10\n"  # so that what was just written counts as settled
    script = f"""
{later}
import sys
import cmf_agent as cmf
read = []
with cmf.run("p", "s") as run:
    run.input("data", progress=read.append)
with cmf.run("p", "s") as run:
    again = []
    run.input("data", progress=again.append)
assert sum(read) and not again, (read, again)
assert "dvc" not in sys.modules
"""
    done = python(script, cwd=dvc_home.root)
    assert done.returncode == 0, done.stderr
    assert len(told(dvc_home)) == count
    assert len(of_type(dvc_home, "artifact.used")) == 3


def test_a_changed_file_is_added_again_and_told_anew(dvc_home: Home) -> None:
    path = written(dvc_home.root / "x")
    first = log_input("x")
    written(path, "two\n")
    second = log_input("x")
    assert first != second
    assert [place["path"] for place in told(dvc_home, second)] == ["x.dvc"]
    assert read_dvc_file(str(dvc_home.root / "x.dvc"))[0].content_id == second
    assert is_cached(str(dvc_home.root), first)


def test_what_is_missing_in_the_cache_is_put_there_again(dvc_home: Home) -> None:
    written(dvc_home.root / "x")
    content_id = log_input("x")
    Path(cached_path(str(dvc_home.root / ".dvc" / "cache"), content_id)).unlink()
    log_input("x")
    assert is_cached(str(dvc_home.root), content_id)


def test_a_commit_that_holds_the_dvc_file_is_named(dvc_home: Home) -> None:
    git(dvc_home.root, "remote", "add", "origin", "https://maria:secret@example.org/r.git")
    written(dvc_home.root / "x")
    log_input("x")
    git(dvc_home.root, "add", "x.dvc")
    git(dvc_home.root, "commit", "--quiet", "-m", "x")
    (dvc_home.path / "locations.db").unlink()
    content_id = log_input("x")
    place = told(dvc_home, content_id)[-1]
    assert place["commit"] == git(dvc_home.root, "rev-parse", "HEAD")
    assert place["repo"] == "https://example.org/r.git"
    git(dvc_home.root, "commit", "--quiet", "--allow-empty", "-m", "more")
    log_input("x")
    assert told(dvc_home, content_id)[-1] == place
    assert len(told(dvc_home, content_id)) == 2


def test_a_later_commit_is_told_by_the_next_run_once(dvc_home: Home) -> None:
    written(dvc_home.root / "x")
    content_id = log_input("x")
    git(dvc_home.root, "commit", "--quiet", "--allow-empty", "-m", "of something else")
    with cmf.run("p", "s"):
        pass
    assert len(told(dvc_home, content_id)) == 1
    git(dvc_home.root, "add", "x.dvc")
    git(dvc_home.root, "commit", "--quiet", "-m", "x")
    for _ in range(2):
        with cmf.run("p", "s"):
            pass
    first, second = told(dvc_home, content_id)
    assert second == first | {"commit": git(dvc_home.root, "rev-parse", "HEAD")}


def test_a_commit_in_the_midst_of_a_run_is_told_at_its_end(dvc_home: Home) -> None:
    written(dvc_home.root / "x")
    with cmf.run("p", "s") as run:
        run.input("x")
        git(dvc_home.root, "add", "x.dvc")
        git(dvc_home.root, "commit", "--quiet", "-m", "x")
    assert "commit" in told(dvc_home)[-1]
    assert recorded(dvc_home)[-1][0].type == "execution.finished"
    assert tell_commits(dvc_home) == 0


def test_a_push_tells_of_a_later_commit_even_if_no_hub_is_reached(dvc_home: Home) -> None:
    log_input(written(dvc_home.root / "x"))
    git(dvc_home.root, "add", "x.dvc")
    git(dvc_home.root, "commit", "--quiet", "-m", "x")
    nowhere = HubFile(
        dvc_home.hub_path,
        site="s",
        url="nats://127.0.0.1:1",
        hub_id=bytes(16),
        hub_key=bytes(32),
        login="SU",
        token=None,
        ca=None,
    )
    with pytest.raises(CmfError):
        push(dvc_home, nowhere, timeout_s=0.1)
    assert "commit" in told(dvc_home)[-1]


def test_a_damaged_memory_of_what_was_told_hurts_nothing(dvc_home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    written(dvc_home.root / "x")
    (dvc_home.path / "locations.db").write_bytes(b"no database" * 1000)
    content_id = log_input("x")
    assert len(told(dvc_home, content_id)) == 1
    assert "may be told once more" in capfd.readouterr().err
    log_input("x")
    log_input("x")
    assert len(told(dvc_home, content_id)) <= 2  # it was begun anew
    assert capfd.readouterr().err == ""


def test_git_is_asked_only_when_something_waits_and_head_has_moved(
    dvc_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_input(written(dvc_home.root / "x"))
    asked: list[object] = []
    start = subprocess.Popen.__init__

    def noted(self: "subprocess.Popen[bytes]", *arguments: Any, **options: Any) -> None:
        asked.append(arguments)
        start(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "__init__", noted)
        assert (tell_commits(dvc_home), asked) == (0, [])
    git(dvc_home.root, "add", "x.dvc")
    git(dvc_home.root, "commit", "--quiet", "-m", "x")
    assert tell_commits(dvc_home) == 1
    git(dvc_home.root, "commit", "--quiet", "--allow-empty", "-m", "more")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "__init__", noted)
        assert (tell_commits(dvc_home), asked) == (0, [])


def test_dvcs_autostage_is_respected(dvc_home: Home) -> None:
    git(dvc_home.root, "config", "--file", ".dvc/config", "core.autostage", "true")
    written(dvc_home.root / "x")
    log_input("x")
    staged = git(dvc_home.root, "diff", "--cached", "--name-only").splitlines()
    assert "x.dvc" in staged


def test_a_file_that_git_tracks_is_left_to_git(dvc_home: Home) -> None:
    written(dvc_home.root / "params.yaml", "lr: 1\n")
    git(dvc_home.root, "add", "params.yaml")
    log_input("params.yaml")
    blob = git(dvc_home.root, "hash-object", "params.yaml")
    assert told(dvc_home) == [{"kind": "git", "path": "params.yaml", "blob": blob}]
    git(dvc_home.root, "commit", "--quiet", "-m", "params")
    log_input("params.yaml")
    assert told(dvc_home)[-1]["commit"] == git(dvc_home.root, "rev-parse", "HEAD")
    assert not (dvc_home.root / "params.yaml.dvc").exists()
    assert tracking_errors(dvc_home) == {}


def test_a_folder_of_which_git_has_a_part_is_recorded_and_said(
    dvc_home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    written(dvc_home.root / "data" / ".gitkeep", "")
    git(dvc_home.root, "add", "data/.gitkeep")
    log_input("data")  # all of it is git's
    assert tracking_errors(dvc_home) == {}
    written(dvc_home.root / "data" / "x")
    content_id = log_input("data")
    assert "data/.gitkeep" in tracking_errors(dvc_home)["data"]
    assert told(dvc_home, content_id) == []
    assert "not tracked by DVC: data: git tracks a part" in capfd.readouterr().err


def test_a_stages_output_is_left_to_the_stage(dvc_home: Home) -> None:
    written(dvc_home.root / "model.pkl")
    written(dvc_home.root / "scores.json", "{}")
    text = "stages:\n  train:\n    cmd: true\n    outs: [model.pkl]\n    metrics:\n    - scores.json:\n        cache: false\n"
    written(dvc_home.root / "dvc.yaml", text)
    content_id = log_input("model.pkl")
    log_input("scores.json")
    assert told(dvc_home) == []
    md5 = content_id.removeprefix("md5:")
    lock = f"schema: '2.0'\nstages:\n  train:\n    cmd: true\n    outs:\n    - path: model.pkl\n      hash: md5\n      md5: {md5}\n"
    written(dvc_home.root / "dvc.lock", lock)
    log_input("model.pkl")
    blob = git(dvc_home.root, "hash-object", "dvc.lock")
    assert told(dvc_home) == [{"kind": "dvc.lock", "path": "dvc.lock", "blob": blob}]
    assert not (dvc_home.root / "model.pkl.dvc").exists()
    assert tracking_errors(dvc_home) == {}


def test_of_a_file_in_a_tracked_folder_the_folders_file_is_told(dvc_home: Home) -> None:
    for at in range(3):
        written(dvc_home.root / "data" / "deep" / f"{at}", f"{at}\n")
    log_input("data")
    inside, folder = log_input("data/deep/1"), log_input("data/deep")
    assert [place["path"] for place in told(dvc_home, inside) + told(dvc_home, folder)] == ["data.dvc", "data.dvc"]
    written(dvc_home.root / "data" / "deep" / "1", "changed\n")
    assert told(dvc_home, log_input("data/deep/1")) == []
    assert [path.name for path in dvc_home.root.rglob("*.dvc") if path.is_file()] == ["data.dvc"]


@pytest.mark.parametrize("name", ["ignored/x", ".cmf/x", "link/x", "../elsewhere", "sub/x"])
def test_what_dvc_may_not_have_is_recorded_without_a_word(
    dvc_home: Home, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    away = dvc_home.root.parent / "away"
    away.mkdir()
    (dvc_home.root / "link").symlink_to(away)
    written(dvc_home.root / ".dvcignore", "ignored\n/sub/x\n")
    content_id = log_input(written(dvc_home.root / name))
    assert told(dvc_home, content_id) == []
    assert tracking_errors(dvc_home) == {}
    assert len(of_type(dvc_home, "artifact.used")) == 1
    assert capfd.readouterr() == ("", "")


def test_a_project_of_dvcs_inside_this_one_is_used_and_one_around_a_foreign_file_is_not(dvc_home: Home) -> None:
    for folder in (dvc_home.root / "inner", dvc_home.root.parent / "foreign"):
        folder.mkdir()
        init_dvc(folder, no_scm=True)
        log_input(written(folder / "x", folder.name))
    assert (dvc_home.root / "inner" / "x.dvc").exists()
    assert not (dvc_home.root.parent / "foreign" / "x.dvc").exists()
    assert [place["path"] for place in told(dvc_home)] == ["inner/x.dvc"]


def test_never_means_never_but_what_is_there_is_told(dvc_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    written(dvc_home.root / "x")
    first = log_input("x")
    (dvc_home.path / "locations.db").unlink()
    monkeypatch.setenv("CMF_DVC_TRACK", "never")
    log_input("x")
    assert len(told(dvc_home, first)) == 2
    assert told(dvc_home, log_input(written(dvc_home.root / "y", "y"))) == []
    assert not (dvc_home.root / "y.dvc").exists()


def test_always_says_where_there_is_no_dvc_project(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CMF_DVC_TRACK", "always")
    written(home.root / "x")
    log_input("x")
    assert tracking_errors(home) == {"x": "no DVC project holds it"}
    assert "run `dvc init`" in capfd.readouterr().err


def test_without_dvc_installed_everything_is_recorded_and_what_dvc_wrote_is_read(dvc_home: Home) -> None:
    written(dvc_home.root / "x")
    content_id = log_input("x")
    (dvc_home.path / "locations.db").unlink()
    written(dvc_home.root / "y", "y")
    hide = """
import importlib.machinery as machinery
real = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] == "dvc" else real(name, *rest))
import cmf_agent as cmf
with cmf.run("p", "s") as run:
    run.input("x")
    run.output("y")
"""
    done = python(hide, cwd=dvc_home.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(told(dvc_home, content_id)) == 2
    assert not (dvc_home.root / "y.dvc").exists()
    assert len(of_type(dvc_home, "artifact.produced")) == 1
    assert tracking_errors(dvc_home) == {}
    done = python(hide, cwd=dvc_home.root, CMF_DVC_TRACK="always")
    assert tracking_errors(dvc_home) == {"y": "DVC is not installed"}
    assert "cmf-sync[dvc]" in done.stderr


def test_the_configuration_says_what_is_tracked_and_how_long_dvc_is_waited_for(
    home: Home, capfd: pytest.CaptureFixture[str]
) -> None:
    home.config_path.write_text('[dvc]\ntrack = "never"\nlock_timeout_s = 3\n')
    settings = load_settings(home.config_path, {})
    assert (settings.dvc_track, settings.dvc_lock_timeout_s) == ("never", 3.0)
    settings = load_settings(home.config_path, {"CMF_DVC_TRACK": "always", "CMF_DVC_LOCK_TIMEOUT_S": "0.5"})
    assert (settings.dvc_track, settings.dvc_lock_timeout_s) == ("always", 0.5)
    assert capfd.readouterr().err == ""
    settings = load_settings(home.config_path, {"CMF_DVC_TRACK": "sometimes", "CMF_DVC_LOCK_TIMEOUT_S": "-1"})
    assert (settings.dvc_track, settings.dvc_lock_timeout_s) == ("auto", 10.0)
    assert capfd.readouterr().err.count("left out of the configuration") == 2


def test_a_link_to_a_file_is_tracked_as_the_file_it_is(dvc_home: Home) -> None:
    written(dvc_home.root / "target")
    (dvc_home.root / "link").symlink_to("target")
    content_id = log_input("link")
    assert [place["path"] for place in told(dvc_home, content_id)] == ["link.dvc"]
    assert (dvc_home.root / "link").is_symlink()


def test_a_file_of_dvc_2_is_told_by_its_own_hash(dvc_home: Home) -> None:
    written(dvc_home.root / "x", "a\r\nb\r\n")
    md5 = hashlib.md5(b"a\nb\n").hexdigest()
    written(dvc_home.root / "x.dvc", f"outs:\n- md5: {md5}\n  size: 6\n  path: x\n")
    content_id = log_input("x")
    assert content_id == "md5:" + hashlib.md5(b"a\r\nb\r\n").hexdigest()
    (place,) = told(dvc_home, content_id)
    (entry,) = read_dvc_file(str(dvc_home.root / "x.dvc"))
    assert place.get("hash") == (None if entry.hash == "md5" else "md5-dos2unix")
    assert entry.content_id in (content_id, f"md5-dos2unix:{md5}")


def test_dvcs_configuration_is_read_anew_when_it_changes(dvc_home: Home) -> None:
    log_input(written(dvc_home.root / "x"))
    git(dvc_home.root, "config", "--file", ".dvc/config", "cache.dir", "../elsewhere")
    content_id = log_input(written(dvc_home.root / "y", "y"))
    assert Path(cached_path(str(dvc_home.root / "elsewhere"), content_id)).exists()
    assert is_cached(str(dvc_home.root), content_id)


def test_a_missing_file_is_still_the_callers_error(dvc_home: Home) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="does not exist"):
        run.input("nowhere.csv")


def test_the_level_of_dvcs_logger_is_the_users(dvc_home: Home) -> None:
    log_input(written(dvc_home.root / "x"))
    logger = logging.getLogger("dvc")
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        log_input(written(dvc_home.root / "y", "y"))
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)
    assert (dvc_home.root / "y.dvc").exists()
