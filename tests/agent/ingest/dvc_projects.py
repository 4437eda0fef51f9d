"""Projects with lock files as DVC writes them, in git repositories, without DVC."""

import hashlib
import io
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cmf_agent.home import Home
from cmf_agent.view import local_view
from cmf_protocol.events import Node
from cmf_protocol.resolve import NodeState


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def entry(path: str, content: bytes, **more: Any) -> dict[str, Any]:
    return {"path": path, "hash": "md5", "md5": md5(content), "size": len(content)} | more


def yaml_text(document: Mapping[str, Any]) -> str:
    """Return a document as DVC writes it."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(document, stream)
    return stream.getvalue()


def write_lock(folder: Path, stages: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.lock").write_text(yaml_text({"schema": "2.0", "stages": stages}))


def write_pipeline(folder: Path, stages: Mapping[str, Any], **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text(yaml_text({"stages": stages, **more}))


def git(folder: Path, *arguments: str, at: int = 1_700_000_000, **changes: str) -> str:
    """Run git and return what it said; `at` is the time of a commit, s since 1970."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    dates = {"GIT_AUTHOR_DATE": f"@{at} +0000", "GIT_COMMITTER_DATE": f"@{at} +0000", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=kept | identity | dates | {"GIT_CONFIG_NOSYSTEM": "1"} | changes,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return (done.stdout + done.stderr).strip()


def commit_all(folder: Path, at: int) -> str:
    """Commit everything but what is ignored, and return the commit's id."""
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", f"at {at}", at=at)
    return git(folder, "rev-parse", "HEAD")


def state_of(home: Home, node: Node) -> NodeState:
    """Return what the local view holds of a node, which must be there."""
    with local_view(home) as graph:
        node_id = graph.node_id(node)
        assert node_id is not None, node
        return graph.state(node_id, node)
