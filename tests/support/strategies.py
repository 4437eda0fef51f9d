"""What hypothesis draws: values, bodies of every type, and histories.

    values()                   # any canonical value
    names(), nodes(), drafts() # texts that are names, nodes, and what a writer may say, over small domains so that things collide
    histories(...)             # a History: events of several logs with everything that may go wrong (see below)
    segmentations(history)     # signed segments (bytes) that hold every event of the history once, each after what it needs
    event_sets(history)        # a part of a history that a store can hold: closed under previous ids, but for accepted gaps
    arrival(events, choose)    # an order in which a store can come to hold events

A history holds, by chance: forks at any event, several trees with one log id under different keys, proven successions and false
claims (another key's signature, none, a wrong sequence or log, an event that nobody has, of itself), retractions and their
withdrawals (of the own chain, foreign, over successions and forks, with another `about`, of nodes, of retractions), accepted gaps
(true and false ones, several before one event), tags added and removed, aliases, conflicting values, statuses from several logs, step
metrics with repeats, withheld bodies, unknown types and versions, malformed bodies, odd clocks, further elements in headers.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from hypothesis import strategies as st
from tests.support import second_decoder as second

from cmf_protocol import types as t
from cmf_protocol.clock import next_clock
from cmf_protocol.events import Draft, Event, Node, decode_event, sorted_about
from cmf_protocol.segments import encode_segment, sign_segment, statement_of
from cmf_protocol.signing import Signer, Succession, sign_succession

WALL_US = 1_700_000_000_000_000
SIGNERS = tuple(Signer(bytes([at]) * 32) for at in (1, 2, 3))
LOG_IDS = tuple(bytes([at]) * 16 for at in (0xA1, 0xA2, 0xA3))
EXECUTIONS = tuple(bytes([at]) * 16 for at in (0xE1, 0xE1, 0xE2))  # one oftener than the other
ARTIFACTS = ("md5:" + "1" * 32, "md5:" + "2" * 32 + ".dir", "sha256:" + "3" * 64)
PIPELINES = ("p", "día")
STAGES = ("train", "проба")
KEYS = ("a", "b", "environment", "kind")
TAGS = ("aa", "b", "ü")


# -- values ------------------------------------------------------------------------------------------------------------


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    """Draw text that has a canonical form."""
    return st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=max_size)


def integers() -> st.SearchStrategy[int]:
    edges = [sign * 2**bits + off for bits in (5, 7, 8, 15, 16, 31, 32, 62) for sign in (1, -1) for off in (-1, 0, 1)]
    return st.sampled_from([*edges, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)


def scalars() -> st.SearchStrategy[Any]:
    return st.none() | st.booleans() | integers() | st.floats() | texts() | st.binary(max_size=40)


def values(max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Draw any canonical value; arrays are tuples, as they are read."""
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=18).map(tuple) | st.dictionaries(texts(40), inner, max_size=18),
        max_leaves=max_leaves,
    )


def names() -> st.SearchStrategy[str]:
    """Draw names of pipelines, stages and tags as somebody may type them (not yet NFC)."""
    return texts(30).filter(lambda text: text.strip() != "")


# -- what a writer may say ---------------------------------------------------------------------------------------------


