"""What a run records, how it ends, and that it never hurts what it records."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path

import pytest
from tests.agent.helpers import called, of_type, only, python, recorded

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.verify import verify
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.fold import Unfolded, read


def test_a_run_records_its_start_what_it_said_and_its_end(home: Home) -> None:
    Path("in.csv").write_text("a,b\n")
    params = {"lr": 0.1, "layers": [1, 2], "api_key": "sk-secret"}
    before = repr(params)
    with cmf.run("mnist", "train", params, name="first", properties={"why": "test"}) as run:
        run.input("in.csv", kind="dataset", properties={"rows": 1})
        Path("model.pkl").write_bytes(b"model")
        run.log_model("model.pkl", properties={"framework": "none"})
        run.params(depth=3)
        run.params({"width": 4})
        run.property("note", "x")
        run.metric("accuracy", 0.9)
        run.tag("good")
        run.note("a remark")
    assert repr(params) == before
    header, body = only(home, "execution.started")
    assert ("stage", ("mnist", "train")) in header.about
    assert ("execution", run.execution) in header.about
    assert body["params"] == {"lr": 0.1, "layers": (1, 2), "api_key": "***"}
    assert body["properties"] == {"why": "test"}
    facts = body["facts"]
    assert (facts["name"], facts["kind"]) == ("first", "step")
    assert facts["host"] and facts["user"] and facts["command"]
    used, used_body = only(home, "artifact.used")
    assert used.about[0] == ("artifact", "md5:" + md5(b"a,b\n").hexdigest())
    assert used_body["name"] == "in.csv"
    assert used_body["facts"] == {"kind": "dataset", "size": 4}
    assert [digest.partition(":")[0] for digest in used_body["digests"]] == ["sha256"]
    assert only(home, "artifact.produced")[1]["facts"]["kind"] == "model"
    assert [b.get("params") for _, b in of_type(home, "execution.updated")][:2] == [{"depth": 3}, {"width": 4}]
    assert only(home, "metrics.recorded")[1]["metrics"] == {"accuracy": 0.9}
    assert only(home, "tag.added")[1]["tag"] == "good"
    assert only(home, "note.added")[1]["text"] == "a remark"
    assert only(home, "execution.finished")[1]["status"] == "finished"
    assert not verify(home).problems


def test_the_start_is_durable_before_the_body_runs(home: Home) -> None:
    with cmf.run("p", "s"):
        assert len(of_type(home, "execution.started")) == 1
        assert not of_type(home, "execution.finished")


@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (ValueError("bad"), "failed", None),
        (KeyboardInterrupt(), "interrupted", None),
        (GeneratorExit(), "interrupted", None),
        (SystemExit(), "finished", 0),
        (SystemExit(0), "finished", 0),
        (SystemExit(2), "failed", 2),
        (SystemExit(143), "interrupted", 143),
        (SystemExit("text"), "failed", 1),
    ],
)
def test_what_ends_a_run_is_recorded_and_goes_on_untouched(
    home: Home, error: BaseException, status: str, exit_code: int | None
) -> None:
    with pytest.raises(type(error)) as caught, cmf.run("p", "s"):
        raise error
    assert caught.value is error
    assert error.__context__ is None
    body = only(home, "execution.finished")[1]
    assert (body["status"], body.get("exit_code")) == (status, exit_code)
    if isinstance(error, ValueError):
        assert body["error"] == {"type": "ValueError", "message": "bad"}


def test_what_leaves_nested_runs_is_recorded_of_each(home: Home) -> None:
    with pytest.raises(KeyboardInterrupt), cmf.run("p", "outer") as outer:
        with pytest.raises(ValueError, match="held"), cmf.run("p", "held"):
            raise ValueError("held")
        assert cmf.current_run() is outer
        with cmf.run("p", "inner"):
            raise KeyboardInterrupt("stop")
    ends = [
        (body["status"], body["error"]["type"], body["error"]["message"])
        for _, body in of_type(home, "execution.finished")
    ]
    stop = ("interrupted", "KeyboardInterrupt", "stop")
    assert ends == [("failed", "ValueError", "held"), stop, stop]
    assert cmf.current_run() is None


def test_an_error_with_a_huge_or_broken_text_is_recorded(home: Home) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error in (ValueError("x" * 10**6), Broken()):
        with pytest.raises(type(error)), cmf.run("p", "s"):
            raise error
    (_, huge), (_, broken) = of_type(home, "execution.finished")
    assert huge["lossy"] == {"error.message": "truncated"}
    assert len(huge["error"]["message"]) == 4_000
    assert broken["error"]["type"].endswith("Broken")


def test_every_event_of_a_run_can_be_folded(home: Home) -> None:
    Path("f").write_text("x")
    with cmf.run("p", "s", {"deep": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]], "big": 2**70, 3: "key"}) as run:  # type: ignore[dict-item]
        run.input("f")
        run.metric("m", 1, step=1)
        run.params(many={f"k{at}": at for at in range(30_000)}, text="x" * 300_000, odd=object(), cut="\ud800\0")
        run.property("x" * 300_000, 1)
        run.note("n")
        run.tag("t")
    from cmf_agent.reading import LogReader

    with LogReader(home.log_path) as reader:
        for stored in reader.all_events():
            folded = read(stored.header, stored.body)
            assert not isinstance(folded, Unfolded), (stored.header.type, folded)


def test_values_that_do_not_fit_are_bent_and_that_is_noted(home: Home) -> None:
    values = {"big": 2**70, "text": "x" * 300_000, "small": 1, "nan": math.nan, "set": {1}, "odd": object()}
    with cmf.run("p", "s", values):
        pass
    body = only(home, "execution.started")[1]
    params = body["params"]
    assert params["big"] == str(2**70)
    assert params["small"] == 1
    assert math.isnan(params["nan"])
    assert params["text"]["truncated"] is True
    assert params["text"]["size"] > 300_000
    assert params["text"]["content_id"].startswith("md5:")
    assert body["lossy"] == {"params.big": "integer", "params.odd": "repr", "params.text": "truncated"}


def test_a_path_that_is_not_utf8_is_recorded(home: Home) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    Path(name).write_text("x")
    with cmf.run("p", "s") as run:
        run.output(name)
    body = only(home, "artifact.produced")[1]
    assert body["name"] == "caf%E9.txt"
    assert body["lossy"] == {"name": "path"}


def test_a_folder_is_recorded_with_its_files(home: Home) -> None:
    Path("data").mkdir()
    for name in "ab":
        (Path("data") / name).write_text(name)
    with cmf.run("p", "s") as run:
        content = run.input("data")
    header, body = only(home, "artifact.used")
    assert header.about[0] == ("artifact", content.content_id)
    assert content.content_id.endswith(".dir")
    assert body["facts"] == {"files": 2, "size": 2}


def test_a_missing_file_is_the_callers_error_and_the_run_may_go_on(home: Home) -> None:
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="nothing-here"):
        run.output("nothing-here")
    assert only(home, "execution.finished")[1]["status"] == "finished"


@pytest.mark.parametrize(
    "arguments", [("", "s"), ("p", "x" * 501), ("p", " ")],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_at_once(home: Home, arguments: tuple[str, str]) -> None:
    with pytest.raises(CallerError):
        cmf.run(*arguments)
    assert len(recorded(home)) == 1


def test_unknown_kinds_are_refused(home: Home) -> None:
    Path("f").write_text("x")
    with pytest.raises(CallerError, match="no kind of run"):
        cmf.run("p", "s", kind="other")
    with cmf.run("p", "s") as run, pytest.raises(CallerError, match="no kind of artifact"):
        run.input("f", kind="banana")


def test_an_environment_is_recorded_once_per_log(home: Home) -> None:
    for _ in range(3):
        with cmf.run("p", "s"):
            pass
    header, body = only(home, "environment.recorded")
    assert body["environment"]["python"]
    for started, _ in of_type(home, "execution.started"):
        assert header.about[0] in started.about


def test_named_environment_variables_are_recorded_masked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config_path.write_text('[capture]\nenv = ["VISIBLE", "API_TOKEN", "UNSET"]\n')
    monkeypatch.setenv("VISIBLE", "0")
    monkeypatch.setenv("API_TOKEN", "hidden")
    with cmf.run("p", "s"):
        pass
    assert only(home, "environment.recorded")[1]["environment"]["variables"] == {"VISIBLE": "0", "API_TOKEN": "***"}


def test_team_and_actor_come_from_the_configuration(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config_path.write_text('team = "vision"\nactor = "file"\n')
    monkeypatch.setenv("CMF_ACTOR", "maria")
    with cmf.run("p", "s"):
        pass
    facts = only(home, "execution.started")[1]["facts"]
    assert (facts["team"], facts["actor"]) == ("vision", "maria")


def test_a_configuration_that_is_wrong_is_told_and_not_used(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.config_path.write_text("team = = 1\n")
    with cmf.run("p", "s"):
        pass
    assert "config.toml" in capsys.readouterr().err
    assert only(home, "execution.finished")
    with pytest.raises(CallerError, match=r"config\.toml"), cmf.run("p", "s", strict=True):
        pass


def test_the_code_version_is_recorded(home: Home) -> None:
    script = "git init -q . && git config user.name t && git config user.email t@t && echo x > code.py"
    assert os.system(f"{script} && git add code.py && git commit -q -m one") == 0
    with cmf.run("p", "s"):
        pass
    Path("code.py").write_text("changed\n")
    with cmf.run("p", "s"):
        pass
    clean, dirty = (body["facts"] for _, body in of_type(home, "execution.started"))
    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], dirty["git_dirty"]) == (False, True)
    assert "git_diff" not in clean
    assert dirty["git_diff"].startswith("sha256:")


def test_a_run_inside_a_run_names_it(home: Home) -> None:
    with cmf.run("p", "outer") as outer, cmf.run("p", "inner"):
        pass
    with cmf.run("p", "after"):
        pass
    parents = [body["facts"].get("parent") for _, body in of_type(home, "execution.started")]
    assert parents == [None, outer.execution, None]


def test_a_run_goes_on_with_an_execution_that_exists(home: Home) -> None:
    with cmf.run("p", "s") as first:
        pass
    with cmf.run("p", "s", execution_id=first.id) as again:
        assert again.id == first.id
    assert len({header.about for header, _ in of_type(home, "execution.finished")}) == 1
    with pytest.raises(CallerError, match="not an execution's id"):
        cmf.run("p", "s", execution_id="nonsense")


def test_ids_are_uuid7_and_sort_by_time(home: Home) -> None:
    ids = [cmf.run("p", "s").id for _ in range(3)]
    assert all(id_[14] == "7" and id_[19] in "89ab" for id_ in ids)
    assert [id_[:13] for id_ in ids] == sorted(id_[:13] for id_ in ids)


def test_without_a_home_a_run_warns_once_and_goes_on(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("f").write_text("x")
    with cmf.run("p", "s") as run:
        run.metric("m", 1)
        run.metric("m", 1, step=1)
        run.input("f")
    said = capsys.readouterr().err
    assert said.count("NOTHING of this run is recorded") == 1
    assert "cmf-agent init" in said
    with pytest.raises(CallerError):
        cmf.run("p", "s", strict=True)


def test_what_could_not_be_written_waits_and_is_recorded_when_it_can(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = home.log_path.with_name("aside.db")
    with cmf.run("p", "s") as run:
        run._recorder._held.close()  # nothing keeps the file open
        home.log_path.rename(aside)
        run.metric("a", 1)
        run.metric("b", 2)
        aside.rename(home.log_path)
    said = capsys.readouterr().err
    assert said.count("can't record for now") == 1
    assert "NOT recorded" not in said
    assert [set(body["metrics"]) for _, body in of_type(home, "metrics.recorded")] == [{"a"}, {"b"}]
    assert only(home, "execution.finished")[1]["status"] == "finished"
    times = [header.wall_us for header, _ in recorded(home)]
    assert times == sorted(times)


def test_what_is_lost_in_the_end_is_named(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.pkl").write_text("x")
    home.log_path.unlink()
    with cmf.run("p", "train") as run:
        run.output("model.pkl")
        run.metric("m", 1, step=1)
    said = capsys.readouterr().err
    assert "WARNING: 5 events were NOT recorded" in said
    for words in ("log.db is missing", "execution.started", "stage p/train", "(model.pkl)", "metrics.recorded"):
        assert words in said


def test_strict_raises_where_it_could_not_record(home: Home) -> None:
    with pytest.raises(StoreError, match="missing"), cmf.run("p", "s", strict=True) as run:
        run._recorder._held.close()
        home.log_path.unlink()
        run.metric("a", 1)


def test_strict_does_not_hide_the_exception_that_ends_the_run(home: Home) -> None:
    with pytest.raises(ValueError, match="mine"), cmf.run("p", "s", strict=True) as run:
        run._recorder._held.close()
        home.log_path.unlink()
        raise ValueError("mine")


def test_a_full_disk_loses_nothing_once_there_is_space(home: Home) -> None:
    script = """
