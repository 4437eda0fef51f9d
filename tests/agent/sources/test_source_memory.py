"""When a remembered digest is believed, and that hashing does not depend on the memory."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmf_graph.content.digests import Digests, Hashed
from cmf_graph.content.facts import SETTLED_AFTER_NS, FileFacts, facts_of
from cmf_graph.content.files import hash_path
from cmf_graph.content.memory import DigestMemory
from cmf_graph.database import connect

FALSE = Digests("0" * 32, "1" * 64)
FALSE_ID = "md5:" + "0" * 32


def later() -> int:
    """A clock by which every file has long been left alone."""
    return time.time_ns() + 1000 * SETTLED_AFTER_NS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(b"content")
    return path


def plant(memory: DigestMemory, path: Path, facts: FileFacts | None = None) -> None:
    """Make `memory` hold a digest that the file does not have: what comes back tells whether it was believed."""
    facts = facts or facts_of(path.stat())
    memory.remember({str(path): Hashed(facts, FALSE)}, later())


def test_a_digest_is_remembered_while_the_file_stays_as_it_was(tmp_path: Path, data: Path) -> None:
    with DigestMemory(tmp_path / "m.db", clock_ns=later) as memory:
        first = hash_path(data, memory=memory)
    with DigestMemory(tmp_path / "m.db", clock_ns=later) as memory:
        read: list[int] = []
        assert hash_path(data, memory=memory, progress=read.append) == first == hash_path(data)
        assert read == []


def test_a_remembered_digest_is_believed(tmp_path: Path, data: Path) -> None:
    with DigestMemory(tmp_path / "m.db") as memory:
        plant(memory, data)
        assert hash_path(data, memory=memory).content_id == FALSE_ID


@pytest.mark.parametrize("field", FileFacts._fields)
def test_a_digest_is_not_believed_if_any_fact_differs(tmp_path: Path, data: Path, field: str) -> None:
    facts = facts_of(data.stat())
    with DigestMemory(tmp_path / "m.db") as memory:
        plant(memory, data, facts._replace(**{field: getattr(facts, field) - 1}))
        assert hash_path(data, memory=memory) == hash_path(data)


def test_a_change_that_hides_behind_the_old_size_and_time_is_seen(tmp_path: Path, data: Path) -> None:
    with DigestMemory(tmp_path / "m.db", clock_ns=later) as memory:
        before = hash_path(data, memory=memory)
        status = data.stat()
        data.write_bytes(b"CONTENT")
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert hash_path(data, memory=memory).content_id != before.content_id


@pytest.mark.parametrize(("age_ns", "kept"), [(SETTLED_AFTER_NS - 1, False), (SETTLED_AFTER_NS, True), (-1, False)])
def test_a_file_touched_within_two_seconds_of_hashing_is_not_remembered(
    tmp_path: Path, data: Path, age_ns: int, kept: bool
) -> None:
    touched_ns = max(data.stat().st_mtime_ns, data.stat().st_ctime_ns)
    with DigestMemory(tmp_path / "m.db", clock_ns=lambda: touched_ns + age_ns) as memory:
        hash_path(data, memory=memory)
        assert bool(memory.recall({str(data): facts_of(data.stat())})) is kept


def test_an_inode_beyond_sqlites_integers_is_remembered(tmp_path: Path) -> None:
    facts = FileFacts(1, 2, 3, 2**64 - 1)
    with DigestMemory(tmp_path / "m.db") as memory:
        memory.remember({"/x": Hashed(facts, FALSE)}, later())
        assert memory.recall({"/x": facts, "/y": facts}) == {"/x": FALSE}


def test_a_name_that_is_not_utf8_is_remembered(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.write_bytes(b"x")
    with DigestMemory(tmp_path / "m.db") as memory:
        plant(memory, odd)
        assert hash_path(odd, memory=memory).content_id == FALSE_ID


@pytest.mark.parametrize("broken", ["damaged", "damaged inside", "a folder", "in no folder"])
def test_hashing_goes_on_without_a_database_that_fails(
    tmp_path: Path, data: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "m.db"
    if broken == "damaged":
        database.write_bytes(b"no database at all" * 1000)
    elif broken == "damaged inside":
        with DigestMemory(database) as memory:
            plant(memory, data)
        content = database.read_bytes()
        database.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))
    elif broken == "a folder":
        database.mkdir()
    else:
        database = tmp_path / "missing" / "m.db"
    with caplog.at_level(logging.WARNING), DigestMemory(database, clock_ns=later) as memory:
        for _ in range(3):
            assert hash_path(data, memory=memory) == hash_path(data)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "digests are not remembered" in caplog.text


def test_hashing_goes_on_while_another_program_holds_the_database(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with DigestMemory(tmp_path / "m.db", clock_ns=later) as memory:
        memory.recall({})
        other = connect(tmp_path / "m.db")
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING):
            assert hash_path(data, memory=memory) == hash_path(data)
        other.execute("ROLLBACK")
        other.close()
    assert "locked" in caplog.text


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[0]


def test_a_read_only_database_is_still_used_or_done_without(tmp_path: Path, data: Path) -> None:
    with DigestMemory(tmp_path / "m.db") as memory:
        plant(memory, data)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    data.write_bytes(b"changed")
    script = (
        "import os, sys; from pathlib import Path\n"
        "from cmf_graph.content.files import hash_path; from cmf_graph.content.memory import DigestMemory\n"
        "os.getuid() or os.setuid(65534)\n"
        "memory = DigestMemory(Path(sys.argv[1]) / 'm.db', clock_ns=lambda: 1 << 62)\n"
        "print(hash_path(Path(sys.argv[1]) / 'data.bin', memory=memory).content_id)"
    )
    said = output_of(run(script, str(tmp_path)))
    assert hash_path(data).content_id in said
    assert "Traceback" not in said


def test_sixteen_processes_share_one_memory(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    script = (
        "import sys; from pathlib import Path\n"
        "from cmf_graph.content.files import hash_path; from cmf_graph.content.memory import DigestMemory\n"
        "memory = DigestMemory(Path(sys.argv[1]) / 'm.db', clock_ns=lambda: 1 << 62)\n"
        "print(*(hash_path(path, memory=memory).content_id for path in sorted(Path(sys.argv[1]).glob('*.bin'))))"
    )
    processes = [run(script, str(tmp_path)) for _ in range(16)]
    outputs = {output_of(process) for process in processes}
    expected = " ".join(hash_path(path).content_id for path in sorted(tmp_path.glob("*.bin")))
    assert outputs == {expected + "\n"}  # a warning would stand in it too
    with DigestMemory(tmp_path / "m.db") as memory:
        assert len(memory.recall({str(path): facts_of(path.stat()) for path in tmp_path.glob("*.bin")})) == 20


def test_a_forked_child_uses_the_memory_with_a_connection_of_its_own(tmp_path: Path, data: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from cmf_graph.content.files import hash_path; from cmf_graph.content.memory import DigestMemory\n"
        "memory = DigestMemory(Path(sys.argv[1]) / 'm.db', clock_ns=lambda: 1 << 62)\n"
        "first = hash_path(Path(sys.argv[1]) / 'data.bin', memory=memory)\n"
        "child = os.fork()\n"
        "same = hash_path(Path(sys.argv[1]) / 'data.bin', memory=memory, progress=print) == first\n"
        "if not child: os._exit(not same)\n"
        "print(same and os.waitpid(child, 0)[1])"
    )
    assert output_of(run(script, str(tmp_path))) == "0\n"
