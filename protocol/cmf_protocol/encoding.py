"""Canonical msgpack: one encoding per value (protocol/README.md, section 1).

Rules
- `encode` takes only values that have a canonical form and raises `CallerError` for others; `bend` makes any Python value fit first
  and says what it bent.
- `decode` accepts exactly what `encode` makes; any other bytes raise `DecodeError`, nothing else.
- Arrays decode to tuples, so that ids made of arrays can be keys.
"""

import json
import struct
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgpack

from cmf_protocol.errors import CallerError, DecodeError

INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**63 - 1
DEPTH_MAX = 16
#: Keys, and characters in them together, up to which a map is remembered as well-formed.
USUAL_KEYS = 32
USUAL_KEY_CHARS = 1_000
NAN = float("nan")
_NAN_BITS = b"\x7f\xf8\x00\x00\x00\x00\x00\x00"

#: What a value may be: None, bool, int, float, str, bytes, tuple or list of values, dict of str to value.
Value = Any

_PLAIN = frozenset((bool, bytes, type(None)))


def encode(value: Value) -> bytes:
    """Return the canonical bytes of `value`; raise `CallerError` if it has none (`bend` it first)."""
    try:
        packed: bytes = msgpack.packb(normal(value))
    except UnicodeEncodeError as error:
        raise CallerError(f"text with unpaired surrogates can't be encoded: {error.object!r}") from error
    return packed


def normal(value: Value, depth: int = 0) -> Value:
    """Return `value` with keys sorted and floats made canonical, ready to be packed; raise `CallerError` if it can't be."""
    kind = type(value)
    if kind is dict:
        _check_depth(depth)
        try:  # code point order of str is the byte order of its UTF-8
            keys = sorted(value)
            if "\0" in "".join(keys):
                raise CallerError("keys with U+0000 can't be encoded")
        except TypeError as error:
            raise CallerError("keys must be text") from error
        out = {}
        for key in keys:
            item = value[key]
            out[key] = _CHECKS.get(type(item), _plain)(item, depth + 1)
        return out
    if kind is tuple or kind is list:
        _check_depth(depth)
        return [_CHECKS.get(type(item), _plain)(item, depth + 1) for item in value]
    return _CHECKS.get(kind, _plain)(value, depth)


def _text(value: Value, _depth: int) -> Value:
    if "\0" in value:
        raise CallerError("text with U+0000 can't be encoded")
    return value


def _integer(value: Value, _depth: int) -> Value:
    if INTEGER_MIN <= value <= INTEGER_MAX:
        return value
    raise CallerError("an integer that does not fit into 64 bits can't be encoded")  # its text may be refused too


def _float(value: Value, _depth: int) -> Value:
    return value + 0.0 if value == value else NAN  # -0.0 + 0.0 is 0.0


def _plain(value: Value, _depth: int) -> Value:
    if type(value) in _PLAIN:
        return value
    raise CallerError(f"a {type(value).__name__} can't be encoded")


_CHECKS: dict[type, Callable[[Value, int], Value]] = {
    str: _text, int: _integer, float: _float, dict: normal, list: normal, tuple: normal
}  # fmt: skip


def _check_depth(depth: int) -> None:
    if depth >= DEPTH_MAX:
        raise CallerError(f"a value is nested more than {DEPTH_MAX} deep")


def decode(data: bytes) -> Value:
    """Return the value whose canonical encoding is exactly `data`; raise `DecodeError` for any other bytes."""
    value = unpack(data)
    if not is_canonical(value) or msgpack.packb(value) != data:
        raise DecodeError("bytes that are not canonical")
    return value


def unpack(data: bytes) -> Value:
    """Return what msgpack reads from `data`, not yet known to be canonical; raise `DecodeError` if it reads nothing."""
    try:
        return msgpack.unpackb(data, use_list=False, ext_hook=_refuse_ext)
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise DecodeError(f"bytes that are not msgpack: {error}") from error


def _refuse_ext(code: int, _data: bytes) -> Value:
    raise ValueError(f"ext type {code}")


def is_canonical(value: Value, depth: int = 0) -> bool:
    """Tell if `value`, as unpacked, breaks no rule that packing it again would not show (shortest forms, extra bytes)."""
    kind = type(value)
    if kind is dict:
        keys = tuple(value)
        try:
            usual = len(keys) <= USUAL_KEYS and len("".join(keys)) <= USUAL_KEY_CHARS
        except TypeError:  # a key that is no text
            return False
        if not (_usual_keys_hold(keys) if usual else _keys_hold(keys)):
            return False
        items = value.values()
    elif kind is tuple:
        items = value
    else:
        return _is_canonical_scalar(value)
    if depth >= DEPTH_MAX:
        return False
    for item in items:
        kind = type(item)
        if kind is str:
            if "\0" in item:
                return False
        elif kind is dict or kind is tuple:
            if not is_canonical(item, depth + 1):
                return False
        elif kind is not bytes and not _is_canonical_scalar(item):
            return False
    return True


