"""Bundles at the hub, and the receipts for them."""

from pathlib import Path

import pytest
from tests.support.bundles import bundle_of
from tests.support.logs import MadeLog
from tests.support.store import ANA, BORIS, STRANGER, Store

from cmf_hub import waiting
from cmf_hub.importing import import_bundle, import_text, receipt_of_site
from cmf_hub.registry import Registry
from cmf_protocol.errors import CallerError, DecodeError, IntegrityError
from cmf_protocol.receipts import Receipt, decode_receipt, verify_receipt


@pytest.fixture
def started(store: Store) -> Store:
    """A store whose hub was started once, and so has an id and a key."""
    store.registry.identity("SU" + "A" * 56)
    return store


def receipt(store: Store, file: Path) -> Receipt:
    """Return a receipt of the store's hub."""
    found = decode_receipt(file.read_bytes())
    verify_receipt(found, hub_id=store.registry.identity()[0], hub_key=store.registry.signer().public_key)
    assert found.incarnation == store.custody.incarnation
    return found


def test_a_bundle_is_imported_once_however_often(store: Store, tmp_path: Path) -> None:
    log, other = MadeLog(ANA).say(299), MadeLog(BORIS).say(4)
    file = tmp_path / "a.bundle"
    file.write_bytes(bundle_of([*log.singles(), other.cut(1, 3)]))
    first = import_bundle(store.data, file).shown()
    assert first == {"segments": 301, "admitted": 303, "duplicates": 0, "parked": [], "not_kept": 0, "refused": []}
    assert import_bundle(store.data, file).shown() == first | {"admitted": 0, "duplicates": 303}
    assert store.heads() == {(log.log_id, *log.head), (other.log_id, *other.points(3)[0])}


def test_an_empty_bundle_changes_nothing(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.bundle"
    file.write_bytes(bundle_of([]))
    assert import_bundle(store.data, file).segments == 0


def test_what_a_bundle_lacks_is_parked_and_what_nobody_may_bring_is_listed(store: Store, tmp_path: Path) -> None:
    log, strange = MadeLog(ANA).say(9), MadeLog(STRANGER).say(2)
    file = tmp_path / "a.bundle"
    file.write_bytes(bundle_of([log.cut(6, 10), strange.cut(1, 2)]))
    found = import_bundle(store.data, file).shown()
    assert found["admitted"] == 0
    assert found["parked"] == [{"site": "ana", "log_id": log.log_id.hex(), "first_sequence": 6}]
    (refused,) = found["refused"]
    assert (refused["log_id"], refused["first_sequence"], refused["code"]) == (strange.log_id.hex(), 1, "unknown-key")


def test_a_bundle_that_was_cut_or_altered_is_refused_whole(store: Store, tmp_path: Path) -> None:
    whole = bundle_of([MadeLog(ANA).say(9).cut(1, 10)])
    file = tmp_path / "a.bundle"
    for at in (0, 7, 8, 20, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        file.write_bytes(whole[:at])
        with pytest.raises((DecodeError, IntegrityError), match=r"not a bundle|cut or altered"):
            import_bundle(store.data, file)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((DecodeError, IntegrityError), match=r"not a bundle|cut or altered"):
            import_bundle(store.data, file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(IntegrityError, match="cut or altered"):
        import_bundle(store.data, file)
    assert store.count("segments") == store.count("quarantine") == store.count("parked") == 0


def test_segments_that_there_is_no_room_to_keep_are_told(
    started: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are neither held nor parked: whoever carried them must not think so."""
    log = MadeLog(ANA).say(29)
    file = tmp_path / "a.bundle"
    file.write_bytes(bundle_of([log.cut(6, 10), log.cut(11, 15), log.cut(16, 20)]))
    monkeypatch.setattr(waiting, "PARKED_BYTES_MAX", sum(event.size for event in log.events[5:15]))
    found = import_bundle(started.data, file)
    assert ([row["first_sequence"] for row in found.parked], found.not_kept) == ([6, 11], 1)
    assert found.shown()["not_kept"] == 1


# --- receipts


def test_a_receipt_names_what_of_each_branch_is_held(started: Store, tmp_path: Path) -> None:
    log = MadeLog(ANA).say(19)
    copy, other, strange = log.fork(12).say(5), MadeLog(ANA).say(2), MadeLog(STRANGER).say(1)
    file, out = tmp_path / "a.bundle", tmp_path / "a.receipt"
    started.take(log.cut(1, 10), other.cut(1, 3), MadeLog(BORIS).cut(1, 1))
    file.write_bytes(bundle_of([log.cut(8, 15), copy.cut(11, 17), strange.cut(1, 2), b"junk"]))
    import_bundle(started.data, file, receipt=out)
    found = receipt(started, out)
    assert set(found.confirmed) == {(log.log_id, *point) for point in (*log.points(12, 15), *copy.points(17))}
    assert [(row.log_id, row.code) for row in found.refused] == [(strange.log_id, "unknown-key"), (b"", "malformed")]
    assert receipt_of_site(started.data, "ana", tmp_path / "site.receipt") == 2
    whole = receipt(started, tmp_path / "site.receipt")
    assert set(whole.confirmed) == {*found.confirmed, (other.log_id, *other.head)}
    assert whole.refused == ()


def test_a_receipt_says_how_far_a_bundle_went_that_is_older_than_what_is_held(started: Store, tmp_path: Path) -> None:
    log = MadeLog(ANA).say(19)
    started.take(log.cut(1, 10), log.cut(11, 20))
    file, out = tmp_path / "a.bundle", tmp_path / "a.receipt"
    file.write_bytes(bundle_of([log.cut(1, 10)]))  # of a site whose disk was put back: it knows no later event
    import_bundle(started.data, file, receipt=out)
    assert set(receipt(started, out).confirmed) == {(log.log_id, *point) for point in log.points(10, 20)}


def test_what_is_parked_is_not_in_a_receipt_until_it_is_held(started: Store, tmp_path: Path) -> None:
    log = MadeLog(ANA).say(9)
    rest, first = tmp_path / "rest.bundle", tmp_path / "first.bundle"
    rest.write_bytes(bundle_of([log.cut(6, 10)]))
    first.write_bytes(bundle_of([log.cut(1, 5)]))
    found = import_bundle(started.data, rest, receipt=tmp_path / "1.receipt")
    assert receipt(started, tmp_path / "1.receipt").confirmed == ()
    assert f"log {log.log_id.hex()} of ana from event 6 on waits" in import_text(found)
    import_bundle(started.data, first, receipt=tmp_path / "2.receipt")
    assert (log.log_id, *log.head) in receipt(started, tmp_path / "2.receipt").confirmed


def test_the_hubs_key_is_made_once_and_needs_a_hub(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="never started"):
        store.registry.signer()
    store.registry.identity("SU" + "A" * 56)
    key = store.registry.signer().public_key
    assert Registry(store.data.registry).signer().public_key == key
    with pytest.raises(CallerError, match="no site"):
        receipt_of_site(store.data, "nobody", tmp_path / "a.receipt")
    (tmp_path / "a.receipt").write_bytes(b"there")
    (tmp_path / "a.bundle").write_bytes(bundle_of([MadeLog(ANA).cut(1, 1)]))
    with pytest.raises(CallerError, match="exists already"):
        import_bundle(store.data, tmp_path / "a.bundle", receipt=tmp_path / "a.receipt")
    assert store.count("segments") == 0
