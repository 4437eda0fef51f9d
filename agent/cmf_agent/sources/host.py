"""What is recorded of the host and of how a run was called, without its secrets.

Rules
- Nothing here raises: a user without an entry in passwd, as in containers, is named by number.
- The caller's arguments and mappings are never changed; what comes back is new.
"""

import os
import re
from collections.abc import Mapping, Sequence

from cmf_agent.sources.masking import (
    HEADERS_WITH_SCHEME,
    MASK,
    is_password_text,
    is_secret_flag,
    looks_secret,
    mask_text,
)

#: Deeper values than this are masked whole: nobody nests so deep, but for a value that holds itself.
DEPTH_MAX = 32

_ASSIGNED = re.compile(r"(?P<name>[-+~\w.@/]++)=")
_HEADER = re.compile(r"(?P<name>[A-Za-z][\w-]*+):\s")


def host_facts() -> dict[str, str]:
    """Return the names of the `host` and of the effective `user` (`uid:<number>` if it has none)."""
    return {"host": _clean(os.uname().nodename), "user": _clean(_user())}


def _user() -> str:
    import pwd

    user_id = os.geteuid()
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return f"uid:{user_id}"


def _clean(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "replace")


def mask_command(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with `***` in place of every secret that can be recognised.

    The value after a flag of a secret name is one (`--password x`), unless it is a flag too; what a one-letter
    flag means is not guessed.
    """
    masked: list[str] = []
    awaits_secret = False
    for word in argv:
        masked.append(MASK if awaits_secret and not word.startswith("--") else _mask_word(word))
        awaits_secret = _announces_secret(word)
    return masked


def _announces_secret(word: object) -> bool:
    """Say whether the word after this one is a secret."""
    return isinstance(word, str) and _is_flag(word) and is_secret_flag(word)


def _is_flag(word: str) -> bool:
    return len(word) > 2 and word.startswith("-") and "=" not in word and not re.search(r"\s", word)


def _mask_word(word: str) -> str:
    """Mask the whole value of `NAME=value` and `Name: value`, blanks included, else what is secret inside."""
    if (assigned := _ASSIGNED.match(word)) and is_secret_flag(assigned["name"]):
        return assigned[0] + MASK
    header = _HEADER.match(word)
    if header and header["name"].lower() not in HEADERS_WITH_SCHEME and looks_secret(header["name"]):
        return header[0] + MASK
    return mask_text(word)


def mask_mapping(values: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of `values` in which every value of a secret-looking name, at any depth, is `***`.

    None and booleans stay: they say whether there is a secret, not which. Texts lose what is secret inside them.
    """
    return _mask_items(values, DEPTH_MAX)


def _mask_items(values: Mapping[str, object], depth: int) -> dict[str, object]:
    return {
        name: MASK if _is_secret(str(name), value) else _mask_value(value, depth - 1) for name, value in values.items()
    }


def _is_secret(name: str, value: object) -> bool:
    return is_password_text(name, value) or (looks_secret(name) and not _is_harmless(value))


def _is_harmless(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _mask_value(value: object, depth: int) -> object:
    if isinstance(value, str):
        return mask_text(value)
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return value
    if depth <= 0:
        return MASK
    if isinstance(value, Mapping):
        return _mask_items(value, depth)
    if isinstance(value, list | tuple):
        return _like(value, _mask_words(value, depth))
    return _like(value, [_mask_value(item, depth - 1) for item in value])


def _mask_words(values: Sequence[object], depth: int) -> list[object]:
    """Mask what may be the words of a command, numbers among them."""
    masked: list[object] = []
    before: object = None
    for value in values:
        if _announces_secret(before) and not _is_harmless(value) and not str(value).startswith("--"):
            masked.append(MASK)
        else:
            masked.append(_mask_word(value) if isinstance(value, str) else _mask_value(value, depth - 1))
        before = value
    return masked


def _like(value: object, items: list[object]) -> object:
    kind = next(kind for kind in (list, tuple, frozenset, set) if isinstance(value, kind))
    return kind(items)
