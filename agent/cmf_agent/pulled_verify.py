"""Checks what was pulled as it lies in `.cmf/pulled.db`: hashes, places, and of what is proven the sites' signatures.

Rules
- It reads and changes nothing. What does not hold can be pulled again: `cmf-agent unsubscribe --all --forget`, then subscribe.
"""

from collections.abc import Iterator

from cmf_agent.home import Home
from cmf_agent.pulled import Pulled
from cmf_agent.verify import Problem
from cmf_protocol.errors import PeerError
from cmf_protocol.events import decode_event
from cmf_protocol.segments import decode_segment


def verify_pulled(home: Home) -> tuple[int, list[Problem]]:
    """Return how many pulled events were checked, and what does not hold."""
    if not home.pulled_path.exists():
        return 0, []
    with Pulled(home.pulled_path) as pulled, pulled.reading():
        proven, problems = _proven_ids(pulled)
        count = 0
        for row in pulled.stream(
            "SELECT t.log_id, t.key, e.sequence, e.event_id, e.header, e.body, e.proven FROM events e "
            "JOIN pieces p ON p.id = e.piece JOIN trees t ON t.root = p.root"
        ):
            problems += _faults(*row, proven=proven)
            count += 1
    return count, problems


def _proven_ids(pulled: Pulled) -> tuple[set[tuple[bytes, bytes]], list[Problem]]:
    """Return (key, event id) of what the kept segments prove."""
    proven: set[tuple[bytes, bytes]] = set()
    problems = []
    for (data,) in pulled.stream("SELECT data FROM proofs"):
        try:
            segment = decode_segment(data)
        except PeerError as error:
            problems.append(Problem(None, None, f"a pulled proof does not hold: {error}"))
            continue
        statement = segment.statement
        if segment.signature_holds():
            proven.update((statement.key, event.event_id) for event in segment.events)
        else:
            problems.append(
                Problem(statement.log_id, statement.first_sequence, "the signature that was pulled is wrong")
            )
    return proven, problems


def _faults(
    log_id: bytes,
    key: bytes,
    sequence: int,
    event_id: bytes,
    header: bytes,
    body: bytes | None,
    is_proven: int,
    *,
    proven: set[tuple[bytes, bytes]],
) -> Iterator[Problem]:
    try:
        event = decode_event(header, body)
    except PeerError as error:
        yield Problem(log_id, sequence, f"as it was pulled: {error}")
        return
    if (event.event_id, event.header.log_id, event.header.sequence) != (event_id, log_id, sequence):
        yield Problem(log_id, sequence, "what was pulled is another event")
    if is_proven and (key, event_id) not in proven:
        yield Problem(log_id, sequence, "nothing that was pulled proves it")
