"""Bending: whatever a caller records fits, says what was bent, and leaves the caller's objects alone."""

import copy
import datetime
import enum
import json
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import values

from cmf_protocol.encoding import bend, decode, encode
from cmf_protocol.events import Draft, Head, decode_body, make_events


class Color(str, enum.Enum):  # noqa: UP042 - whose str() is not its text
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __str__(self) -> str:
        raise RuntimeError("no str")


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no str")


class ReprOfSubclass:
    def __repr__(self) -> str:
        return HostileText("odd")


class BrokenMapping(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


class BrokenList(list[int]):
    def __iter__(self) -> Iterator[int]:
        yield 1
        raise OSError("gone")


class Trap:
    @property
    def item(self) -> Any:
        raise KeyError("trap")


ODD: list[Any] = [2**64, -(2**70), "a\0b", "\ud800", Color.RED, Level.HIGH, Hostile(), HostileText("x"), Trap(), BrokenMapping(),
         BrokenList([1, 2]), ReprOfSubclass(), np.float32(0.5), np.int64(7), np.bool_(True), np.array(3), np.arange(4), np.str_("s"),
         np.datetime64("2020-01-01"), np.float64("nan"), 1j, object, object(), datetime.date(2020, 1, 1), bytearray(b"x"),
         memoryview(b"xy"), range(3), {1, "a"}, frozenset({b"x"}), 10**5_000, iter([1]), None, ...]  # fmt: skip


def anything() -> st.SearchStrategy[Any]:
    """Draw what a caller may pass: values, and what has no canonical form, in any nesting."""
    odd = st.integers(0, len(ODD) - 1).map(lambda at: ODD[at])  # sampled_from would show them by their repr
    keys = (
        st.text(max_size=5)
        | st.integers()
        | st.none()
        | st.sampled_from([Color.RED, (1, 2), b"k", True])
        | st.builds(Hostile)
    )
    leaves = st.integers() | st.floats() | st.text() | st.binary() | odd
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=15
    )


@given(anything())
def test_anything_fits_into_the_body_of_an_event(value: Any) -> None:
    bent, lossy = bend({"value": value}, "params")
    draft = Draft("execution.updated", (("execution", b"e" * 16),), {"params": bent, "lossy": lossy})
    (event,) = make_events(Head(b"l" * 16, 0, None, None), [draft], b"s" * 16, 1)
    assert event.body is not None
    body = decode_body(event.body)
    assert encode(body["params"]) == encode(bent)
    kinds = {"integer", "repr", "text", "key", "path", "depth", "truncated"}
    assert set(lossy.values()) <= kinds
    assert all(path.startswith("params") for path in lossy)


@given(values())
def test_a_canonical_value_is_not_bent(value: Any) -> None:
    bent, lossy = bend(value)
    assert lossy == {}
    assert encode(bent) == encode(value)


@pytest.mark.parametrize(
    ("value", "bent", "lossy"),
    [
        (2**63, str(2**63), {"v": "integer"}),
        (-(2**63) - 1, str(-(2**63) - 1), {"v": "integer"}),
        (-(10**4_500), "-1" + "0" * 4_500, {"v": "integer"}),
        ("a\0b\ud800", "a\ufffdb\ufffd", {"v": "text"}),
        ({"a": {"b\0": 1}}, {"a": {"b\ufffd": 1}}, {"v.a": "text"}),
        ({1: "x"}, {"1": "x"}, {"v.1": "key"}),
        ([1, [2**64]], [1, [str(2**64)]], {"v.1.0": "integer"}),
        (1j, "1j", {"v": "repr"}),
        (Color.RED, "red", {}),
        ({Color.RED: 1}, {"red": 1}, {}),
        (Level.HIGH, 3, {}),
        (HostileText("x"), "x", {}),
        (np.float32(0.5), 0.5, {}),
        (np.int64(7), 7, {}),
        (np.bool_(False), False, {}),
        (np.array(3), 3, {}),
        (np.str_("s"), "s", {}),
        (np.uint64(2**64 - 1), str(2**64 - 1), {"v": "integer"}),
        (bytearray(b"x"), b"x", {}),
        (memoryview(b"abcd")[::2], b"ac", {}),
        ({3, 1, 2}, [1, 2, 3], {}),
        (Hostile(), "<Hostile: repr failed with RuntimeError>", {"v": "repr"}),
        ({Hostile(): 1}, {"<Hostile: repr failed with RuntimeError>": 1}, {"v.<Hostile: repr failed with RuntimeError>": "key"}),
        (ReprOfSubclass(), "odd", {"v": "repr"}),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}, {}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_bent_becomes_this_and_is_noted(value: Any, bent: Any, lossy: dict[str, str]) -> None:
    assert bend(value, "v") == (bent, lossy)
    assert type(bend(value, "v")[0]) is type(bent)


def test_what_breaks_while_it_is_read_is_kept_as_its_repr() -> None:
    for broken in (BrokenMapping(), BrokenList([1, 2]), Trap()):
        bent, lossy = bend({"x": {"y": broken}})
        assert lossy == {"x.y": "repr"}
        assert type(bent["x"]["y"]) is str


def test_what_is_too_deep_becomes_json_text() -> None:
    deep: Any = {"leaf": [1, None]}
    for _ in range(30):
        deep = {"k": deep}
    bent, lossy = bend(deep, "p")
    (path,) = lossy
    assert lossy[path] == "depth"
    inner, expected = bent, deep
    while isinstance(inner, dict):
        inner, expected = inner["k"], expected["k"]
    assert json.loads(inner) == expected
    assert decode(encode(bent)) == bent


def test_a_cycle_ends_at_its_first_return() -> None:
    loop: list[Any] = [1]
    loop.extend([loop] * 50)  # walked to the depth limit it would be 50^12 values
    table: dict[str, Any] = {"loop": loop}
    table["self"] = table
    bent, lossy = bend(table)
    assert len(bent["loop"]) == 51
    assert set(lossy.values()) == {"depth"}
    assert "self" in lossy
    encode(bent)


def test_one_object_at_two_places_is_no_cycle() -> None:
    shared = [1, 2]
    assert bend({"a": shared, "b": [shared]}) == ({"a": [1, 2], "b": [[1, 2]]}, {})


def test_the_callers_objects_stay_as_they_were() -> None:
    table: defaultdict[Any, Any] = defaultdict(list, {1: {"b": 2**70, "a": [1, "x\0"]}, "nan": math.inf})
    before = copy.deepcopy(table)
    bend(table)
    assert table == before
    assert list(table) == list(before)
    unread = iter([1, 2])
    bend({"iterator": unread})
    assert list(unread) == [1, 2]
