"""Fits a line by gradient descent with the learning rate that it is called with."""

import csv
import json
import sys
from pathlib import Path

from ruamel.yaml import YAML

rate = sys.argv[1]
steps = YAML(typ="safe").load(Path("params.yaml"))["steps"]
with Path("points.csv").open(newline="") as file:
    points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
slope = offset = 0.0
for _ in range(steps):
    errors = [(x, slope * x + offset - y) for x, y in points]
    slope -= float(rate) * 2 * sum(x * error for x, error in errors) / len(points)
    offset -= float(rate) * 2 * sum(error for _, error in errors) / len(points)
loss = sum((slope * x + offset - y) ** 2 for x, y in points) / len(points)
Path(f"model-{rate}.json").write_text(json.dumps({"slope": slope, "offset": offset}))
Path(f"metrics-{rate}.json").write_text(json.dumps({"loss": loss}))
