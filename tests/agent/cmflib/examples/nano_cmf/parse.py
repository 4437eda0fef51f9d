"""Logs datasets and nothing else. Usage: parse.py INPUT OUTPUT_FOLDER."""

import sys
from pathlib import Path

from cmf_agent.cmflib import Cmf

raw, folder = Path(sys.argv[1]), Path(sys.argv[2])
metawriter = Cmf()
metawriter.log_dataset(
    str(raw),
    "input",
    custom_properties={"user-metadata1": "metadata_value"},
    label="artifacts/labels.csv",
    label_properties={"user1": "xyz"},
)
folder.mkdir(parents=True, exist_ok=True)
rows = raw.read_text(encoding="utf-8").splitlines()
for name, part in (("train.tsv", rows[:-2]), ("test.tsv", rows[-2:])):
    (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")
    metawriter.log_dataset(str(folder / name), "output")
