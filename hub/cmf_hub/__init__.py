"""The hub: custody, projection, registry, embedded nats-server, command line."""
