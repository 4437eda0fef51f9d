import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.dvc import make_dvc_project

from cmf_agent.current import _current
from cmf_agent.home import Home, future_home, init_home


@pytest.fixture(autouse=True)
def _no_current_run() -> Iterator[None]:
    """A run that a test leaves open is not the one around the next test's."""
    yield
    _current.set(None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, for an agent that nothing outside configures."""
    for name in os.environ:
        if name.startswith("CMF_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def home(project: Path) -> Home:
    """A home made in the project."""
    made = future_home(project)
    init_home(made)
    return made


@pytest.fixture
def dvc_home(home: Home) -> Home:
    """A home in a git and DVC repository, which is also the working directory."""
    make_dvc_project(home.root)
    return home
