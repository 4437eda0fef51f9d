from collections.abc import Iterator
from pathlib import Path

import pytest

from cmf_agent.cmflib import Cmf
from cmf_agent.home import Home


@pytest.fixture
def writer(home: Home) -> Iterator[Cmf]:
    made = Cmf(pipeline_name="mnist")
    yield made
    made.finalize()


@pytest.fixture
def data(project: Path) -> Path:
    path = project / "data.csv"
    path.write_text("1,2\n")
    return path
