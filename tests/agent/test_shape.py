"""Whatever a caller wants to record fits into an event, and says what was bent."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cmf_agent.shape import VALUES_BYTES_MAX, shape
from cmf_protocol.encoding import decode, encode

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), ANYTHING, max_size=5))
def test_every_value_has_a_canonical_form(values: dict[str, Any]) -> None:
    shaped = shape(params=values, properties=values)
    packed = encode([b"", {**shaped.spaces, "lossy": shaped.lossy}])
    assert encode(decode(packed)) == packed


def fits(**spaces: dict[str, Any]) -> dict[str, Any]:
    shaped = shape(**spaces)
    assert len(encode(shaped.spaces)) + len(encode(shaped.lossy)) <= VALUES_BYTES_MAX
    return {**shaped.spaces, "lossy": shaped.lossy}


def test_the_largest_values_are_replaced_first() -> None:
    found = fits(params={"a": "x" * 200_000, "b": "y" * 100_000, "c": 1})
    assert found["params"]["a"]["truncated"] is True
    assert found["params"]["b"] == "y" * 100_000
    assert found["lossy"] == {"params.a": "truncated"}


def test_what_was_bent_inside_a_replaced_value_is_not_noted() -> None:
    found = fits(params={"objects": [object() for _ in range(8_000)], "c": 2**99})
    assert found["lossy"] == {"params.c": "integer", "params.objects": "truncated"}


def test_too_many_keys_are_gathered() -> None:
    found = fits(params={f"key{at:06}": at for at in range(25_000)}, facts={"host": "h"})
    assert found["facts"] == {"host": "h"}
    assert found["params"]["(more)"]["truncated"] is True
    assert found["lossy"] == {"params.(more)": "truncated"}


def test_huge_keys_are_gathered() -> None:
    assert fits(params={"k" * 300_000: 1})["params"]["(more)"]["truncated"] is True


def test_a_value_that_holds_itself_is_kept_as_text() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found = fits(params={"loop": loop})
    assert list(found["lossy"].values()) == ["depth"]


class Connection:
    def __repr__(self) -> str:
        return "Connection(password='hunter2', port=5432)"


def test_a_text_that_stands_for_an_object_has_no_secrets() -> None:
    shaped = shape(params={"db": Connection(), "all": [1, {"inner": Connection()}], "text": "plain"})
    masked = "Connection(password='***', port=5432)"
    assert shaped.space("params") == {"db": masked, "all": [1, {"inner": masked}], "text": "plain"}
    assert set(shaped.lossy.values()) == {"repr"}
