"""Checks the logs from their first events to their last: the file, the chains, the hashes, the signatures, the successions.

Rules
- It reads and changes nothing. A fault ends the check of that log: what follows a broken link proves nothing.
- A log that goes on from one that is not held here, or that says so without a signature, makes a claim: no fault.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from cmf_agent.home import Home
from cmf_agent.reading import LogReader, LogRow, StoredEvent
from cmf_agent.successions import succession_claim
from cmf_protocol.encoding import decode
from cmf_protocol.errors import CmfError, DecodeError, PeerError
from cmf_protocol.events import Event, decode_body, decode_event
from cmf_protocol.segments import Statement
from cmf_protocol.signing import SEGMENT_TAG, Succession, verifies
from cmf_protocol.types import LOG_OPENED


class Problem(NamedTuple):
    """Something that does not hold; `log_id` and `sequence` are None where it is the file's."""

    log_id: bytes | None
    sequence: int | None
    text: str


class Report(NamedTuple):
    """What was checked, and what does not hold."""

    logs: int
    events: int
    signatures: int
    problems: list[Problem]


def verify(home: Home) -> Report:
    """Check all logs of `home`; raise `StoreError` if the database can't be opened."""
    logs = events = signatures = 0
    problems: list[Problem] = []
    try:
        with LogReader(home.log_path) as reader:
            problems += [Problem(None, None, text) for text in reader.problems_of_file()]
            found = reader.logs()
            for log in found:
                ids: dict[int, bytes] = {}
                logs += 1
                problem = _check_chain(reader, log, ids)
                problems += [problem] if problem else []
                events += len(ids)
                for checked, wrong in (_check_signatures(reader, log, ids), _check_succession(reader, log, found)):
                    signatures += checked
                    problems += wrong
    except PeerError as error:  # a page that SQLite itself can't read
        problems.append(Problem(None, None, str(error)))
    return Report(logs, events, signatures, problems)


def _check_chain(reader: LogReader, log: LogRow, ids: dict[int, bytes]) -> Problem | None:
    """Return the first problem of a log's events, and put the ids of those before it into `ids`."""
    previous: bytes | None = None
    for expected, stored in enumerate(_plus_end(reader, log), start=1):
        if stored is None:
            return Problem(log.log_id, 1, "the log has no events") if expected == 1 else None
        text = _fault(log, expected, previous, stored)
        if text:
            return Problem(log.log_id, expected, text)
        previous = ids[expected] = stored.event_id
    return None


def _plus_end(reader: LogReader, log: LogRow) -> Iterator[StoredEvent | None]:
    yield from reader.events(log.number)
    yield None


def _fault(log: LogRow, expected: int, previous: bytes | None, stored: StoredEvent) -> str:
    """Say what is wrong with an event, or return an empty text."""
    if stored.sequence != expected:
        return f"the event is missing; the next one there is {stored.sequence}"
    if sha256(stored.header_bytes).digest() != stored.event_id:
        return "the header was altered: it does not have the event's id"
    try:
        event = decode_event(stored.header_bytes, stored.body)
    except CmfError as error:
        return str(error)
    if (event.header.log_id, event.header.sequence, event.header.previous) != (log.log_id, expected, previous):
        return "the event is not chained to the one before it"
    return _opening_fault(log, event) if expected == 1 else ""


def _opening_fault(log: LogRow, event: Event) -> str:
    if event.header.type != LOG_OPENED or event.header.about != (("key", log.key),):
        return "the log does not open with an event that names its key"
    try:
        decode_body(event.body or b"")
    except DecodeError as error:
        return str(error)
    return ""


def _check_signatures(reader: LogReader, log: LogRow, ids: dict[int, bytes]) -> tuple[int, list[Problem]]:
    problems = []
    cuts = reader.signed_cuts(log.number)
    for packed, signature in cuts:
        statement = Statement._make(decode(packed))
        if not verifies(log.key, signature, SEGMENT_TAG, list(statement)) or statement.key != log.key:
            problems.append(Problem(log.log_id, statement.last_sequence, "a signature kept of it is wrong"))
        elif ids.get(statement.last_sequence) not in (None, statement.last_id):
            problems.append(Problem(log.log_id, statement.last_sequence, "it is not the event that was signed"))
        elif statement.last_sequence > len(ids) and len(ids) == log.head_sequence:
            problems.append(Problem(log.log_id, statement.last_sequence, "it was signed once and is missing now"))
    return len(cuts), problems


def _check_succession(reader: LogReader, log: LogRow, logs: list[LogRow]) -> tuple[int, list[Problem]]:
    """Return how many signatures were checked, and what is wrong with the log that this one says it goes on from."""
    claim = succession_claim(reader, log)
    if claim is None:
        return 0, []
    succession = Succession.from_body(claim)
    if succession is None:
        return 0, [Problem(log.log_id, 1, "what it says of the log that it goes on from is malformed")]
    predecessor = next((other for other in logs if other.log_id == succession.log_id), None)
    if predecessor is None:
        return 0, []
    last = next(reader.events(predecessor.number, after=succession.sequence - 1), None)
    if last is None or (last.sequence, last.event_id) != (succession.sequence, succession.event_id):
        text = f"the event from which it goes on, {succession.sequence} of {predecessor.log_id.hex()}, is missing"
        return 0, [Problem(log.log_id, 1, text)]
    if succession.signature is None:
        return 0, []
    holds = succession.proven_by(predecessor.key, log.log_id, log.key)
    return 1, [] if holds else [Problem(log.log_id, 1, "the signature of its succession is wrong")]
