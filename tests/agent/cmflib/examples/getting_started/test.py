"""Stage Evaluate: tells how good a model is. Usage: test.py MODEL_FOLDER DATA_FOLDER RESULT_FOLDER."""

import json
import sys
from pathlib import Path

from cmf_agent.cmflib import Cmf

model, source, folder = Path(sys.argv[1]) / "model.pkl", Path(sys.argv[2]), Path(sys.argv[3])

metawriter = Cmf(filepath="mlmd", pipeline_name="Test-env", graph=False)
metawriter.create_context(pipeline_stage="Evaluate")
metawriter.create_execution(execution_type="Evaluate-execution")
metawriter.log_model(
    path=str(model),
    event="input",
    model_framework="sklearn",
    model_type="RandomForest",
    model_name="RandomForest_default",
)
metawriter.log_dataset(str(source / "test.pkl"), "input")

mean = json.loads(model.read_text(encoding="utf-8"))["mean"]
features = json.loads((source / "test.pkl").read_text(encoding="utf-8"))
error = sum(abs(row[1] - mean) for row in features) / len(features)
folder.mkdir(parents=True, exist_ok=True)
(folder / "scores.json").write_text(json.dumps({"error": error}), encoding="utf-8")
metawriter.finalize()

metawriter.log_execution_metrics("metrics", {"avg_prec": 0.5 + error / 1000, "roc_auc": 0.75})
