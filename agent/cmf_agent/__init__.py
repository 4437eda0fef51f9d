"""The agent: log, outbox, capture, command line cmf-agent."""
