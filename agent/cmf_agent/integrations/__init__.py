"""Adapters that have a run record what other libraries do; each module needs its library, none of which is installed with this package."""