import resource
import cmf_agent as cmf
with cmf.run("p", "s") as run:
    run.metric("before", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    for at in range(20):
        run.metric(f"during{at}", at)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert "can't record for now" in done.stderr
    assert "NOT recorded" not in done.stderr
    names = [next(iter(body["metrics"])) for _, body in of_type(home, "metrics.recorded")]
    assert names == ["before", *(f"during{at}" for at in range(20))]
    assert only(home, "execution.finished")
    assert not verify(home).problems


def test_a_child_that_is_forked_does_not_end_its_parents_run(home: Home) -> None:
    script = """
import os, sys
import cmf_agent as cmf
with cmf.run("p", "s") as run:
    run.metric("parents", 1, step=1)
    child = os.fork()
    if child == 0:
        run.metric("childs", 1)
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""
    done = python(script, cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert only(home, "execution.finished")[1]["status"] == "finished"
    metrics = [body["metrics"] for _, body in of_type(home, "metrics.recorded")]
    assert sorted(metrics, key=str) == [{"childs": 1}, {"parents": 1}]
    assert not verify(home).problems


def test_threads_share_a_run(home: Home) -> None:
    with cmf.run("p", "s") as run, ThreadPoolExecutor(8) as pool:
        for at in range(160):
            pool.submit(run.metric, f"m{at}", at)
    said = {name for _, body in of_type(home, "metrics.recorded") for name in body["metrics"]}
    assert len(said) == 160
    assert not verify(home).problems


def test_what_is_said_after_the_end_is_recorded_too(home: Home) -> None:
    with cmf.run("p", "s") as run:
        pass
    run.metric("late", 1)
    run.metric("later", 1, step=1)
    assert [body["metrics"] for _, body in of_type(home, "metrics.recorded")] == [{"late": 1}, {"later": 1}]


def test_describe_records_properties(home: Home) -> None:
    cmf.describe("p", owner="maria", password="x")
    cmf.describe("p", "s", stage_of="life")
    assert only(home, "pipeline.described")[1]["properties"] == {"owner": "maria", "password": "***"}
    assert only(home, "stage.described")[0].about == (("stage", ("p", "s")),)


def test_importing_the_package_imports_nothing_heavy(project: Path) -> None:
    heavy = ["typer", "git", "nats", "networkx", "sqlite_utils", "nacl", "asyncio", "rich", "dvc", "zstandard"]
    done = python(f"import sys, cmf_agent; print([m for m in {heavy} if m in sys.modules])", cwd=project)
    assert done.stdout.strip() == "[]"
    done = python(f"import sys, cmf_agent; cmf_agent.run; print([m for m in {heavy} if m in sys.modules])", cwd=project)
    assert done.stdout.strip() == "[]"


def test_cmf_home_may_lie_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMF_HOME", str(tmp_path / "elsewhere"))
    assert called("init") == 0
    Path("f").write_text("x")
    with cmf.run("p", "s") as run:
        run.input("f")
    assert run.home is not None
    assert run.home.path == tmp_path / "elsewhere"
    assert only(run.home, "artifact.used")[1]["name"] == "f"
    assert not Path(".cmf").exists()
