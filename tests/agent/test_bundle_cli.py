"""Bundles and receipts at a site: what is written, what is taken back, and what a site without a link says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.agent.helpers import cli, cli_json
from tests.support.bundles import segments_in
from tests.support.strategies import SIGNERS

import cmf_agent as cmf
from cmf_agent.bundle import export_bundle, take_receipt
from cmf_agent.cutting import Cutter
from cmf_agent.home import Home
from cmf_agent.hub_file import hub_in_force, load_hub
from cmf_agent.keys import read_signer
from cmf_agent.log import Log
from cmf_agent.outbox import Outbox
from cmf_agent.place import read_place
from cmf_agent.reading import LogReader
from cmf_agent.status import site_status
from cmf_protocol.errors import CallerError, DecodeError
from cmf_protocol.events import Event
from cmf_protocol.messages import Confirmation, Refusal
from cmf_protocol.receipts import sign_receipt
from cmf_protocol.segments import Segment, decode_segment
from cmf_protocol.types import note_added

HUB, HUB_KEY = b"\xab" * 16, SIGNERS[1]
EXECUTION = bytes(range(16))


def record(home: Home, count: int) -> None:
    with Log(home.log_path) as log:
        log.append([note_added(("execution", EXECUTION), f"note {number}") for number in range(count)])


def events(home: Home) -> list[Event]:
    with LogReader(home.log_path) as reader:
        return [stored.decoded() for stored in reader.all_events()]


def segments(file: Path) -> list[Segment]:
    found = [decode_segment(data) for data in segments_in(file.read_bytes())]
    assert all(segment.signature_holds() for segment in found)
    return found


def held(file: Path) -> list[tuple[bytes, bytes | None]]:
    return [(event.event_id, event.body) for segment in segments(file) for event in segment.events]


@pytest.fixture
def joined(home: Home) -> Home:
    """A home that has joined a hub to which it has no link."""
    content = {
        "version": 1, "site": "kim", "url": None, "hub_id": HUB.hex(), "hub_key": HUB_KEY.public_key.hex(), "login": None,
        "token": None, "ca": None,
    }  # fmt: skip
    file = home.root / "kim.join"
    file.write_text(json.dumps(content))
    done = cli("join", str(file), cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert "cmf-agent bundle export" in done.stdout
    return home


def receipt(home: Home, confirmed: Sequence[Confirmation], refused: Sequence[Refusal] = (), **changes: Any) -> Path:
    signed: dict[str, Any] = {"signer": HUB_KEY, "hub_id": HUB} | changes
    data = sign_receipt(
        signed["signer"], hub_id=signed["hub_id"], incarnation=b"i" * 16, time_us=1_750_000_000_000_000,
        confirmed=tuple(confirmed), refused=tuple(refused),
    )  # fmt: skip
    file = home.root / f"{len(list(home.root.iterdir()))}.receipt"  # a new one each time
    file.write_bytes(data)
    return file


def point(event: Event) -> Confirmation:
    return event.header.log_id, event.header.sequence, event.event_id


# --- export


def test_without_a_hub_everything_is_exported_and_nothing_is_overwritten(home: Home) -> None:
    record(home, 2_500)
    said = cli_json("bundle", "export", "a.bundle", cwd=home.root)
    file = home.root / "a.bundle"
    assert (said["events"], said["segments"], said["withheld"]) == (2_501, 3, 0)
    assert said["bytes"] == file.stat().st_size
    assert held(file) == [(event.event_id, event.body) for event in events(home)]
    again = cli("bundle", "export", "a.bundle", cwd=home.root)
    assert again.returncode == 2
    assert "a.bundle exists already" in again.stderr


def test_cuts_that_were_signed_before_are_used_as_they_are(home: Home) -> None:
    record(home, 9)
    export_bundle(home, home.root / "a.bundle")
    record(home, 5)
    export_bundle(home, home.root / "b.bundle")
    (first,) = segments(home.root / "a.bundle")
    same, second = segments(home.root / "b.bundle")
    assert (same.statement, same.signature) == (first.statement, first.signature)
    assert (second.statement.first_sequence, second.statement.last_sequence) == (11, 15)
    place = read_place(home)
    assert place is not None
    assert place.pushed == (15, second.statement.last_id)


def test_a_hole_between_signed_cuts_is_cut_up_to_the_next_one(home: Home) -> None:
    record(home, 19)
    with Outbox(home.log_path) as outbox:
        (log_id,) = outbox.logs()
        cutter = Cutter(home.log_path, outbox, read_signer(home.key_path))
        head = outbox.head(log_id)
        outbox.record_cuts([cutter._sign(log_id, 1, 4, head), cutter._sign(log_id, 9, 12, head)])
        ranges = [(c.statement.first_sequence, c.statement.last_sequence) for c in cutter.cuts(log_id, 0, head)]
        assert ranges == [(1, 4), (5, 8), (9, 12), (13, 20)]
        assert [c.statement.first_sequence for c in cutter.cuts(log_id, 10, head)] == [9, 13]
        assert list(cutter.cuts(log_id, 20, head)) == []


def test_of_a_pipeline_every_header_and_only_its_bodies_are_exported(home: Home) -> None:
    for pipeline in ("mine", "secret"):
        with cmf.run(pipeline, "train", params={"of": pipeline}, home=home.path) as run:
            (home.root / pipeline).write_text(pipeline)
            run.output(home.root / pipeline)
            run.metrics({"m": 1.0})
    said = cli_json("bundle", "export", "a.bundle", "-p", "mine", cwd=home.root)
    found = held(home.root / "a.bundle")
    assert [event_id for event_id, _ in found] == [event.event_id for event in events(home)]
    bodies = b"".join(body for _, body in found if body is not None)
    assert b"mine" in bodies
    assert b"secret" not in bodies
    withheld = [event_id for event_id, body in found if body is None]
    assert said["withheld"] == len(withheld) > 0
    assert events(home)[0].event_id not in withheld  # the log's opening, which proves whose it is
    unknown = cli("bundle", "export", "b.bundle", "-p", "nosuch", cwd=home.root)
    assert unknown.returncode == 2
    assert "nosuch" in unknown.stderr
    assert not (home.root / "b.bundle").exists()


# --- receipts


def test_a_receipt_confirms_and_the_next_bundle_holds_only_what_is_new(joined: Home) -> None:
    record(joined, 9)
    said = cli_json("bundle", "import", str(receipt(joined, [point(events(joined)[7])])), cwd=joined.root)
    assert (said["kind"], said["confirmed"], said["pending"], said["refused"]) == ("receipt", 8, 2, [])
    assert said["time"] == "2025-06-15T15:06:40.000000Z"
    export_bundle(joined, joined.root / "a.bundle")
    assert [event_id for event_id, _ in held(joined.root / "a.bundle")] == [e.event_id for e in events(joined)[8:]]
    assert take_receipt(joined, receipt(joined, [point(events(joined)[2])])).confirmed == 0  # it says less: no error
    assert site_status(joined)["confirmed"] == 8
    done = take_receipt(joined, receipt(joined, [point(event) for event in events(joined)]))
    assert (done.confirmed, done.pending) == (2, 0)
    assert take_receipt(joined, receipt(joined, [point(event) for event in events(joined)])).confirmed == 0
    nothing = cli("bundle", "export", "b.bundle", cwd=joined.root)
    assert (nothing.returncode, "nothing to carry" in nothing.stdout) == (0, True)
    assert not (joined.root / "b.bundle").exists()
    assert export_bundle(joined, joined.root / "b.bundle", everything=True).events == 10


def test_forged_receipts_are_refused_and_confirm_nothing(joined: Home) -> None:
    record(joined, 3)
    confirmed = [point(event) for event in events(joined)]
    good = receipt(joined, confirmed).read_bytes()
    altered = joined.root / "altered.receipt"
    altered.write_bytes(good.replace(confirmed[-1][2], confirmed[-2][2]))
    strange = (b"s" * 16, 3, b"e" * 32)
    for file, said in (
        (receipt(joined, confirmed, hub_id=b"x" * 16), "another hub"),
        (receipt(joined, confirmed, signer=SIGNERS[2]), "another key"),
        (receipt(joined, confirmed, signer=read_signer(joined.key_path)), "another key"),
        (altered, "receipt was altered: its signature does not verify"),
        (receipt(joined, [strange]), "another site's logs"),
        (receipt(joined, [], [Refusal(strange[0], 1, strange[2], "revoked", "it is")]), "another site's logs"),
    ):
        done = cli("bundle", "import", str(file), cwd=joined.root)
        assert (done.returncode, said in done.stderr) == (5, True), done.stderr
    cut = joined.root / "cut.receipt"
    cut.write_bytes(good[:-1])
    with pytest.raises(DecodeError, match="cut or altered"):
        take_receipt(joined, cut)
    assert site_status(joined)["confirmed"] == 0


def test_what_the_hub_holds_of_another_copy_confirms_nothing_and_is_noticed(joined: Home) -> None:
    record(joined, 9)
    log_id, _, _ = point(events(joined)[0])
    foreign = [(log_id, 8, b"e" * 32), (log_id, 500, b"f" * 32), (log_id, 2**62, b"g" * 32), (log_id, -1, b"h" * 32)]
    done = take_receipt(joined, receipt(joined, [point(events(joined)[3]), *foreign]))
    assert (done.confirmed, done.pending) == (4, 6)
    record(joined, 1)
    assert len({event.header.log_id for event in events(joined)}) == 2  # a successor log was opened


def test_what_the_hub_refused_is_told(joined: Home) -> None:
    record(joined, 3)
    log_id, _, last = point(events(joined)[-1])
    refused = [Refusal(log_id, 1, last, "revoked", "the site kim is revoked")] * 2
    done = cli("bundle", "import", str(receipt(joined, [], refused)), cwd=joined.root)
    assert done.returncode == 0
    assert done.stderr.count("the hub refused what was carried there (revoked): the site kim is revoked") == 1
    assert "4 are not yet" in done.stdout


# --- no link


def test_a_site_without_a_link_says_so_wherever_one_is_needed(joined: Home) -> None:
    done = cli("push", cwd=joined.root)
    assert done.returncode == 2
    assert "has no link to its hub" in done.stderr
    assert "cmf-agent bundle export" in done.stderr
    status = cli_json("status", cwd=joined.root)
    assert (status["site"], status["hub"]) == ("kim", None)
    assert "cmf-agent bundle export" in status["waits_for"]
    with pytest.raises(CallerError, match="no link"):
        hub_in_force(joined, url="nats://somewhere:4222")
    kept = load_hub(joined)
    assert kept is not None
    kept.save()
    again = load_hub(joined)
    assert again is not None
    assert (again.address, again.hub_key) == (None, HUB_KEY.public_key)


def test_a_receipt_for_a_site_that_joined_no_hub_is_wrong_usage(home: Home) -> None:
    done = cli("bundle", "import", str(receipt(home, [])), cwd=home.root)
    assert done.returncode == 2
    assert "has not joined a hub" in done.stderr