def _of(domain: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(domain)


def nodes() -> st.SearchStrategy[Node]:
    """Draw a node of any kind, of the small domains."""
    return _of(
        [
            *[("key", signer.public_key) for signer in SIGNERS],
            *[("pipeline", pipeline) for pipeline in PIPELINES],
            *[("stage", (pipeline, stage)) for pipeline in PIPELINES for stage in STAGES],
            *[("execution", execution) for execution in EXECUTIONS],
            *[("artifact", artifact) for artifact in ARTIFACTS],
        ]
    )


_SMALL: tuple[Any, ...] = (
    0,
    1,
    1.0,
    True,
    None,
    "x",
    b"x",
    float("nan"),
    float("inf"),
    -7,
    {"n": (1, {"m": 2})},
    ("x", 1),
    {},
)


def small_values() -> st.SearchStrategy[dict[str, Any]]:
    """Draw a map of few keys and few values, so that statements agree and disagree."""
    return st.dictionaries(_of(KEYS), _of(_SMALL), max_size=2)


def _steps() -> st.SearchStrategy[Any]:
    row = st.tuples(st.integers(0, 2), _of([0.5, 1, 1.0, float("nan"), float("-inf")]), st.integers(-5, 5))
    rows = st.lists(row, min_size=1, max_size=3)
    block = st.tuples(_of(("loss", "f1")), _of(("", "val")), rows)
    return st.lists(
        block.map(lambda b: (b[0], b[1], *(tuple(column) for column in zip(*b[2], strict=True)))), max_size=2
    )


def _at() -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(WALL_US - 2, WALL_US + 2)


def _usages() -> st.SearchStrategy[Draft]:
    return st.builds(
        t.usage,
        _of((t.ARTIFACT_USED, t.ARTIFACT_PRODUCED)),
        _of(EXECUTIONS),
        _of(ARTIFACTS),
        name=st.none() | _of(("data.csv", "b/m.pkl", "")),
        digests=st.lists(_of(ARTIFACTS), max_size=2),
        facts=small_values(),
        properties=small_values(),
    )


def _started() -> st.SearchStrategy[Draft]:
    return st.builds(
        t.execution_started,
        _of(EXECUTIONS),
        _of(PIPELINES),
        _of(STAGES),
        environment=st.none() | _of(ARTIFACTS),
        facts=small_values(),
        params=small_values(),
        properties=small_values(),
        at=_at(),
    )


def _updated() -> st.SearchStrategy[Draft]:
    return st.builds(
        t.execution_updated,
        _of(EXECUTIONS),
        environment=st.none() | _of(ARTIFACTS),
        facts=small_values(),
        params=small_values(),
        properties=small_values(),
    )


def _finished() -> st.SearchStrategy[Draft]:
    error: st.SearchStrategy[dict[str, str] | None] = (
        st.none() | st.just({}) | st.just({"message": "no", "type": "ValueError"})
    )
    return st.builds(
        t.execution_finished, _of(EXECUTIONS), _of(t.STATUSES), exit_code=_of((None, 0, 1)), error=error, at=_at()
    )


def _metrics() -> st.SearchStrategy[Draft]:
    metrics = st.dictionaries(_of(("acc", "f1")), _of((0.5, 1, 1.0, float("nan"), float("inf"))), max_size=2)
    return st.builds(t.metrics_recorded, _of(EXECUTIONS), metrics=metrics, steps=_steps())


def _two_artifacts() -> st.SearchStrategy[tuple[str, str]]:
    return _of([(one, other) for one in ARTIFACTS for other in ARTIFACTS if one != other])


_TAG_DRAFTS = st.builds(t.tag_added, nodes(), _of(TAGS))
_DRAFTS: dict[str, st.SearchStrategy[Draft]] = {
    t.LOG_OPENED: st.builds(lambda signer: t.log_opened(signer.public_key, agent="a/1"), _of(SIGNERS)),
    t.PIPELINE_DESCRIBED: st.builds(t.pipeline_described, _of(PIPELINES), small_values()),
    t.STAGE_DESCRIBED: st.builds(t.stage_described, _of(PIPELINES), _of(STAGES), small_values()),
    t.EXECUTION_STARTED: _started(),
    t.EXECUTION_UPDATED: _updated(),
    t.EXECUTION_FINISHED: _finished(),
    t.ARTIFACT_USED: _usages(),
    t.ARTIFACT_PRODUCED: _usages(),
    t.METRICS_RECORDED: _metrics(),
    t.ENVIRONMENT_RECORDED: st.builds(
        t.environment_recorded, _of(ARTIFACTS), small_values(), digests=st.lists(_of(ARTIFACTS), max_size=2)
    ),
    t.TAG_ADDED: _TAG_DRAFTS,
    t.TAG_REMOVED: st.builds(
        t.tag_removed, nodes(), _of(TAGS), st.lists(st.binary(min_size=32, max_size=32), max_size=2)
    ),
    t.NOTE_ADDED: st.builds(t.note_added, nodes(), _of(("hello", "", "ñ"))),
    t.RETRACTED: st.builds(lambda node, reason: t.retracted((node,), reason), nodes(), _of(("wrong", ""))),
    t.UNRETRACTED: st.builds(
        lambda node, id_, reason: t.unretracted((node,), id_, reason=reason),
        nodes(),
        st.binary(min_size=32, max_size=32),
        _of((None, "again")),
    ),
    t.GAP_ACCEPTED: st.builds(
        t.gap_accepted,
        _of([signer.public_key for signer in SIGNERS]),
        _of(LOG_IDS),
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=32, max_size=32),
        reason=_of((None, "burnt")),
    ),
    t.ARTIFACT_STORED: st.builds(
        t.artifact_stored,
        _of(ARTIFACTS),
        _of(({"kind": "git"}, {"blob": "1", "kind": "dvc", "path": "a.dvc"}, {"kind": "remote", "url": "s3://x"})),
    ),
    t.TABLE_RECORDED: st.builds(
        t.table_recorded,
        _of(ARTIFACTS),
        _of(((), (("a", (1, 2.5)),), (("a", ("x",)), ("b", (None,))))),
        rows=st.integers(0, 2),
        first=st.integers(0, 2),
    ),
    t.LABEL_ATTACHED: _two_artifacts().map(lambda both: t.label_attached(*both)),
    t.SLICE_RECORDED: _two_artifacts().map(lambda both: t.slice_recorded(*both)),
}


