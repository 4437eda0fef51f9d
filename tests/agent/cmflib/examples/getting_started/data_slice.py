"""Slices of a folder of files: made, read, changed."""

from pathlib import Path

from cmf_agent.cmflib import Cmf

folder = Path("artifacts/raw_data")
folder.mkdir(parents=True)
for number in range(1, 31):
    (folder / f"{number}.txt").write_text(f"text {number % 4}", encoding="utf-8")

metawriter = Cmf(filepath="mlmd", pipeline_name="dvc")
metawriter.create_context(pipeline_stage="Prepare")
metawriter.create_execution(execution_type="Prepare")
metawriter.log_dataset(str(folder), "input")

for number in (1, 2):
    dataslice: Cmf.DataSlice = metawriter.create_dataslice(name=f"slice-{number}")
    for at in range(1, 20):
        properties = {"key1": "value1", "key2": "value2"}
        dataslice.add_data(path=f"{folder}/{at + number}.txt", custom_properties=properties)
    dataslice.commit()

frame = metawriter.read_dataslice(name="slice-1")
record = ""
for label, _ in frame.iterrows():
    record = str(label)
metawriter.update_dataslice(name="slice-1", record=record, custom_properties={"key1": "1", "key2": "2"})
for label, content in metawriter.read_dataslice(name="slice-1").iterrows():
    if label == record:
        print(label, content["key1"], content["key2"])
metawriter.finalize()
