"""The projection against the plain model: any order, split and repetition of any history gives the model's graph, in every table."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.graphs import World, md5, sha256
from tests.support.model import Model, first_difference
from tests.support.strategies import History, arrival, event_sets, histories

from cmf_graph.graph import Graph
from cmf_graph.projection import Projection
from cmf_graph.reading import Reading
from cmf_protocol import types as t
from cmf_protocol.events import Event
from cmf_protocol.fold import is_node
from cmf_protocol.resolve import NodeState, digest_row

_EXECUTION_COLUMNS = "pipeline, stage, kind, team, status, started_us, finished_us"


@contextmanager
def new_graph() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "graph.sqlite"


def shuffled(events: Sequence[Event], chance: random.Random) -> list[Event]:
    """Return the events in an order in which they may arrive."""
    return arrival(events, chance.randrange)


def project(path: Path, events: Sequence[Event], chance: random.Random) -> None:
    """Apply the events in pieces, some twice, closing and opening the projection now and then."""
    projection = Projection(path)
    done = 0
    while done < len(events):
        size = chance.choice((1, 2, 3, 10, 1000))
        piece = list(events[max(0, done - chance.choice((0, 0, 2))) : done + size])
        projection.apply(piece if chance.random() < 0.8 else [*piece, *piece], {"here": done})
        done += size
        if chance.random() < 0.2:
            projection.close()
            projection = Projection(path)
    projection.apply(chance.sample(list(events), len(events) // 2))
    projection.close()


@contextmanager
def projected(events: Sequence[Event], chance: random.Random) -> Iterator[Graph]:
    with new_graph() as path:
        project(path, shuffled(events, chance), chance)
        projection = Projection(path)
        yield projection.graph
        projection.close()


def node_numbers(graph: Graph) -> list[int]:
    return [id_ for (id_,) in graph.rows("SELECT id FROM nodes ORDER BY id")]


def assert_digests(graph: Graph, model: Model) -> None:
    digest = graph.digest()
    if digest.digest != model.digest().hex():
        logs = graph._logs_by_key()
        states = [graph.state(id_) for id_ in node_numbers(graph)]
        rows = [digest_row(s, graph.chains(), logs.get(s.node[1], ()) if s.node[0] == "key" else ()) for s in states]
        raise AssertionError(first_difference(model, rows))
    assert digest.events_digest == model.events_digest().hex()
    assert (digest.events, digest.unfolded) == (len(model.stored), model.unfolded)


def expected_execution(graph: Graph, state: NodeState) -> tuple[object, ...]:
    """Return an execution's row as resolving it from scratch says."""
    stage = state.value("stage")
    named = is_node(("stage", stage))  # a fact of that name may be anything
    shown = state.statuses[0] if state.statuses else None
    texts = [value if isinstance(value, str) else None for value in (state.value("kind"), state.value("team"))]
    ended = shown is not None and shown.status != "running"
    return (
        graph.node_id(("pipeline", stage[0])) if named else None,
        graph.node_id(("stage", stage)) if named else None,
        *texts,
        shown and shown.status,
        state.started,
        shown.at if shown and ended else None,
    )


def assert_tables(graph: Graph, model: Model) -> None:
    """Compare every table that lists and lineage read with the model, and with resolving each node from scratch."""
    nodes = {graph.node(id_): id_ for id_ in node_numbers(graph)}
    assert set(nodes) == model.nodes()
    for node, id_ in nodes.items():
        state = graph.state(id_)
        if node[0] == "execution":
            (row,) = graph.rows(f"SELECT {_EXECUTION_COLUMNS}, branch FROM executions WHERE node = ?", (id_,))
            assert row[:-1] == expected_execution(graph, state), node
            if state.statuses:
                assert row[-1] == state.statuses[0].by.branch
        elif node[0] == "artifact":
            kind = state.value("kind")
            assert graph.rows("SELECT kind FROM artifacts WHERE node = ?", (id_,)) == [
                (kind if isinstance(kind, str) else None,)
            ], node
            for sql, found in (
                ("SELECT name FROM artifact_names WHERE node = ? ORDER BY name", model.names(node[1])),
                ("SELECT digest FROM aliases WHERE node = ? ORDER BY digest", model.aliases(node[1])),
            ):
                assert [text for (text,) in graph.rows(sql, (id_,))] == found, node
    edges = set()
    for execution, artifact, produced, said in graph.rows("SELECT execution, artifact, produced, said FROM edges"):
        if said:
            type_ = "produced" if produced else "used"
            edges.add((graph.node(execution)[1], type_, graph.node(artifact)[1]))
    assert edges == model.edges()


