"""Frames of the NATS protocol in a stream of bytes: what comes next, and which byte of it.

Rules
- Control lines are passed on whole, payloads as they come.
- What is not the protocol (TLS, another service) is passed on as it comes, as one endless frame of no kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: An INFO line takes about 1 KiB, any other control line 4 KiB at most (the server's `max_control_line`).
LINE_BYTES_MAX = 65_536
ENDLESS = 1 << 62
CRLF = 2
#: With these a message comes with headers; they stand for the plain ones here.
_WITH_HEADERS = {"HPUB": "PUB", "HMSG": "MSG"}
#: How many words come before reply, header size and payload size: verb, subject, and the subscription's id.
_WORDS_BEFORE_REPLY = {"PUB": 2, "MSG": 3}


@dataclass(frozen=True)
class Frame:
    """A control line with what belongs to it; HPUB is of the kind PUB, HMSG of MSG."""

    kind: str
    line_bytes: int
    subject: str = ""
    reply: str = ""
    header_bytes: int = 0
    payload_bytes: int = 0
    size: int = ENDLESS


class Piece(NamedTuple):
    """Some bytes of a frame, which begin at its byte `at`."""

    frame: Frame
    at: int
    data: bytes

    @property
    def payload_bytes(self) -> int:
        """How many of the bytes are the message's own: neither line nor headers."""
        begin = self.frame.line_bytes + self.frame.header_bytes
        inside = range(max(self.at, begin), min(self.at + len(self.data), begin + self.frame.payload_bytes))
        return len(inside)


class Scanner:
    """Splits a stream into pieces of frames; what it is fed comes out complete and in order."""

    def __init__(self) -> None:
        self._waiting = b""
        self._frame = Frame("", 0, size=0)
        self._at = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Return what is to be passed on now; an unfinished control line waits for its end."""
        data, begin = self._waiting + data, 0
        while begin < len(data) and (self._at < self._frame.size or self._begin(data, begin)):
            left = self._frame.line_bytes or ENDLESS if self._at == 0 else self._frame.size - self._at
            taken = data[begin : begin + left]
            yield Piece(self._frame, self._at, taken)
            begin += len(taken)
            self._at += len(taken)
        self._waiting = data[begin:]

    def finish(self) -> bytes:
        """Return what still waits, when the stream has ended."""
        return self._waiting

    def _begin(self, data: bytes, begin: int) -> bool:
        """Begin the next frame; False while its line is unfinished."""
        end = data.find(b"\n", begin) + 1
        is_text = data[begin : begin + 1].isalpha() or chr(data[begin]) in "+-"
        if is_text and not end and len(data) - begin < LINE_BYTES_MAX:
            return False
        self._frame = read_line(data[begin:end]) if is_text and end else Frame("", 0)
        self._at = 0
        return True


def read_line(line: bytes) -> Frame:
    """Return the frame that a control line begins."""
    words = line.decode("latin-1").split()
    verb = words[0].upper()
    kind = _WITH_HEADERS.get(verb, verb)
    if kind not in _WORDS_BEFORE_REPLY:
        return Frame(kind, len(line), size=len(line))
    has_headers = kind != verb
    *reply, total = words[_WORDS_BEFORE_REPLY[kind] :]
    header_bytes = int(reply.pop()) if has_headers else 0
    return Frame(
        kind,
        len(line),
        subject=words[1],
        reply=reply[0] if reply else "",
        header_bytes=header_bytes,
        payload_bytes=int(total) - header_bytes,
        size=len(line) + int(total) + CRLF,
    )
