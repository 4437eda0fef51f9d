"""`dvc repro` with real DVC: what it locks is ingested, and stages that record themselves neither block it nor count twice."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.agent.helpers import CLI, LIMIT_S, environment
from tests.agent.ingest.dvc_projects import md5, state_of, write_pipeline
from tests.support.dvc import make_dvc_project

from cmf_agent.home import Home, future_home, init_home
from cmf_agent.ingest.dvc_lock import Outcome, Wanted, ingest_dvc
from cmf_agent.view import local_view
from cmf_graph.content.files import hash_path
from cmf_graph.schema import KIND_CODES

EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "dvc"
PYTHON = shlex.quote(sys.executable)
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
BY_PYTHON = """
import pathlib
import cmf_agent as cmf

with cmf.run("demo", "by-python", {"lr": 0.1}) as run:
    run.input("clean")
    pathlib.Path("python.pkl").write_text("from python")
    run.output("python.pkl", kind="model")
    pathlib.Path("own.log").write_text("what the stage does not declare")
    run.output("own.log")
"""


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC's command line and return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment(DVC_NO_ANALYTICS="1", PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written(path: str, text: str) -> str:
    return shlex.join([sys.executable, "-c", WRITE, path, text])


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A project reproduced by DVC, with stages of every sort, and what came of ingesting it."""
    folder = tmp_path_factory.mktemp("repro") / "demo"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "deep" / "x.csv").write_text("a,b\n")
    (folder / "train.py").write_text(BY_PYTHON)
    (folder / "params.yaml").write_text("lr: 0.1\nregions: [us, uk]\n")
    make_dvc_project(folder)
    wrapped = [*CLI, "run", "-p", "demo", "-s", "wrapped", "-o", "wrapped.bin", "--"]
    write_pipeline(
        folder,
        {
            "prepare": {"cmd": "mkdir -p clean && cp data/deep/x.csv clean/", "deps": ["data"], "outs": ["clean"]},
            "score": {
                "foreach": "${regions}",
                "do": {
                    "cmd": written("score-${item}.json", '{"auc": 0.5}'),
                    "deps": ["clean"],
                    "params": ["lr"],
                    "metrics": [{"score-${item}.json": {"cache": False}}],
                },
            },
            "wrapped": {
                "cmd": f"{shlex.join(wrapped)} {written('wrapped.bin', 'w')}",
                "deps": ["clean"],
                "params": ["lr"],
                "outs": ["wrapped.bin"],
            },
            "by-python": {"cmd": f"{PYTHON} train.py", "deps": ["clean", "train.py"], "outs": ["python.pkl"]},
        },
        vars=[{"unused": 1}],
    )
    home = future_home(folder)
    init_home(home)
    dvc(folder, "repro", "-q")
    before = dict(os.environ)
    done = ingest_dvc(home, Wanted((folder,)))
    assert dict(os.environ) == before
    return folder, done


def home_of(folder: Path) -> Home:
    return Home(folder / ".cmf", folder)


@pytest.mark.deep
def test_the_example_of_the_documents_runs(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    make_dvc_project(folder)
    home = future_home(folder)
    init_home(home)
    dvc(folder, "repro", "-q")
    done = ingest_dvc(home, Wanted((folder,), "example"))
    standings = {state.name: state.standing for state in done.states}
    assert standings == {"prepare": "new", "train@0.1": "new", "train@0.5": "new", "choose": "recorded"}
    chosen = state_of(home, ("execution", UUID(states(done)["choose"].execution).bytes))
    assert chosen.value("best", "properties") in ("model-0.1.json", "model-0.5.json")
    used = ["choose.py", *(f"{what}-{rate}.json" for what in ("model", "metrics") for rate in ("0.1", "0.5"))]
    assert chosen.used == sorted(hash_path(folder / path).content_id for path in used)


def states(done: Outcome) -> dict[str, Any]:
    return {state.name: state for state in done.states}


def test_every_stage_is_an_execution_with_the_content_that_lies_there(reproduced: tuple[Path, Outcome]) -> None:
    folder, done = reproduced
    assert {state.name: state.standing for state in done.states} == {
        "prepare": "new",
        "score@us": "new",
        "score@uk": "new",
        "wrapped": "recorded",
        "by-python": "recorded",
    }
    edges = {
        "prepare": (["data"], ["clean"]),
        "score@us": (["clean"], ["score-us.json"]),
        "wrapped": (["clean"], ["wrapped.bin"]),
        "by-python": (["clean", "train.py"], ["own.log", "python.pkl"]),
    }
    for name, (used, produced) in edges.items():
        said = state_of(home_of(folder), ("execution", UUID(states(done)[name].execution).bytes))
        assert said.used == sorted(hash_path(folder / path).content_id for path in used), name
        assert said.produced == sorted(hash_path(folder / path).content_id for path in produced), name
        assert [status.status for status in said.statuses] == ["finished"], name
        assert "tracking_errors" not in said.space("properties"), name
    score = state_of(home_of(folder), ("execution", UUID(states(done)["score@us"].execution).bytes))
    assert score.space("metrics") == {"auc": 0.5}
    assert score.space("params") == {"lr": 0.1}


def test_a_stage_that_records_itself_is_one_execution(reproduced: tuple[Path, Outcome]) -> None:
    folder, done = reproduced
    home = home_of(folder)
    with local_view(home) as graph:
        executions = [row[0] for row in graph.rows("SELECT id FROM nodes WHERE kind = ?", (KIND_CODES["execution"],))]
        found = [graph.state(node_id) for node_id in executions]
    assert len(found) == len(done.states)
    wrapped = next(state for state in found if state.value("stage") == ("demo", "wrapped"))
    assert wrapped.value("dvc_stage", "properties") == "wrapped"
    assert wrapped.space("params") == {"lr": 0.1}
    artifact = state_of(home, ("artifact", f"md5:{md5(b'from python')}"))
    assert (artifact.value("kind"), artifact.names) == ("model", ["python.pkl"])


def test_dvc_finds_everything_as_it_left_it(reproduced: tuple[Path, Outcome]) -> None:
    folder, _ = reproduced
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        assert repo.status() == {}
    assert (
        md5(b"what the stage does not declare") in (folder / "own.log.dvc").read_text()
    )  # added to DVC amid the repro
    assert not (folder / "wrapped.bin.dvc").exists()
    assert not (folder / "python.pkl.dvc").exists()


@pytest.mark.deep
def test_reproducing_anew_adds_only_what_is_new(reproduced: tuple[Path, Outcome]) -> None:
    folder, done = reproduced
    home = home_of(folder)
    assert ingest_dvc(home, Wanted((folder,))).events == 0
    (folder / "params.yaml").write_text("lr: 0.2\nregions: [us, uk]\n")
    dvc(folder, "repro", "-q", "score@us")
    again = ingest_dvc(home, Wanted((folder,)))
    assert [state.name for state in again.states if state.standing == "new"] == ["score@us"]
    assert states(again)["score@us"].execution != states(done)["score@us"].execution
    assert states(again)["wrapped"].execution == states(done)["wrapped"].execution
