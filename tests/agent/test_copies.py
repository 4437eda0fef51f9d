"""What betrays that a log was copied or put back, and what does not: a copy opens one successor log before it appends."""

import shutil
from pathlib import Path

import pytest
from tests.agent.copying import append, backup, copy_of, logs_of, pretend_copied, put_back, succession

from cmf_agent.home import Home, init_home
from cmf_agent.keys import read_signer
from cmf_agent.outbox import Cut, Outbox
from cmf_agent.place import (
    FORKED,
    Found,
    Place,
    another_writer,
    mark_forked,
    note_pushed,
    read_place,
    this_machine,
    why_copied,
    write_place,
)
from cmf_agent.verify import verify
from cmf_protocol.segments import sign_segment, statement_of

LOG, OTHER = b"L" * 16, b"M" * 16
HERE = Place("machine", 7, LOG, pushed=(5, b"e" * 32))
AS_WRITTEN = Found("machine", 7, LOG, b"e" * 32)


# -- the decisions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "found", "words"),
    [
        (HERE, AS_WRITTEN, None),
        (HERE._replace(pushed=None), AS_WRITTEN._replace(pushed_id=None), None),
        (HERE._replace(machine=None), AS_WRITTEN, None),
        (HERE, AS_WRITTEN._replace(machine=None), None),
        (None, AS_WRITTEN, "place.json is missing"),
        (HERE, AS_WRITTEN._replace(machine="other"), "another machine"),
        (HERE, AS_WRITTEN._replace(inode=8), "the file is another one"),
        (HERE, AS_WRITTEN._replace(log_id=OTHER), "the log that was opened here last is missing"),
        (HERE, AS_WRITTEN._replace(pushed_id=None), "event 5, which was sent, is missing"),
        (HERE, AS_WRITTEN._replace(pushed_id=b"f" * 32), "event 5, which was sent, is missing"),
        (HERE._replace(is_forked=True), AS_WRITTEN, FORKED),
    ],
)
def test_whatever_does_not_fit_what_is_written_betrays_a_copy(
    place: Place | None, found: Found, words: str | None
) -> None:
    reason = why_copied(place, found)
    assert (reason is None) if words is None else (reason is not None and words in reason)


def test_an_event_that_a_hub_holds_and_this_site_has_not_is_another_writers() -> None:
    own = {(LOG, 4): b"4" * 32, (LOG, 5): b"5" * 32}
    confirmed = {
        (LOG, 5, b"5" * 32): set(),
        (LOG, 4, b"4" * 32): set(),
        (LOG, 5, b"x" * 32): {LOG},
        (LOG, 6, b"6" * 32): {LOG},
    }
    for confirmation, logs in confirmed.items():
        assert another_writer([(LOG, 4, b"4" * 32), confirmation], lambda log, at: own.get((log, at))) == logs


