"""Text from metadata, made fit to be shown: whoever recorded it may be hostile.

Rules
- Nothing that is shown to people may drive a terminal, reorder its line or break out of its cell: escape sequences, control and
  bidirectional characters go, line breaks become spaces. What programs read (`--json`) keeps every character, escaped by JSON.
"""

import re

#: CSI, OSC and the other string sequences, two-character escapes (ECMA-48), with their 8-bit forms.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_BREAKS = re.compile("[\t\n\r\x0b\x0c\x85\u2028\u2029]+")
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
SHORT_DIGEST_CHARS = 8
#: Of a UUID: up to the millisecond of its birth, for UUIDv7.
SHORT_EXECUTION_CHARS = 13
SHORT_COMMIT_CHARS = 7


def clean(text: object) -> str:
    """Return `text` on one line, without anything that a terminal would act on."""
    kept = str(text)
    if kept.isascii() and kept.isprintable():
        return kept
    return _INVISIBLE.sub("", _BREAKS.sub(" ", _SEQUENCES.sub("", kept)))


def shorter(text: object, chars: int) -> str:
    """Return `text`, clean, in at most `chars` characters."""
    kept = clean(text)
    return kept if len(kept) <= chars else kept[: chars - 1] + "…"


def execution_text(execution: bytes) -> str:
    """Return an execution's id as people and JSON see it."""
    digits = execution.hex()  # as uuid.UUID writes it, four times as fast
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def short_content_id(content_id: str) -> str:
    """Return the algorithm and the first characters of the digest: a REF that is long enough to be found by."""
    algorithm, _, digest = content_id.partition(":")
    return clean(f"{algorithm}:{digest[:SHORT_DIGEST_CHARS]}")


def counted(count: int, noun: str) -> str:
    """Return `1 event`, `1,000 events`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
