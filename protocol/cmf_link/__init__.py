"""The NATS shell that agent and hub both use: opaque bytes in and out, every foreign error becomes ours.

Rules
- Knows nothing of events or segments, and imports nothing of agent or hub.
- `failures.py` is the only place where what nats-py or a server says becomes one of `cmf_protocol.errors`.
- `connection.py` is one login on one TCP connection and never reconnects; `link.py` replaces connections
  that were lost; `watchdog.py` decides when a silent one is lost. nats-py's own reconnecting is off: it can
  hang for ever on a half-open connection (nats-io/nats.py issue 671), and a fresh client has no history.
- Begin reading at `link.py`.
"""
