"""Bundles: whole, or refused."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second

from cmf_protocol.errors import DecodeError, IntegrityError, PeerError
from cmf_protocol.segments import BUNDLE_MAGIC, decode_bundle, encode_bundle

SEGMENTS = st.lists(st.binary(min_size=1, max_size=300), max_size=6)


def ended(content: bytes) -> bytes:
    return content + sha256(content).digest()


def refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_bundle(data)
    with pytest.raises(second.Broken):
        second.read_bundle(data)


@given(SEGMENTS)
def test_segments_come_out_as_they_went_in(segments: list[bytes]) -> None:
    data = encode_bundle(segments)
    assert decode_bundle(data) == second.read_bundle(data) == segments


@given(SEGMENTS, st.data())
def test_a_bundle_that_is_cut_altered_or_followed_by_anything_is_refused(
    segments: list[bytes], data: st.DataObject
) -> None:
    whole = encode_bundle(segments)
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


def test_another_file_is_no_bundle_and_a_damaged_one_is_no_other_file() -> None:
    with pytest.raises(DecodeError):
        decode_bundle(b"PK\3\4" + bytes(100))
    with pytest.raises(IntegrityError):
        decode_bundle(encode_bundle([b"x"])[:-1])


@given(st.binary(max_size=120))
def test_bytes_from_anywhere_are_refused(raw: bytes) -> None:
    refused(raw)
    refused(BUNDLE_MAGIC + raw)
