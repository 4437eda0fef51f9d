"""Says more of an execution that a query finds."""

from cmf_agent.cmflib import Cmf, CmfQuery

query = CmfQuery("mlmd")
print(query.get_pipeline_names())

metawriter = Cmf("mlmd", "test-execution-update")
context = metawriter.child_context = metawriter.create_context("Train")
found = None
for execution in query.get_all_exe_in_stage(context.name):
    if execution.name == "Train-execution":
        found = execution
metawriter.execution = found
metawriter.log_dataset("artifacts/data.csv", "input", custom_properties={"user-metadata1": "metadata_value"})
metawriter.log_execution_metrics("metrics-1", {"auc": 0.3})
metawriter.finalize()
