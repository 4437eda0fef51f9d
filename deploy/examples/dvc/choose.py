"""Takes the best model, and records itself while it does."""

import json
from pathlib import Path

import cmf_agent as cmf

MODELS = {f"model-{rate}.json": f"metrics-{rate}.json" for rate in ("0.1", "0.5")}

with cmf.run("example", "choose") as run:
    for model in MODELS:
        run.input(model)
    best = min(MODELS, key=lambda model: json.loads(Path(MODELS[model]).read_text())["loss"])
    run.property("best", best)
    chosen = {"from": best, **json.loads(Path(best).read_text())}
    Path("model.json").write_text(json.dumps(chosen))
    run.log_model("model.json")
