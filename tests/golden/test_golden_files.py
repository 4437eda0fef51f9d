"""Bytes of every released version: our code and the second decoder read them and agree."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.golden import generate
from tests.support import second_decoder as second
from tests.support.branches import graph_of
from tests.support.bundles import segments_in
from tests.support.model import Model

from cmf_protocol import types as t
from cmf_protocol.encoding import decode, encode
from cmf_protocol.events import decode_body, decode_event
from cmf_protocol.fold import TYPES, Unfolded, read
from cmf_protocol.receipts import decode_receipt, verify_receipt
from cmf_protocol.segments import decode_segment
from cmf_protocol.signing import Succession

EVENTS = sorted((generate.FOLDER / "events").glob("*.json"))
SEGMENTS = sorted((generate.FOLDER / "segments").glob("*.json"))
GAP = sorted((generate.FOLDER / "gap").glob("[!g]*.json"))
ARTIFACTS = [generate.FOLDER / "artifacts" / "segment.json"]
BUNDLES = sorted(generate.FOLDER.glob("*bundle.json"))


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def event_bytes(name: str) -> tuple[bytes, bytes | None]:
    content = load(generate.FOLDER / "events" / f"{name}.json")
    return bytes.fromhex(content["header"]), None if content["body"] is None else bytes.fromhex(content["body"])


def test_every_golden_file_is_reproduced_and_nothing_else_lies_there() -> None:
    assert generate.problems() == []


def test_there_is_a_minimal_and_a_full_event_of_every_type() -> None:
    names = {path.stem for path in EVENTS}
    assert set(TYPES) == set(second.TYPES)
    assert {f"{type_}-{variant}" for type_ in TYPES for variant in ("minimal", "full")} <= names


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_both_decoders_read_an_event_alike(path: Path) -> None:
    header, body = event_bytes(path.stem)
    content = load(path)
    ours, theirs = decode_event(header, body), second.read_event(header, body)
    assert ours.event_id == theirs.event_id == bytes.fromhex(content["event_id"])
    fields = (theirs.version, theirs.type, theirs.type_version, theirs.log_id, theirs.sequence, theirs.previous)
    assert fields == ours.header[:6]
    assert (theirs.clock, theirs.wall_us, theirs.body_hash) == (ours.header.clock, ours.header.wall_us, ours.header[9])
    assert second.write_value(theirs.about) == encode(ours.header.about)
    said, folded = read(ours.header, body), second.folded_body(theirs)
    assert (folded is not None) is content["folded"] is not isinstance(said, Unfolded)
    if folded is not None:
        assert not isinstance(said, Unfolded)
        assert second.write_value(folded) == encode(said)


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_both_encoders_write_the_bytes_that_they_read(path: Path) -> None:
    for data in event_bytes(path.stem):
        if data is None or path.stem == "malformed-body":
            continue
        assert encode(decode(data)) == data
        assert second.write_value(second.read_value(data)) == data


@pytest.mark.parametrize("path", SEGMENTS + GAP + ARTIFACTS, ids=lambda path: path.stem)
def test_both_decoders_read_a_segment_alike(path: Path) -> None:
    content = load(path)
    data = bytes.fromhex(content["segment"])
    ours, theirs = decode_segment(data), second.read_segment(data)
    assert ours.signature_holds()
    assert theirs.signed
    assert list(ours.statement) == theirs.statement
    assert ours.signature == theirs.signature
    assert [event.event_id for event in ours.events] == [event.event_id for event in theirs.events]
    assert [event.body for event in ours.events] == [event.body_bytes for event in theirs.events]
    assert len(ours.events) == content["events"]


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_both_decoders_read_a_bundle_alike(path: Path) -> None:
    content = load(path)
    data = bytes.fromhex(content["bundle"])
    assert segments_in(data) == second.read_bundle(data)
    assert len(segments_in(data)) == content["segments"]


def test_both_decoders_read_a_receipt_alike() -> None:
    content = load(generate.FOLDER / "receipt.json")
    data = bytes.fromhex(content["receipt"])
    ours, theirs = decode_receipt(data), second.read_receipt(data)
    verify_receipt(ours, hub_id=generate.HUB, hub_key=generate.HUB_SIGNER.public_key)
    assert theirs["signed"]
    assert (ours.hub_id, ours.incarnation, ours.key) == (theirs["hub"], theirs["incarnation"], theirs["key"])
    assert ours.time_us == theirs["time"]
    assert [list(row) for row in ours.confirmed] == theirs["confirmed"]
    assert [list(row) for row in ours.refused] == theirs["refused"]
    assert (len(ours.confirmed), len(ours.refused)) == (content["confirmed"], content["refused"])


@pytest.mark.parametrize(("name", "proven"), [("succession-proven", True), ("succession-claim", False)])
def test_both_decoders_judge_a_succession_alike(name: str, proven: bool) -> None:
    root = decode_event(*event_bytes(name))
    predecessor = decode_event(*event_bytes("log.opened-full"))
    assert root.body is not None
    succeeds = decode_body(root.body)["succeeds"]
    succession = Succession.from_body(succeeds)
    assert succession is not None
    assert succession.event_id == predecessor.event_id
    old_key, new_key = predecessor.header.about[0][1], root.header.about[0][1]
    assert succession.proven_by(old_key, root.header.log_id, new_key) is proven
    assert second.succession_holds(root.header.log_id, new_key, succeeds, old_key) is proven


def test_the_segments_hold_a_fork_and_a_withheld_body() -> None:
    events = [event for path in SEGMENTS for event in decode_segment(bytes.fromhex(load(path)["segment"])).events]
    previous = [event.header.previous for event in events if event.header.previous is not None]
    assert len(previous) == len(set(previous)) + 1
    assert [event.header.type for event in events if event.body is None] == [t.NOTE_ADDED]


@pytest.mark.parametrize(
    ("graph", "segments", "unfolded"),
    [("graph", SEGMENTS, 1), ("gap/graph", GAP, 0), ("artifacts/graph", ARTIFACTS, 0)],
    ids=["segments", "gap", "artifacts"],
)
def test_the_graph_of_the_segments_has_the_golden_digests(graph: str, segments: list[Path], unfolded: int) -> None:
    golden = load(generate.FOLDER / f"{graph}.json")
    events = [event for path in segments for event in decode_segment(bytes.fromhex(load(path)["segment"])).events]
    model, ours = Model(events), graph_of(events)
    assert model.events_digest().hex() == golden["events_digest"]
    assert model.digest().hex() == ours.digest().hex() == golden["digest"]
    assert [row.hex() for row in model.rows()] == [row["row"] for row in golden["rows"]]
    assert model.unfolded == ours.unfolded == golden["unfolded"] == unfolded
    assert {event.event_id.hex() for event in events} == set(golden["events"])


def test_a_value_from_beyond_an_accepted_gap_supersedes_those_before_it() -> None:
    golden = load(generate.FOLDER / "gap" / "graph.json")
    (values,) = [
        parts["values"] for (kind, _), parts in (row["decoded"] for row in golden["rows"]) if kind == "execution"
    ]
    assert [(space, key, len(candidates)) for space, key, candidates, _ in values] == [("params", "lr", 1)]
