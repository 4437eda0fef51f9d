"""Trials of Ray Tune, with the signature of the peer's logger, recorded by the real library."""

import pytest
from tests.agent.helpers import of_type, python

from cmf_agent.home import Home

TUNING = """
import os
from ray import tune
from cmf_agent.cmflib.ray_logger import CmfRayLogger

here = os.getcwd()

def train(config):
    model = f"{here}/model_{config['x']}.txt"
    with open(model, "w") as file:
        file.write(str(config["x"]))
    for step in (1, 2):
        tune.report({"accuracy": config["x"] * step, "model_path": model})

logger = CmfRayLogger("mnist", "mlmd", "tune", data_dir="data", metric="accuracy", order="max", top_n=2)
run_config = tune.RunConfig(callbacks=[logger], storage_path=f"{here}/ray", verbose=0)
tune.Tuner(train, param_space={"x": tune.grid_search([1, 2, 3])}, run_config=run_config).fit()
"""


@pytest.mark.extended
def test_trials_are_executions_with_their_data_their_models_and_their_rank(home: Home) -> None:
    (home.root / "data").mkdir()
    (home.root / "data" / "a.csv").write_text("1\n")
    done = python(TUNING, cwd=home.root)
    assert done.returncode == 0, done.stderr
    started = of_type(home, "execution.started")
    assert all(str(body["facts"]["name"]).startswith("Trial_") for _, body in started)
    assert len(started) == 3
    assert {body["name"] for _, body in of_type(home, "artifact.used")} == {"data"}
    made = of_type(home, "artifact.produced")
    models = {body["name"] for _, body in made if body["facts"]["kind"] == "model"}
    assert models == {f"model_{x}.txt" for x in (1, 2, 3)}
    assert sum(body["facts"]["kind"] == "metrics" for _, body in made) == 3
    ranked = [body for _, body in of_type(home, "execution.updated") if body.get("properties") == {"in_top_n": True}]
    assert len(ranked) == 2
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["finished"] * 3
