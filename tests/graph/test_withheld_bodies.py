"""A body that comes later than its header is folded then, and the graph is that of the whole set."""

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.graph.test_projection_model import assert_tables, new_graph, shuffled
from tests.support.model import Model
from tests.support.strategies import History, histories

from cmf_graph.graph import Graph
from cmf_graph.projection import Projection
from cmf_protocol.events import Event


def graph_of(path: Path, *sets: list[Event]) -> Graph:
    for events in sets:
        projection = Projection(path)
        projection.apply(events)
        projection.close()
    return Projection(path).graph


@given(histories(), st.randoms(use_true_random=False))
def test_bodies_that_come_later_give_the_graph_of_the_whole_set(history: History, chance: random.Random) -> None:
    bare = [event._replace(body=None) if chance.random() < 0.5 else event for event in history.events]
    first = shuffled(bare, chance)
    later = chance.sample(history.events, len(history.events))
    with new_graph() as path:
        graph = graph_of(path, first, later)
        digest = graph.digest()
        model = Model(history.events)
        assert (digest.digest, digest.events_digest) == (model.digest().hex(), model.events_digest().hex())
        assert digest.unfolded == model.unfolded
        assert_tables(graph, model)
        graph.connection.close()
