"""Holes in a log that someone has accepted as lost (protocol/README.md, section 5). Pure.

Rules
- Which event stands before a hole is the same wherever it is asked: in custody, in the graph, at a site.
- Who may accept a gap is no question of the format: `admit` asks the hub's registry.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cmf_protocol.encoding import Value


class Gap(NamedTuple):
    """What a `gap.accepted` says: between these two events (ids) of a log everything is lost."""

    log_id: bytes
    before: bytes
    after: bytes

    @classmethod
    def from_body(cls, body: Mapping[str, Value]) -> "Gap":
        """Return what the body of a folded event says."""
        return cls(body["log"], body["before"], body["after"])


def goes_on_from(sequence: int, held: Iterable[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    """Return the event (sequence, id) from which one at `sequence`, whose previous one is missing, goes on.

    `held` are those that acceptances of its gap name as `before`, as far as they are held in the same log. None if none of them fits.
    """
    return max((event for event in held if event[0] <= sequence - 2), default=None)
