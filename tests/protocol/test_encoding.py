"""Canonical encoding: one encoding per value, and nothing else is read."""

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import second_decoder as second
from tests.support.strategies import values

from cmf_protocol.encoding import DEPTH_MAX, decode, encode, to_json
from cmf_protocol.errors import CallerError, DecodeError


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = (value,)
    return value


@given(values())
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    data = encode(value)
    again = decode(data)
    assert encode(again) == data
    assert second.write_value(value) == data
    assert second.write_value(second.read_value(data)) == data
    if "nan" not in repr(value) and "-0.0" not in repr(value):
        assert again == value


@given(st.binary(max_size=60))
def test_bytes_that_decode_are_what_encode_makes(data: bytes) -> None:
    try:
        value = decode(data)
    except DecodeError:
        with pytest.raises(second.Broken):
            second.read_value(data)
        return
    assert encode(value) == data
    assert second.write_value(second.read_value(data)) == data


@given(values(), st.data())
def test_altered_bytes_are_refused_or_another_value(value: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(value))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        assert encode(decode(bytes(raw))) == bytes(raw)
    except DecodeError:
        with pytest.raises(second.Broken):
            second.read_value(bytes(raw))


@given(values())
def test_a_value_that_is_cut_or_followed_by_anything_is_refused(value: Any) -> None:
    data = encode(value)
    for wrong in [*(data[:at] for at in range(len(data))), data + b"\0", data + data]:
        with pytest.raises(DecodeError):
            decode(wrong)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("cc01", "an integer in a longer form"),
        ("d001", "a positive integer in a signed form"),
        ("cd00ff", "16 bits for 8"),
        ("ce0000ffff", "32 bits for 16"),
        ("cf00000000ffffffff", "64 bits for 32"),
        ("d0ff", "a small negative in a longer form"),
        ("cf8000000000000000", "an integer of 2^63"),
        ("ca3f800000", "a float 32"),
        ("cb8000000000000000", "-0.0"),
        ("cb7ff8000000000001", "another NaN"),
        ("cb7ff0000000000001", "a signalling NaN"),
        ("cbfff8000000000000", "a negative NaN"),
        ("d90161", "short text in a longer form"),
        ("a100", "U+0000"),
        ("81a10001", "U+0000 in a key"),
        ("a3eda080", "a surrogate"),
        ("a2c080", "overlong UTF-8"),
        ("a1ff", "no UTF-8"),
        ("c5000161", "bin in a longer form"),
        ("dc000101", "an array in a longer form"),
        ("de0001a16101", "a map in a longer form"),
        ("82a16201a16101", "keys out of order"),
        ("82a16101a16101", "a key twice"),
        ("82a001a001", "the empty key twice"),
        ("810101", "a key that is no text"),
        ("81c4016101", "a key that is bin"),
        ("819001", "a key that is an array"),
        ("d40100", "an ext type"),
        ("d6ff00000000", "a timestamp"),
        ("c70cffffffffff0000000000000000", "a timestamp with impossible nanoseconds"),
        ("c703ff000000", "a timestamp of three bytes"),
        ("c1", "the byte that means nothing"),
        ("", "nothing"),
        ("dd7fffffff", "an array longer than its bytes"),
        ("df7fffffff", "a map longer than its bytes"),
        ("c6ffffffff", "bin longer than its bytes"),
    ],
)
def test_what_is_not_canonical_is_refused(data: str, why: str) -> None:
    raw = bytes.fromhex(data)
    with pytest.raises(DecodeError):
        decode(raw)
    with pytest.raises(second.Broken):
        second.read_value(raw)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (-0.0, "cb0000000000000000"),
        (math.nan, "cb7ff8000000000000"),
        (-math.nan, "cb7ff8000000000000"),
        ({"b": 1, "a": 2, "": 3}, "83a003a16102a16201"),
        ({"é": 1, "z": 2}, "82a17a02a2c3a901"),
        ({"\U0001f600": 1, "\uffff": 2}, "82a3efbfbf02a4f09f988001"),
        (2**63 - 1, "cf7fffffffffffffff"),
        (-(2**63), "d38000000000000000"),
        ([], "90"),
        (True, "c3"),
    ],
)
def test_a_value_has_exactly_these_bytes(value: Any, data: str) -> None:
    assert encode(value).hex() == data
    assert second.write_value(value).hex() == data


def test_a_value_nests_sixteen_deep_and_not_deeper() -> None:
    assert decode(encode(nested(DEPTH_MAX))) == nested(DEPTH_MAX)
    assert second.read_value(encode(nested(DEPTH_MAX))) is not None
    with pytest.raises(CallerError):
        encode(nested(DEPTH_MAX + 1))
    for depth in (DEPTH_MAX + 1, 600, 1_023, 1_024, 2_000, 100_000):
        raw = b"\x91" * depth + b"\x01"
        with pytest.raises(DecodeError):
            decode(raw)
    with pytest.raises(second.Broken):
        second.read_value(msgpack.packb(nested(DEPTH_MAX + 1)))


@pytest.mark.parametrize(
    "value",
    [2**63, -(2**63) - 1, 10**5_000, "a\0", "\ud800", {"a\0": 1}, {"\udfff": 1}, {1: 2}, {"a": 1, 2: 3}, {1}, object(), 1j,
     bytearray(b"x"), [2**64], {"a": ["\0"]}],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_without_a_canonical_form_is_the_callers_error(value: Any) -> None:
    with pytest.raises(CallerError):
        encode(value)


@given(values())
def test_json_carries_every_value(value: Any) -> None:
    import json

    json.dumps(to_json(value), allow_nan=False)


def test_json_writes_bin_as_hex_and_special_floats_as_text() -> None:
    value = {"a": (b"\xff\x00", math.nan), "b": [math.inf, -math.inf, 1.5, None, True]}
    assert to_json(value) == {"a": ["ff00", "NaN"], "b": ["Infinity", "-Infinity", 1.5, None, True]}
