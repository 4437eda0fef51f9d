"""Makes an execution that can be reused, twice."""

from cmf_agent.cmflib import Cmf

metawriter = Cmf("mlmd", "test-execution-update")
context = metawriter.create_context("Train")
first = metawriter.create_execution("Train-execution", {"name": "test-0"}, create_new_execution=False)
again = metawriter.create_execution("Train-execution", create_new_execution=False)
print(context.name, first.name, first.id == again.id)
metawriter.update_execution(first.id, {"epochs": 3, "rate": 0.5})
metawriter.finalize()
