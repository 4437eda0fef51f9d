"""`--bytes` of pull and clone: the bytes come with what was recorded of them, and duplicates are told over several sites."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.artifact_sites import command
from tests.support.dvc import make_dvc_project
from tests.support.hubs import Hub, running_hub
from tests.support.sites import SiteFolder

from cmf_agent.commands.asking import questions_at
from cmf_hub.enrol import add_site

MODEL, DATA = b"model of ana" * 50, b"a,b\n1,2\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that knows what ana recorded, whose bytes are in a remote; what she recorded last is not."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "ana").mkdir()
    make_dvc_project(folder / "ana")
    ana = SiteFolder(folder / "ana")
    (ana.folder / "data.csv").write_bytes(DATA)
    ana.run("screening", "train", inputs=["data.csv"], outputs={"model.pkl": MODEL})
    ana.run("billing", "sum", outputs={"bill.csv": b"1 EUR"})
    assert command(ana.folder, "artifact", "push", "--url", str(folder / "remote")) == 0
    ana.run("screening", "test", outputs={"late.csv": b"not pushed"})
    with running_hub(folder / "hub") as hub:
        hub.join(ana)
        push(ana)
        yield hub


def push(site: SiteFolder) -> None:
    assert command(site.folder, "push", "--timeout", "60") == 0


Answer = Callable[..., Any]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command of cmf-agent in this process (starting one with DVC takes a second), and returns its one document."""

    def ask(folder: Path, *arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert command(folder, *arguments, "--json") == code
        return json.loads(capsys.readouterr().out)

    return ask


def states(fetched: dict[str, Any]) -> dict[str, str]:
    return {item["names"][0]: item["state"] for item in fetched["items"]}


def test_a_new_colleague_has_the_bytes_too_with_one_command(hub: Hub, tmp_path: Path, ask: Answer) -> None:
    add_site(hub.data, "maria", tmp_path / "maria.join")
    said = ask(tmp_path, "clone", "maria.join", "-p", "screening", "--bytes", "work")
    assert said["complete"]
    assert states(said["artifacts"]) == {"data.csv": "transferred", "model.pkl": "transferred", "late.csv": "missing"}
    work = tmp_path / "work"
    assert ((work / "data.csv").read_bytes(), (work / "model.pkl").read_bytes()) == (DATA, MODEL)
    assert not (work / "bill.csv").exists()
    (work / "model.pkl").write_bytes(b"mine")
    again = ask(work, "pull", "--bytes")
    assert states(again["artifacts"]) == {"data.csv": "present", "model.pkl": "present", "late.csv": "missing"}
    assert (work / "model.pkl").read_bytes() == b"mine"


def test_a_pull_with_bytes_refuses_what_is_damaged(hub: Hub, tmp_path: Path, ask: Answer) -> None:
    (tmp_path / "boris").mkdir()
    make_dvc_project(tmp_path / "boris")
    boris = SiteFolder(tmp_path / "boris")
    (boris.folder / "copy.csv").write_bytes(DATA)
    boris.run("screening", "look", inputs=["copy.csv"])
    hub.join(boris)
    push(boris)
    remote = Path(shutil.copytree(hub.folder.parent / "remote", tmp_path / "remote"))
    (model,) = [path for path in remote.rglob("*") if path.is_file() and path.read_bytes() == MODEL]
    model.chmod(0o644)
    model.write_bytes(b"evil")
    (boris.folder / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    fetched = ask(boris.folder, "pull", "-p", "screening", "--bytes", code=5)["artifacts"]
    assert states(fetched) == {"copy.csv": "present", "model.pkl": "failed", "late.csv": "missing"}
    (reason,) = [item["reason"] for item in fetched["items"] if item["state"] == "failed"]
    assert "is damaged" in reason and str(model) in reason
    assert (boris.folder / "data.csv").read_bytes() == DATA and not (boris.folder / "model.pkl").exists()
    with questions_at(boris.home) as asked:
        local = asked.duplicates()
    for answer in (local, hub.ask("query", "duplicates")):
        assert answer["total"] == {"contents": 1, "copies": 2, "bytes_saved": len(DATA)}
        assert answer["items"][0]["sites"] == ["ana", "boris"]


def test_without_a_dvc_repository_nothing_is_pulled(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = SiteFolder(tmp_path / "plain")
    hub.join(site)
    assert command(site.folder, "pull", "-p", "screening", "--bytes") == 2
    assert "is in no DVC repository" in capsys.readouterr().err
    assert not site.home.pulled_path.exists()


def test_what_the_hub_knows_nothing_of_is_told(
    hub: Hub, tmp_path: Path, ask: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    site = SiteFolder(tmp_path / "reader")
    hub.join(site)
    assert command(site.folder, "subscribe", "-p", "misspelt") == 0
    assert capsys.readouterr().out.endswith("the hub holds nothing of pipeline misspelt (yet)\n")
    said = ask(site.folder, "pull", "-p", "misspelt")
    assert (said["found"], said["empty"], said["complete"]) == (False, [{"pipelines": ["misspelt"]}], True)
    assert ask(site.folder, "pull", "-p", "screening")["found"]
    capsys.readouterr()
    assert command(site.folder, "pull", "--artifact", "nosuch") == 2
    assert "no artifact here is called 'nosuch'" in capsys.readouterr().err
