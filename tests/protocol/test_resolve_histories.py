"""Resolving against the plain model: the graph is a pure function of the set of events."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.branches import graph_of
from tests.support.model import Model, first_difference
from tests.support.strategies import History, event_sets, histories, segmentations

from cmf_protocol.segments import decode_segment


@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_any_numbering_of_branches_gives_the_graph_of_the_model(
    history: History, chance: random.Random
) -> None:
    model = Model(history.events)
    assert first_difference(model, graph_of(history.events).rows()) is None
    for _ in range(3):
        events = history.events + chance.sample(history.events, len(history.events) // 2)
        chance.shuffle(events)
        graph = graph_of(events, chance.randrange)
        assert first_difference(model, graph.rows()) is None
        assert graph.digest() == model.digest()
        assert graph.unfolded == model.unfolded


@given(st.data())
def test_any_part_that_is_closed_under_previous_ids_gives_the_graph_of_the_model(data: st.DataObject) -> None:
    history = data.draw(histories(min_size=4))
    events = data.draw(event_sets(history))
    assert first_difference(Model(events), graph_of(events).rows()) is None


@given(st.data())
def test_any_split_into_signed_segments_carries_the_same_events(data: st.DataObject) -> None:
    history = data.draw(histories())
    segments = [decode_segment(each) for each in data.draw(segmentations(history))]
    assert all(segment.signature_holds() for segment in segments)
    carried = [event for segment in segments for event in segment.events]
    assert Counter(carried) == Counter(history.events)
    held: set[bytes] = set()
    for segment in segments:
        assert segment.statement.previous is None or segment.statement.previous in held
        held.update(event.event_id for event in segment.events)
    assert Model(carried).events_digest() == Model(history.events).events_digest()


@given(histories(odd=False))
def test_nothing_is_unfolded_where_nothing_is_odd(history: History) -> None:
    assert graph_of(history.events).unfolded == 0


@pytest.mark.deep
@settings(max_examples=400)
@given(histories(min_size=40, max_size=80), st.randoms(use_true_random=False))
def test_long_histories_give_the_graph_of_the_model(history: History, chance: random.Random) -> None:
    events = list(history.events)
    chance.shuffle(events)
    assert first_difference(Model(events), graph_of(events, chance.randrange).rows()) is None
