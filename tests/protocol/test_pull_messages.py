"""The messages of a pull, and the ranges that they are made of, against sets."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cmf_protocol.encoding import encode
from cmf_protocol.errors import (
    AccessDenied,
    BackPressure,
    CallerError,
    CmfError,
    DecodeError,
    LinkError,
    PeerError,
)
from cmf_protocol.filters import FILTER_TEXTS_MAX, Filter, decode_filter, filter_of
from cmf_protocol.messages import encode_error
from cmf_protocol.pull import (
    KNOWN_MAX,
    WANTED_EVENTS_MAX,
    EventsAnswer,
    EventsRequest,
    Known,
    PullAnswer,
    PullRequest,
    ToldBranch,
    ToldEvent,
    ToldTree,
    decode_events_answer,
    decode_events_request,
    decode_pull,
    decode_pull_answer,
    encode_events_answer,
    encode_events_request,
    encode_pull,
    encode_pull_answer,
    listing_digest,
)
from cmf_protocol.ranges import (
    Ranges,
    clip,
    contains,
    count,
    intersect,
    is_ranges,
    last_of,
    merged,
    of_sequences,
    split,
    subtract,
    union,
)
from cmf_protocol.segments import FRAME_BYTES_MAX

sequences = st.sets(st.integers(1, 30))
ranges = sequences.map(of_sequences)
ids = st.binary(min_size=32, max_size=32)
short_ids = st.binary(min_size=16, max_size=16)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
name_lists = st.lists(names, max_size=3)
filters = st.one_of(
    st.builds(
        filter_of,
        pipelines=name_lists,
        sites=name_lists,
        artifacts=name_lists,
        since_us=st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    st.just(filter_of(own=True)),
)
wanted = st.lists(st.tuples(ids, ranges.filter(bool)), max_size=4).map(tuple)


def as_set(found: Ranges) -> set[int]:
    return {sequence for first, last in found for sequence in range(first, last + 1)}


# -- ranges ------------------------------------------------------------------------------------------------------------


@given(sequences, sequences, st.integers(0, 32), st.integers(0, 32))
def test_ranges_are_sets(one: set[int], other: set[int], low: int, high: int) -> None:
    a, b = of_sequences(one), of_sequences(other)
    assert as_set(a) == one
    assert count(a) == len(one)
    assert last_of(a) == max(one, default=0)
    assert as_set(union(a, b)) == one | other
    assert as_set(subtract(a, b)) == one - other
    assert as_set(intersect(a, b)) == one & other
    assert as_set(clip(a, low, high)) == {each for each in one if low <= each <= high}
    assert [contains(a, each) for each in range(32)] == [each in one for each in range(32)]
    for found in (a, union(a, b), subtract(a, b), intersect(a, b), clip(a, low, high)):
        assert is_ranges(found)


@given(sequences, st.integers(0, 40))
def test_splitting_takes_the_first(one: set[int], wanted_count: int) -> None:
    first, rest = split(of_sequences(one), wanted_count)
    assert is_ranges(first)
    assert is_ranges(rest)
    assert as_set(first) == set(sorted(one)[:wanted_count])
    assert as_set(rest) == set(sorted(one)[wanted_count:])


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), max_size=8))
def test_overlapping_pairs_are_merged(pairs: list[tuple[int, int]]) -> None:
    found = merged((first, first + more) for first, more in pairs)
    assert is_ranges(found)
    assert as_set(found) == {first + at for first, more in pairs for at in range(more + 1)}


@pytest.mark.parametrize(
    "value",
    [None, 5, "x", ((1,),), ((1, 2, 3),), ((2, 1),), ((0, 1),), ((1, 2), (3, 4)), ((1, 2), (2, 4)), ((5, 6), (1, 2)), ((1, True),),
     ((1, 1.0),), [(1, 2)]],
)  # fmt: skip
def test_other_forms_are_no_ranges(value: object) -> None:
    assert not is_ranges(value)


@given(ranges, ranges, st.integers(0, 32))
def test_digests_tell_lists_apart_up_to_a_sequence(one: Ranges, other: Ranges, upto: int) -> None:
    same = clip(one, 1, upto) == clip(other, 1, upto)
    assert (listing_digest(None, None, one, upto) == listing_digest(None, None, other, upto)) is same
    assert listing_digest(None, None, one, upto) != listing_digest(b"p" * 32, 1, one, upto)


# -- filters -----------------------------------------------------------------------------------------------------------


@given(filters)
def test_a_filter_has_one_form(found: Filter) -> None:
    assert decode_filter(found.canonical()) == found
    again = filter_of(
        pipelines=[*reversed(found.pipelines), *found.pipelines],
        sites=reversed(found.sites),
        since_us=found.since_us,
        artifacts=reversed(found.artifacts),
        own=found.own,
    )
    assert again == found


@pytest.mark.parametrize(
    "parts",
    [
        5, {"pipelines": ()}, {"pipelines": ("b", "a")}, {"pipelines": ("a", "a")}, {"pipelines": ("",)}, {"pipelines": "ab"},
        {"sites": (b"a",)}, {"artifacts": ("x" * 501,)}, {"since": True}, {"since": 1.0}, {"own": False}, {"own": 1},
        {"own": True, "sites": ("a",)}, {"own": True, "since": 1},
        {"sites": tuple(f"{number:05}" for number in range(FILTER_TEXTS_MAX + 1))},
    ],
)  # fmt: skip
def test_any_other_form_of_a_filter_is_refused(parts: object) -> None:
    with pytest.raises(DecodeError):
        decode_filter(encode(parts))


def test_a_filter_that_asks_for_too_much_is_the_callers_error() -> None:
    with pytest.raises(CallerError, match="sites"):
        filter_of(sites=map(str, range(FILTER_TEXTS_MAX + 1)))
    with pytest.raises(CallerError, match="own"):
        filter_of(own=True, pipelines=["p"])
    with pytest.raises(CallerError, match="bytes"):
        filter_of(pipelines=[f"{number:0500}" for number in range(FILTER_TEXTS_MAX)])
    assert filter_of(artifacts=[f"sha256:{number:064}" for number in range(FILTER_TEXTS_MAX)])


@pytest.mark.parametrize(
    ("found", "selects"),
    [
        (filter_of(), True), (filter_of(pipelines=["p"]), True), (filter_of(since_us=0), True), (filter_of(own=True), False),
        (filter_of(artifacts=["a"]), False), (filter_of(artifacts=["a"], sites=["s"]), True),
    ],
)  # fmt: skip
def test_artifacts_alone_select_no_executions_by_their_start(found: Filter, selects: bool) -> None:
    assert found.selects_executions is selects


# -- messages ----------------------------------------------------------------------------------------------------------

known = st.builds(Known, ids, st.integers(0, 2**63 - 1), short_ids)
pulls = st.builds(PullRequest, filters, st.lists(known, max_size=4).map(tuple), st.booleans())


@st.composite
def told_branches(draw: st.DrawFn) -> ToldBranch:
    first = draw(st.integers(1, 20))
    parent = None if first == 1 else draw(ids)
    parent_sequence = None if first == 1 else draw(st.integers(1, first - 1))
    listed = clip(draw(ranges), first, 30)
    after = draw(st.integers(0, 30))
    fresh = clip(listed, after + 1, 30)
    upto = max(after, last_of(fresh))
    return ToldBranch(draw(ids), draw(ids), parent, parent_sequence, first, after, fresh, upto, draw(short_ids))


answers = st.builds(
    PullAnswer, short_ids, short_ids, st.integers(0, 2**60), filters,
    st.lists(st.builds(ToldTree, ids, short_ids, ids, names), max_size=3).map(tuple),
    st.lists(told_branches(), max_size=3).map(tuple), st.lists(ids, max_size=3).map(tuple), st.booleans(),
    st.binary(max_size=40),
)  # fmt: skip
requests = st.builds(EventsRequest, wanted, st.integers(0, 2**40), st.none() | wanted)
told_events = st.builds(
    ToldEvent, ids, st.integers(1, 2**63 - 1), st.binary(max_size=40), st.none() | st.binary(max_size=40)
)
event_answers = st.one_of(
    st.builds(EventsAnswer, short_ids, st.lists(told_events, max_size=4).map(tuple), st.just(())),
    st.builds(EventsAnswer, short_ids, st.just(()), st.lists(st.binary(), min_size=1, max_size=4).map(tuple)),
)


@given(pulls, answers, requests, event_answers)
def test_messages_are_read_as_they_were_written(
    pull: PullRequest, answer: PullAnswer, request: EventsRequest, events: EventsAnswer
) -> None:
    assert decode_pull(encode_pull(pull)) == pull
    assert decode_pull_answer(encode_pull_answer(answer)) == answer
    assert decode_events_request(encode_events_request(request)) == request
    assert decode_events_answer(encode_events_answer(events)) == events


DECODERS: tuple[Callable[[bytes], object], ...] = (
    decode_pull,
    decode_pull_answer,
    decode_events_request,
    decode_events_answer,
)


@given(st.binary() | st.binary().map(lambda data: b"\x01" + zstandard.ZstdCompressor().compress(data)))
def test_any_bytes_are_read_or_refused_with_our_errors(data: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(PeerError):
            decode(data)


@given(
    st.data(), st.one_of(pulls.map(encode_pull), answers.map(encode_pull_answer), requests.map(encode_events_request))
)
def test_altered_bytes_are_read_or_refused_with_our_errors(data: st.DataObject, message: bytes) -> None:
    at = data.draw(st.integers(0, len(message) - 1))
    altered = message[:at] + data.draw(st.binary(min_size=1, max_size=2)) + message[at + 1 :]
    for decode in DECODERS:
        with suppress(PeerError):
            decode(altered)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (AccessDenied("no", "ask"), AccessDenied), (CallerError("no", "ask"), CallerError),
        (BackPressure("no", "ask"), BackPressure), (DecodeError("no", "ask"), LinkError),
    ],
)  # fmt: skip
def test_an_error_is_raised_as_what_the_asker_can_act_on(
    decode: Callable[[bytes], object], error: CmfError, raised: type[CmfError]
) -> None:
    if decode in (decode_pull, decode_events_request):
        with pytest.raises(DecodeError):
            decode(encode_error(error))
        return
    with pytest.raises(raised, match="no") as found:
        decode(encode_error(error))
    assert found.value.hint == "ask"


def test_what_a_request_may_name_is_bounded() -> None:
    too_many = tuple(Known(number.to_bytes(32, "big"), 0, bytes(16)) for number in range(KNOWN_MAX + 1))
    with pytest.raises(CallerError):
        encode_pull(PullRequest(filter_of(), too_many))
    with pytest.raises(DecodeError, match="known"):
        decode_pull(encode({"filter": {}, "known": [list(row) for row in too_many], "v": 1}))
    most, more = ((1, WANTED_EVENTS_MAX),), ((1, WANTED_EVENTS_MAX), (10_000, 10_000))
    assert decode_events_request(encode_events_request(EventsRequest(((bytes(32), most),), 1)))
    for bodies, whole in (({}, more), ({}, ()), ({"bodies": [[bytes(32), more]]}, most)):
        message = encode({"bytes": 1, "v": 1, "wanted": [[bytes(32), whole]], **bodies})
        with pytest.raises(DecodeError, match=r"wanted|bodies"):
            decode_events_request(message)
    with pytest.raises(CallerError):
        encode_events_request(EventsRequest(((bytes(32), more),), 1))


def test_a_frame_that_would_unpack_to_more_than_a_message_is_refused() -> None:
    for frame in (
        zstandard.ZstdCompressor().compress(bytes(FRAME_BYTES_MAX + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)),
    ):
        with pytest.raises(DecodeError, match="size"):
            decode_events_answer(b"\x01" + frame)
    with pytest.raises(CallerError):
        encode_events_answer(EventsAnswer(bytes(16), (ToldEvent(bytes(32), 1, bytes(FRAME_BYTES_MAX), None),)))


@pytest.mark.parametrize(
    "change",
    [
        {"parent": None}, {"parent_sequence": None}, {"parent_sequence": 5}, {"first_sequence": 1}, {"after": 21}, {"upto": 9},
        {"ranges": ((4, 4),)}, {"ranges": ((6, 6), (5, 5))}, {"after": 6}, {"digest": bytes(15)},
    ],
)  # fmt: skip
def test_a_branch_that_can_not_be_is_refused(change: dict[str, object]) -> None:
    good = ToldBranch(b"b" * 32, b"r" * 32, b"p" * 32, 4, 5, 0, ((6, 8), (10, 10)), 10, bytes(16))
    told = PullAnswer(bytes(16), bytes(16), 0, filter_of(), (), (good,), (), True)
    assert decode_pull_answer(encode_pull_answer(told)) == told
    odd = told._replace(branches=(good._replace(**change),))  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="branches"):
        decode_pull_answer(encode_pull_answer(odd))