def drafts(*types: str) -> st.SearchStrategy[Draft]:
    """Draw what a writer may say, of these types or of all; targets (retractions, removals) are nobody's events."""
    return st.one_of([_DRAFTS[type_] for type_ in types or every_type()])


def every_type() -> tuple[str, ...]:
    """Return all types of version 1."""
    return tuple(_DRAFTS)


# -- histories ---------------------------------------------------------------------------------------------------------


class History:
    """Events of several logs, each after its previous one.

    `roots` is each event's root, `signers` a root's key, `claims` the event that a root claims to succeed, all by event id.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.signers: dict[bytes, Signer] = {}
        self.roots: dict[bytes, bytes] = {}
        self.claims: dict[bytes, bytes] = {}

    def __repr__(self) -> str:
        """Show the events as they stand, for a failing example."""
        lines = []
        at = {event.event_id: number for number, event in enumerate(self.events)}
        for number, event in enumerate(self.events):
            h = event.header
            after = at.get(h.previous or b"", "root")
            lines.append(
                f"  {number} after {after}: log {h.log_id[:1].hex()} clock {h.clock} v{h.version}.{h.type_version} {h.type} "
                f"{h.about} body {event.body!r} id {event.event_id.hex()[:8]}"
            )
        return "History(\n" + "\n".join(lines) + ")"

    def signer_of(self, event: Event) -> Signer:
        """Return the key of the tree that holds this event."""
        return self.signers[self.roots[event.event_id]]

    def line(self, event: Event) -> list[Event]:
        """Return the event and what comes before it, on through successions, proven or claimed."""
        by_id = {each.event_id: each for each in self.events}
        found = [event]
        while True:
            before = by_id.get(event.header.previous or self.claims.get(event.event_id, b""))
            if before is None:
                return found
            found.append(before)
            event = before

    def add(self, event: Event, signer: Signer | None = None) -> Event:
        """Append an event; a root needs its tree's key."""
        previous = event.header.previous
        root = event.event_id if previous is None else self.roots[previous]
        if signer is not None:
            self.signers[root] = signer
        self.events.append(event)
        self.roots[event.event_id] = root
        return event


