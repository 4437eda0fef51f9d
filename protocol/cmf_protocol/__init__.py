"""The format and the decisions, pure: no IO, no clock reads, no randomness (protocol/README.md)."""
