"""Real DVC, to compare our digests with."""

import os
import warnings
from pathlib import Path


def dvc_digest(project: Path, target: str) -> str:
    """Return the md5 that DVC itself states after adding `target` to the project at `project`."""
    os.environ["DVC_NO_ANALYTICS"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DVC's own, about the libraries that it uses
        from dvc.repo import Repo
        from dvc.utils.serialize import load_yaml

        # Made anew for each question: a Repo remembers the rules that it has read.
        repo = Repo(str(project)) if (project / ".dvc").exists() else Repo.init(str(project), no_scm=True)
        with repo:
            repo.add([str(project / target)], no_commit=True)
        stated = load_yaml(str(project / f"{target}.dvc"))["outs"][0]
    assert stated["hash"] == "md5"
    return str(stated["md5"])
