"""What artifacts are called."""

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmf_agent.sources.names import artifact_name
from cmf_protocol.errors import CallerError

ROOT = Path("/project")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/project/data/train.csv", "data/train.csv"),
        ("/project/data/../model.pkl", "model.pkl"),
        ("/project/./a//b/", "a/b"),
        ("/project", "."),
        ("/project/../project2/x", "/project2/x"),
        ("/projects/x", "/projects/x"),
        ("/elsewhere/x", "/elsewhere/x"),
        ("/project/100%.csv", "100%.csv"),
        ("/project/e\u0301 \u65e5\u672c.txt", "e\u0301 \u65e5\u672c.txt"),
    ],
)
def test_a_name_is_the_path_below_the_root_or_the_whole_path(path: str, name: str) -> None:
    assert artifact_name(Path(path), ROOT) == (name, False)


def test_everything_is_inside_the_root_folder() -> None:
    assert artifact_name(Path("/a/b"), Path("/")) == ("a/b", False)


def test_a_relative_path_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert artifact_name(Path("x"), tmp_path) == ("sub/x", False)
    assert artifact_name(Path("../x"), tmp_path) == ("x", False)


def test_links_keep_their_own_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "root").symlink_to("real")
    assert artifact_name(tmp_path / "link", tmp_path) == ("link", False)
    assert artifact_name(tmp_path / "link" / "etc", tmp_path) == ("link/etc", False)
    assert artifact_name(tmp_path / "real" / "x", tmp_path / "root") == ("x", False)
    assert artifact_name(tmp_path / "root" / "x", tmp_path / "real") == ("x", False)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"\xff.bin", "%FF.bin"),
        (b"caf\xe9/100%", "caf%E9/100%25"),
        ("\u00e9".encode() + b"\x80", "\u00e9%80"),
    ],
)
def test_bytes_that_are_not_utf8_are_escaped_and_flagged(raw: bytes, name: str) -> None:
    assert artifact_name(ROOT / os.fsdecode(raw), ROOT) == (name, True)


@pytest.mark.parametrize("impossible", ["a\0b", "\ud800"])
def test_what_no_file_can_be_called_is_refused(impossible: str) -> None:
    with pytest.raises(CallerError) as refused:
        artifact_name(ROOT / impossible, ROOT)
    assert refused.value.hint


@given(st.binary(min_size=1).filter(lambda raw: not {b"\0"[0], b"/"[0]} & set(raw) and raw not in {b".", b".."}))
def test_every_name_is_text_and_leads_back_to_its_bytes(raw: bytes) -> None:
    name, lossy = artifact_name(ROOT / os.fsdecode(raw), ROOT)
    assert (unquote_to_bytes(name) if lossy else name.encode()) == raw