def test_a_machine_is_known_by_its_id_and_without_one_unknown(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    assert this_machine(file) is None
    for unusable in ("", "uninitialized\n", "Z" * 32, "\u00e9" * 32):
        file.write_text(unusable, encoding="utf-8")
        assert this_machine(file) is None
    file.write_text("0123456789abcdef" * 2 + "\n")
    known = this_machine(file)
    assert known is not None
    assert "0123456789abcdef" not in known
    file.write_text("1123456789abcdef" * 2 + "\n")
    assert this_machine(file) not in (None, known)


# -- what betrays a copy -----------------------------------------------------------------------------------------------


def test_a_copied_folder_opens_a_successor_and_the_original_goes_on(home: Home, tmp_path: Path) -> None:
    append(home, 3)
    copy = copy_of(home, tmp_path / "copy")
    assert [event.header.sequence for event in append(copy, 2)] == [2, 3]
    assert succession(copy).reason == "the file is another one"
    assert append(copy)[0].header.sequence == 4
    assert append(home)[0].header.sequence == 5
    assert [log.head_sequence for log in logs_of(copy)] == [4, 4]
    assert [log.head_sequence for log in logs_of(home)] == [5]
    assert {log.log_id for log in logs_of(copy)} > {logs_of(home)[0].log_id}
    report = verify(copy)
    assert (report.logs, report.events, report.signatures, report.problems) == (2, 8, 1, [])


def test_a_copy_of_a_copy_opens_one_more(home: Home, tmp_path: Path) -> None:
    first = copy_of(home, tmp_path / "first")
    append(first)
    second = copy_of(first, tmp_path / "second")
    append(second)
    assert len(logs_of(second)) == 3
    assert succession(second).log_id == logs_of(first)[-1].log_id


def test_a_folder_that_was_moved_is_no_copy(home: Home, tmp_path: Path) -> None:
    append(home)
    moved = Home(tmp_path / "moved" / home.path.name, tmp_path / "moved")
    home.root.rename(moved.root)
    assert append(moved)[0].header.sequence == 3
    assert len(logs_of(moved)) == 1


def test_another_machine_is_a_copy_where_machines_are_known(home: Home) -> None:
    place = read_place(home)
    assert place is not None
    assert place.machine == this_machine()
    write_place(home, place._replace(machine="0" * 64))
    append(home)
    if this_machine() is None:
        assert len(logs_of(home)) == 1
    else:
        assert succession(home).reason == "it lies on another machine"


def test_an_older_backup_that_lacks_what_was_sent_opens_a_successor(home: Home, tmp_path: Path) -> None:
    kept = append(home, 4)[-1]
    backup(home, tmp_path / "backup.db")
    sent = append(home, 4)[-1]
    note_pushed(home, sent.header.log_id, sent.header.sequence, sent.event_id)
    put_back(home, tmp_path / "backup.db")
    append(home)
    assert (succession(home).event_id, succession(home).reason) == (
        kept.event_id,
        "an older copy was put back: event 9, which was sent, is missing",
    )
    append(home)
    assert len(logs_of(home)) == 2


def test_signing_an_event_is_enough_to_miss_it(home: Home, tmp_path: Path) -> None:
    backup(home, tmp_path / "backup.db")
    events, signer = append(home, 4), read_signer(home.key_path)
    statement = statement_of(events, events[-1], signer.public_key)
    with Outbox(home.log_path) as outbox:
        outbox.record_cuts([Cut(statement, sign_segment(statement, signer))])
    put_back(home, tmp_path / "backup.db")
    append(home)
    assert "event 5, which was sent" in succession(home).reason


def test_an_older_backup_that_lacks_only_what_nobody_saw_is_gone_on_in(home: Home, tmp_path: Path) -> None:
    sent = append(home, 4)[-1]
    note_pushed(home, sent.header.log_id, sent.header.sequence, sent.event_id)
    backup(home, tmp_path / "backup.db")
    append(home, 4)
    put_back(home, tmp_path / "backup.db")
    assert append(home)[0].header.sequence == 6
    assert len(logs_of(home)) == 1


def test_a_backup_from_before_the_successor_opens_another(home: Home, tmp_path: Path) -> None:
    backup(home, tmp_path / "backup.db")
    pretend_copied(home)
    append(home)
    put_back(home, tmp_path / "backup.db")
    append(home)
    assert succession(home).reason == "the log that was opened here last is missing"


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"machine": 3, "inode": 1, "log": "", "pushed": null}'])
def test_a_place_that_is_missing_or_damaged_counts_as_copied(home: Home, content: bytes | None) -> None:
    if content is None:
        home.place_path.unlink()
    else:
        home.place_path.write_bytes(content)
    append(home)
    append(home)
    assert succession(home).reason == "place.json is missing or damaged"
    assert len(logs_of(home)) == 2


def test_a_database_and_key_brought_back_alone_open_a_successor(home: Home, tmp_path: Path) -> None:
    append(home, 3)
    alone = Home(tmp_path / "new" / ".cmf", tmp_path / "new")
    alone.key_path.parent.mkdir(parents=True)
    shutil.copy(home.log_path, alone.log_path)
    shutil.copy(home.key_path, alone.key_path)
    init_home(alone)
    assert not alone.place_path.exists()
    append(alone)
    assert succession(alone).sequence == 4


def test_only_newer_events_of_the_newest_log_are_noted(home: Home) -> None:
    log_id = logs_of(home)[0].log_id
    for noted, sequence in [((log_id, 5), 5), ((log_id, 3), 5), ((OTHER, 9), 5), ((log_id, 6), 6)]:
        note_pushed(home, *noted, noted[1].to_bytes(32, "big"))
        place = read_place(home)
        assert place is not None
        assert place.pushed == (sequence, sequence.to_bytes(32, "big"))
    home.place_path.unlink()
    note_pushed(home, log_id, 7, b"7" * 32)
    mark_forked(home, log_id)
    assert not home.place_path.exists()


def test_a_log_that_goes_on_elsewhere_opens_a_successor_once(home: Home) -> None:
    first = logs_of(home)[0].log_id
    mark_forked(home, OTHER)
    append(home)
    assert len(logs_of(home)) == 1
    mark_forked(home, first)
    append(home)
    assert succession(home).reason == FORKED
    mark_forked(home, first)
    append(home)
    assert len(logs_of(home)) == 2


def test_init_in_a_copy_changes_nothing_and_hides_nothing(home: Home, tmp_path: Path) -> None:
    copy = copy_of(home, tmp_path / "copy")
    before = copy.place_path.read_bytes()
    assert not init_home(copy)
    assert copy.place_path.read_bytes() == before
    copy.place_path.unlink()
    init_home(copy)
    assert not copy.place_path.exists()
    append(copy)
    assert len(logs_of(copy)) == 2


def test_the_place_may_be_read_by_whoever_may_read_the_log(home: Home) -> None:
    assert home.place_path.stat().st_mode & 0o777 == home.log_path.stat().st_mode & 0o777
    assert sorted(path.name for path in home.path.glob(".*")) == [".gitignore"]
