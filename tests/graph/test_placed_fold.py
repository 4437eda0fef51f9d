"""Folding some events of some trees where they were told to stand: what is later than what is known without the events between."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.branches import graph_of
from tests.support.graphs import World, id_text, md5
from tests.support.model import Model
from tests.support.placed import pieces_of
from tests.support.strategies import History, histories

from cmf_graph.projection import Projection
from cmf_graph.questions import Questions
from cmf_protocol import types as t
from cmf_protocol.errors import IntegrityError
from cmf_protocol.events import Event


def with_roots(history: History, kept: Sequence[Event]) -> list[Event]:
    """Return these events and the roots of their trees, roots first."""
    roots = {history.roots[event.event_id] for event in kept}
    others = [event for event in kept if event.event_id not in roots]
    return [*(event for event in history.events if event.event_id in roots), *others]


def in_pieces(events: Sequence[Event], chance: random.Random) -> Iterator[list[Event]]:
    done = 0
    while done < len(events):
        size = chance.choice((1, 2, 5, 1000))
        yield list(events[done : done + size])
        done += size


@contextmanager
def new_projection() -> Iterator[Projection]:
    projection = Projection(":memory:")
    yield projection
    projection.close()


def assert_graph(projection: Projection, history: History, held: Sequence[Event]) -> None:
    ids = {event.event_id for event in held}
    expected = graph_of(history.events, held=ids)
    found = projection.graph.digest()
    if found.digest != expected.digest().hex():
        for node in expected.said:
            node_id = projection.graph.node_id(node)
            assert node_id is not None, node
            state = projection.graph.state(node_id)
            assert state.values == expected.state(node).values or node[0] == "key", node
    assert (found.digest, found.events, found.unfolded) == (expected.digest().hex(), len(ids), expected.unfolded)
    for execution in [node for node in expected.said if node[0] == "execution"]:
        shown = expected.state(execution).statuses
        sql = "SELECT x.status FROM executions x JOIN nodes n ON n.id = x.node WHERE n.kind = 3 AND n.key = ?"
        assert projection.graph.rows(sql, (execution[1],)) == [(shown[0].status if shown else None,)]
    edges = projection.graph.rows(
        "SELECT DISTINCT x.key, e.produced, a.key FROM edges e JOIN nodes x ON x.id = e.execution "
        "JOIN nodes a ON a.id = e.artifact WHERE e.said = 1"
    )
    said = {
        (node[1], produced, artifact)
        for node in expected.said
        if node[0] == "execution"
        for produced, found_ in enumerate((expected.state(node).used, expected.state(node).produced))
        for artifact in found_
    }
    assert set(edges) == said


def drawn(data: st.DataObject) -> tuple[History, list[Event]]:
    history = data.draw(histories(min_size=3))
    kept = [event for event in history.events if data.draw(st.booleans())]
    return history, with_roots(history, kept)


@given(st.data(), st.randoms(use_true_random=False))
def test_some_events_where_they_were_told_to_stand_give_the_graph_of_these_events(
    data: st.DataObject, chance: random.Random
) -> None:
    history, held = drawn(data)
    structure, piece = pieces_of(history.events)
    roots = [event for event in held if event.header.previous is None]
    others = [event for event in held if event.header.previous is not None]
    chance.shuffle(others)
    with new_projection() as projection:
        for part in in_pieces([*roots, *others], chance):
            projection.apply_placed(structure, [(piece[event.event_id], event) for event in part], {"here": 1})
        assert_graph(projection, history, held)
        again = [(piece[event.event_id], event) for event in held]
        assert projection.apply_placed(structure, again) == 0
        assert_graph(projection, history, held)


@given(st.data(), st.randoms(use_true_random=False))
def test_whole_chains_before_or_after_what_was_placed_complete_the_graph(
    data: st.DataObject, chance: random.Random
) -> None:
    history, held = drawn(data)
    structure, piece = pieces_of(history.events)
    own = history.events[: chance.randrange(len(history.events))]
    with new_projection() as projection:
        projection.apply(own)
        projection.apply_placed(structure, [(piece[event.event_id], event) for event in held])
        assert_graph(projection, history, [*own, *held])
        for part in in_pieces(history.events, chance):
            projection.apply(part)
        model = Model(history.events)
        found = projection.graph.digest()
        assert (found.digest, found.events_digest) == (model.digest().hex(), model.events_digest().hex())
        assert_graph(projection, history, history.events)


def test_a_status_is_later_than_one_that_stands_before_a_hole(world: World) -> None:
    berlin = world.site("berlin")
    run = berlin.run(uses={"data.csv": md5("data")}, status="failed")
    berlin.run()
    berlin.record(t.execution_finished(run, "finished"))
    structure, piece = pieces_of(berlin.events)
    about = [event for event in berlin.events if ("execution", run) in event.header.about]
    with new_projection() as projection:
        projection.apply_placed(
            structure, [(piece[event.event_id], event) for event in [berlin.events[0], *about[::-1]]]
        )
        (item,) = Questions(projection.graph, {}).executions()["items"]
        assert (item["id"], item["status"], item["conflicts"]) == (id_text(run), "finished", [])


def test_a_piece_that_nobody_told_is_refused_and_nothing_of_the_call_is_kept(world: World) -> None:
    berlin = world.site("berlin")
    berlin.run()
    structure, piece = pieces_of(berlin.events)
    root, second, third = berlin.events[:3]
    with new_projection() as projection:
        with pytest.raises(IntegrityError, match="nobody told"):
            projection.apply_placed(structure, [(piece[root.event_id], root), (b"?" * 32, second)])
        with pytest.raises(IntegrityError, match="first event is missing"):
            projection.apply_placed(structure, [(piece[second.event_id], second)])
        assert projection.graph.digest().events == 0
        assert projection.apply_placed(structure, [(piece[e.event_id], e) for e in (root, third)]) == 2
