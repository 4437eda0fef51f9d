"""The golden files: bytes of version 1 of the format, made from fixed keys, salts and times.

    python -m tests.golden.generate            # verifies that every file is reproduced byte for byte, and that nothing else lies there
    python -m tests.golden.generate --write    # adds files that do not exist yet; never changes one

Rules
- A file that was released is never rewritten and never deleted: a difference means that the format changed.
- Every file is JSON: the bytes in hex, and beside them what they say, for whoever reviews it.
- The frame of a segment is what some zstd once made: the file itself is the source of it, and its content is what is reproduced.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import zstandard
from tests.support.branches import graph_of
from tests.support.bundles import bundle_of
from tests.support.strategies import make_event

from cmf_protocol.encoding import decode, encode, to_json
from cmf_protocol.errors import PeerError
from cmf_protocol.events import Draft, Event, Head, Node, decode_body, head_of, make_events
from cmf_protocol.fold import Unfolded, read
from cmf_protocol.messages import Refusal
from cmf_protocol.receipts import sign_receipt
from cmf_protocol.segments import encode_segment, sign_segment, statement_of
from cmf_protocol.signing import Signer, sign_succession

FOLDER = Path(__file__).parent / "v1"
WALL_US = 1_700_000_000_123_456
FIRST, SECOND = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
HUB, HUB_SIGNER = b"\xb1" * 16, Signer(b"\x0b" * 32)
LOG, NEXT_LOG = b"\xa1" * 16, b"\xa2" * 16
EXECUTION = bytes.fromhex("018bcfe568007abc8def0123456789ab")
TRAIN: Node = ("stage", ("día", "train"))
MODEL, FOLDER_ID = "md5:0cc175b9c0f1b6a831c399e269772661", "md5:92eb5ffee6ae2fec3ad71c777531578f.dir"
SHA = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
ENVIRONMENT = {"packages": {"numpy": "2.4.6"}, "python": "3.11.7"}
ENVIRONMENT_ID = f"md5:{md5(encode(ENVIRONMENT), usedforsecurity=False).hexdigest()}"
TABLE = (("step", (1, 2)), ("löss", (0.5, float("nan"))))
TABLE_ID = f"md5:{md5(encode(TABLE), usedforsecurity=False).hexdigest()}"
VALUES = {
    "facts": {"command": ("python", "train.py"), "git_dirty": False, "host": "ward-3", "parent": b"\x07" * 16},
    "params": {"big": "18446744073709551616", "lr": 0.1, "nested": {"a": (1, -33, 2**63 - 1)}, "none": None},
    "properties": {"größe": 1, "note": "naïve ✓ 日本語"},
}
_AN_ID = sha256(b"somebody's event").digest()
_X: Node = ("execution", EXECUTION)

#: type → minimal and full bodies, with what they are about
DRAFTS: dict[str, tuple[Draft, Draft]] = {
    "log.opened": (
        Draft("log.opened", (("key", FIRST.public_key),), {}),
        Draft("log.opened", (("key", FIRST.public_key),), {"agent": "cmf-agent/0.1.0"}),
    ),
    "pipeline.described": (
        Draft("pipeline.described", (("pipeline", "día"),), {}),
        Draft("pipeline.described", (("pipeline", "día"),), VALUES),
    ),
    "stage.described": (Draft("stage.described", (TRAIN,), {}), Draft("stage.described", (TRAIN,), VALUES)),
    "execution.started": (
        Draft("execution.started", (("stage", ("p", "s")), ("execution", EXECUTION)), {}),
        Draft(
            "execution.started",
            (TRAIN, ("artifact", ENVIRONMENT_ID), _X),
            {**VALUES, "at": WALL_US - 5, "lossy": {"params.big": "integer"}},
        ),
    ),
    "execution.updated": (
        Draft("execution.updated", (_X,), {}),
        Draft("execution.updated", (("artifact", ENVIRONMENT_ID), _X), {**VALUES, "from_a_later_version": {"x": 1}}),
    ),
    "execution.finished": (
        Draft("execution.finished", (_X,), {"status": "finished"}),
        Draft(
            "execution.finished",
            (_X,),
            {"at": WALL_US + 9, "error": {"message": "no", "type": "ValueError"}, "exit_code": -9, "status": "failed"},
        ),
    ),
    "artifact.used": (
        Draft("artifact.used", (("artifact", FOLDER_ID), _X), {}),
        Draft(
            "artifact.used",
            (("artifact", MODEL), _X),
            {
                "digests": (SHA,),
                "facts": {"files": 3, "kind": "dataset", "size": 12},
                "lossy": {"name": "path"},
                "name": "data/%FF.csv",
                "properties": {"rows": 7},
            },
        ),
    ),
    "artifact.produced": (
        Draft("artifact.produced", (("artifact", MODEL), _X), {}),
        Draft(
            "artifact.produced",
            (("artifact", MODEL), _X),
            {"digests": (SHA,), "facts": {"kind": "model"}, "name": "model.pkl", "properties": {"f1": 0.5}},
        ),
    ),
    "metrics.recorded": (
        Draft("metrics.recorded", (_X,), {}),
        Draft(
            "metrics.recorded",
            (_X,),
            {
                "metrics": {"auc": float("nan"), "f1": 1, "loss": float("inf"), "low": float("-inf"), "zero": 0.0},
                "steps": (
                    ("loss", "", (1, 2, 2), (0.5, 1, float("nan")), (-3, 0, 4_000_000)),
                    ("loss", "val", (-1,), (0.25,), (0,)),
                ),
            },
        ),
    ),
    "environment.recorded": (
        Draft("environment.recorded", (("artifact", ENVIRONMENT_ID),), {"environment": ENVIRONMENT}),
        Draft("environment.recorded", (("artifact", ENVIRONMENT_ID),), {"digests": (SHA,), "environment": ENVIRONMENT}),
    ),
    "tag.added": (
        Draft("tag.added", (("artifact", MODEL),), {"tag": "best"}),
        Draft("tag.added", (TRAIN,), {"lossy": {}, "tag": "größte"}),
    ),
    "tag.removed": (
        Draft("tag.removed", (("artifact", MODEL),), {"adds": (), "tag": "best"}),
        Draft("tag.removed", (("artifact", MODEL),), {"adds": (_AN_ID, bytes(32)), "tag": "best"}),
    ),
    "note.added": (
        Draft("note.added", (_X,), {"text": ""}),
        Draft("note.added", (("pipeline", "día"),), {"lossy": {"text": "text"}, "text": "line\nline \ufffd e\u0301"}),
    ),
    "record.retracted": (
        Draft("record.retracted", (("artifact", MODEL),), {"reason": ""}),
        Draft("record.retracted", (("artifact", MODEL), _X), {"event": _AN_ID, "reason": "wrong file"}),
    ),
    "record.unretracted": (
        Draft("record.unretracted", (("artifact", MODEL),), {"retraction": _AN_ID}),
        Draft("record.unretracted", (("artifact", MODEL), _X), {"reason": "right after all", "retraction": _AN_ID}),
    ),
    "gap.accepted": (
        Draft("gap.accepted", (("key", SECOND.public_key),), {"after": _AN_ID, "before": _AN_ID, "log": NEXT_LOG}),
        Draft(
            "gap.accepted",
            (("key", SECOND.public_key),),
            {"after": _AN_ID, "before": _AN_ID, "log": NEXT_LOG, "reason": "the disk burnt"},
        ),
    ),
    "artifact.stored": (
        Draft("artifact.stored", (("artifact", FOLDER_ID),), {"location": {"kind": "git"}}),
        Draft(
            "artifact.stored",
            (("artifact", MODEL),),
            {
                "location": {
                    "blob": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
                    "commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
                    "kind": "dvc",
                    "path": "models/größe.pkl.dvc",
                    "repo": "https://example.org/repo.git",
                }
            },
        ),
    ),
    "table.recorded": (
        Draft("table.recorded", (("artifact", TABLE_ID),), {"columns": (), "rows": 0}),
        Draft("table.recorded", (("artifact", TABLE_ID),), {"columns": TABLE, "first": 7, "rows": 9}),
    ),
    "label.attached": (
        Draft("label.attached", (("artifact", MODEL), ("artifact", FOLDER_ID)), {"label": FOLDER_ID}),
        Draft("label.attached", (("artifact", MODEL), ("artifact", FOLDER_ID)), {"label": MODEL, "later": 1}),
    ),
    "slice.recorded": (
        Draft("slice.recorded", (("artifact", MODEL), ("artifact", FOLDER_ID)), {"slice": MODEL}),
        Draft("slice.recorded", (("artifact", TABLE_ID), ("artifact", FOLDER_ID)), {"later": 1, "slice": TABLE_ID}),
    ),
}
#: Types that came after the history of the first graph was made: they have one of their own.
_OF_ARTIFACTS = ("artifact.stored", "table.recorded", "label.attached", "slice.recorded")


def chain(head: Head, drafts: Sequence[Draft], salt: int = 0) -> list[Event]:
    """Return events of these drafts with fixed salts, a millisecond between them."""
    salts = b"".join(sha256(b"salt %d" % (salt + at)).digest()[:16] for at in range(len(drafts)))
    timed = [draft._replace(wall_us=WALL_US + 1_000 * at) for at, draft in enumerate(drafts)]
    return make_events(head, timed, salts, WALL_US)


def events() -> dict[str, tuple[str, Event]]:
    """Return name → (what it shows, event)."""
    found: dict[str, tuple[str, Event]] = {}
    for at, (type_, (minimal, full)) in enumerate(DRAFTS.items()):
        for variant, draft in (("minimal", minimal), ("full", full)):
            head = Head(LOG, 0, None, None) if type_ == "log.opened" else Head(LOG, 41, _AN_ID, None)
            found[f"{type_}-{variant}"] = (f"{type_}, {variant}", chain(head, [draft], salt=at)[0])
    root = found["log.opened-full"][1]
    note = DRAFTS["note.added"][0]
    proven = sign_succession(FIRST, LOG, 1, root.event_id, "moved", new_log_id=NEXT_LOG, new_key=SECOND.public_key)
    claim = proven._replace(signature=None)
    for name, succession in (("proven", proven), ("claim", claim)):
        draft = Draft("log.opened", (("key", SECOND.public_key),), {"succeeds": succession.body()})
        found[f"succession-{name}"] = (f"a root that succeeds log.opened-full: {name}", _root(draft))
    odd: dict[str, tuple[str, dict[str, Any]]] = {
        "withheld-body": ("a body that is withheld", {"withheld": True}),
        "extra-elements": ("a header with further elements, kept and ignored", {"extra": [None, {"later": (1,)}]}),
        "envelope-version-2": ("unfolded: an envelope of a later version", {"version": 2}),
        "type-version-2": ("unfolded: a later version of the type", {"type_version": 2}),
        "odd-clock": ("unfolded: a clock behind its wall time", {"clock": 7}),
        "clock-ahead": ("the highest clock", {"clock": (WALL_US // 1000 << 16) + (3_600_000 << 16) + 1}),
        "before-1970": ("a wall time before 1970: the clock's base is 0", {"wall_us": -1_000_000, "clock": 1}),
        "malformed-body": ("unfolded: a body that is no canonical value", {"body": b"\x92\xc4\x00"}),
    }
    for salt, (name, (what, oddness)) in enumerate(odd.items(), start=100):
        found[name] = (what, make_event(root, note, salt=salt, **{"wall_us": WALL_US, **oddness}))
    unknown = Draft("planet.visited", (("planet", ("mars", 4)),), {"by": "nobody"})
    found["unknown-type"] = (
        "unfolded: a type of a later version",
        make_event(root, unknown, salt=200, wall_us=WALL_US),
    )
    return found


def _root(draft: Draft) -> Event:
    return chain(Head(NEXT_LOG, 0, None, None), [draft], salt=300)[0]


def history() -> list[Event]:
    """Return the events of a small graph: a log with a fork, a proven successor, a retraction, a conflict."""
    root = chain(Head(LOG, 0, None, None), [DRAFTS["log.opened"][1]], salt=400)
    said = [
        DRAFTS[type_][1]
        for type_ in DRAFTS
        if type_ not in ("log.opened", "tag.removed", "record.retracted", "record.unretracted", "gap.accepted")
        and type_ not in _OF_ARTIFACTS
    ]
    trunk = root + chain(head_of(root[0]), said, salt=410)
    used = next(event for event in trunk if event.header.type == "artifact.used")
    retraction = Draft("record.retracted", used.header.about, {"event": used.event_id, "reason": "wrong file"})
    left = chain(head_of(trunk[-1]), [retraction, Draft("execution.updated", (_X,), {"params": {"lr": 0.2}})], salt=440)
    right = chain(head_of(trunk[-1]), [Draft("execution.updated", (_X,), {"params": {"lr": 0.3}})], salt=450)
    last = left[-1]
    succession = sign_succession(
        FIRST, LOG, last.header.sequence, last.event_id, "copied", new_log_id=NEXT_LOG, new_key=SECOND.public_key
    )
    opened = Draft("log.opened", (("key", SECOND.public_key),), {"succeeds": succession.body()})
    after = [opened, DRAFTS["execution.finished"][0], DRAFTS["note.added"][0]]
    successor = chain(Head(NEXT_LOG, 0, None, None), after, salt=460)
    return [*trunk, *left, *right, *successor[:2], successor[2]._replace(body=None)]


def holed() -> tuple[list[Event], list[Event]]:
    """Return a log of eight events that change one value again and again, and one that accepts that the fourth to sixth of it are lost."""
    updates = [Draft("execution.updated", (_X,), {"params": {"lr": float(at)}}) for at in range(2, 9)]
    log = chain(
        Head(NEXT_LOG, 0, None, None), [Draft("log.opened", (("key", SECOND.public_key),), {}), *updates], salt=500
    )
    gap = {"after": log[6].event_id, "before": log[2].event_id, "log": NEXT_LOG, "reason": "the disk burnt"}
    accepting = [DRAFTS["log.opened"][1], Draft("gap.accepted", (("key", SECOND.public_key),), gap)]
    return log, chain(Head(LOG, 0, None, None), accepting, salt=510)


def of_artifacts() -> list[Event]:
    """Return a log that says where artifacts are stored, what is in a table, what labels and slices there are."""
    said = [draft for type_ in _OF_ARTIFACTS for draft in DRAFTS[type_]]
    return chain(Head(LOG, 0, None, None), [DRAFTS["log.opened"][1], *said], salt=600)


def segment(name: str, what: str, run: Sequence[Event], head: Event, signer: Signer) -> dict[str, Any]:
    """Return the file of a segment; its frame is the stored one where that holds the same content."""
    statement = statement_of(run, head, signer.public_key)
    signature = sign_segment(statement, signer)
    pairs = [(event.header_bytes, event.body) for event in run]
    content = encode([list(statement), signature, pairs])
    frame = encode_segment(statement, signature, pairs)
    path = FOLDER / f"{name}.json"
    if path.exists():
        stored = bytes.fromhex(json.loads(path.read_bytes())["segment"])
        if stored[:1] == frame[:1] and zstandard.ZstdDecompressor().decompress(stored[1:]) == content:
            frame = stored
    decoded = {**dict(zip(statement._fields, to_json(list(statement)), strict=True)), "signature": signature.hex()}
    return {"what": what, "segment": frame.hex(), "content": content.hex(), "statement": decoded, "events": len(run)}


def event_file(what: str, event: Event) -> dict[str, Any]:
    """Return the file of one event."""
    said = read(event.header, event.body)
    extra = decode(event.header_bytes)[10:]
    return {
        "what": what,
        "header": event.header_bytes.hex(),
        "body": None if event.body is None else event.body.hex(),
        "event_id": event.event_id.hex(),
        "folded": not isinstance(said, Unfolded),
        "decoded": {
            "header": to_json(dict(zip(event.header._fields, event.header, strict=True))),
            "extra": to_json(extra),
            "body": to_json(_readable(event.body)),
        },
    }


def _readable(body: bytes | None) -> dict[str, Any] | None:
    try:
        return None if body is None else decode_body(body)
    except PeerError:
        return None


def receipt(held: Sequence[Event]) -> dict[str, Any]:
    """Return the golden file of what a hub says that holds these events, and refused what came after them."""
    header, last_id = held[-1].header, held[-1].event_id
    confirmed = ((LOG, held[0].header.sequence, held[0].event_id), (header.log_id, header.sequence, last_id))
    refused = (
        Refusal(LOG, 7, _AN_ID, "revoked", "the site día is revoked"),
        Refusal(b"", 0, b"", "malformed", "no segment"),
    )
    data = sign_receipt(
        HUB_SIGNER, hub_id=HUB, incarnation=b"\xb2" * 16, time_us=WALL_US, confirmed=confirmed, refused=refused
    )
    return {
        "what": "what a hub holds of two logs, and what it refused",
        "receipt": data.hex(),
        "confirmed": len(confirmed),
        "refused": len(refused),
        "decoded": to_json(decode(data[8:])),
    }


def files() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, content) of every golden file."""
    for name, (what, event) in events().items():
        yield f"events/{name}", event_file(what, event)
    whole = history()
    fork = len(whole) - 4
    runs = [
        ("segments/trunk", "the root and what follows, up to the fork; the head lies beyond", whole[: fork - 2], whole[fork - 1], FIRST),
        ("segments/left", "one branch of the fork", whole[fork - 2 : fork], whole[fork - 1], FIRST),
        ("segments/right", "the other branch", whole[fork : fork + 1], whole[fork], FIRST),
        ("segments/successor", "the successor's log, its last body withheld", whole[fork + 1 :], whole[-1], SECOND),
    ]  # fmt: skip
    made = []
    for name, what, run, head, signer in runs:
        made.append(segment(name, what, run, head, signer))
        yield name, made[-1]
    bundle = bundle_of([bytes.fromhex(each["segment"]) for each in made])
    yield "bundle", {"what": "the four segments in a file", "bundle": bundle.hex(), "segments": len(made)}
    yield "empty-bundle", {"what": "a bundle of nothing", "bundle": bundle_of([]).hex(), "segments": 0}
    yield "receipt", receipt(whole)
    yield "graph", graph_file("the graph of the events of the four segments", whole)
    log, accepting = holed()
    for name, what, run, head, signer in [
        ("gap/before", "what was held before a gap", log[:3], log[3], SECOND),
        ("gap/after", "what was held beyond it", log[6:], log[-1], SECOND),
        ("gap/accepting", "what accepts the gap", accepting, accepting[-1], FIRST),
    ]:
        yield name, segment(name, what, run, head, signer)
    yield "gap/graph", graph_file("the graph of these three: nothing is missing", [*log[:3], *log[6:], *accepting])
    log = of_artifacts()
    yield "artifacts/segment", segment("artifacts/segment", "places, a table, labels, slices", log, log[-1], FIRST)
    yield "artifacts/graph", graph_file("the graph of it", log)


