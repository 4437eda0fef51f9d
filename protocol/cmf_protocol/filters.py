"""What a pull is about: pipelines, sites, a time, artifacts, or the asker's own events (protocol/README.md, section 10). Pure.

Rules
- One filter has one form: texts are sorted, none twice, what is empty is left out, `own` stands alone.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

from cmf_protocol import types as t
from cmf_protocol.encoding import Value, decode, encode
from cmf_protocol.errors import CallerError, DecodeError

#: Texts of one kind in a filter.
FILTER_TEXTS_MAX = 1_000
FILTER_TEXT_CHARS_MAX = 500
#: A filter's canonical bytes: a thousand content ids by SHA-256. A hub remembers many filters.
FILTER_BYTES_MAX = 131_072


class Filter(NamedTuple):
    """Which nodes a pull is about (README, section 10); in canonical form: texts sorted, none twice, `own` alone.

    Made by `filter_of`, or by decoding.
    """

    pipelines: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    since_us: int | None = None
    artifacts: tuple[str, ...] = ()
    own: bool = False

    def parts(self) -> dict[str, Value]:
        """Return the map that travels."""
        found = {"artifacts": self.artifacts, "own": self.own, "pipelines": self.pipelines, "sites": self.sites}
        parts: dict[str, Value] = {key: value for key, value in found.items() if value}
        return parts if self.since_us is None else {**parts, "since": self.since_us}

    def canonical(self) -> bytes:
        """Return the bytes by which filters are compared and stored."""
        return encode(self.parts())

    @property
    def selects_executions(self) -> bool:
        """Whether executions are selected by pipeline, site and time: by these alone, or with no word of artifacts."""
        named = bool(self.pipelines or self.sites or self.since_us is not None)
        return not self.own and (named or not self.artifacts)


def filter_of(
    *,
    pipelines: Iterable[str] = (),
    sites: Iterable[str] = (),
    since_us: int | None = None,
    artifacts: Iterable[str] = (),
    own: bool = False,
) -> Filter:
    """Return the filter in canonical form; raise `CallerError` if it can't be one."""
    texts = [tuple(sorted(set(found))) for found in (pipelines, sites, artifacts)]
    made = Filter(texts[0], texts[1], since_us, texts[2], own)
    try:
        return decode_filter(made.canonical())
    except DecodeError as error:
        raise CallerError(f"this can't be asked for: {error}", "name pipelines, sites, a time or artifacts") from error


def decode_filter(data: bytes) -> Filter:
    """Return the filter of canonical bytes."""
    return filter_of_parts(decode(data))


def filter_of_parts(parts: Value) -> Filter:
    """Return the filter of a map; texts come sorted, so that one filter has one form."""
    if type(parts) is not dict:
        raise DecodeError("a filter is a map")
    found = {}
    for key, check in (("pipelines", t.is_name), ("sites", _is_short), ("artifacts", _is_short)):
        found[key] = parts.get(key, ())
        if key in parts and not _is_set(parts[key], check):
            raise DecodeError(f"a filter's {key} are 1 to {FILTER_TEXTS_MAX:,} texts, sorted, none twice")
    since, own = parts.get("since"), parts.get("own", False)
    if ("since" in parts and type(since) is not int) or ("own" in parts and own is not True):
        raise DecodeError("a filter's since is a time in µs, its own is true")
    if own and (since is not None or any(found.values())):
        raise DecodeError("a filter by own asks for nothing else")
    made = Filter(found["pipelines"], found["sites"], cast(int | None, since), found["artifacts"], bool(own))
    if len(made.canonical()) > FILTER_BYTES_MAX:
        raise DecodeError(f"a filter has at most {FILTER_BYTES_MAX:,} bytes")
    return made


def _is_set(value: Value, check: Callable[[Value], bool]) -> bool:
    if type(value) is not tuple or not 1 <= len(value) <= FILTER_TEXTS_MAX or not all(map(check, value)):
        return False
    return list(value) == sorted(set(value))


def _is_short(value: Value) -> bool:
    return type(value) is str and 0 < len(value) <= FILTER_TEXT_CHARS_MAX
