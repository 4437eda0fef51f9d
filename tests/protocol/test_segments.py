"""Segments: cut within limits, read alike by both decoders, and every tampering is found."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.strategies import SIGNERS, WALL_US, History, drafts, histories, make_event, segment_of, segmentations

from cmf_protocol import types as t
from cmf_protocol.encoding import encode
from cmf_protocol.errors import DecodeError, IntegrityError, PeerError
from cmf_protocol.events import EVENT_BYTES_MAX, Event, Head, make_events
from cmf_protocol.segments import (
    FRAME_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_EVENTS_MAX,
    cut,
    decode_segment,
    encode_segment,
    sign_segment,
    statement_of,
    unpack_segment,
)

SIGNER, OTHER = SIGNERS[0], SIGNERS[1]
NOTE = t.note_added(("execution", b"e" * 16), "x")


def chain(count: int, text: str = "x") -> list[Event]:
    """Return a log of this many events."""
    said = [t.log_opened(SIGNER.public_key, agent=""), *([t.note_added(("execution", b"e" * 16), text)] * (count - 1))]
    salts = b"".join(sha256(b"%d" % at).digest()[:16] for at in range(count))
    return make_events(Head(b"l" * 16, 0, None, None), said, salts, WALL_US)


def content(data: bytes) -> list[Any]:
    """Return what is in a segment, to be altered."""
    value: list[Any] = second.read_value(zstandard.ZstdDecompressor().decompress(data[1:]))
    return value


def sealed(value: Any) -> bytes:
    """Return the bytes of a segment with this content."""
    return b"\x01" + zstandard.ZstdCompressor().compress(msgpack.packb(value))


def refused(data: bytes) -> None:
    """Both decoders refuse these bytes."""
    with pytest.raises(PeerError):
        decode_segment(data)
    with pytest.raises(second.Broken):
        second.read_segment(data)


EVENTS = chain(6)
SEGMENT = segment_of(EVENTS[1:5], SIGNER, EVENTS[5])


@given(st.data())
def test_both_decoders_read_a_segment_alike(data: st.DataObject) -> None:
    history: History = data.draw(histories())
    for raw in data.draw(segmentations(history)):
        ours, theirs = decode_segment(raw), second.read_segment(raw)
        assert list(ours.statement) == theirs.statement
        assert ours.signature_holds() is theirs.signed is True
        assert [(e.event_id, e.body) for e in ours.events] == [(e.event_id, e.body_bytes) for e in theirs.events]
        statement, signature, pairs = unpack_segment(raw)
        assert (statement, signature) == (ours.statement, ours.signature)
        assert pairs == tuple((event.header_bytes, event.body) for event in ours.events)
        assert ours.data == raw


@given(
    st.lists(st.integers(1, EVENT_BYTES_MAX), max_size=60)
    | st.builds(lambda count: [300] * count, st.integers(900, 2_100))
)
def test_a_log_is_cut_within_both_limits_and_no_earlier(sizes: list[int]) -> None:
    cuts = list(cut(sizes))
    assert [at for start, stop in cuts for at in range(start, stop)] == list(range(len(sizes)))
    for start, stop in cuts:
        assert 1 <= stop - start <= SEGMENT_EVENTS_MAX
        assert sum(sizes[start:stop]) <= SEGMENT_BYTES_MAX
        if stop < len(sizes):
            assert stop - start == SEGMENT_EVENTS_MAX or sum(sizes[start : stop + 1]) > SEGMENT_BYTES_MAX


def test_the_largest_segments_are_read() -> None:
    for events in (chain(SEGMENT_EVENTS_MAX), chain(3, "x" * (SEGMENT_BYTES_MAX // 2 - 1_000))):
        data = segment_of(events, SIGNER)
        assert decode_segment(data).events == tuple(events)
        assert len(second.read_segment(data).events) == len(events)


def test_a_segment_of_too_many_events_or_bytes_is_refused() -> None:
    refused(segment_of(chain(SEGMENT_EVENTS_MAX + 1), SIGNER))
    refused(segment_of(chain(4, "x" * (SEGMENT_BYTES_MAX // 3)), SIGNER))
    value = content(SEGMENT)
    value[2] = []
    refused(sealed(value))


@pytest.mark.parametrize("number", range(8))
def test_an_altered_statement_is_found(number: int) -> None:
    for other in (b"z" * 16, b"z" * 32, 1, 2, 3, 5, 6, 0, -1, 2**63, None, "x", OTHER.public_key, True):
        value = content(SEGMENT)
        if value[0][number] == other:
            continue
        value[0][number] = other
        data = sealed(value)
        try:
            segment = decode_segment(data)
        except PeerError:
            with pytest.raises(second.Broken):
                second.read_segment(data)
            continue
        assert not segment.signature_holds()
        assert not second.read_segment(data).signed


def test_an_altered_signature_is_found() -> None:
    for at in (0, 31, 32, 63):
        value = content(SEGMENT)
        signature = bytearray(value[1])
        signature[at] ^= 1
        value[1] = bytes(signature)
        assert not decode_segment(sealed(value)).signature_holds()
        assert not second.read_segment(sealed(value)).signed
    for wrong in (b"", value[1][:-1], value[1] + b"\0", None, "x" * 64):
        value[1] = wrong
        refused(sealed(value))


def test_the_signature_of_another_key_or_another_statement_is_found() -> None:
    events = EVENTS[1:5]
    pairs = [(event.header_bytes, event.body) for event in events]
    statement = statement_of(events, EVENTS[5], SIGNER.public_key)
    by_another = encode_segment(statement, sign_segment(statement, OTHER), pairs)
    assert not decode_segment(by_another).signature_holds()
    shorter = statement_of(events, EVENTS[4], SIGNER.public_key)
    assert not decode_segment(encode_segment(statement, sign_segment(shorter, SIGNER), pairs)).signature_holds()
    under_another_tag = SIGNER.sign(b"cmf-sync succession v1\0", list(statement))
    assert not decode_segment(encode_segment(statement, under_another_tag, pairs)).signature_holds()


def test_events_that_are_swapped_dropped_or_doubled_are_found() -> None:
    for order in (
        [1, 0, 2, 3],
        [0, 2, 1, 3],
        [0, 1, 3],
        [0, 2, 3],
        [1, 2, 3],
        [0, 1, 2],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 3],
        [3],
    ):
        value = content(SEGMENT)
        value[2] = [value[2][at] for at in order]
        refused(sealed(value))


def test_a_body_that_is_altered_or_another_events_is_found() -> None:
    value = content(SEGMENT)
    for other in (value[2][1][1], value[2][0][1] + b"\0", value[2][0][1][:-1] + b"y", b""):
        altered = content(SEGMENT)
        altered[2][0][1] = other
        refused(sealed(altered))
        with pytest.raises(IntegrityError):
            decode_segment(sealed(altered))


def test_a_body_may_be_withheld_and_all_else_holds() -> None:
    value = content(SEGMENT)
    value[2][2][1] = None
    segment = decode_segment(sealed(value))
    assert segment.signature_holds()
    assert [event.body is None for event in segment.events] == [False, False, True, False]
    assert second.read_segment(sealed(value)).signed


@given(st.integers(0, 3), st.data())
def test_an_altered_header_is_found(which: int, data: st.DataObject) -> None:
    value = content(SEGMENT)
    header = bytearray(value[2][which][0])
    header[data.draw(st.integers(0, len(header) - 1))] ^= data.draw(st.integers(1, 255))
    value[2][which][0] = bytes(header)
    refused(sealed(value))


def test_an_event_of_another_log_or_branch_is_found() -> None:
    other = make_event(EVENTS[1], NOTE, salt=99)
    stranger = make_event(make_event(None, NOTE, salt=98, log_id=b"m" * 16), NOTE, salt=97)
    for event in (other, stranger):
        value = content(SEGMENT)
        value[2][1] = [event.header_bytes, event.body]
        refused(sealed(value))


def test_what_is_no_pair_of_bytes_is_refused() -> None:
    good = content(SEGMENT)[2][0]
    pairs: tuple[Any, ...] = (
        None,
        [],
        good[:1],
        [*good, b""],
        [None, good[1]],
        [good[0], "x"],
        [good[0], 1],
        {},
        good[0],
        ["x", None],
    )
    for wrong in pairs:
        value = content(SEGMENT)
        value[2][0] = wrong
        refused(sealed(value))
    for wrong_whole in (None, [], content(SEGMENT)[:2], [*content(SEGMENT), 1], {}, {"a": 1}):
        refused(sealed(wrong_whole))


def test_content_that_is_not_canonical_is_refused() -> None:
    packed = msgpack.packb(content(SEGMENT))
    for wrong in (
        packed + b"\0",
        packed[:-1],
        b"\xdc\x00\x03" + packed[1:],
        packed.replace(b"\xc4\x10", b"\xc5\x00\x10", 1),
    ):
        refused(b"\x01" + zstandard.ZstdCompressor().compress(wrong))


def test_content_that_nests_too_deep_is_refused() -> None:
    for depth in (17, 600, 1_020, 1_024, 5_000, 500_000):
        value = content(SEGMENT)
        head = b"\x93" + second.write_value(value[0]) + second.write_value(value[1]) + b"\x91"
        refused(b"\x01" + zstandard.ZstdCompressor().compress(head + b"\x91" * depth + b"\x01"))


def frames(packed: bytes) -> dict[str, bytes]:
    """Return frames that a segment may not be."""
    compressor = zstandard.ZstdCompressor()
    whole = compressor.compress(packed)
    return {
        "of another version": b"\x02" + whole,
        "of no version": whole,
        "that does not state its size": b"\x01" + zstandard.ZstdCompressor(write_content_size=False).compress(packed),
        "that is empty": b"\x01" + compressor.compress(b""),
        "followed by a byte": b"\x01" + whole + b"\0",
        "followed by another": b"\x01" + whole + whole,
        "after a frame to skip": b"\x01" + b"\x50\x2a\x4d\x18\x01\0\0\0x" + whole,
        "followed by a frame to skip": b"\x01" + whole + b"\x50\x2a\x4d\x18\x01\0\0\0x",
        "that is cut": b"\x01" + whole[:-1],
        "that is a header only": b"\x01" + whole[:6],
        "of nothing": b"\x01",
        "without a version": b"",
        "that is no frame": b"\x01" + packed,
    }


@pytest.mark.parametrize("name", frames(b"x"))
def test_a_frame_is_refused_that_is(name: str) -> None:
    refused(frames(msgpack.packb(content(SEGMENT)))[name])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    for size in (FRAME_BYTES_MAX + 1, 200 * FRAME_BYTES_MAX):
        bomb = b"\x01" + zstandard.ZstdCompressor().compress(bytes(size))
        assert len(bomb) < 10_000 + size // 5_000
        with pytest.raises(DecodeError, match="states its size"):
            decode_segment(bomb)
        refused(bomb)
    lying = bytearray(zstandard.ZstdCompressor().compress(bytes(50 * FRAME_BYTES_MAX)))
    assert lying[4] >> 6 == 2  # a size of four bytes after the descriptor and the window
    single = lying[4] >> 5 & 1
    lying[6 - single : 10 - single] = (1_000).to_bytes(4, "little")
    refused(b"\x01" + bytes(lying))
    huge = b"\x28\xb5\x2f\xfd\xe0" + (2**63).to_bytes(8, "little") + b"\x01\0\0"
    refused(b"\x01" + huge)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255))
def test_bytes_from_anywhere_are_refused_or_a_segment(raw: bytes, at: int, flip: int) -> None:
    altered = bytearray(SEGMENT)
    altered[at % len(altered)] ^= flip
    packed = bytearray(msgpack.packb(content(SEGMENT)))
    packed[at % len(packed)] ^= flip
    cases: Sequence[bytes] = [
        raw,
        b"\x01" + raw,
        sealed(raw),
        bytes(altered),
        SEGMENT[: at % len(SEGMENT)],
        b"\x01" + zstandard.ZstdCompressor().compress(raw or b"\0"),
        b"\x01" + zstandard.ZstdCompressor().compress(bytes(packed)),
    ]
    for data in cases:
        try:
            unpack_segment(data)
            segment = decode_segment(data)
        except (DecodeError, IntegrityError):
            with pytest.raises(second.Broken):
                second.read_segment(data)
        else:
            assert second.read_segment(data).signed is segment.signature_holds()


@given(drafts(), st.booleans())
def test_a_segment_states_what_its_signature_covers(draft: Any, whole: bool) -> None:
    events = [EVENTS[0], make_event(EVENTS[0], draft, salt=5)]
    head = events[-1] if whole else make_event(events[-1], NOTE, salt=6)
    statement = decode_segment(segment_of(events, SIGNER, head)).statement
    assert encode(list(statement)) == second.write_value(
        [b"l" * 16, 1, None, 2, events[1].event_id, head.header.sequence, head.event_id, SIGNER.public_key]
    )
