"""Makes what a caller wants to record fit into an event (protocol/README.md, section 1, *lossy*).

Rules
- The caller's mappings are never changed. Nothing is refused: what can't be kept is bent, and what was bent is
  written into the event.
- A text that stands for an object (its repr) loses the secrets that can be recognised in it.
- What makes an event too large is replaced by its content id, the largest values first.
"""

from collections.abc import Mapping
from hashlib import md5
from typing import Any, NamedTuple

from cmf_agent.sources.masking import mask_text
from cmf_protocol.encoding import DEPTH_MAX, Value, bend, encode
from cmf_protocol.events import EVENT_BYTES_MAX, Draft

#: What the values of one event may take, bytes: the event's limit less header (at most 3 names of 500 characters
#: of 4 bytes) and what its other fields need.
VALUES_BYTES_MAX = EVENT_BYTES_MAX - 32_768
#: Longest text of a message kept (an error's, for example), characters.
TEXT_CHARS_MAX = 4_000
#: Values that take less are not worth replacing: what replaces one takes as much.
_SMALL_BYTES = 160
#: Under this key stands what was too much as a whole: too many keys, or keys too long.
_REST_KEY = "(more)"
#: How deep the map of a space may be nested, given the body's own array and map around it.
_SPACE_DEPTH = DEPTH_MAX - 3

Spaces = dict[str, dict[str, Value]]


class Shaped(NamedTuple):
    """Canonical values by space (`facts`, `params`, …) and key, and what was bent: key path → kind."""

    spaces: Spaces
    lossy: dict[str, str]

    def space(self, name: str) -> dict[str, Value]:
        """Return the values of one space, empty if there are none."""
        return self.spaces.get(name, {})

    def into(self, draft: Draft) -> Draft:
        """Return `draft` with what was bent noted in its body."""
        return note_lossy(draft, self.lossy)


def note_lossy(draft: Draft, lossy: Mapping[str, str]) -> Draft:
    """Return `draft` with `lossy` added to what its body says was bent."""
    if not lossy:
        return draft
    return draft._replace(body={**draft.body, "lossy": {**draft.body.get("lossy", {}), **lossy}})


def shape(**spaces: Mapping[str, object] | None) -> Shaped:
    """Return the values of all spaces as one event can hold them together."""
    bent: Spaces = {}
    lossy: dict[str, str] = {}
    for space, values in spaces.items():
        bent[space], lossy_here = bend(dict(values or {}), space, _SPACE_DEPTH)
        if "repr" in lossy_here.values():
            bent[space] = without_secrets(bent[space], space, lossy_here)
        lossy |= lossy_here
    if _size(bent, lossy) > VALUES_BYTES_MAX:
        _shrink(bent, lossy)
    return Shaped(bent, lossy)


def without_secrets(value: Any, path: str, lossy: Mapping[str, str]) -> Any:
    """Mask the texts that stand for objects: nobody has looked into those before."""
    if isinstance(value, str):
        return mask_text(value) if lossy.get(path) == "repr" else value
    if isinstance(value, dict):
        return {key: without_secrets(inner, f"{path}.{key}", lossy) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, f"{path}.{at}", lossy) for at, inner in enumerate(value)]
    return value


def short_text(text: str) -> tuple[str, bool]:
    """Return `text` without what can't be encoded, cut to `TEXT_CHARS_MAX`, and whether anything was cut."""
    clean, _ = bend(text)
    return clean[:TEXT_CHARS_MAX], len(clean) > TEXT_CHARS_MAX


def _size(spaces: Spaces, lossy: dict[str, str]) -> int:
    return len(encode(spaces)) + len(encode(lossy))


def _shrink(spaces: Spaces, lossy: dict[str, str]) -> None:
    """Replace the largest values until everything fits, then gather the smallest ones under one key."""
    weights = {(space, key): len(encode(value)) for space, values in spaces.items() for key, value in values.items()}
    excess = _size(spaces, lossy) - VALUES_BYTES_MAX
    for space, key in sorted(weights, key=lambda at: (-weights[at], at)):
        if excess <= 0:
            return
        if weights[space, key] <= _SMALL_BYTES:
            break
        spaces[space][key] = _truncated(spaces[space][key])
        path = f"{space}.{key}"
        excess -= weights[space, key] - _SMALL_BYTES + _forget_below(lossy, path)
        lossy[path] = "truncated"
        excess += len(path.encode()) + 16
    if _size(spaces, lossy) > VALUES_BYTES_MAX:
        _gather(spaces, lossy)


def _forget_below(lossy: dict[str, str], path: str) -> int:
    """Drop what was noted inside a value that is replaced; return the bytes that this saves."""
    inside = [at for at in lossy if at == path or at.startswith(path + ".")]
    return sum(len(at.encode()) + len(lossy.pop(at)) for at in inside)


def _gather(spaces: Spaces, lossy: dict[str, str]) -> None:
    """Put whole spaces, the largest first, under one key each."""
    for space in sorted(spaces, key=lambda name: -len(encode(spaces[name]))):
        if _size(spaces, lossy) <= VALUES_BYTES_MAX:
            return
        spaces[space] = {_REST_KEY: _truncated(spaces[space])}
        _forget_below(lossy, space)
        lossy[f"{space}.{_REST_KEY}"] = "truncated"


def _truncated(value: Value) -> Value:
    packed = encode(value)
    digest = md5(packed, usedforsecurity=False).hexdigest()
    return {"content_id": f"md5:{digest}", "size": len(packed), "truncated": True}
