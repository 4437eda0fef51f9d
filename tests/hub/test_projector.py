import functools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from tests.support.logs import MadeLog
from tests.support.model import Model
from tests.support.programs import end_all, until
from tests.support.store import ANA, BORIS, CHEN, Store

from cmf_graph.database import connect
from cmf_graph.graph import Digest, Graph, open_graph
from cmf_graph.locks import try_lock
from cmf_graph.projection import Projection
from cmf_hub import projector as projector_module
from cmf_hub.data import DataFolder
from cmf_hub.projector import SOURCE, Projector, caught_up_graph, project, rebuild
from cmf_protocol.errors import CmfError

#: Of what is projected by processes that are killed: several commits' worth.
SEGMENTS = 600


@contextmanager
def projecting(data: DataFolder) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the projector's own process, as `serve` does."""
    command = [sys.executable, "-m", "cmf_hub.projector", str(data.root)]
    with (data.root / "projector.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        end_all(data.root)


@contextmanager
def graph_in_use(data: DataFolder) -> Iterator[Graph]:
    graph, behind = caught_up_graph(data)
    try:
        assert behind == 0
        yield graph
    finally:
        graph.connection.close()


def checkpoint(data: DataFolder) -> int:
    """Return up to where the graph in use has read the store; 0 while there is none."""
    try:
        graph = open_graph(data.graph_file())
    except CmfError:
        return 0
    try:
        return graph.checkpoint(SOURCE)
    except CmfError:
        return 0
    finally:
        graph.connection.close()


def is_beyond(data: DataFolder, before: int) -> bool:
    found = checkpoint(data)
    return found > before or found == SEGMENTS


def digest(data: DataFolder) -> Digest:
    with graph_in_use(data) as graph:
        return graph.digest()


def expected(store: Store) -> tuple[str, str]:
    """Return the digests of what is stored, folded in one go into a database of its own."""
    projection = Projection(":memory:")
    while project(projection, store.custody):
        pass
    found = projection.graph.digest()
    projection.close()
    return found.digest, found.events_digest


def fill(store: Store, segments: int = 40, size: int = 5) -> list[MadeLog]:
    """Store segments of three logs in turn."""
    logs = [MadeLog(signer).say(segments * size) for signer in (ANA, BORIS, CHEN)]
    for at in range(0, segments * size, size):
        store.bring(None, *(log.cut(at + 1, at + size) for log in logs))
    return logs


def test_the_graph_has_what_is_stored_each_time_it_is_asked(store: Store) -> None:
    log = MadeLog(ANA).say(9)
    for first, last in ((1, 3), (4, 4), (5, 10)):
        store.take(log.cut(first, last))
        found = digest(store.data)
        model = Model(log.events[:last])
        assert (found.digest, found.events_digest) == (model.digest().hex(), model.events_digest().hex())


def test_two_projectors_that_take_turns_never_double_nor_stumble(store: Store) -> None:
    log = MadeLog(ANA).say(60)
    projectors = Projector(store.data), Projector(store.data)
    for at in range(1, 61, 5):
        store.take(log.cut(at, at + 4))
        assert projectors[at % 2].catch_up()  # raises nothing, though the other has written since
        assert checkpoint(store.data) == store.custody.last_segment()
    found = digest(store.data)
    assert (found.digest, found.events_digest) == expected(store)
    assert found.events == 60


def test_several_processes_that_project_at_once_never_double(store: Store) -> None:
    with projecting(store.data), projecting(store.data):
        for _ in range(3):
            fill(store, 15)
            assert digest(store.data).events == len(store.events())
        until(lambda: checkpoint(store.data) == store.custody.last_segment(), "the projectors")
    assert (store.data.root / "projector.log").read_text() == ""
    found = digest(store.data)
    assert (found.digest, found.events_digest) == expected(store)
    assert found.events == len(store.events())


def test_a_projector_killed_in_the_middle_leaves_a_graph_that_goes_on(store: Store) -> None:
    fill(store, SEGMENTS // 3, 20)
    chance = random.Random()
    state = chance.getstate()
    for _ in range(6):
        with projecting(store.data) as process:
            before = checkpoint(store.data)
            if before == 0 or chance.random() < 0.5:  # within the first commit, or after one
                until((store.data.root / "graph" / "graph.db-wal").exists, "the graph to be written")
            else:
                until(functools.partial(is_beyond, store.data, before), "a commit")
            process.kill()
            process.wait()
    found = digest(store.data)
    assert (found.digest, found.events_digest) == expected(store), state
    assert found.events == len(store.events())


def test_a_rebuild_equals_what_was_folded_step_by_step(store: Store) -> None:
    fill(store, 10)
    before = digest(store.data)
    fill(store, 10)
    step_by_step = digest(store.data)
    assert step_by_step.events > before.events
    assert rebuild(store.data) == 60
    assert digest(store.data) == step_by_step
    files = {file.name for file in (store.data.root / "graph").iterdir() if file.suffix == ".db"}
    assert files == {store.data.graph_file().name}


def test_a_reader_keeps_the_graph_that_it_opened_while_another_is_put_in_its_place(store: Store) -> None:
    fill(store, 10)
    with graph_in_use(store.data) as reader:
        before = reader.digest()
        with reader.snapshot():
            reader.rows("SELECT count(*) FROM events")
            fill(store, 10)
            rebuild(store.data)
            assert reader.rows("SELECT count(*) FROM events") == [(before.events,)]
        assert reader.digest() == before
    assert digest(store.data).events > before.events


def test_questions_are_answered_while_the_graph_is_rebuilt_again_and_again(store: Store) -> None:
    fill(store, 10)
    right = digest(store.data)
    stop = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                if (found := digest(store.data)) != right:
                    wrong.append(found)
            except BaseException as error:  # noqa: BLE001 - told in the test's own thread
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with projecting(store.data):
            for _ in range(15):
                rebuild(store.data)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []


def test_a_projector_follows_the_graph_that_was_put_in_its_place(store: Store) -> None:
    projector = Projector(store.data)
    log = MadeLog(ANA).say(9)
    store.take(log.cut(1, 4))
    projector.catch_up()
    rebuild(store.data)
    store.take(log.cut(5, 10))
    projector.catch_up()
    assert checkpoint(store.data) == 2
    assert digest(store.data).events == 10


def test_a_graph_of_another_version_is_built_anew(store: Store) -> None:
    fill(store, 5)
    right = digest(store.data)
    old = store.data.graph_file()
    projection = Projection(old)
    projection.graph.connection.execute("UPDATE meta SET value = 99 WHERE key = 'fold_version'")
    projection.close()
    assert digest(store.data) == right
    assert store.data.graph_file() != old
    assert not old.exists()


def test_a_graph_that_was_deleted_is_made_again(store: Store) -> None:
    fill(store, 5)
    right = digest(store.data)
    for file in (store.data.root / "graph").iterdir():
        file.unlink()
    assert digest(store.data) == right


def test_a_question_does_not_wait_longer_than_it_should_and_says_how_far_behind_it_is(store: Store) -> None:
    fill(store, 5)
    digest(store.data)
    lock = try_lock(store.data.root / "projector.lock")  # a projector that is stuck
    assert lock is not None
    with lock:
        fill(store, 5)
        graph, behind = caught_up_graph(store.data, wait_s=0.2)
        graph.connection.close()
        assert behind == 15
    graph, behind = caught_up_graph(store.data, wait_s=0.2)
    graph.connection.close()
    assert behind == 0


def test_where_there_is_no_graph_at_all_a_question_says_so_after_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "QUERY_WAIT_S", 0.2)
    fill(store, 5)
    lock = try_lock(store.data.root / "projector.lock")
    assert lock is not None
    with lock, pytest.raises(CmfError, match="no graph yet"):
        caught_up_graph(store.data, wait_s=0.1)


def test_a_store_restored_from_a_copy_gets_a_graph_of_its_own(store: Store) -> None:
    log, lost = MadeLog(ANA).say(9), MadeLog(BORIS).say(9)
    store.take(log.cut(1, 4))
    digest(store.data)
    with closing(connect(store.data.root / "copy.db")) as copy:
        store.custody._connection.backup(copy)
    store.take(lost.cut(1, 4), lost.cut(5, 10))
    assert digest(store.data).events == 14
    store.close()
    for suffix in ("-wal", "-shm"):
        store.data.store.with_name(f"store.db{suffix}").unlink(missing_ok=True)
    (store.data.root / "copy.db").replace(store.data.store)
    store.reopen()
    assert digest(store.data).events == 4
    store.take(log.cut(5, 10))
    found = digest(store.data)
    assert (found.digest, found.events_digest) == expected(store)
    assert found.events == 10


def test_the_projectors_process_ends_when_its_hub_is_gone(store: Store) -> None:
    with projecting(store.data) as process:
        fill(store, 2)
        until(lambda: checkpoint(store.data) == 6, "the projector")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
