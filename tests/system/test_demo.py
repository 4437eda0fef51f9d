import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.programs import environment

DEMO = Path(__file__).parents[2] / "deploy" / "examples" / "clinics" / "demo.py"


@pytest.mark.deep  # it trains for more than a minute
def test_the_demo_shows_what_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO)], env=environment(TMPDIR=str(tmp_path)), cwd=tmp_path, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert "Traceback" not in said + done.stderr
    for clinic in ("clinic-ana", "clinic-boris", "clinic-chen"):
        assert f"{clinic}" in said
    assert "executions at 4 sites, down to data/patients.csv and the git commit of each clinic" in said
    assert "its push was killed" in said
    assert "the hub was killed during its push" in said
    assert "every one, once" in said
    assert "NOT" not in said
    assert "cmf-hub verify: checked" in said
    assert ": ok" in said
    assert "rebuilt from zero: the same" in said
    assert said.count("0 pending") >= 8  # each site's push, and its status afterwards