def make_event(
    after: Event | None,
    draft: Draft,
    *,
    salt: int,
    log_id: bytes = b"",
    wall_us: int = WALL_US,
    version: int = 1,
    type_version: int = 1,
    clock: int | None = None,
    body: bytes | None = None,
    withheld: bool = False,
    extra: Sequence[Any] = (),
) -> Event:
    """Return an event after `after` (None: a root of `log_id`), well formed in its header but for what is asked otherwise.

    `body` takes the place of the draft's body; the bytes are written by the second decoder's encoder.
    """
    body_bytes = second.write_value([sha256(b"%d" % salt).digest()[:16], draft.body]) if body is None else body
    header = [
        version,
        draft.type,
        type_version,
        log_id if after is None else after.header.log_id,
        1 if after is None else after.header.sequence + 1,
        None if after is None else after.event_id,
        next_clock(None if after is None else after.header.clock, wall_us) if clock is None else clock,
        wall_us,
        draft.about,
        sha256(body_bytes).digest(),
        *extra,
    ]
    return decode_event(second.write_value(header), None if withheld else body_bytes)


_WALLS_US = (0, 0, 0, 1_000, 1_000_000, -7_200_000_000, 7_200_000_000)
_BAD_BODIES: tuple[Callable[[Draft], bytes], ...] = (
    lambda _: b"",
    lambda _: b"\xc1",
    lambda draft: second.write_value([b"s" * 16, draft.body]) + b"\0",
    lambda draft: second.write_value([b"s" * 15, draft.body]),
    lambda draft: second.write_value([b"s" * 16, {**dict.fromkeys(draft.body, ()), "x": 1}]),
    lambda _: second.write_value([b"s" * 16, {"lossy": 5, "name": 5, "params": 5, "status": 5, "tag": "e\u0301"}]),
    lambda draft: second.write_value([b"s" * 16, {**draft.body, "name": 5}]),
    lambda draft: second.write_value([b"s" * 16, {**draft.body, "params": "p", "metrics": {"a": "b"}, "adds": 1}]),
)


