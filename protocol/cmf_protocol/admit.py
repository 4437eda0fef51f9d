"""The hub's decision on a segment (protocol/README.md, section 7). Pure: what is held and who is enrolled are arguments.

Theory of operation: a segment that decodes has a chain that holds, so one known event in it decides all events before it. Admit
therefore asks for two places only: that of its last event (held: duplicate) and that of the one before its first
(missing: parked); what lies between is compared event by event only where a branch goes on beyond that place.
A body is authentic by the hash in a header that is held, whoever brings it: supplying one needs no right.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cmf_protocol.events import Event
from cmf_protocol.segments import Segment
from cmf_protocol.types import LOG_OPENED


class Place(NamedTuple):
    """Where a held event stands: ids of a store's branch, and its sequence; the key is the one its tree belongs to."""

    branch: int
    sequence: int
    key: bytes


class Held(Protocol):
    """What admit asks of the event store."""

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return the place of this event, or None if it is not held."""

    def held_prefix(self, events: Sequence[Event]) -> int:
        """Return how many of these chained events, from the first on, are held."""

    def lacks_bodies(self, events: Sequence[Event]) -> bool:
        """Tell if the body that one of these held events brings is not held."""


class Enrolled(NamedTuple):
    """What the registry says of a key."""

    site: str
    revoked: bool


class Registry(Protocol):
    """What admit asks of the registry."""

    def site_of(self, key: bytes) -> Enrolled | None:
        """Return the site that this signing key is bound to, or None."""

    def may_carry(self, carrier: str | None, site: str) -> bool:
        """Tell if `carrier` (None: the hub's operator, by hand) may bring logs of `site`."""


class Admit(NamedTuple):
    """Store `segment.events[skip:]` after the event at `parent`, or as a new tree if that is None."""

    skip: int
    parent: Place | None
    site: str


class Duplicate(NamedTuple):
    """All of it is held, up to `place`."""

    place: Place


class Supply(NamedTuple):
    """All its events are held, up to `place`, but not all the bodies that it brings: store it for these."""

    place: Place


class Parked(NamedTuple):
    """The event before its first is not held."""

    site: str


class Refused(NamedTuple):
    """It can't be authenticated; `code` is a stable word, `message` says it to people."""

    code: str
    message: str


Decision = Admit | Duplicate | Supply | Parked | Refused


def admit(segment: Segment, carrier: str | None, held: Held, registry: Registry) -> Decision:
    """Decide what to do with a decoded segment that `carrier` brought."""
    statement = segment.statement
    if not segment.signature_holds():
        return Refused("signature", "the signature does not verify with the key that the segment names")
    last = held.find(statement.log_id, statement.last_sequence, statement.last_id)
    if last is not None:
        return Supply(last) if held.lacks_bodies(segment.events) else Duplicate(last)
    enrolled = _authorised(statement.key, carrier, registry)
    if isinstance(enrolled, Refused):
        return enrolled
    if statement.previous is None:
        return _admit_root(segment, enrolled.site, held)
    place = held.find(statement.log_id, statement.first_sequence - 1, statement.previous)
    if place is None:
        return Parked(enrolled.site)
    return _admit_after(segment, place, enrolled.site, held)


def _authorised(key: bytes, carrier: str | None, registry: Registry) -> Enrolled | Refused:
    enrolled = registry.site_of(key)
    if enrolled is None:
        return Refused("unknown-key", f"the key {key.hex()} is bound to no site")
    if enrolled.revoked:
        return Refused("revoked", f"the site {enrolled.site} is revoked")
    if not registry.may_carry(carrier, enrolled.site):
        return Refused("carrier", f"{carrier} may not bring logs of {enrolled.site}")
    return enrolled


def _admit_root(segment: Segment, site: str, held: Held) -> Decision:
    root = segment.events[0]
    if root.header.type != LOG_OPENED or root.header.about != (("key", segment.statement.key),):
        return Refused("root", "a log begins with log.opened, which names the key that signs the segment")
    place = held.find(root.header.log_id, 1, root.event_id)
    if place is None:
        return Admit(0, None, site)
    return _admit_after(segment, place, site, held)


def _admit_after(segment: Segment, place: Place, site: str, held: Held) -> Decision:
    if place.key != segment.statement.key:
        return Refused("wrong-key", "the log that this segment continues belongs to another key")
    skip = held.held_prefix(segment.events)
    if skip == 0:
        return Admit(0, place, site)
    before = segment.events[skip - 1]
    parent = held.find(before.header.log_id, before.header.sequence, before.event_id)
    return Admit(skip, parent, site)
