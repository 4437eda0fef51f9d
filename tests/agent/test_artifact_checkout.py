"""Putting contents at names that come from metadata: hostile names, links, what is there already."""

import json
from hashlib import md5
from pathlib import Path

import pytest
from tests.support.dvc import init_dvc

from cmf_agent.dvc.checkout import Placed, check_out
from cmf_agent.dvc.dvc_files import cached_path
from cmf_agent.dvc.remotes import open_cache
from cmf_agent.dvc.stores import Cache
from cmf_graph.content.files import hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_protocol.errors import IntegrityError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    init_dvc(folder, no_scm=True)
    return open_cache(str(folder))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def keep(cache: Cache, content: bytes, end: str = "") -> str:
    """Put a content into the cache and return its id."""
    content_id = f"md5:{md5(content).hexdigest()}{end}"
    path = Path(cached_path(cache.folder, content_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(content)
    return content_id


def keep_folder(cache: Cache, files: dict[str, bytes]) -> str:
    """Put a folder into the cache and return its id."""
    listed = [{"md5": keep(cache, content)[4:], "relpath": name} for name, content in sorted(files.items())]
    return keep(cache, json.dumps(listed, sort_keys=True).encode(), ".dir")


def put(cache: Cache, content_id: str, project: Path, name: str, *, force: bool = False) -> Placed:
    with DigestMemory(project.parent / "digests.db") as memory:
        return check_out(cache, content_id, project, name, memory, force=force)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("digests.db"))


@pytest.mark.parametrize(
    "name",
    [
        "../out", "a/../../out", "/tmp/out", "", ".", "a//b", "a/", "./a", "a\0b", ".git/hooks/post-commit", ".GIT/config",
        "sub/.git/config", ".dvc/config", ".cmf/keys/signing.key", "link/out", "link/deep/out", "hooks/post-commit",
        "n" * 256, "deep/\ud800",
    ],
)  # fmt: skip
def test_a_hostile_name_is_refused_and_nothing_is_written(cache: Cache, project: Path, name: str) -> None:
    (project.parent / "outside").mkdir()
    (project / "link").symlink_to("../outside")
    (project / ".git").mkdir()
    (project / "hooks").symlink_to(".git")
    before = everything(project.parent)
    placed = put(cache, keep(cache, b"x"), project, name, force=True)
    assert placed.state == "refused" and placed.reason
    assert everything(project.parent) == before


def test_a_folder_with_a_hostile_file_is_refused_whole(cache: Cache, project: Path) -> None:
    for name in ("../out", "/tmp/out", ".git/hooks/x", "a/../../../out"):
        placed = put(cache, keep_folder(cache, {"good": b"good", name: b"bad"}), project, "data")
        assert placed.state == "refused", name
    assert everything(project.parent) == ["project"]


@pytest.mark.parametrize("digest", ["..//etc/hostname", "1", "A" * 32])
def test_a_folder_whose_manifest_names_other_files_as_its_own_is_refused(
    cache: Cache, project: Path, digest: str
) -> None:
    manifest = json.dumps([{"md5": digest, "relpath": "a"}]).encode()
    placed = put(cache, keep(cache, manifest, ".dir"), project, "data")
    assert placed.state == "refused" and "is no md5" in placed.reason
    assert everything(project.parent) == ["project"]


def test_a_file_and_a_folder_are_put_whole(cache: Cache, project: Path) -> None:
    folder = keep_folder(cache, {"a": b"1", "b/c": b"2", "b/d": b""})
    assert put(cache, folder, project, "deep/data").state == "placed"
    assert hash_path(project / "deep/data").content_id == folder
    assert put(cache, folder, project, "deep/data").state == "there"
    assert put(cache, keep_folder(cache, {}), project, "none").state == "placed"
    assert list((project / "none").iterdir()) == []
    assert put(cache, keep(cache, b"x"), project, "deep/file").state == "placed"
    assert (project / "deep/file").stat().st_mode & 0o200, "a copy that may be changed"
    assert everything(project / "deep") == ["data", "data/a", "data/b", "data/b/c", "data/b/d", "file"]


def test_other_content_stays_unless_forced(cache: Cache, project: Path) -> None:
    file, folder = keep(cache, b"x"), keep_folder(cache, {"a": b"1"})
    (project / "file").write_bytes(b"mine")
    (project / "data").mkdir()
    (project / "data/mine").write_bytes(b"mine")
    for content_id, name in ((file, "file"), (folder, "data"), (folder, "file"), (file, "data"), (file, "file/a")):
        assert put(cache, content_id, project, name).state == "kept"
    assert everything(project) == ["data", "data/mine", "file"] and (project / "file").read_bytes() == b"mine"
    for content_id, name in ((folder, "file"), (file, "data"), (file, "file"), (folder, "data")):
        assert put(cache, content_id, project, name, force=True).state == "placed"
        assert hash_path(project / name).content_id == content_id
    assert everything(project) == ["data", "data/a", "file"]


def test_a_folder_with_a_repository_in_it_is_not_replaced_even_by_force(cache: Cache, project: Path) -> None:
    (project / "src/sub/.git").mkdir(parents=True)
    assert put(cache, keep(cache, b"x"), project, "src", force=True).state == "refused"
    assert (project / "src/sub/.git").is_dir()


def test_a_link_is_replaced_and_never_written_through(cache: Cache, project: Path) -> None:
    (project.parent / "outside").write_bytes(b"theirs")
    (project / "file").symlink_to("../outside")
    (project / "broken").symlink_to("nowhere")
    content = keep(cache, b"x")
    assert put(cache, content, project, "file").state == "kept"
    assert put(cache, content, project, "broken").state == "kept"
    assert put(cache, content, project, "file", force=True).state == "placed"
    assert not (project / "file").is_symlink()
    assert (project.parent / "outside").read_bytes() == b"theirs"


def test_damage_in_the_cache_is_never_put_in_place(cache: Cache, project: Path) -> None:
    content, folder = keep(cache, b"to be spoiled"), keep_folder(cache, {"a": b"to be spoiled", "b": b"1"})
    Path(cached_path(cache.folder, content)).write_bytes(b"spoiled")
    (project / "file").write_bytes(b"mine")
    for content_id, name in ((content, "file"), (folder, "data")):
        with pytest.raises(IntegrityError, match="is damaged"):
            put(cache, content_id, project, name, force=True)
    assert everything(project) == ["file"] and (project / "file").read_bytes() == b"mine"
