"""The version of this release, as it is recorded and shown."""

VERSION = "0.1.0"
AGENT = f"cmf-sync/{VERSION}"
