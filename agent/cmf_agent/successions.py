"""Which log a log goes on from, as its first event says."""

from cmf_agent.reading import LogReader, LogRow
from cmf_protocol.encoding import Value
from cmf_protocol.errors import DecodeError
from cmf_protocol.events import decode_body
from cmf_protocol.signing import Succession


def succession_claim(reader: LogReader, log: LogRow) -> Value:
    """Return what the first event of a log holds under `succeeds`, as it stands; None if nothing, or if it can't be read."""
    first = next(reader.events(log.number), None)
    if first is None or first.body is None:
        return None
    try:
        return decode_body(first.body).get("succeeds")
    except DecodeError:
        return None


def succession_of(reader: LogReader, log: LogRow) -> Succession | None:
    """Return what a log goes on from, None if it is a first one, or if what it says is malformed."""
    return Succession.from_body(succession_claim(reader, log))
