"""Bundles: whole, or refused; read and written in pieces of any size."""

from collections.abc import Iterator
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.bundles import bundle_of, segments_in

from cmf_protocol.bundles import BUNDLE_MAGIC, BUNDLED_SEGMENT_BYTES_MAX, read_bundle, write_bundle
from cmf_protocol.errors import DecodeError, IntegrityError, PeerError

SEGMENTS = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


def ended(content: bytes) -> bytes:
    return content + sha256(content).digest()


def refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        segments_in(data)
    with pytest.raises(second.Broken):
        second.read_bundle(data)


@given(SEGMENTS)
def test_segments_come_out_as_they_went_in(segments: list[bytes]) -> None:
    data = bundle_of(segments)
    assert segments_in(data) == second.read_bundle(data) == segments


@given(SEGMENTS, st.integers(1, 40))
def test_chunks_of_any_size_are_read_alike(segments: list[bytes], size: int) -> None:
    data = bundle_of(segments)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert list(read_bundle([b"", *chunks, b""])) == segments


def test_a_segment_is_asked_for_and_given_one_at_a_time() -> None:
    """Neither writer nor reader may run ahead: a year of a site does not fit into memory."""
    asked: list[int] = []

    def segments() -> Iterator[bytes]:
        for number in range(1_000):
            asked.append(number)
            yield bytes([number % 256]) * 1_000

    chunks = write_bundle(segments())
    for number, _ in enumerate(read_bundle(chunks)):
        assert len(asked) <= number + 2
    assert len(asked) == 1_000


@given(SEGMENTS, st.data())
def test_a_bundle_that_is_cut_altered_or_followed_by_anything_is_refused(
    segments: list[bytes], data: st.DataObject
) -> None:
    whole = bundle_of(segments)
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(whole + data.draw(st.binary(min_size=1, max_size=50)))
    altered = bytearray(whole)
    altered[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    refused(bytes(altered))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\0\0\0\0\1",
        b"\0\0\0\1x\0\0\0\0\0\0\0\2",
        b"\0\0\0\1x\0\0\0\0\0\0\0\1\0",
        b"\0\0\0\1x\0\0\0\1",
        b"\0\0\0\1x",
        b"\0\0\0\5x\0\0\0\0\0\0\0\1",
        b"\xff\xff\xff\xffx\0\0\0\0\0\0\0\1",
        b"\0\0\0\1x\0\0",
    ],
)
def test_an_end_that_does_not_fit_is_refused_though_its_digest_holds(content: bytes) -> None:
    refused(ended(BUNDLE_MAGIC + content))


def test_a_length_that_no_segment_has_is_refused_before_anything_of_it_is_kept() -> None:
    taken: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield BUNDLE_MAGIC + (BUNDLED_SEGMENT_BYTES_MAX + 1).to_bytes(4, "big")
        for number in range(100):
            taken.append(number)
            yield bytes(65_536)

    with pytest.raises(IntegrityError, match="more than a segment can have"):
        list(read_bundle(chunks()))
    assert taken == []
    longest = bytes(BUNDLED_SEGMENT_BYTES_MAX)
    assert segments_in(bundle_of([longest])) == [longest]
    too_long = bundle_of([longest + b"\0"])
    refused(too_long)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: whole[:30], "it ends within segment 1"),
        (lambda whole: whole[:-3], "it ends within its end"),
        (lambda whole: whole + b"\0", "something follows its end"),
        (lambda whole: whole[:20] + b"!" + whole[21:], "its SHA-256 is not the one"),
        (lambda whole: ended(whole[:-36] + b"\0\0\0\7"), "it holds 2 segments, and says 7"),
    ],
)
def test_what_is_wrong_is_said(damage: object, said: str) -> None:
    assert callable(damage)
    with pytest.raises(IntegrityError, match=f"cut or altered: {said}"):
        segments_in(damage(bundle_of([b"x" * 40, b"y" * 40])))


def test_another_file_is_no_bundle_and_a_damaged_one_is_no_other_file() -> None:
    with pytest.raises(DecodeError):
        segments_in(b"PK\3\4" + bytes(100))
    with pytest.raises(IntegrityError):
        segments_in(bundle_of([b"x"])[:-1])


@given(st.binary(max_size=120))
def test_bytes_from_anywhere_are_refused(raw: bytes) -> None:
    refused(raw)
    refused(BUNDLE_MAGIC + raw)
