"""A project that `CmfQuery` is asked about: three stages, recorded by `Cmf` as scripts do."""

from pathlib import Path
from typing import NamedTuple

import pytest

from cmf_agent.cmflib import Cmf
from cmf_agent.home import Home, future_home, init_home

PIPELINE = "mnist"
MODEL = ("SK", "forest", "forest:default")
PARAMS = {"split": 0.25, "seed": 20170428, "fast": True, "sizes": [1, 2], "type": "t"}


class Project(NamedTuple):
    """A folder with a `.cmf`, and what was recorded there: ids of executions by stage, names of artifacts by path."""

    folder: Path
    home: Home
    executions: dict[str, str]
    artifacts: dict[str, str]


def make_project(folder: Path, patch: pytest.MonkeyPatch) -> Project:
    """Record three stages in an empty folder, which becomes the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    patch.chdir(folder)
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.delenv("CMF_HOME", raising=False)
    home = future_home(folder)
    init_home(home)
    executions: dict[str, str] = {}
    artifacts: dict[str, str] = {}
    for name in ("raw.csv", "labels.csv", "train.csv", "model.pkl"):
        (folder / name).write_text(f"content of {name}\n")

    writer = Cmf("mlmd", PIPELINE)
    writer.create_context("Prepare", {"owner": "ann"})
    executions["Prepare"] = writer.create_execution("Prepare", dict(PARAMS)).id
    raw = writer.log_dataset(
        "raw.csv", "input", {"origin": "sensor"}, label="labels.csv", label_properties={"by": "bob"}
    )
    artifacts["raw.csv"] = raw.name
    artifacts["train.csv"] = writer.log_dataset("train.csv", "output").name

    writer.create_context("Train")
    executions["Train"] = writer.create_execution("Train-execution", {"n": 1}, create_new_execution=False).id
    writer.log_dataset("train.csv", "input")
    for step in range(3):
        writer.log_metric("training", {"loss": 1 / (step + 1), "note": "x"})
    artifacts["training"] = writer.commit_metrics("training").name
    writer.log_metric("unfinished", {"loss": 4.0})
    writer.log_metric("unfinished", {"loss": 3.0, "accuracy": 0.5})
    artifacts["model.pkl"] = writer.log_model("model.pkl", "output", *MODEL).name
    part = writer.create_dataslice("part")
    part.add_data("train.csv", {"weight": 2})
    part.add_data("raw.csv", {"weight": 1})
    artifacts["part"] = part.commit().name

    writer.create_context("Evaluate")
    executions["Evaluate"] = writer.create_execution("Evaluate-execution").id
    writer.log_model("model.pkl", "input", *MODEL)
    artifacts["metrics"] = writer.log_execution_metrics("metrics", {"auc": 0.9}).name
    writer.finalize()
    return Project(folder, home, executions, artifacts)
