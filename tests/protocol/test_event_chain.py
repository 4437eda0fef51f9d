"""Events: made as a chain, read as they were made, refused where they break the format."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.strategies import WALL_US, History, drafts, histories, make_event, names

from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.errors import CallerError, DecodeError, IntegrityError
from cmf_protocol.events import (
    ABOUT_MAX,
    EVENT_BYTES_MAX,
    Draft,
    Head,
    decode_body,
    decode_event,
    decode_header,
    head_of,
    make_events,
    trusted_body,
    trusted_events,
)
from cmf_protocol.fold import Unfolded, read

LOG = b"l" * 16
EMPTY = Head(LOG, 0, None, None)
NOTE = t.note_added(("execution", b"e" * 16), "x")


def salts(count: int) -> bytes:
    return b"".join(sha256(bytes([at])).digest()[:16] for at in range(count))


def header(**changed: Any) -> bytes:
    """Return a header in which these elements (by number) are others."""
    fields: list[Any] = [1, "a.b", 1, LOG, 2, b"p" * 32, 1, 1, [["k", 1]], b"h" * 32]
    for number, value in changed.items():
        fields[int(number[1:])] = value
    return second.write_value(fields)


@given(st.lists(drafts(), min_size=1, max_size=12), st.data())
def test_a_chain_is_the_same_however_it_is_recorded(said: list[Draft], data: st.DataObject) -> None:
    at_once = make_events(EMPTY, said, salts(len(said)), WALL_US)
    cut = data.draw(st.integers(0, len(said)))
    first = make_events(EMPTY, said[:cut], salts(len(said))[: 16 * cut], WALL_US)
    second_part = make_events(head_of(first[-1]) if first else EMPTY, said[cut:], salts(len(said))[16 * cut :], WALL_US)
    assert first + second_part == at_once


@given(st.lists(drafts(), min_size=1, max_size=12))
def test_every_event_that_is_made_is_read_alike_by_both_decoders_and_folded(said: list[Draft]) -> None:
    previous = None
    for number, (event, draft) in enumerate(
        zip(make_events(EMPTY, said, salts(len(said)), WALL_US), said, strict=True)
    ):
        assert decode_event(event.header_bytes, event.body) == event
        theirs = second.read_event(event.header_bytes, event.body)
        assert (theirs.sequence, theirs.previous, theirs.event_id) == (number + 1, previous, event.event_id)
        assert second.write_value(theirs.about) == encode(draft.about)
        body = read(event.header, event.body)
        assert not isinstance(body, Unfolded)
        assert second.write_value(second.folded_body(theirs)) == encode(body) == encode(draft.body)
        previous = event.event_id


@given(histories())
def test_what_is_odd_is_judged_alike_by_both_decoders(history: History) -> None:
    for event in history.events:
        body = read(event.header, event.body)
        theirs = second.folded_body(second.read_event(event.header_bytes, event.body))
        assert isinstance(body, Unfolded) is (theirs is None), body
        if not isinstance(body, Unfolded):
            assert event.body is not None
            assert encode(trusted_body(event.body)) == encode(body) == encode(decode_body(event.body))


@given(st.lists(drafts(), min_size=1, max_size=6))
def test_events_that_were_checked_once_are_read_back_the_same(said: list[Draft]) -> None:
    events = make_events(EMPTY, said, salts(len(said)), WALL_US)
    pairs = [(event.header_bytes, event.body) for event in events]
    assert trusted_events(pairs, events[-1].event_id) == events


@pytest.mark.parametrize(
    "draft",
    [
        NOTE._replace(body={"text": "\ud800"}),
        NOTE._replace(body={"text": "\0"}),
        NOTE._replace(body={"n": 2**63}),
        NOTE._replace(body={"n": object()}),
        NOTE._replace(about=(("execution", "\ud800"),)),
        NOTE._replace(wall_us=2**63 - 1),
        NOTE._replace(wall_us=2**64),
        NOTE._replace(wall_us=-(2**64)),
        NOTE._replace(wall_us=200_000_000_000_000_000),
        NOTE._replace(body={"text": "x" * EVENT_BYTES_MAX}),
    ],
    ids=range(10),
)
def test_a_draft_that_can_not_be_an_event_is_the_callers_error(draft: Draft) -> None:
    with pytest.raises(CallerError):
        make_events(EMPTY, [NOTE, draft], salts(2), WALL_US)


def test_too_few_or_too_many_salts_are_the_callers_error() -> None:
    for wrong in (b"", salts(1), salts(2)[:-1], salts(3)):
        with pytest.raises(CallerError):
            make_events(EMPTY, [NOTE, NOTE], wrong, WALL_US)


def test_an_event_may_have_exactly_the_largest_size() -> None:
    size = make_events(EMPTY, [NOTE._replace(body={"text": "x" * 70_000})], salts(1), WALL_US)[0].size - 70_000
    (event,) = make_events(EMPTY, [NOTE._replace(body={"text": "x" * (EVENT_BYTES_MAX - size)})], salts(1), WALL_US)
    assert event.size == EVENT_BYTES_MAX
    assert decode_event(event.header_bytes, event.body) == event
    assert second.read_event(event.header_bytes, event.body).event_id == event.event_id
    larger = make_event(None, NOTE._replace(body={"text": "x" * EVENT_BYTES_MAX}), salt=1, withheld=True, log_id=LOG)
    body = second.write_value([b"s" * 16, {"text": "x" * EVENT_BYTES_MAX}])
    fields = second.read_value(larger.header_bytes)
    fields[9] = sha256(body).digest()
    with pytest.raises(DecodeError):
        decode_event(second.write_value(fields), body)


def test_another_events_body_is_refused() -> None:
    one, two = make_events(EMPTY, [NOTE, NOTE], salts(2), WALL_US)
    with pytest.raises(IntegrityError):
        decode_event(one.header_bytes, two.body)
    assert decode_event(one.header_bytes, None).event_id == one.event_id


@pytest.mark.parametrize(
    "data",
    [
        header(_0=0), header(_0=True), header(_0="1"), header(_0=-1),
        header(_1=""), header(_1="x" * 101), header(_1=b"a.b"), header(_1=None),
        header(_2=0), header(_2=1.0), header(_2=None),
        header(_3=b"l" * 15), header(_3="l" * 16), header(_3=None),
        header(_4=0), header(_4=1), header(_4=-1), header(_4=True),
        header(_5=None), header(_5=b"p" * 31), header(_5="p" * 32),
        header(_4=1, _5=b"p" * 32),
        header(_6=-1), header(_6=None), header(_6=1.5), header(_6=True),
        header(_7=None), header(_7=1.5), header(_7=False),
        header(_8=[]), header(_8=None), header(_8={}), header(_8=[["k"]]), header(_8=[["k", 1, 2]]), header(_8=[[1, "k"]]),
        header(_8=["k"]), header(_8=[["k", 2], ["k", 1]]), header(_8=[["k", 1], ["k", 1]]), header(_8=[["bb", 1], ["a", 1]]),
        header(_8=[["b", 1], ["a", 1]]), header(_8=[["k", at] for at in range(ABOUT_MAX + 1)]),
        header(_8=[["é", 1], ["zz", 1]]), header(_8=[["x" * 33, 1], ["a" * 34, 1]][::-1]),
        header(_9=b"h" * 31), header(_9=None), header(_9="h" * 32),
        second.write_value([]), second.write_value({}), second.write_value(None),
        second.write_value(second.read_value(header())[:9]),
        header().replace(b"\xa3a.b", b"\xd9\x03a.b"), header().replace(b"\xa3a.b", b"\xa3a\0b"), header().replace(b"\xa1k", b"\xa1\0"),
        header() + b"\0", header()[:-1], b"",
        b"\x9b" + header()[1:] + b"\xcc\x01", b"\x9b" + header()[1:] + b"\xa1\0", b"\x9b" + header()[1:] + b"\xcf" + b"\xff" * 8,
        b"\x9b" + header()[1:] + b"\xcb\x80" + bytes(7), b"\x9b" + header()[1:] + b"\xd6\xff" + bytes(4),
        b"\x9b" + header()[1:] + b"\x91" * 16 + b"\x01", b"\x9b" + header()[1:] + b"\x91" * 600 + b"\x01",
        msgpack.packb([1, "a.b", 1, LOG, 2, b"p" * 32, 1, 1, [["k", 2**63]], b"h" * 32]),
        header().replace(b"\x92\xa1k\x01", b"\x92\xa1k" + b"\x91" * 14 + b"\x01"),
        header().replace(b"\x92\xa1k\x01", b"\x92\xa1k" + b"\x91" * 600 + b"\x01"),
    ],
    ids=range(66),
)  # fmt: skip
def test_a_header_that_breaks_the_format_is_refused_by_both_decoders(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_header(data)
    with pytest.raises(second.Broken):
        second.read_event(data, None)


@pytest.mark.parametrize(
    "data",
    [
        header(), header(_0=2, _2=7), header(_1="x" * 100), header(_7=-(2**63)), header(_6=2**63 - 1), header(_4=1, _5=None),
        header(_8=[["a", 1], ["b", 1], ["aa", 0]]), header(_8=[["k", at] for at in range(128)]), header(_8=[["k", {"a": [None]}]]),
        header(_8=[["é", 1], ["zzz", 1]]), header(_8=[["", 1], ["a", 1]]),
        b"\x9b" + header()[1:] + b"\x91" * 15 + b"\x01", b"\x9c" + header()[1:] + b"\xc0\x80",
        header().replace(b"\x92\xa1k\x01", b"\x92\xa1k" + b"\x91" * 13 + b"\x01"),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_header_that_keeps_the_format_is_read_by_both_decoders(data: bytes) -> None:
    ours, theirs = decode_header(data), second.read_event(data, None)
    assert (ours.version, ours.type, ours.sequence, ours.clock) == (
        theirs.version,
        theirs.type,
        theirs.sequence,
        theirs.clock,
    )
    assert encode(ours.about) == second.write_value(theirs.about)


@given(names(), names(), names())
def test_names_are_recorded_in_a_form_that_is_folded(pipeline: str, stage: str, tag: str) -> None:
    said = [t.stage_described(pipeline, stage, {}), t.tag_added(t.pipeline_node(pipeline), tag)]
    for event in make_events(EMPTY, said, salts(2), WALL_US):
        assert not isinstance(read(event.header, event.body), Unfolded)


@pytest.mark.parametrize("name", ["", "x" * 501, " ", "\t\n", "a\0", "\ud800", "\u0958" * 251, None, 5])
def test_what_can_be_no_name_is_the_callers_error(name: Any) -> None:
    with pytest.raises(CallerError):
        t.tag_added(("execution", b"e" * 16), name)
    with pytest.raises(CallerError):
        t.stage_node("p", name)


@pytest.mark.parametrize("wrong", ["", "md5", "md5:", ":x", "md5:\0", "md5:\ud800", "a:" + "x" * 499, None, b"md5:x"])
def test_what_can_be_no_content_id_is_the_callers_error(wrong: Any) -> None:
    drafted: list[Callable[[], Draft]] = [
        lambda: t.usage(t.ARTIFACT_USED, b"e" * 16, wrong),
        lambda: t.environment_recorded(wrong, {}),
        lambda: t.usage(t.ARTIFACT_USED, wrong, "md5:x"),
        lambda: t.execution_finished(wrong, "failed"),
    ]
    for draft in drafted:
        with pytest.raises(CallerError):
            draft()


def test_a_status_that_is_none_of_an_ended_execution_is_the_callers_error() -> None:
    with pytest.raises(CallerError):
        t.execution_finished(b"e" * 16, "running")
