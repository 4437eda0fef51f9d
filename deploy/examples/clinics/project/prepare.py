"""Stage `prepare`: splits a clinic's patients into training and test rows. Run by `cmf-agent run`, knows nothing of it."""

import csv
import random
from pathlib import Path

with Path("data/patients.csv").open(newline="") as file:
    header, *rows = csv.reader(file)
random.Random(7).shuffle(rows)
cut = len(rows) * 3 // 4
for name, part in (("train", rows[:cut]), ("test", rows[cut:])):
    with Path(f"data/{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *part])
print(f"{cut} rows to train on, {len(rows) - cut} to test on")
