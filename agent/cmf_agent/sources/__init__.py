"""What the agent captures about the world around a run: files, code, environment, host.

Nothing here writes to the log or changes what it looks at. Each module stands alone and imports git, pathspec
and the like only when they are needed, so that `import cmf_agent` stays quick.
"""
