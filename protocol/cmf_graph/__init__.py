"""The graph that hub and agent both keep: stores, queries, digest, views."""
