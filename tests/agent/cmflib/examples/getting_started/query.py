"""Prints what the other scripts logged. Usage: query.py MLMD_FILE."""

import sys

from cmf_agent.cmflib import CmfQuery

query = CmfQuery(sys.argv[1])
for stage in query.get_pipeline_stages("Test-env"):
    executions = query.get_all_executions_in_stage(stage)
    print(stage)
    print(executions.drop(columns=["Git_Start_Commit", "Git_End_Commit"]).to_string())
