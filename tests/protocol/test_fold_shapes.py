"""What a body may hold, type by type: the second decoder's table of section 3 and ours judge alike."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.branches import graph_of
from tests.support.model import Model, first_difference
from tests.support.strategies import SIGNERS, drafts, every_type, make_event, values

from cmf_protocol import types as t
from cmf_protocol.events import Draft, Event
from cmf_protocol.fold import Unfolded, is_node, read
from cmf_protocol.signing import Succession

ROOT = make_event(None, t.log_opened(SIGNERS[0].public_key, agent=""), salt=0, log_id=b"l" * 16)
EXECUTION, ARTIFACT = ("execution", b"e" * 16), ("artifact", "md5:1")
KEYS = (
    *(
        "adds",
        "agent",
        "at",
        "digests",
        "environment",
        "error",
        "event",
        "exit_code",
        "facts",
        "lossy",
        "metrics",
        "name",
    ),
    *("params", "properties", "reason", "retraction", "status", "steps", "succeeds", "tag", "text"),
)


def folded(event: Event) -> bool:
    """Return whether an event is folded; both decoders must say so."""
    ours = not isinstance(read(event.header, event.body), Unfolded)
    theirs = second.folded_body(second.read_event(event.header_bytes, event.body)) is not None
    assert ours is theirs
    return ours


@pytest.mark.parametrize("type_", every_type())
@given(st.data())
def test_a_body_with_any_value_under_any_key_is_judged_alike_and_breaks_no_fold(
    type_: str, data: st.DataObject
) -> None:
    draft = data.draw(drafts(type_))
    odd = st.dictionaries(
        st.sampled_from(KEYS), values(max_leaves=4) | st.sampled_from([b"x" * 32, (), {}, "a:b", 1]), max_size=2
    )
    body = {**draft.body, **data.draw(odd)}
    for key in data.draw(st.lists(st.sampled_from(KEYS), max_size=1)):
        body.pop(key, None)
    event = make_event(ROOT, draft._replace(body=body), salt=1)
    folded(event)
    assert first_difference(Model([ROOT, event]), graph_of([ROOT, event]).rows()) is None


@pytest.mark.parametrize(
    ("type_", "about", "body", "holds"),
    [
        ("execution.started", [EXECUTION, ("stage", ("p", "s"))], {}, True),
        ("execution.started", [EXECUTION], {}, False),
        ("execution.started", [EXECUTION, ("stage", ("p", "s")), ARTIFACT], {"at": 1}, True),
        ("execution.started", [EXECUTION, ("stage", ("p", "s")), ARTIFACT, ("artifact", "md5:2")], {}, False),
        ("execution.started", [EXECUTION, ("stage", ("p", "e\u0301"))], {}, True),
        ("execution.started", [EXECUTION, ("stage", ("p", "\u00e9"))], {}, True),
        ("execution.started", [EXECUTION, ("stage", ("p", "s", "t"))], {}, False),
        ("execution.started", [EXECUTION, ("stage", ("p", ""))], {}, False),
        ("execution.updated", [EXECUTION, ARTIFACT], {"facts": {}}, True),
        ("execution.updated", [EXECUTION, ("pipeline", "p")], {}, False),
        ("execution.updated", [("execution", b"e" * 15)], {}, False),
        ("execution.updated", [EXECUTION], {"params": None}, False),
        ("execution.finished", [EXECUTION], {"status": "finished"}, True),
        ("execution.finished", [EXECUTION], {"status": "running"}, False),
        ("execution.finished", [EXECUTION], {"status": ("finished",)}, False),
        ("execution.finished", [EXECUTION], {}, False),
        ("execution.finished", [EXECUTION], {"status": "failed", "exit_code": True}, False),
        ("execution.finished", [EXECUTION], {"status": "failed", "error": {"message": 1}}, False),
        ("artifact.used", [ARTIFACT, EXECUTION], {"params": 5}, True),
        ("artifact.used", [ARTIFACT], {}, False),
        ("artifact.used", [EXECUTION], {}, False),
        ("artifact.used", [("artifact", "md5"), EXECUTION], {}, False),
        ("artifact.used", [("artifact", ":x"), EXECUTION], {}, False),
        ("artifact.used", [("artifact", "a:" + "x" * 499), EXECUTION], {}, False),
        ("artifact.used", [("artifact", "a:" + "x" * 498), EXECUTION], {}, True),
        ("artifact.produced", [ARTIFACT, EXECUTION], {"digests": ("x",)}, False),
        ("artifact.produced", [ARTIFACT, EXECUTION], {"name": b"x"}, False),
        ("metrics.recorded", [EXECUTION], {"metrics": {"a": True}}, False),
        ("metrics.recorded", [EXECUTION], {"metrics": {"a": float("nan")}}, True),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", (), (), ()),)}, False),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", (1,), (1,), (1, 2)),)}, False),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", (1.0,), (1,), (1,)),)}, False),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", (1,), (1,), (-1,)),)}, True),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", (1,), ("1",), (1,)),)}, False),
        ("metrics.recorded", [EXECUTION], {"steps": (("n", "", 1, 1, 1),)}, False),
        ("environment.recorded", [ARTIFACT], {}, False),
        ("environment.recorded", [ARTIFACT], {"environment": {}}, True),
        ("tag.added", [ARTIFACT], {"tag": ""}, False),
        ("tag.added", [ARTIFACT], {"tag": "x" * 500}, True),
        ("tag.added", [ARTIFACT], {"tag": "x" * 501}, False),
        ("tag.added", [ARTIFACT, EXECUTION], {"tag": "x"}, False),
        ("tag.added", [("planet", 1)], {"tag": "x"}, False),
        ("tag.removed", [ARTIFACT], {"tag": "x"}, False),
        ("tag.removed", [ARTIFACT], {"tag": "x", "adds": (b"x" * 31,)}, False),
        ("note.added", [("key", b"k" * 32)], {"text": ""}, True),
        ("note.added", [("key", b"k" * 31)], {"text": ""}, False),
        ("record.retracted", [ARTIFACT, EXECUTION], {"reason": ""}, False),
        ("record.retracted", [ARTIFACT], {"reason": ""}, True),
        ("record.retracted", [ARTIFACT, EXECUTION], {"reason": "", "event": b"x" * 32}, True),
        ("record.retracted", [ARTIFACT], {"reason": "", "event": None}, False),
        ("record.retracted", [ARTIFACT], {}, False),
        ("record.unretracted", [ARTIFACT, EXECUTION], {"retraction": b"x" * 32}, True),
        ("record.unretracted", [ARTIFACT], {}, False),
        ("log.opened", [("key", b"k" * 32)], {"succeeds": {}}, False),
        ("log.opened", [("key", b"k" * 32)], {"succeeds": {"log": b"l" * 16, "sequence": 1, "event": b"e" * 32, "reason": ""}}, True),
        ("log.opened", [ARTIFACT], {}, False),
        ("pipeline.described", [("pipeline", "p"), ("pipeline", "q")], {}, False),
    ],
)  # fmt: skip
def test_an_event_is_folded_exactly_where_section_3_says(
    type_: str, about: list[Any], body: dict[str, Any], holds: bool
) -> None:
    ordered = tuple(sorted(about, key=second.write_value))
    assert folded(make_event(ROOT, Draft(type_, ordered, body), salt=1)) is holds


@given(st.binary(max_size=80))
def test_any_bytes_as_a_body_are_judged_alike(body: bytes) -> None:
    folded(make_event(ROOT, t.note_added(EXECUTION, ""), salt=1, body=body))


@given(st.sampled_from(["key", "pipeline", "stage", "execution", "artifact", "planet", ""]), values(max_leaves=3))
def test_a_node_is_judged_alike(kind: str, id_: Any) -> None:
    as_read = second.read_value(second.write_value([kind, id_]))
    assert is_node((kind, id_)) is second.is_node(as_read)


@pytest.mark.parametrize("withheld", [{"signature": None}, {"signature": b"x" * 63}, {"sequence": 0}, {"sequence": True},
                                      {"log": b"l"}, {"event": "e"}, {"reason": 1}])  # fmt: skip
def test_a_malformed_succession_is_none(withheld: dict[str, Any]) -> None:
    whole = {"log": b"l" * 16, "sequence": 1, "event": b"e" * 32, "reason": "", "signature": b"s" * 64}
    succession = Succession.from_body(whole)
    assert succession is not None
    assert succession.body() == whole
    assert Succession.from_body({**whole, **withheld}) is None