def _keys_hold(keys: tuple[str, ...]) -> bool:
    """Tell if a map may have these keys, all text, in this order."""
    return not any("\0" in key for key in keys) and all(low < high for low, high in pairwise(keys))


#: The same few maps come again and again; only small ones are remembered, since hostile ones come too.
_usual_keys_hold = lru_cache(maxsize=4096)(_keys_hold)


def _is_canonical_scalar(value: Value) -> bool:
    kind = type(value)
    if kind is int:
        return bool(value <= INTEGER_MAX)
    if kind is float:
        if value != value:
            return struct.pack(">d", value) == _NAN_BITS
        return value != 0.0 or str(value) == "0.0"
    if kind is str:
        return "\0" not in value
    return kind in _PLAIN


def bend(value: object, path: str = "", depth_left: int = DEPTH_MAX - 4) -> tuple[Value, dict[str, str]]:
    """Return the nearest canonical value and what was bent, key path → kind (README section 1, *lossy*).

    `depth_left` leaves room for the arrays and maps that an event puts around a value.
    """
    lossy: dict[str, str] = {}
    return _bend(value, path, depth_left, lossy, ()), lossy


def _bend(value: object, path: str, depth_left: int, lossy: dict[str, str], around: tuple[int, ...]) -> Value:
    try:
        return _bend_known(value, path, depth_left, lossy, around)
    except Exception:  # noqa: BLE001 - a foreign object's methods may raise anything; the run must go on
        for inner in [key for key in lossy if key.startswith(f"{path}.")]:
            del lossy[inner]
        return _bend_repr(value, path, lossy)


def _bend_known(value: object, path: str, depth_left: int, lossy: dict[str, str], around: tuple[int, ...]) -> Value:
    # the base types' own methods: a subclass may have overridden them (an Enum's str is its name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _bend_text(str.__str__(value), path, lossy, "text")
    if isinstance(value, int):
        if INTEGER_MIN <= (number := int.__int__(value)) <= INTEGER_MAX:
            return number
        lossy[path] = "integer"
        return format(Decimal(number), "f")  # str() refuses integers of more than 4,300 digits
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return memoryview(value).tobytes()
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _bend_container(value, path, depth_left, lossy, around)
    scalar = _numpy_scalar(value)
    if scalar is not None:
        return _bend_known(scalar, path, depth_left, lossy, around)
    return _bend_repr(value, path, lossy)


def _bend_repr(value: object, path: str, lossy: dict[str, str]) -> str:
    lossy[path] = "repr"
    return _bend_text(_safe_repr(value), path, lossy, "repr")


def _bend_container(value: Any, path: str, depth_left: int, lossy: dict[str, str], around: tuple[int, ...]) -> Value:
    if depth_left == 0 or id(value) in around:  # a cycle is infinitely deep
        lossy[path] = "depth"
        return _bend_text(_flat_text(value), path, lossy, "depth")
    around = (*around, id(value))
    if isinstance(value, Mapping):
        bent: dict[str, Value] = {}
        for key, item in value.items():
            name = _bend_text(_key_text(key), path, lossy, "text")
            inner = f"{path}.{name}" if path else name
            if not isinstance(key, str):
                lossy[inner] = "key"
            bent[name] = _bend(item, inner, depth_left - 1, lossy, around)
        return bent
    items = sorted(value, key=_safe_repr) if isinstance(value, set | frozenset) else value
    return [
        _bend(item, f"{path}.{at}" if path else str(at), depth_left - 1, lossy, around) for at, item in enumerate(items)
    ]


def _key_text(key: object) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    try:
        return str.__str__(str(key))
    except Exception:  # noqa: BLE001 - as for _safe_repr
        return _safe_repr(key)


def _bend_text(text: str, path: str, lossy: dict[str, str], kind: str) -> str:
    if not _is_dirty(text):
        return text
    lossy[path] = kind
    return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def _is_dirty(text: str) -> bool:
    if "\0" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _numpy_scalar(value: object) -> object | None:
    """Return the Python scalar in a numpy-like scalar or 0-d array, without importing numpy."""
    item = getattr(value, "item", None)
    if item is None or getattr(value, "ndim", None) != 0:
        return None
    scalar = item()
    return scalar if isinstance(scalar, bool | int | float | str | bytes) else None


def _safe_repr(value: object) -> str:
    try:
        return str.__str__(repr(value))
    except Exception as error:  # noqa: BLE001 - a foreign __repr__ may raise anything; the run must go on
        return f"<{type(value).__name__}: repr failed with {type(error).__name__}>"


def _flat_text(value: object) -> str:
    """Return JSON text of what is too deep, or its repr where JSON can't walk it (a cycle, too deep for the interpreter)."""
    try:
        return json.dumps(value, default=_safe_repr, skipkeys=True)
    except (ValueError, RecursionError, TypeError):
        return _safe_repr(value)


def to_json(value: Value) -> Value:
    """Return `value` as JSON can carry it: bin as lowercase hex, special floats as text."""
    if isinstance(value, float):
        if value != value:
            return "NaN"
        return value if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
