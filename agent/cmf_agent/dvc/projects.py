"""Where DVC's projects are."""

# os.path: asked for every artifact, where pathlib is several times slower.
# ruff: noqa: PTH112, PTH118, PTH120

import os

DVC_FOLDER = ".dvc"


def dvc_root(path: str) -> str | None:
    """Return the DVC project that holds the absolute `path`, None if none does."""
    folder = os.path.dirname(path)
    while not os.path.isdir(os.path.join(folder, DVC_FOLDER)):
        parent = os.path.dirname(folder)
        if parent == folder or os.path.ismount(folder):
            return None
        folder = parent
    return folder
