"""Files that are carried by hand: whole under their name, or not there at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.bundles import bundle_of

from cmf_graph.carried import bundled_segments, check_bundle, is_receipt, load_receipt, write_new
from cmf_protocol.errors import CallerError, DecodeError, IntegrityError, StoreError

KILLED = """
import os, signal, sys
from pathlib import Path
from cmf_graph.carried import write_new

def chunks():
    for number in range(10):
        yield b"x" * 1_000_000
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)

write_new(Path(sys.argv[1]), chunks())
"""


def test_what_is_written_is_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    assert write_new(path, [b"one", b"", b"two"]) == 6
    assert path.read_bytes() == b"onetwo"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    path.write_bytes(b"the only copy")
    with pytest.raises(CallerError, match="exists already"):
        write_new(path, [b"another"])

    def meanwhile() -> Iterator[bytes]:
        yield b"x"
        (tmp_path / "b.bundle").write_bytes(b"made meanwhile")

    with pytest.raises(CallerError, match="exists already"):
        write_new(tmp_path / "b.bundle", meanwhile())
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(CallerError, match="exists already"):
        write_new(tmp_path / "nowhere", [b"x"])
    assert path.read_bytes() == b"the only copy"
    assert (tmp_path / "b.bundle").read_bytes() == b"made meanwhile"
    assert {each.name for each in tmp_path.iterdir()} == {"a.bundle", "b.bundle", "nowhere"}


def test_a_writer_that_is_killed_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1  # it had begun
    assert write_new(path, [b"again"]) == 5


def test_a_writer_that_fails_leaves_nothing_at_all(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        write_new(tmp_path / "a.bundle", failing())
    with pytest.raises(StoreError, match="No such file"):
        write_new(tmp_path / "no" / "a.bundle", [b"x"])
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_checked_and_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    segments = [bytes([number]) * 700_000 for number in range(5)]
    whole = bundle_of(segments)
    path.write_bytes(whole)
    read: list[int] = []
    assert check_bundle(path, read.append) == 5
    assert sum(read) == len(whole)
    assert len(read) > 3
    assert list(bundled_segments(path)) == segments
    path.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=r"a\.bundle: this bundle was cut or altered: it ends within its end"):
        check_bundle(path, read.append)


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bundle_of([]))
    assert is_receipt(path) is False
    with pytest.raises(DecodeError, match="file: this file is not a receipt"):
        load_receipt(path)
    path.write_bytes(b"CMFRCPT1 of some kind")
    assert is_receipt(path) is True
    with pytest.raises(DecodeError, match="file: "):
        load_receipt(path)
    for other in (b"", b"CMF", b"PK\3\4 and so on"):
        path.write_bytes(other)
        with pytest.raises(CallerError, match="neither a bundle nor a receipt"):
            is_receipt(path)
    with pytest.raises(StoreError, match="No such file"):
        is_receipt(tmp_path / "none")
