"""A site that pulls, as naive as the specification: what it was told, and the events that it has.

asker = Asker("boris")
asker.pull(pulls, filter_of())       # asks until the answer is complete, then fetches what it lacks
asker.told, asker.events             # branch → what was told of it; (branch, sequence) → event

Every message goes through its bytes, as on a link.
"""

from collections.abc import Sequence

from cmf_hub.pulls import Pulls
from cmf_protocol.encoding import INTEGER_MAX
from cmf_protocol.events import Event, decode_event
from cmf_protocol.filters import Filter
from cmf_protocol.pull import (
    ANSWER_BYTES_MAX,
    WANTED_EVENTS_MAX,
    EventsAnswer,
    EventsRequest,
    Known,
    PullAnswer,
    PullRequest,
    ToldBranch,
    ToldTree,
    Wanted,
    decode_events_answer,
    decode_events_request,
    decode_pull,
    decode_pull_answer,
    encode_events_answer,
    encode_events_request,
    encode_pull,
    encode_pull_answer,
    listing_digest,
)
from cmf_protocol.ranges import Ranges, clip, of_sequences, split, subtract, union

BYTES = 10**9


class Asker:
    """A site, by what it knows."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.told: dict[bytes, ToldBranch] = {}
        self.trees: dict[bytes, ToldTree] = {}
        self.events: dict[tuple[bytes, int], Event] = {}
        self.answers: list[PullAnswer] = []

    @property
    def event_ids(self) -> set[bytes]:
        """The ids of the events that are listed, all of which it has."""
        return {self.events[branch, at].event_id for branch, ranges in self.listed().items() for at in each(ranges)}

    def listed(self) -> dict[bytes, Ranges]:
        """Return what is listed, by branch."""
        return {name: branch.ranges for name, branch in self.told.items()}

    # -- pull ----------------------------------------------------------------------------------------------------------

    def pull(self, pulls: Pulls, wanted: Filter, *, listen: bool = False, answers_max: int = 1_000) -> list[PullAnswer]:
        """Pull until the hub says that this is all, fetch what is missing, and return the answers."""
        self.answers = []
        while len(self.answers) < answers_max:
            answer = self.ask(pulls, wanted, listen=listen)
            self.answers.append(answer)
            self._learn(answer)
            if answer.complete:
                self.fetch(pulls)
                return self.answers
        raise AssertionError(f"not complete after {answers_max} answers")

    def ask(self, pulls: Pulls, wanted: Filter, *, listen: bool = False) -> PullAnswer:
        """Ask once, and return the answer."""
        known = tuple(Known(name, branch.upto, branch.digest) for name, branch in self.told.items())
        request = decode_pull(encode_pull(PullRequest(wanted, known, listen)))
        data = encode_pull_answer(pulls.pull(self.site, request))
        assert len(data) <= ANSWER_BYTES_MAX
        return decode_pull_answer(data)

    def _learn(self, answer: PullAnswer) -> None:
        for tree in answer.trees:
            self.trees[tree.root] = tree
        for name in answer.gone:
            del self.told[name]
        for told in answer.branches:
            assert told.root in self.trees
            assert told.parent is None or told.parent in self.told
            before = self.told.get(told.branch)
            kept = clip(before.ranges, 1, told.after) if before is not None and told.after else ()
            ranges = union(kept, told.ranges)
            assert told.digest == listing_digest(told.parent, told.parent_sequence, ranges, told.upto)
            self.told[told.branch] = told._replace(ranges=ranges)

    # -- events --------------------------------------------------------------------------------------------------------

    def fetch(self, pulls: Pulls) -> int:
        """Fetch the listed events that it lacks, and return in how many answers they came."""
        count = 0
        while missing := self.missing():
            found = self.request(pulls, EventsRequest(first_of(missing), BYTES)).events
            assert found
            for branch, sequence, header, body in found:
                event = decode_event(header, body)
                assert event.header.sequence == sequence
                self.events[branch, sequence] = event
            count += 1
        return count

    def request(self, pulls: Pulls, request: EventsRequest) -> EventsAnswer:
        """Ask for events once, and return the answer."""
        data = encode_events_answer(pulls.events(self.site, decode_events_request(encode_events_request(request))))
        assert len(data) <= ANSWER_BYTES_MAX
        return decode_events_answer(data)

    def missing(self) -> Wanted:
        """Return what is listed and not here."""
        held: dict[bytes, list[int]] = {}
        for branch, sequence in self.events:
            held.setdefault(branch, []).append(sequence)
        found = ((name, subtract(ranges, of_sequences(held.get(name, ())))) for name, ranges in self.listed().items())
        return tuple((name, ranges) for name, ranges in found if ranges)


def each(ranges: Ranges) -> list[int]:
    """Return the sequences of ranges."""
    return [sequence for first, last in ranges for sequence in range(first, last + 1)]


def first_of(wanted: Wanted, room: int = WANTED_EVENTS_MAX) -> Wanted:
    """Return as many events as one request may name."""
    found = []
    for name, ranges in wanted:
        taken, _ = split(ranges, room)
        room -= len(each(taken))
        if taken:
            found.append((name, taken))
    return tuple(found)


def all_of(branch: bytes, first: int = 1, last: int = INTEGER_MAX) -> Sequence[tuple[bytes, Ranges]]:
    """Return a branch's whole."""
    return ((branch, ((first, last),)),)
