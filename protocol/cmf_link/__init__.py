"""The NATS shell that agent and hub both use: every foreign error becomes ours."""
