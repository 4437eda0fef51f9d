"""Stage Featurize: counts in numbers what the texts say. Usage: featurize.py INPUT_FOLDER OUTPUT_FOLDER."""

import json
import sys
from pathlib import Path

from cmf_agent.cmflib import Cmf

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
params = {"max_features": 1500, "ngrams": 2}

metawriter = Cmf(filepath="mlmd", pipeline_name="Test-env", graph=False)
metawriter.create_context(pipeline_stage="Featurize")
metawriter.create_execution(execution_type="Featurize-execution", custom_properties=params)

folder.mkdir(parents=True, exist_ok=True)
for name in ("train", "test"):
    metawriter.log_dataset(str(source / f"{name}.tsv"), "input")
for name in ("train", "test"):
    rows = (source / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    features = [[len(row), row.count("1")] for row in rows][: params["max_features"]]
    (folder / f"{name}.pkl").write_text(json.dumps(features), encoding="utf-8")
    metawriter.log_dataset(str(folder / f"{name}.pkl"), "output")
metawriter.finalize()
