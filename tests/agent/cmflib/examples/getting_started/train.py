"""Stage Train: fits a model. Usage: train.py INPUT_FOLDER OUTPUT_FOLDER."""

import json
import sys
from pathlib import Path

from cmf_agent.cmflib import Cmf

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
params = {"min_split": 64, "n_est": 100, "learning_rate": 1e-3}

metawriter = Cmf(filepath="mlmd", pipeline_name="Test-env", graph=False)
metawriter.create_context(pipeline_stage="Train")
metawriter.create_execution(execution_type="Train-execution", custom_properties=params)
metawriter.log_dataset(str(source / "train.pkl"), "input")

features = json.loads((source / "train.pkl").read_text(encoding="utf-8"))
for _ in range(3):
    metawriter.log_metric("training_metrics", {"train_loss": 10})
metawriter.commit_metrics("training_metrics")

folder.mkdir(parents=True, exist_ok=True)
model = folder / "model.pkl"
model.write_text(json.dumps({"mean": sum(row[1] for row in features) / len(features)}), encoding="utf-8")
metawriter.log_model(
    path=str(model),
    event="output",
    model_framework="SKlearn",
    model_type="RandomForestClassifier",
    model_name="RandomForestClassifier:default",
)
metawriter.finalize()
