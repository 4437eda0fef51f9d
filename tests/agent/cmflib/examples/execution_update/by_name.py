"""Says more of an execution by making it once more."""

from cmf_agent.cmflib import Cmf

metawriter = Cmf("mlmd", "test-execution-update")
metawriter.create_context("Train")
metawriter.create_execution("Train-execution", {"name": "test-1"}, create_new_execution=False)
metawriter.log_dataset("artifacts/data.csv", "input", custom_properties={"user-metadata1": "metadata_value"})
metawriter.log_execution_metrics("metrics-1", {"auc": 0.4})
metawriter.finalize()