def graph_file(what: str, whole: Sequence[Event]) -> dict[str, Any]:
    """Return the file of the graph of a set of events."""
    graph = graph_of(whole)
    rows = [
        {"row": row.hex(), "decoded": [to_json(decode(decode(row)[0])), to_json(decode(row)[1])]}
        for row in graph.rows()
    ]
    return {
        "what": what,
        "events": [event.event_id.hex() for event in whole],
        "events_digest": sha256(b"".join(sorted(event.event_id for event in whole))).hexdigest(),
        "digest": graph.digest().hex(),
        "unfolded": graph.unfolded,
        "rows": rows,
    }


def expected() -> dict[Path, bytes]:
    """Return path → bytes of every golden file."""
    return {
        FOLDER / f"{name}.json": json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
        for name, content in files()
    }


def problems() -> list[str]:
    """Return what is not as it must be: files that are missing, differ, or belong to nothing."""
    wanted = expected()
    found = {path for path in FOLDER.rglob("*") if path.is_file()}
    differing = [path for path in wanted if path in found and path.read_bytes() != wanted[path]]
    return [
        *(f"missing: {path.relative_to(FOLDER)}" for path in sorted(wanted.keys() - found)),
        *(f"not reproduced: {path.relative_to(FOLDER)}" for path in sorted(differing)),
        *(f"belongs to nothing: {path.relative_to(FOLDER)}" for path in sorted(found - wanted.keys())),
    ]


def main() -> int:
    if "--write" in sys.argv[1:]:
        for path, content in expected().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)
                print(f"added {path.relative_to(FOLDER)}")
    found = problems()
    print("\n".join(found) or f"{len(expected())} golden files are reproduced byte for byte")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
