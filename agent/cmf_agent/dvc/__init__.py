"""Artifact bytes in DVC: what it tracks, where that is told, and carrying it to and from remotes.

Only `repository.py` (and what is lent by it) needs DVC; everything else works where DVC is not installed.
"""
