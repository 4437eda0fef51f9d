"""What the parts of a message must look like, asked once for all messages (protocol/README.md, section 10). Pure.

Rules
- A message is a canonical map with `v` = 1; unknown keys are ignored, a missing or malformed one is a `DecodeError`.
- A row may be longer than what is asked of it: what follows is a later version's.
"""

from collections.abc import Callable

from cmf_protocol.encoding import Value, decode
from cmf_protocol.errors import DecodeError

MESSAGE_VERSION = 1

Form = Callable[[Value], bool]


def parts_of(data: bytes) -> dict[str, Value]:
    """Return the parts of a message; raise `DecodeError` if these bytes are none."""
    parts = decode(data)
    if type(parts) is not dict or parts.get("v") != MESSAGE_VERSION:
        raise DecodeError(f"a message is a map of version {MESSAGE_VERSION}")
    return parts


def part(parts: dict[str, Value], key: str, form: Form) -> Value:
    """Return the part called `key`; raise `DecodeError` if it is missing or not of that form."""
    if key not in parts or not form(parts[key]):
        raise DecodeError(f"a message's {key} is missing or malformed")
    return parts[key]


def is_text(value: Value) -> bool:
    """Tell if it is text."""
    return type(value) is str


def is_integer(value: Value) -> bool:
    """Tell if it is an integer; a boolean is none."""
    return type(value) is int


def is_natural(value: Value) -> bool:
    """Tell if it is an integer that is not negative."""
    return type(value) is int and value >= 0


def is_map(value: Value) -> bool:
    """Tell if it is a map."""
    return type(value) is dict


def is_bytes(value: Value) -> bool:
    """Tell if it is bin of any length."""
    return type(value) is bytes


def is_true(value: Value) -> bool:
    """Tell if it is true, and not just 1."""
    return value is True


def bin_of(length: int) -> Form:
    """Return the form of bin with that many bytes."""
    return lambda value: type(value) is bytes and len(value) == length


def nil_or(form: Form) -> Form:
    """Return the form of what is nil or of another form."""
    return lambda value: value is None or form(value)


def array_of(form: Form, most: int | None = None) -> Form:
    """Return the form of an array of at most `most` elements of one form."""
    return lambda value: type(value) is tuple and (most is None or len(value) <= most) and all(map(form, value))


def row_of(*forms: Form) -> Form:
    """Return the form of an array whose first elements have these forms."""
    return lambda value: (
        type(value) is tuple
        and len(value) >= len(forms)
        and all(form(element) for form, element in zip(forms, value, strict=False))
    )
