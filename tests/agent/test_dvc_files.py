"""What DVC wrote down is read without DVC."""

import hashlib
from pathlib import Path

import pytest

from cmf_agent.dvc.dvc_files import (
    cache_folder,
    cached_path,
    read_declared_outs,
    read_dvc_file,
    read_lock,
    read_manifest,
)
from cmf_agent.dvc.git_objects import blob_id
from cmf_protocol.errors import CallerError

MD5 = "5eb63bbbe01eeed093cb22bb8f5acdc3"


def wrote(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_dvc_file_tells_digest_size_and_path(tmp_path: Path) -> None:
    text = f"outs:\n- md5: {MD5}.dir\n  size: 12\n  nfiles: 3\n  hash: md5\n  path: data\n"
    (entry,) = read_dvc_file(wrote(tmp_path / "data.dvc", text))
    assert entry.path == str(tmp_path / "data")
    assert (entry.content_id, entry.size, entry.files, entry.is_cached) == (f"md5:{MD5}.dir", 12, 3, True)


def test_an_entry_of_dvc_2_is_no_md5(tmp_path: Path) -> None:
    (entry,) = read_dvc_file(wrote(tmp_path / "x.dvc", f"outs:\n- md5: {MD5}\n  path: x\n"))
    assert entry.content_id == f"md5-dos2unix:{MD5}"


def test_what_is_kept_elsewhere_or_not_cached_is_told_so(tmp_path: Path) -> None:
    text = "wdir: ../other\nouts:\n- etag: abc\n  path: s3://bucket/x\n- path: y\n  cache: false\n"
    far, plain = read_dvc_file(wrote(tmp_path / "sub" / "x.dvc", text))
    assert (far.path, far.content_id) == ("s3://bucket/x", "etag:abc")
    assert (plain.path, plain.content_id, plain.is_cached) == (str(tmp_path / "other" / "y"), "", False)


def test_a_lock_gives_stages_with_paths_from_their_working_folder(tmp_path: Path) -> None:
    wrote(
        tmp_path / "dvc.yaml",
        "stages:\n  train:\n    wdir: src\n    foreach: [a]\n    do:\n      wdir: src\n      cmd: x\n",
    )
    lock = f"""
schema: '2.0'
stages:
  train@a:
    cmd: python t.py
    deps:
    - path: ../in.csv
      hash: md5
      md5: {MD5}
    params:
      params.yaml:
        lr: 1e-3
    outs:
    - path: model
      md5: {MD5}
"""
    (stage,) = read_lock(wrote(tmp_path / "dvc.lock", lock))
    assert (stage.name, stage.command) == ("train@a", "python t.py")
    assert [entry.path for entry in stage.deps] == [str(tmp_path / "in.csv")]
    assert [(entry.path, entry.hash) for entry in stage.outs] == [(str(tmp_path / "src" / "model"), "md5-dos2unix")]
    assert stage.params == {"params.yaml": {"lr": 0.001}}  # YAML 1.2


def test_there_are_no_stages_without_a_lock(tmp_path: Path) -> None:
    assert read_lock(str(tmp_path / "dvc.lock")) == ()


def test_declared_outputs_are_those_that_can_be_told(tmp_path: Path) -> None:
    text = """
stages:
  a:
    cmd: x
    outs: [one, '${two}']
    metrics:
    - scores.json:
        cache: false
    plots:
    - p.csv
"""
    entries = read_declared_outs(wrote(tmp_path / "dvc.yaml", text))
    assert [(Path(entry.path).name, entry.is_cached) for entry in entries] == [
        ("one", True),
        ("scores.json", False),
        ("p.csv", True),
    ]


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\na: 1\n=======\n", "a: [", "- a list\n", "\t\x00"])
def test_a_file_that_is_not_dvcs_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(CallerError, match=r"x\.dvc is not") as caught:
        read_dvc_file(wrote(tmp_path / "x.dvc", text))
    assert caught.value.hint


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = wrote(tmp_path / "x.dvc", f"outs:\n- md5: {MD5}\n  hash: md5\n  path: x\n")
    read_dvc_file(path)
    wrote(tmp_path / "x.dvc", "outs: []\n")
    assert read_dvc_file(path) == ()


def test_the_cache_is_where_the_projects_configuration_says(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert cache_folder(root) == str(tmp_path / ".dvc" / "cache")
    wrote(
        tmp_path / ".dvc" / "config",
        "[core]\n    remote = r\n['remote \"r\"']\n    url = /r\n[cache]\n    dir = ../c\n",
    )
    assert cache_folder(root) == str(tmp_path / "c")
    wrote(tmp_path / ".dvc" / "config.local", "[cache]\ndir = /elsewhere\n")
    assert cache_folder(root) == "/elsewhere"
    wrote(tmp_path / ".dvc" / "config.local", "no configuration\n")
    assert cache_folder(root) == str(tmp_path / "c")


def test_a_manifest_that_is_missing_or_broken_is_none(tmp_path: Path) -> None:
    cache = str(tmp_path)
    content_id = f"md5:{MD5}.dir"
    assert read_manifest(cache, content_id) is None
    wrote(Path(cached_path(cache, content_id)), '[{"md5": "1", "relpath": "a/b"}]')
    assert read_manifest(cache, content_id) == {"a/b": "1"}
    wrote(Path(cached_path(cache, content_id)), "{")
    assert read_manifest(cache, content_id) is None


def test_a_blobs_id_follows_the_repositorys_object_format(tmp_path: Path) -> None:
    content = b"hello\n"
    assert blob_id(str(tmp_path), content) == "ce013625030ba8dba906f756967f9e9ca394464a"
    wrote(tmp_path / ".git" / "config", "[core]\n\tbare = false\n[extensions]\n\tobjectFormat = sha256\n")
    assert blob_id(str(tmp_path), content) == hashlib.sha256(b"blob 6\0" + content).hexdigest()
