from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.hubs import Hub, running_hub
from tests.support.sites import SiteFolder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[str], SiteFolder]]:
    """Makes sites by name, each in a folder of its own."""
    made: list[SiteFolder] = []

    def make(name: str) -> SiteFolder:
        made.append(SiteFolder(tmp_path / name))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub that serves, for one test."""
    with running_hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that serves, for all tests of a file that leave it serving."""
    with running_hub(tmp_path_factory.mktemp("shared") / "hub") as running:
        yield running
