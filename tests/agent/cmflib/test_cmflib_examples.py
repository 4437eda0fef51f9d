"""The documented sequences of calls, as scripts that people run in a git and DVC repository: only the import is changed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import LIMIT_S, environment, of_type

from cmf_agent.home import Home, home_at
from cmf_agent.view import local_view
from cmf_graph.filters import Filter
from cmf_graph.questions import Questions

EXAMPLES = Path(__file__).parent / "examples"
COMMANDS = (
    "getting_started/parse.py artifacts/data.csv artifacts/parsed",
    "getting_started/featurize.py artifacts/parsed artifacts/features",
    "getting_started/train.py artifacts/features artifacts/model",
    "getting_started/test.py artifacts/model artifacts/features artifacts/test_results",
    "getting_started/query.py mlmd",
    "getting_started/data_slice.py",
    "execution_update/first.py",
    "execution_update/by_query.py",
    "execution_update/by_name.py",
    "nano_cmf/parse.py artifacts/data.csv artifacts/nano",
)
Outputs = dict[str, str]

#: Runs scripts one after the other, each in a process of its own, in which the libraries are loaded already: that takes
#: most of a script's time, and taking them down the most of the rest. Prints what each has printed.
DRIVER = """
import atexit, json, os, runpy, sys
import dvc.data_cloud, dvc.repo.graph, dvc.repo.index, dvc.repo.plots, dvc.rwlock, dvc.scm, dvc.utils.strictyaml
import dulwich.index, git, networkx, pandas, psutil
import cmf_agent.cmflib.metawriter, cmf_agent.cmflib.query, cmf_agent.dvc.tracking, cmf_agent.sources.environment

outputs = {}
for command in sys.argv[2:]:
    script, *arguments = command.split()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.close(read)
        path = os.path.join(sys.argv[1], script)
        sys.argv, sys.path[0] = [path, *arguments], os.path.dirname(path)
        runpy.run_path(path, run_name="__main__")
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as printed:
        outputs[script] = printed.read().strip()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{script} failed")