def _oddities(draw: st.DrawFn, draft: Draft, root: bool) -> tuple[Draft, dict[str, Any]]:
    """Return the draft and what is odd about its event: in four of five cases nothing."""
    odd = draw(_of([None] * 50 + [0, 1, 1, 2, 3, 4, 5, 6, 7]))
    if odd == 0:
        return draft, {"withheld": True}
    if odd == 1:
        return draft, {"body": draw(_of(_BAD_BODIES))(draft)}
    if odd == 2:
        return draft, {"clock": draw(_of((0, 2**63 - 1, (WALL_US // 1000 << 16) + (3_600_000 << 16) + 1)))}
    if odd == 3:
        return draft, {"version": 2} if draw(st.booleans()) else {"type_version": 2}
    if odd == 4 and not root:
        return draft._replace(type="future.happened"), {}
    if odd == 5 and not root:
        about = draw(_of([(("planet", "mars"),), (("pipeline", "e\u0301"),), (("artifact", "no id"),)]))
        return draft._replace(about=sorted_about([*draft.about, *about])), {}
    if odd == 6:
        return draft, {"extra": draw(_of([(None,), ({"a": 1}, "b")]))}
    if odd == 7:
        return draft._replace(body={**draft.body, "future": {"x": (1,)}}), {}
    return draft, {}


def _root_draft(draw: st.DrawFn, history: History, log_id: bytes, signer: Signer) -> Draft:
    """Return the draft of a root: alone, or one that succeeds an event, provably or not."""
    if not history.events or draw(_of((False, False, False, True))):
        return t.log_opened(signer.public_key, agent="a/1")
    event = draw(_of(_tips(history) if draw(st.booleans()) else history.events))
    header, owner = event.header, history.signer_of(event)
    new: dict[str, Any] = {"new_log_id": log_id, "new_key": signer.public_key}
    place = (header.log_id, header.sequence, event.event_id)
    proven = sign_succession(owner, *place, "moved", **new)
    wrong = draw(_of([None] * 10 + list(range(7))))
    claims: dict[int | None, Succession] = {
        0: Succession(*place, "moved", None),
        1: proven._replace(signature=bytes(64)),
        2: proven._replace(reason="another"),
        3: sign_succession(owner, header.log_id, header.sequence + 1, event.event_id, "", **new),
        4: sign_succession(owner, b"?" * 16, header.sequence, event.event_id, "", **new),
        5: sign_succession(owner, log_id, 1, sha256(b"nobody's").digest(), "", **new),
        6: sign_succession(draw(_of(SIGNERS)), *place, "", **new),
    }
    return t.log_opened(signer.public_key, agent="a/1", succeeds=claims.get(wrong, proven).body())


def _targeted(draw: st.DrawFn, history: History, after: Event) -> Draft:
    """Return a draft that speaks of an earlier event: a retraction, its withdrawal, a tag's removal."""
    kind = draw(_of((0, 1, 2, 3, 4, 5, 6)))
    wanted = {0: (t.TAG_ADDED,), 1: (t.RETRACTED,), 2: (t.RETRACTED,)}.get(kind)
    events = history.line(after) if draw(_of((True, True, False))) else history.events
    found = [event for event in events if wanted is None or event.header.type in wanted]
    told = [event for event in found or events if event.header.type != t.LOG_OPENED or draw(_of((False, False, True)))]
    target = draw(_of(told or events))
    about = draw(_of([target.header.about] * 5 + [target.header.about[:1], (("execution", EXECUTIONS[0]),)]))
    if kind == 0 and len(target.header.about) == 1:
        adds = [event.event_id for event in found if draw(st.booleans())]
        tags = [event.body for event in found if event.event_id in adds]
        said = [tag for tag in TAGS if any(body and tag.encode() in body for body in tags)]
        return t.tag_removed(target.header.about[0], draw(_of(said or TAGS)), adds)
    if kind in (1, 2):
        return t.unretracted(about, target.event_id, reason=draw(_of((None, "again"))))
    return t.retracted(about, "wrong", event=target.event_id)


def _accepted(draw: st.DrawFn, history: History) -> Draft:
    """Return a draft that accepts a gap before some event: mostly of events that stand between it and one before it."""
    late = [event for event in history.events if event.header.sequence > 2]
    after = draw(_of(late or history.events))
    line = [event for event in history.line(after) if event.header.log_id == after.header.log_id][2:]
    before = draw(_of(line if line and draw(_of((True, True, True, False))) else history.events))
    log_id = draw(_of([after.header.log_id] * 9 + [LOG_IDS[0]]))
    return t.gap_accepted(history.signer_of(after).public_key, log_id, before.event_id, after.event_id)


_ACTIONS = ("say",) * 9 + ("root",) * 2 + ("fork",) * 2 + ("target",) * 4 + ("gap",) * 3
_BUSY = drafts(t.EXECUTION_STARTED, t.EXECUTION_FINISHED, t.EXECUTION_UPDATED, t.METRICS_RECORDED, t.TAG_ADDED)
_ANY = drafts()


@st.composite
def histories(draw: st.DrawFn, min_size: int = 1, max_size: int = 32, odd: bool = True) -> History:
    """Draw a history; without `odd` every event is folded (but for headers and successions nothing is made wrong on purpose)."""
    history = History()
    for salt in range(draw(st.integers(min_size, max_size))):
        action = draw(_of(_ACTIONS))
        after: Event | None = None
        log_id, signer = draw(_of(LOG_IDS)), None
        if not history.events or action == "root":
            signer = draw(_of(SIGNERS))
            draft = _root_draft(draw, history, log_id, signer)
        else:
            after = draw(_of(history.events if action == "fork" else _tips(history)))
            if action == "target":
                draft = _targeted(draw, history, after)
            elif action == "gap":
                draft = _accepted(draw, history)
            else:
                draft = draw(draw(_of((_BUSY, _BUSY, _ANY))))
        draft, oddness = _oddities(draw, draft, after is None) if odd else (draft, {})
        wall_us = WALL_US + draw(_of(_WALLS_US))
        event = history.add(make_event(after, draft, salt=salt, log_id=log_id, wall_us=wall_us, **oddness), signer)
        if after is None and "succeeds" in draft.body:
            history.claims[event.event_id] = draft.body["succeeds"]["event"]
    return history


def _tips(history: History) -> list[Event]:
    """Return the events that nothing follows yet."""
    followed = {event.header.previous for event in history.events}
    return [event for event in history.events if event.event_id not in followed]


@st.composite
def event_sets(draw: st.DrawFn, history: History) -> list[Event]:
    """Draw a part of a history that a store can hold, in an order in which it can come to hold it."""
    accepted = {after for event in history.events for *_, after in gaps_of(event)}
    beyond = [event.header.previous for event in history.events if event.event_id in accepted]
    lost = {previous for previous in beyond if draw(_of((True, True, False)))}
    kept = [event for event in history.events if event.event_id not in lost and draw(st.integers(0, 14))]
    return arrival(kept, lambda count: draw(st.integers(0, count - 1)))


def arrival(events: Sequence[Event], choose: Callable[[int], int]) -> list[Event]:
    """Return those of the events that a store can come to hold, in such an order: each after the one before it, or beyond an accepted gap.

    `choose` picks a number below its argument. Successions may come before what they succeed, and what is missing in a gap after what
    lies beyond it, which is chosen oftener.
    """
    waiting = list({event.event_id: event for event in events}.values())
    accepted = [(event.event_id, *gap) for event in waiting for gap in gaps_of(event)]
    held: dict[bytes, Event] = {}

    def may_come(event: Event) -> bool:
        header = event.header
        if header.previous is None or header.previous in held:
            return True
        return any(
            id_ in held and log_id == header.log_id and may_stand_before(event, held.get(before))
            for id_, log_id, before, after in accepted
            if after == event.event_id
        )

    while ready := [event for event in waiting if may_come(event)]:
        ready += [event for event in ready if event.header.previous not in (None, *held)] * 5
        event = ready[choose(len(ready))]
        waiting.remove(event)
        held[event.event_id] = event
    return list(held.values())


def gaps_of(event: Event) -> list[tuple[bytes, bytes, bytes]]:
    """Return the gap (log id, before, after) that an event accepts, if it does."""
    if event.header.type != t.GAP_ACCEPTED:
        return []
    said = second.folded_body(second.read_event(event.header_bytes, event.body))
    return [] if said is None else [(said["log"], said["before"], said["after"])]


def may_stand_before(after: Event, before: Event | None) -> bool:
    """Tell if an event, held or not, may be the one before a gap that ends at `after`."""
    if before is None or before.header.log_id != after.header.log_id:
        return False
    return before.header.sequence <= after.header.sequence - 2


@st.composite
def segmentations(draw: st.DrawFn, history: History) -> list[bytes]:
    """Draw a split of a history into signed segments, each after the one that holds the event before its first."""
    runs: list[list[Event]] = []
    open_runs: dict[bytes, list[Event]] = {}
    for event in history.events:
        run = open_runs.pop(event.header.previous or b"", None)
        if run is None or draw(st.integers(0, 3)) == 0:
            run = []
            runs.append(run)
        run.append(event)
        open_runs[event.event_id] = run
    return [segment_of(run, history.signer_of(run[0])) for run in runs]


def segment_of(events: Sequence[Event], signer: Signer, head: Event | None = None) -> bytes:
    """Return the bytes of a segment of consecutive events, signed; `head` is the writer's newest event, or else the last of them."""
    statement = statement_of(events, head or events[-1], signer.public_key)
    return encode_segment(
        statement, sign_segment(statement, signer), [(event.header_bytes, event.body) for event in events]
    )
