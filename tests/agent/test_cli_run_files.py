"""`cmf-agent run` with patterns, files of parameters and of metrics, and programs that record themselves inside of it."""

import os
import subprocess
import sys
from typing import Any

import pytest
from tests.agent.helpers import called, of_type, only, recorded

import cmf_agent as cmf
from cmf_agent.home import Home

RUN = ("run", "-p", "p", "-s", "s")


def named(home: Home, type_: str) -> dict[str, str | None]:
    """Return name → kind of what was used or produced."""
    return {body["name"]: body["facts"].get("kind") for _, body in of_type(home, type_)}


def properties(home: Home) -> dict[str, Any]:
    return {name: value for _, body in of_type(home, "execution.updated") for name, value in body["properties"].items()}


Captured = pytest.CaptureFixture[str]


def test_patterns_find_inputs_before_and_outputs_after(home: Home, capfd: Captured) -> None:
    for name in ("d/a.csv", "d/s/b.csv", "o[1].txt"):
        (home.root / name).parent.mkdir(parents=True, exist_ok=True)
        (home.root / name).write_text(name)
    script = "rm d/s/b.csv; echo 1 > new.pkl; echo 2 > d/c.csv"
    files = ("-i", "d/**/*.csv", "-i", "d/a.csv", "-o", "d/*.csv", "-o", "no*", "-o", "o[1].txt", "-m", "*.pkl")
    assert called(*RUN, *files, "--", "sh", "-c", script) == 0
    out, told = capfd.readouterr()
    assert not out
    assert told.splitlines() == [
        "cmf: not recorded: nothing matches 'no*'",
        "cmf: not written by the command, and recorded as an output all the same: d/a.csv, o[1].txt",
    ]
    assert named(home, "artifact.used") == {"d/a.csv": None, "d/s/b.csv": None}
    assert len(of_type(home, "artifact.used")) == 2
    assert named(home, "artifact.produced") == {"d/a.csv": None, "d/c.csv": None, "o[1].txt": None, "new.pkl": "model"}
    assert properties(home) == {"missing_outputs": ("no*",), "unchanged_outputs": ("d/a.csv", "o[1].txt")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-i", "no/*.csv"), "nothing matches -i 'no/*.csv', and the command was not started"),
        (("-i", "a**b"), "can't be used as a pattern"),
        (("--params", "none.yaml"), "none.yaml does not exist"),
        (("--params", "p.yaml:lr.x"), "p.yaml has no parameter 'lr.x'"),
        (("--metrics", ""), "--metrics '' names no file"),
    ],
)
def test_what_is_wrong_beforehand_is_told_and_runs_nothing(
    home: Home, capfd: Captured, options: tuple[str, ...], said: str
) -> None:
    (home.root / "p.yaml").write_text("lr: 1\n")
    assert called(*RUN, *options, "--", "touch", "started") == 2
    told = capfd.readouterr().err
    assert said in told
    assert "hint: " in told
    assert not (home.root / "started").exists()
    assert len(recorded(home)) == 1


def test_parameters_come_from_files_and_flags_go_before_them(home: Home, capfd: Captured) -> None:
    (home.root / "p.yaml").write_text("lr: 1e-3\ntrain: {seed: 1, deep: {x: 2}}\napi_key: hidden\n")
    (home.root / "q.toml").write_text("lr = 2\nother = 'x'\n")
    files = ("--params", "p.yaml", "--params", "q.toml:lr", "--params", "p.yaml:train.seed")
    assert called(*RUN, "--param", "train.seed=7", *files, "--", "true") == 0
    assert capfd.readouterr() == ("", "")
    assert only(home, "execution.started")[1]["params"] == {
        "lr": 2,
        "train": {"seed": 1, "deep": {"x": 2}},
        "train.seed": 7,
        "api_key": "***",
    }
    assert named(home, "artifact.used") == {"p.yaml": None, "q.toml": None}
    assert len(of_type(home, "artifact.used")) == 2


def test_metrics_are_read_at_the_end_and_what_is_wrong_with_them_changes_no_exit_code(
    home: Home, capfd: Captured
) -> None:
    (home.root / "m.json").write_text('{"old": 1}')
    script = """
echo '{"val": {"loss": 0.5}}' > m.json
printf 'step,loss,note\\n1,3,a\\n2,2,b\\n' > s.csv
echo '{' > broken.json
exit 3
"""
    options = [word for name in ("m.json", "s.csv", "broken.json", "none.csv") for word in ("--metrics", name)]
    assert called(*RUN, *options, "-o", "m.json", "--", "sh", "-c", script) == 3
    out, told = capfd.readouterr()
    assert out == ""
    assert "broken.json is not valid JSON" in told
    assert "none.csv does not exist" in told
    metrics = [body for _, body in of_type(home, "metrics.recorded")]
    assert {"val.loss": 0.5} in [body["metrics"] for body in metrics]
    assert [block[:4] for body in metrics for block in body.get("steps", ())] == [("loss", "", (1, 2), (3, 2))]
    assert named(home, "artifact.produced") == {"m.json": "metrics", "s.csv": "metrics", "broken.json": "metrics"}
    assert len(of_type(home, "artifact.produced")) == 3
    errors = only(home, "execution.updated")[1]["properties"]["metrics_errors"]
    assert sorted(errors) == ["broken.json", "none.csv"]


def test_what_an_earlier_run_left_is_no_output_of_one_that_failed_and_its_metrics_are_not_taken(
    home: Home, capfd: Captured
) -> None:
    for name in ("old.json", "new.json"):
        (home.root / name).write_text('{"loss": 1}')
    for name in ("old/a", "new/a", "new/s/b", "o"):
        (home.root / name).parent.mkdir(parents=True, exist_ok=True)
        (home.root / name).write_text("x")
    results = ("--metrics", "old.json", "--metrics", "new.json", "-o", "old", "-o", "new", "-m", "o", "-o", "none")
    script = "echo '{\"loss\": 2}' > t; mv t new.json; echo x > new/s/b; exit 1"
    assert called(*RUN, "-i", "o", *results, "--", "sh", "-c", script) == 1
    assert "old, o, old.json" in capfd.readouterr().err
    assert set(properties(home)["unchanged_outputs"]) == {"old", "o", "old.json"}
    assert list(properties(home)["metrics_errors"]) == ["old.json"]
    assert only(home, "metrics.recorded")[1]["metrics"] == {"loss": 2}
    assert set(named(home, "artifact.produced")) == {"new", "new.json"}


def test_a_program_joins_the_run_that_started_it_and_its_own_runs_are_nested(home: Home) -> None:
    script = """
import cmf_agent as cmf
with cmf.join() as run:
    run.metric("joined", 1)
with cmf.run("p", "inner") as run:
    run.metric("nested", 2)
"""
    assert called(*RUN, "--", sys.executable, "-c", script) == 0
    (outer, _), (inner, nested) = of_type(home, "execution.started")
    assert ("execution", nested["facts"]["parent"]) in outer.about
    said = {name: header.about for header, body in of_type(home, "metrics.recorded") for name in body["metrics"]}
    assert set(said["joined"]) < set(outer.about)
    assert set(said["nested"]) < set(inner.about)
    assert len(of_type(home, "execution.finished")) == 2


def test_what_makes_it_possible_to_run_it_again_is_recorded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(home.root.parent)], check=True)
    (home.root / "sub").mkdir()
    monkeypatch.chdir(home.root / "sub")
    assert called(*RUN, "--", "true") == 0
    monkeypatch.chdir(home.root)
    with cmf.run("p", "s"):
        pass
    wrapped, own = [body["facts"] for _, body in of_type(home, "execution.started")]
    assert (wrapped["working_dir"], wrapped["project_dir"]) == ("sub", "project")
    assert "self_recorded" not in wrapped
    assert (own["working_dir"], own["self_recorded"]) == (".", True)


def test_a_child_that_leaves_a_process_behind_ends_the_run_all_the_same(home: Home) -> None:
    script = "(sleep 600 >/dev/null 2>&1 & echo $! > pid)"
    assert called(*RUN, "--", "sh", "-c", script) == 0
    os.kill(int((home.root / "pid").read_text()), 9)
    assert only(home, "execution.finished")[1]["status"] == "finished"


def test_a_large_output_passes_byte_for_byte(home: Home, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40_000)"
    assert called(*RUN, "--", sys.executable, "-c", script) == 0
    assert capfdbinary.readouterr().out == bytes(range(256)) * 40_000
