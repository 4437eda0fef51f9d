"""What `hash_path` says about files and folders, and what it refuses."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmf_graph.content.digests import CHUNK_BYTES, RETRIES_MAX, THREADED_FROM
from cmf_graph.content.files import hash_path
from cmf_protocol.errors import CallerError

BIG = 2 * CHUNK_BYTES + 12_345
NOBODY = 65534


def md5(content: bytes) -> str:
    return "md5:" + hashlib.md5(content).hexdigest()


def file_of(folder: Path, content: bytes, name: str = "data.bin") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "size", [0, 1, 4096, THREADED_FROM - 1, THREADED_FROM, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, BIG]
)
def test_a_file_of_any_size_has_both_digests(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    found = hash_path(file_of(tmp_path, content))
    assert found.content_id == md5(content)
    assert found.sha256 == "sha256:" + hashlib.sha256(content).hexdigest()
    assert (found.size, found.files) == (size, 1)


@pytest.mark.parametrize("size", [0, 10, BIG])
def test_progress_counts_every_byte_once(tmp_path: Path, size: int) -> None:
    read: list[int] = []
    hash_path(file_of(tmp_path, bytes(size)), progress=read.append)
    assert sum(read) == size
    assert 0 not in read


def test_progress_counts_every_byte_of_a_folder_hashed_in_threads(tmp_path: Path) -> None:
    for name in "abc":
        file_of(tmp_path, os.urandom(BIG), name)
    read: list[int] = []
    assert hash_path(tmp_path, progress=read.append).size == sum(read) == 3 * BIG


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    file_of(tmp_path, b"content", "real")
    (tmp_path / "link").symlink_to("real")
    assert hash_path(tmp_path / "link") == hash_path(tmp_path / "real")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1)
        file.write(os.urandom(16))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    other = file_of(path.parent, os.urandom(BIG), "other")
    other.replace(path)


CHANGES: list[Callable[[Path], None]] = [overwrite, grow, shrink, replace]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_once_while_it_is_read_is_read_again(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = file_of(tmp_path, os.urandom(BIG))
    calls: list[int] = []

    def progress(count: int) -> None:
        calls.append(count)
        if len(calls) == 1:
            change(path)

    assert hash_path(path, progress=progress).content_id == md5(path.read_bytes())
    assert sum(calls) > BIG


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_never_stops_changing_is_refused_by_name(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = file_of(tmp_path, os.urandom(BIG))
    with pytest.raises(CallerError, match=r"data\.bin keeps changing") as refused:
        hash_path(path, progress=lambda _: change(path))
    assert refused.value.hint


def test_a_small_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"line\n")
    calls: list[int] = []

    def progress(count: int) -> None:
        calls.append(count)
        grow(path)

    with pytest.raises(CallerError, match="keeps changing"):
        hash_path(path, progress=progress)
    assert len(calls) == 1 + RETRIES_MAX


def test_a_file_that_is_removed_while_it_is_read_is_refused_as_missing(tmp_path: Path) -> None:
    path = file_of(tmp_path, os.urandom(BIG))
    with pytest.raises(CallerError, match="does not exist"):
        hash_path(path, progress=lambda _: path.unlink(missing_ok=True))


def test_a_folder_in_which_a_read_file_changes_later_is_read_again(tmp_path: Path) -> None:
    first, second = file_of(tmp_path, b"first", "1"), file_of(tmp_path, b"second", "2")
    changed: list[int] = []

    def progress(count: int) -> None:
        if count == len(b"second") and not changed:
            changed.append(1)
            first.write_bytes(b"later")
            (tmp_path / "3").write_bytes(b"new")
            second.touch()

    found = hash_path(tmp_path, progress=progress)
    assert changed
    assert found == hash_path(tmp_path)
    assert found.files == 3


def test_a_folder_that_gets_new_files_for_ever_is_refused(tmp_path: Path) -> None:
    file_of(tmp_path, b"x", "0")

    def progress(_: int) -> None:
        file_of(tmp_path, b"x", str(len(list(tmp_path.iterdir()))))

    with pytest.raises(CallerError, match="keeps changing while its folder is read"):
        hash_path(tmp_path, progress=progress)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_dead_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/null")


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (make_fifo, "is a FIFO"),
    (make_socket, "is a socket"),
    (make_dead_link, "symbolic link to a file that does not exist"),
    (make_loop, "leads back to itself"),
    (make_device_link, "is a device"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_what_is_no_file_is_refused_by_name_without_waiting(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / "odd")
    for path in (folder / "odd", folder):
        with pytest.raises(CallerError, match=rf"folder/odd .*{reason}") as refused:
            hash_path(path)
        assert refused.value.hint


@pytest.mark.parametrize("name", ["missing", "file/below", "x" * 300, "a\0b"])
def test_a_path_that_leads_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    file_of(tmp_path, b"", "file")
    with pytest.raises(CallerError) as refused:
        hash_path(tmp_path / name)
    assert refused.value.hint


def test_a_message_about_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"\\xff") as refused:
        hash_path(tmp_path / os.fsdecode(b"\xff"))
    str(refused.value).encode()


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_this_user_may_not_read_is_refused(tmp_path: Path, locked: str) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    file_of(tmp_path / "folder" / "sub", b"x", "file")
    target = tmp_path / "folder" / "sub" / ("file" if locked == "file" else "")
    target.chmod(0)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from cmf_graph.content.files import hash_path; from cmf_protocol.errors import CallerError\n"
        f"os.getuid() or os.setuid({NOBODY})\n"
        "try: hash_path(Path(sys.argv[1]))\n"
        "except CallerError as error: print(error, '|', error.hint)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "folder")], capture_output=True, text=True, check=True
    )
    target.chmod(0o700)
    assert "folder/sub" in said.stdout
    assert "may not be read by this user | give this user the right" in said.stdout


@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=2000))
def test_any_small_content_is_hashed_whole(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert hash_path(file_of(tmp_path_factory.mktemp("any"), content)).content_id == md5(content)
