"""Brings in what other programs recorded: each reader makes drafts, `appending.py` records those that say something new."""