print(json.dumps(outputs))
"""


def run(*command: str, cwd: Path) -> str:
    """Run a command, which must succeed, and return what it printed."""
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    changes = {**names, "DVC_NO_ANALYTICS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "nano-cmf"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "data.csv").write_text("".join(f"{number}\n" for number in range(40)))
    (folder / "artifacts" / "labels.csv").write_text("a\nb\n")
    run("git", "init", "-q", "-b", "main", cwd=folder)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    run("git", "add", ".dvc", cwd=folder)
    run("git", "commit", "-q", "-m", "first", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def outputs(project: Path) -> Outputs:
    """Run all scripts, one after the other, and return what each has printed."""
    told: Outputs = json.loads(run(sys.executable, "-c", DRIVER, os.fspath(EXAMPLES), *COMMANDS, cwd=project))
    return told


@pytest.fixture(scope="module")
def home(project: Path, outputs: Outputs) -> Home:
    return home_at(project / ".cmf", project)


@contextmanager
def asking(home: Home) -> Iterator[Questions]:
    with local_view(home) as graph:
        yield Questions(graph, {})


def executions(home: Home, pipeline: str) -> dict[str, Any]:
    """Return the executions of a pipeline by their stages."""
    with asking(home) as questions:
        found = questions.executions(Filter(pipeline=pipeline))["items"]
        return {item["stage"]: questions.show(item["id"]) for item in found}


def named(usages: list[dict[str, Any]], kind: str) -> list[str]:
    return [usage["name"] for usage in usages if usage["kind"] == kind]


def test_the_getting_started_pipeline_is_recorded_as_it_was_called(home: Home, project: Path) -> None:
    by_stage = executions(home, "Test-env")
    assert set(by_stage) == {"Prepare", "Featurize", "Train", "Evaluate"}
    assert all(item["status"] == "finished" for item in by_stage.values())
    prepare, train, evaluate = by_stage["Prepare"], by_stage["Train"], by_stage["Evaluate"]
    assert prepare["params"] == {"seed": 20170428, "split": 0.2}
    assert named(prepare["inputs"], "dataset") == ["artifacts/data.csv"]
    assert named(prepare["inputs"], "label") == ["artifacts/labels.csv"]
    assert named(prepare["outputs"], "dataset") == ["artifacts/parsed/test.tsv", "artifacts/parsed/train.tsv"]
    assert (train["params"]["learning_rate"], train["metrics"]) == (0.001, {"train_loss": 10})
    assert named(train["outputs"], "model") == ["artifacts/model/model.pkl"]
    assert named(train["outputs"], "metrics") == ["training_metrics"]
    assert named(evaluate["inputs"], "model") == ["artifacts/model/model.pkl"]
    assert set(evaluate["metrics"]) == {"avg_prec", "roc_auc"}
    assert named(evaluate["outputs"], "metrics") == ["metrics"]
    commit = run("git", "rev-parse", "HEAD", cwd=project)
    assert {item["properties"]["Git_End_Commit"] for item in by_stage.values()} == {commit}


def test_the_stages_hang_together(home: Home) -> None:
    with asking(home) as questions:
        nodes = questions.lineage("artifacts/model/model.pkl", up=True)["nodes"]
    assert "artifacts/data.csv" in {node["label"] for node in nodes}


def test_recorded_digests_are_those_of_dvc(home: Home, project: Path) -> None:
    with asking(home) as questions:
        shown = questions.show("artifacts/features/train.pkl")
    digest = shown["content_id"].removeprefix("md5:")
    assert f"md5: {digest}" in (project / "artifacts" / "features" / "train.pkl.dvc").read_text()
    cached = project / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    assert cached.read_bytes() == (project / "artifacts" / "features" / "train.pkl").read_bytes()


def test_the_scripts_changed_no_branch_and_committed_nothing(home: Home, project: Path) -> None:
    assert run("git", "branch", "--format=%(refname:short)", cwd=project) == "main"
    assert run("git", "rev-list", "--count", "HEAD", cwd=project) == "1"


def test_the_query_script_prints_the_stages(outputs: Outputs) -> None:
    printed = outputs["getting_started/query.py"]
    for stage in ("Prepare", "Featurize", "Train", "Evaluate"):
        assert f"Test-env/{stage}" in printed
    assert "20170428" in printed


def test_slices_are_read_and_updated(outputs: Outputs, home: Home) -> None:
    assert outputs["getting_started/data_slice.py"] == "artifacts/raw_data/9.txt 1 2"
    assert len(of_type(home, "slice.recorded")) == 3
    prepare = executions(home, "dvc")["Prepare"]
    assert named(prepare["outputs"], "slice") == ["slice-1", "slice-1", "slice-2"]


def test_a_reusable_execution_is_one_in_all_scripts(outputs: Outputs, home: Home) -> None:
    assert outputs["execution_update/first.py"] == "test-execution-update/Train Train-execution True"
    execution = executions(home, "test-execution-update")["Train"]
    assert execution["params"] == {"name": "test-1", "epochs": 3, "rate": 0.5}
    assert execution["metrics"] == {"auc": 0.4}
    assert named(execution["inputs"], "dataset") == ["artifacts/data.csv"]
    tables = [body for _, body in of_type(home, "artifact.produced") if body.get("name") == "metrics-1"]
    assert [table["properties"]["auc"] for table in tables] == [0.3, 0.4]


def test_without_names_folder_and_script_give_them(home: Home) -> None:
    execution = executions(home, "nano-cmf")["parse"]
    assert (execution["name"], execution["status"]) == ("parse", "finished")
    assert named(execution["outputs"], "dataset") == ["artifacts/nano/test.tsv", "artifacts/nano/train.tsv"]
    assert named(execution["inputs"], "label") == ["artifacts/labels.csv"]
