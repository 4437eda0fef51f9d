"""Bytes from anywhere: every decoder returns a value or raises one of our errors."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.bundles import segments_in
from tests.support.strategies import drafts, make_event, values

from cmf_protocol.encoding import decode
from cmf_protocol.errors import CallerError, PeerError
from cmf_protocol.events import decode_body, decode_event, decode_header
from cmf_protocol.fold import Unfolded, read
from cmf_protocol.receipts import RECEIPT_MAGIC, decode_receipt
from cmf_protocol.segments import decode_segment, unpack_segment
from cmf_protocol.signing import Succession, verifies

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "value": decode,
    "header": decode_header,
    "body": decode_body,
    "event": lambda data: decode_event(data, None),
    "event with body": lambda data: decode_event(data, data),
    "segment": decode_segment,
    "unpacked segment": unpack_segment,
    "bundle": segments_in,
    "receipt": decode_receipt,
    "receipt's statement": lambda data: decode_receipt(RECEIPT_MAGIC + data),
}


def odd_bytes() -> st.SearchStrategy[bytes]:
    """Draw bytes, canonical values, and arrays that nest deep or claim more than there is."""
    nested = st.builds(
        lambda depth, end: b"\x91" * depth + end, st.integers(1, 3_000), st.sampled_from([b"", b"\xc0", b"\x80"])
    )
    header_like = st.lists(values(max_leaves=3), min_size=9, max_size=12).map(second.write_value)
    deep_header = nested.map(lambda deep: b"\x9a" + b"\x01" * 8 + deep + b"\x01")
    too_long = ("ddffffffff", "df7fffffff", "c9ffffffff01", "c70cff", "d8ff")
    claims = st.builds(lambda head, rest: bytes.fromhex(head) + rest, st.sampled_from(too_long), st.binary(max_size=30))
    return (
        st.binary(max_size=80)
        | values(max_leaves=6).map(second.write_value)
        | nested
        | header_like
        | deep_header
        | claims
    )


@pytest.mark.parametrize("name", DECODERS)
@given(odd_bytes())
def test_a_decoder_returns_a_value_or_raises_our_error(name: str, data: bytes) -> None:
    try:
        DECODERS[name](data)
    except PeerError as error:
        assert str(error)


@given(drafts(), st.data())
def test_a_mutated_event_is_refused_or_another_event(draft: Any, data: st.DataObject) -> None:
    event = make_event(None, draft, salt=1, log_id=b"l" * 16)
    header = bytearray(event.header_bytes)
    header[data.draw(st.integers(0, len(header) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = decode_event(bytes(header), None)
    except PeerError:
        with pytest.raises(second.Broken):
            second.read_event(bytes(header), None)
    else:
        assert other.event_id != event.event_id
        assert second.read_event(bytes(header), None).event_id == other.event_id


@given(drafts(), odd_bytes())
def test_reading_what_an_event_says_never_raises(draft: Any, body: bytes) -> None:
    event = make_event(None, draft, salt=1, log_id=b"l" * 16, body=body)
    said = read(event.header, event.body)
    assert isinstance(said, dict | Unfolded)
    theirs = second.folded_body(second.read_event(event.header_bytes, event.body))
    assert isinstance(said, Unfolded) is (theirs is None)


@given(values(max_leaves=8))
def test_a_succession_is_read_from_any_value(value: Any) -> None:
    found = Succession.from_body(value)
    assert found is None or found.event_id == value["event"]


@given(st.binary(max_size=40), st.binary(max_size=70), st.binary(max_size=10), values(max_leaves=3))
def test_a_signature_of_any_bytes_verifies_nothing(key: bytes, signature: bytes, tag: bytes, statement: Any) -> None:
    assert verifies(key, signature, tag, statement) is False


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_key_that_is_no_good_point_verifies_nothing(key: bytes) -> None:
    for signature in (bytes(64), b"\x01" + bytes(63), b"\xff" * 64):
        assert verifies(key, signature, b"", []) is False
        assert second.signature_holds(key, signature, b"\x90") is False


def test_our_errors_say_who_must_act() -> None:
    assert not issubclass(PeerError, CallerError)
    assert PeerError("x").exit_code == 5
