"""Stage Prepare: splits raw data in two. Usage: parse.py INPUT OUTPUT_FOLDER."""

import random
import sys
from pathlib import Path

from cmf_agent.cmflib import Cmf

raw, folder = Path(sys.argv[1]), Path(sys.argv[2])
params = {"split": 0.2, "seed": 20170428}

metawriter = Cmf(filepath="mlmd", pipeline_name="Test-env", graph=False)
metawriter.create_context(pipeline_stage="Prepare", custom_properties={"user-metadata1": "metadata_value"})
metawriter.create_execution(execution_type="Prepare", custom_properties=params)
metawriter.log_dataset(
    str(raw),
    "input",
    custom_properties={"user-metadata1": "metadata_value"},
    label="artifacts/labels.csv",
    label_properties={"user1": "xyz"},
)

random.seed(params["seed"])
rows = raw.read_text(encoding="utf-8").splitlines()
random.shuffle(rows)
held_out = int(len(rows) * params["split"])
folder.mkdir(parents=True, exist_ok=True)
train, test = folder / "train.tsv", folder / "test.tsv"
train.write_text("\n".join(rows[held_out:]) + "\n", encoding="utf-8")
test.write_text("\n".join(rows[:held_out]) + "\n", encoding="utf-8")

metawriter.log_dataset(str(train), "output")
metawriter.log_dataset(str(test), "output")
metawriter.finalize()
