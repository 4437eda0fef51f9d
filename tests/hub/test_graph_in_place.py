"""Which graph is in use: not one of another store, and none left over by a rebuild that was killed."""

import os
import shutil

import pytest
from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, Store

from cmf_graph.locks import is_locked, try_lock
from cmf_hub.children import Child
from cmf_hub.data import only_server
from cmf_hub.projector import caught_up_graph, rebuild
from cmf_protocol.errors import StoreError


def held(store: Store) -> set[bytes]:
    graph, behind = caught_up_graph(store.data)
    assert behind == 0
    found = set(graph.event_ids())
    graph.connection.close()
    return found


def test_a_store_put_back_from_an_older_copy_gets_a_graph_of_its_own(store: Store) -> None:
    first, second = MadeLog(ANA).say(5), MadeLog(BORIS).say(7)
    store.take(first.cut(1, 3))
    store.custody.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = store.data.store.with_suffix(".copy")
    shutil.copy(store.data.store, copy)
    store.take(first.cut(4, 6))
    assert held(store) == {event.event_id for event in first.events}
    store.close()
    for suffix in ("-wal", "-shm"):
        store.data.store.with_name(store.data.store.name + suffix).unlink(missing_ok=True)
    os.replace(copy, store.data.store)  # noqa: PTH105
    store.reopen()
    store.take(second.cut(1, 8))  # as many segments as the graph has read of the store that is gone
    assert held(store) == {event.event_id for event in (*first.events[:3], *second.events)}


def test_graphs_that_a_killed_rebuild_left_are_removed_and_the_one_in_use_is_not(store: Store) -> None:
    store.take(MadeLog(ANA).say(5).cut(1, 6))
    rebuild(store.data)
    folder = store.data.root / "graph"
    left = [folder / f"graph-dead{suffix}" for suffix in (".db", ".db-wal", ".db-shm")]
    for file in left:
        file.write_bytes(b"left")
    building = try_lock(store.data.rebuild_lock)
    assert building is not None
    store.take(MadeLog(BORIS).say(2).cut(1, 3))
    assert len(held(store)) == 9
    assert all(file.exists() for file in left)  # that rebuild may be running
    with pytest.raises(StoreError, match="another rebuild"):
        rebuild(store.data)
    building.close()
    store.take(MadeLog(BORIS).say(2).cut(1, 3))
    assert len(held(store)) == 12
    assert not any(file.exists() for file in left)
    assert store.data.graph_file().exists()


def test_looking_whether_a_hub_serves_stands_in_no_ones_way(store: Store) -> None:
    lock = store.data.root / "hub.lock"
    assert not is_locked(lock)
    with only_server(store.data):
        assert is_locked(lock)
        assert store.data.running() == {}
    assert store.data.running() is None


def test_a_projector_that_stands_still_holds_up_no_poke(store: Store) -> None:
    child = Child("projector", "cmf_hub.projector", store.data)
    try:
        process = child._process
        assert process is not None
        os.kill(process.pid, 19)
        for _ in range(200_000):  # a pipe holds 65,536
            child.poke()
        os.kill(process.pid, 18)
    finally:
        child.stop()
