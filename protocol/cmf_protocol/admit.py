"""The hub's decision on a segment (protocol/README.md, section 7). Pure: what is held and who is enrolled are arguments.

Theory of operation: a segment that decodes has a chain that holds, so all that admit asks of the store is which of its events are
missing (none: duplicate) and the place of the event before these (missing too: parked). Where nothing was lost, one held event in it
decides all events before it. Beyond a gap that was accepted events are held although those before them are not: a segment that
spans it brings what is missing in several runs, of which one is admitted at a time.
A body is authentic by the hash in a header that is held, whoever brings it: supplying one needs no right.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cmf_protocol.events import Event
from cmf_protocol.gaps import goes_on_from
from cmf_protocol.segments import Segment
from cmf_protocol.types import LOG_OPENED


class Place(NamedTuple):
    """Where a held event stands: ids of a store's branch, and its sequence; the key is the one its tree belongs to."""

    branch: int
    sequence: int
    key: bytes


class Acceptance(NamedTuple):
    """A held acceptance of a gap: `before` is the place of the held event that it names, `key` that of the tree that it stands in."""

    before_id: bytes
    before: Place
    key: bytes


class Held(Protocol):
    """What admit asks of the event store."""

    def find(self, log_id: bytes, sequence: int, event_id: bytes) -> Place | None:
        """Return the place of this event, or None if it is not held."""

    def missing(self, events: Sequence[Event]) -> tuple[int, int]:
        """Return where the first run of these chained events that are not held begins and ends; both are their number if all are."""

    def acceptances(self, after: Event) -> Sequence[Acceptance]:
        """Return what accepts a gap right before this event, as far as the event that it goes on from is held in the same log."""

    def lacks_bodies(self, events: Sequence[Event]) -> bool:
        """Tell if the body that one of these held events brings is not held."""


class Enrolled(NamedTuple):
    """What the registry says of a key."""

    site: str
    revoked: bool
    may_operate: bool = False


class Registry(Protocol):
    """What admit asks of the registry."""

    def site_of(self, key: bytes) -> Enrolled | None:
        """Return the site that this signing key is bound to, or None."""

    def may_carry(self, carrier: str | None, site: str) -> bool:
        """Tell if `carrier` (None: the hub's operator, by hand) may bring logs of `site`."""


class Admit(NamedTuple):
    """Store `segment.events[skip:stop]` after the event at `parent`, or as a new tree if that is None.

    The event at `stop` is held, if there is one: then what follows has to be decided on anew.
    """

    skip: int
    stop: int
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
    skip, stop = held.missing(segment.events)
    if skip == stop:
        return _duplicate(segment, held)
    enrolled = _authorised(statement.key, carrier, registry)
    if isinstance(enrolled, Refused):
        return enrolled
    if statement.previous is None:
        refused = _wrong_root(segment)
        if refused is not None or skip == 0:
            return refused or Admit(0, stop, None, enrolled.site)
    place = _place_before(segment, skip, held, registry)
    if place is None:
        return Parked(enrolled.site)
    if place.key != statement.key:
        return Refused("wrong-key", "the log that this segment continues belongs to another key")
    return Admit(skip, stop, place, enrolled.site)


def _duplicate(segment: Segment, held: Held) -> Duplicate | Supply:
    statement = segment.statement
    place = held.find(statement.log_id, statement.last_sequence, statement.last_id)
    assert place is not None, "nothing is missing"
    return Supply(place) if held.lacks_bodies(segment.events) else Duplicate(place)


def _authorised(key: bytes, carrier: str | None, registry: Registry) -> Enrolled | Refused:
    enrolled = registry.site_of(key)
    if enrolled is None:
        return Refused("unknown-key", f"the key {key.hex()} is bound to no site")
    if enrolled.revoked:
        return Refused("revoked", f"the site {enrolled.site} is revoked")
    if not registry.may_carry(carrier, enrolled.site):
        return Refused("carrier", f"{carrier} may not bring logs of {enrolled.site}")
    return enrolled


def _wrong_root(segment: Segment) -> Refused | None:
    root = segment.events[0]
    if root.header.type == LOG_OPENED and root.header.about == (("key", segment.statement.key),):
        return None
    return Refused("root", "a log begins with log.opened, which names the key that signs the segment")


def _place_before(segment: Segment, skip: int, held: Held, registry: Registry) -> Place | None:
    """Return the place of the event before `segment.events[skip]`, None if it is missing and nobody may say that it is lost."""
    statement = segment.statement
    if skip > 0:
        before = segment.events[skip - 1]
        return held.find(statement.log_id, before.header.sequence, before.event_id)
    place = held.find(statement.log_id, statement.first_sequence - 1, statement.previous or b"")
    return place or _place_before_gap(segment, held, registry)


def _place_before_gap(segment: Segment, held: Held, registry: Registry) -> Place | None:
    accepted = [each for each in held.acceptances(segment.events[0]) if each.before.key == segment.statement.key]
    signers = [registry.site_of(each.key) for each in accepted]
    if not any(site is not None and site.may_operate and not site.revoked for site in signers):
        return None
    places = {(each.before.sequence, each.before_id): each.before for each in accepted}
    nearest = goes_on_from(segment.statement.first_sequence, places)
    return None if nearest is None else places[nearest]