def assert_bulk_reading(graph: Graph) -> None:
    """Check that reading many nodes at once says what reading each alone does, where no aliases join."""
    with graph.snapshot():
        reading = Reading(graph, {})
        joined = {*reading.aliases.merged, *reading.aliases.merged.values()}
        numbers = [id_ for id_ in node_numbers(graph) if id_ not in joined]
        for id_, state in reading.states(numbers).items():
            assert digest_row(state, reading.chains) == digest_row(graph.state(id_), reading.chains)


@given(histories(), st.randoms(use_true_random=False))
def test_any_order_split_and_repetition_gives_the_digests_of_the_model(history: History, chance: random.Random) -> None:
    model = Model(history.events)
    for _ in range(2):
        with projected(history.events, chance) as graph:
            assert_digests(graph, model)


@given(histories(), st.randoms(use_true_random=False))
def test_every_table_says_what_resolving_from_scratch_says(history: History, chance: random.Random) -> None:
    with projected(history.events, chance) as graph:
        assert_tables(graph, Model(history.events))
        assert_bulk_reading(graph)


@given(st.data(), st.randoms(use_true_random=False))
def test_a_part_of_a_history_gives_the_graph_of_that_part_and_the_rest_completes_it(
    data: st.DataObject, chance: random.Random
) -> None:
    history = data.draw(histories(min_size=4))
    part = data.draw(event_sets(history))
    with new_graph() as path:
        project(path, shuffled(part, chance), chance)
        for events in (part, history.events):
            projection = Projection(path)
            projection.apply(shuffled(events, chance))
            assert_digests(projection.graph, Model(events))
            assert_tables(projection.graph, Model(events))
            projection.close()


# -- cases that random histories seldom meet ---------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [5, None, "train", ("mnist", "other"), ("mnist",), ("", "x"), {"a": 1}, b"x"])
def test_a_fact_called_stage_stalls_nothing_and_the_columns_say_what_resolving_says(
    world: World, stage: object
) -> None:
    berlin, munich = world.site("berlin"), world.site("munich")
    run = berlin.run("mnist", "train", status=None)
    berlin.run("mnist", "other")
    berlin.record(t.execution_updated(run, facts={"stage": stage}))
    assert_tables(world.graph(), Model(berlin.events + munich.events))
    munich.record(t.execution_updated(run, facts={"stage": stage, "team": "red"}))
    assert_tables(world.graph(), Model(berlin.events + munich.events))


def test_a_kind_that_is_no_text_leaves_no_other_kind_behind(world: World) -> None:
    berlin, munich = world.site("berlin"), world.site("munich")
    for site, kind in ((berlin, "model"), (berlin, 5), (munich, "dataset"), (berlin, "model"), (munich, None)):
        site.record(t.usage(t.ARTIFACT_USED, b"x" * 16, md5("x"), facts={"kind": kind}))
        assert_tables(world.graph(), Model(berlin.events + munich.events))


def test_an_artifact_is_no_alias_of_itself(world: World) -> None:
    berlin = world.site("berlin")
    berlin.record(t.usage(t.ARTIFACT_USED, b"x" * 16, md5("x"), digests=[md5("x"), sha256("x")]))
    assert_tables(world.graph(), Model(berlin.events))


@pytest.mark.deep
@settings(max_examples=300)
@given(histories(min_size=30, max_size=70), st.randoms(use_true_random=False))
def test_long_histories_give_the_graph_of_the_model(history: History, chance: random.Random) -> None:
    with projected(history.events, chance) as graph:
        model = Model(history.events)
        assert_digests(graph, model)
        assert_tables(graph, model)
        assert_bulk_reading(graph)
