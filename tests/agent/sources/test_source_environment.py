"""What is recorded of the Python environment."""

import json
import platform
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from cmf_agent.sources.environment import capture_environment


def packages() -> dict[str, str]:
    found = capture_environment()["packages"]
    assert isinstance(found, dict)
    return found


def install(folder: Path, metadata_file: str, name: str, version: str) -> None:
    path = folder / metadata_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: not this\n", encoding="utf-8")


def test_this_environments_packages_are_those_of_importlib_metadata() -> None:
    expected: dict[str, str] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        expected.setdefault(name, distribution.version)
    assert packages() == expected
    assert packages()["pytest"] == pytest.__version__


def test_python_and_system_are_named() -> None:
    found = capture_environment()
    assert found["python"] == platform.python_version()
    assert found["implementation"] == platform.python_implementation()
    assert (found["system"], found["machine"]) == (platform.system(), platform.machine())


@pytest.mark.parametrize(
    ("metadata_file", "name", "version"),
    [
        ("zope.Interface-5.4.dist-info/METADATA", "Zope.Interface", "5.4"),
        ("some_pkg-1.0+local.1.dist-info/METADATA", "some-pkg", "1.0+local.1"),
        ("odd-1.0_1.dist-info/METADATA", "odd", "1.0-1"),
        ("weird.dist-info/METADATA", "weird", "3"),
        ("editable.egg-info/PKG-INFO", "editable", "0.1.dev0"),
        ("old-2.0-py3.11.egg-info", "old", "2.0"),
        ("packed-1.1-py3.11.egg/EGG-INFO/PKG-INFO", "packed", "1.1"),
    ],
)
def test_every_way_to_install_is_recognised_as_soon_as_the_path_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata_file: str, name: str, version: str
) -> None:
    install(tmp_path, metadata_file, name, version)
    before = packages()
    on_path = tmp_path / metadata_file.split("/", maxsplit=1)[0] if ".egg/" in metadata_file else tmp_path
    monkeypatch.syspath_prepend(str(on_path))
    assert packages() == before | {re.sub(r"[-_.]+", "-", name).lower(): version}


def test_a_zipped_egg_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    egg = tmp_path / "zipped-7.0-py3.11.egg"
    with zipfile.ZipFile(egg, "w") as archive:
        archive.writestr("EGG-INFO/PKG-INFO", "Metadata-Version: 1.0\nName: zipped\nVersion: 7.0\n")
    monkeypatch.syspath_prepend(str(egg))
    assert packages()["zipped"] == "7.0"


def test_the_first_on_the_path_wins_and_leftovers_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "first", "twice-2.0.dist-info/METADATA", "twice", "2.0")
    install(tmp_path / "second", "Twice-1.0.dist-info/METADATA", "Twice", "1.0")
    (tmp_path / "first" / "gone-1.0.dist-info").mkdir()
    (tmp_path / "first" / "~broken-1.0.dist-info").mkdir()
    for folder in ("second", "first", "missing"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert packages()["twice"] == "2.0"
    assert not {"gone", "~broken", "broken", "-broken"} & packages().keys()


def test_what_is_returned_belongs_to_the_caller() -> None:
    packages().clear()
    assert packages()


def test_it_names_no_path_and_no_host_and_is_the_same_in_another_process(tmp_path: Path) -> None:
    script = "import json; from cmf_agent.sources.environment import capture_environment as c; print(json.dumps(c()))"
    runs = [
        subprocess.run([sys.executable, "-I", "-c", script], cwd=cwd, capture_output=True, text=True, check=True).stdout
        for cwd in (tmp_path, Path("/"))
    ]
    assert runs[0] == runs[1]
    assert platform.node() not in runs[0]
    assert "/" not in json.dumps(json.loads(runs[0]))
