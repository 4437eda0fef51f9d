"""Content ids of files and folders, as DVC computes them, with or without DVC: what an artifact's node is named by.

Shared, since the agent records them and both command lines accept the path of a file as a REF.
"""
