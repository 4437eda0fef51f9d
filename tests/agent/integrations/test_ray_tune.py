"""Ray Tune with its real library: each trial is an execution."""

import json
from typing import Any

import pytest
from tests.agent.helpers import cli, python

from cmf_agent.home import Home

pytestmark = pytest.mark.extended

SCRIPT = """
import ray
from ray import tune
import cmf_agent as cmf
from cmf_agent.integrations.ray_tune import CmfCallback
def train(config):
    for step in range(3):
        if config["x"] == 0 and step == 1:
            raise ValueError("a bad x")
        tune.report({"loss": config["x"] / (step + 1), "val": {"acc": step}})
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
with cmf.run("mnist", "tune") as run:
    recorded = CmfCallback("mnist", "trial", metric="loss", mode="min")
    found = tune.Tuner(
        train,
        param_space={"x": tune.grid_search([0, 1, 2])},
        run_config=tune.RunConfig(callbacks=[recorded], storage_path=STORAGE, verbose=0),
    ).fit()
    assert len(found) == 3 and len(found.errors) == 1
    assert cmf.current_run() is run
ray.shutdown()
"""


def test_trials_are_executions_nested_in_the_run_that_tunes(home: Home) -> None:
    done = python(f"STORAGE = {str(home.root / 'results')!r}\n{SCRIPT}", cwd=home.root)
    assert done.returncode == 0, done.stderr
    asked = cli("query", "executions", "--sort", "started_at", "--json", cwd=home.root)
    items: list[dict[str, Any]] = json.loads(asked.stdout)["items"]
    tuning, *trials = items
    assert (tuning["stage"], tuning["status"], len(trials)) == ("tune", "finished", 3)
    by_x = {trial["params"]["x"]: trial for trial in trials}
    assert {x: trial["status"] for x, trial in by_x.items()} == {0: "failed", 1: "finished", 2: "finished"}
    assert by_x[0]["error"] == {"type": "ValueError", "message": "a bad x"}
    assert {x: trial["tags"] for x, trial in by_x.items()} == {0: [], 1: ["best"], 2: []}
    assert by_x[0]["metrics"]["loss"] < by_x[1]["metrics"]["loss"], "the one that failed had the best result so far"
    assert by_x[2]["metrics"]["loss"] == pytest.approx(2 / 3)
    assert by_x[2]["metrics"]["val/acc"] == 2
    assert len({trial["name"] for trial in trials}) == 3
    steps = json.loads(cli("query", "metrics", "--name", "loss", "--steps", "--json", cwd=home.root).stdout)["items"]
    series = {item["execution"]: [point["step"] for point in item["series"][0]["points"]] for item in steps}
    assert series[by_x[1]["id"]] == [1, 2, 3]
    parents = json.loads(cli("query", "show", by_x[1]["id"], "--json", cwd=home.root).stdout)
    assert tuning["id"].replace("-", "") in json.dumps(parents).replace("-", "")
