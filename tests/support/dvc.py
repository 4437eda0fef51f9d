"""Real git and DVC repositories for tests, and what was recorded of where bytes are."""

import atexit
import logging
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import cmf_agent as cmf
from cmf_agent.home import Home
from cmf_agent.reading import LogReader
from cmf_protocol.events import decode_body


def git(folder: Path, *arguments: str) -> str:
    """Run git there and return what it says."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_dvc_project(folder: Path) -> None:
    """Make a git and DVC repository with one commit."""
    for name in (".git", ".dvc", ".dvcignore"):
        source = _template() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    # What DVC remembers of files lies in /var/tmp otherwise, and would stay there.
    (folder / ".dvc" / "config.local").write_text(f"[core]\n    site_cache_dir = {folder / '.dvc' / 'site'}\n")


@cache
def _template() -> Path:
    """Return such a repository, made once per process: copying it is ten times faster than making it."""
    folder = Path(tempfile.mkdtemp(prefix="cmf-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "A"), ("user.email", "a@example.org"), ("commit.gpgsign", "false")):
        git(folder, "config", key, value)
    init_dvc(folder)
    git(folder, "commit", "--quiet", "-m", "init")
    return folder


def init_dvc(folder: Path, **options: bool) -> None:
    """Do what `dvc init` does, quietly: DVC warns of itself, and tests make errors of warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dvc.repo import Repo

        logger = logging.getLogger("dvc")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            Repo.init(str(folder), **options).close()
        finally:
            logger.setLevel(level)


def told(home: Home, content_id: str | None = None) -> list[dict[str, str]]:
    """Return the locations that were recorded, of one content or of all, in the order of the log."""
    found = []
    with LogReader(home.log_path) as reader:
        for event in reader.all_events():
            if event.header.type == "artifact.stored" and content_id in (None, event.header.about[0][1]):
                found.append(decode_body(event.body or b"")["location"])
    return found


def tracking_errors(home: Home) -> dict[str, Any]:
    """Return what the last event says that told of tracking errors; empty if none did."""
    errors: dict[str, Any] = {}
    with LogReader(home.log_path) as reader:
        for event in reader.all_events():
            body = decode_body(event.body or b"")
            errors = body.get("properties", {}).get("tracking_errors", errors)
    return errors


def written(path: Path, text: str = "one\n") -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def log_input(path: str | Path, *, commit: bool = False) -> str:
    """Record a run with one input, and return its content id."""
    with cmf.run("p", "s") as run:
        return run.input(path, commit=commit).content_id
