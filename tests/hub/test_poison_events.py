"""An event on which the program itself fails stops no other one (promise 8)."""

from collections.abc import Sequence

from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, Store

from cmf_graph.projection import Projection
from cmf_graph.writing import Folded, Numbered
from cmf_hub.projector import project
from cmf_protocol import types as t

POISON = t.note_added(("pipeline", "p"), "poison")


class Failing(Projection):
    """A projection with a fault: it fails on one note."""

    def _fold(self, new: Sequence[Numbered]) -> list[Folded]:
        folded = super()._fold(new)
        if any(body.get("text") == "poison" for _, _, _, body in folded):
            raise ZeroDivisionError("the fault")
        return folded


def test_the_events_around_one_that_can_not_be_folded_are_folded(store: Store) -> None:
    good, bad = MadeLog(ANA).say(20), MadeLog(BORIS).say(3).say(1, POISON).say(5)
    store.take(bad.cut(1, 10), good.cut(1, 10), good.cut(11, 21))
    projection = Failing(":memory:")
    while project(projection, store.custody):
        pass
    (row, reason), *others = projection.graph.unfolded()
    assert (row.event_id, others) == (bad.events[4].event_id, [])
    assert "ZeroDivisionError" in reason
    assert projection.graph.digest().events == 31
    store.take(good.say(4).cut(21, 25))
    while project(projection, store.custody):
        pass
    assert projection.graph.digest().events == 35
    projection.close()
