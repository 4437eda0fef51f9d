"""What `verify` finds: altered, missing and forged events, a damaged file, wrong signatures."""

from collections.abc import Callable

import pytest
from tests.agent.helpers import DRAFT, cli, cli_json

from cmf_agent.home import Home
from cmf_agent.keys import read_signer
from cmf_agent.log import Log
from cmf_agent.outbox import Cut, Outbox
from cmf_agent.verify import Problem, verify
from cmf_graph.database import Connection, connect
from cmf_protocol.events import Event
from cmf_protocol.segments import sign_segment, statement_of


def log_of(home: Home, count: int) -> list[Event]:
    with Log(home.log_path) as log:
        return log.append([DRAFT] * count)


def tamper(home: Home, *statements: str) -> None:
    """Change the database behind the triggers' back, as whoever holds the file can."""
    connection = connect(home.log_path)
    for trigger in ("events_refuse_update", "events_refuse_delete", "segments_refuse_update"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def first_problem(home: Home) -> Problem:
    report = verify(home)
    assert report.problems
    return report.problems[0]


AT_5 = "WHERE position & 0xffffffffff = 5"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (f"UPDATE events SET body = body || x'00' {AT_5}", "the body of event 5"),
        (f"UPDATE events SET header = header || x'00' {AT_5}", "header was altered"),
        (f"UPDATE events SET event_id = zeroblob(32) {AT_5}", "header was altered"),
        (f"DELETE FROM events {AT_5}", "the event is missing"),
        (f"UPDATE events SET header = (SELECT header FROM events WHERE position & 0xff = 4) {AT_5}", "altered"),
    ],
)
def test_a_changed_event_is_found_by_its_sequence(home: Home, change: str, text: str) -> None:
    log_of(home, 9)
    tamper(home, change)
    problem = first_problem(home)
    assert problem.sequence == 5
    assert text in problem.text
    done = cli("verify", cwd=home.root)
    assert done.returncode == 5
    assert "event 5: " in done.stderr


def test_an_event_put_in_anothers_place_is_found(home: Home) -> None:
    log_of(home, 9)
    tamper(
        home,
        "CREATE TABLE old AS SELECT * FROM events",
        f"UPDATE events SET (event_id, header, body) = "
        f"(SELECT event_id, header, body FROM old WHERE position & 0xff = 4) {AT_5}",
    )
    problem = first_problem(home)
    assert (problem.sequence, problem.text) == (5, "the event is not chained to the one before it")


def test_a_withheld_body_is_no_fault(home: Home) -> None:
    log_of(home, 3)
    tamper(home, "UPDATE events SET body = NULL WHERE position & 0xff = 3")
    assert not verify(home).problems


def signed_log(home: Home) -> None:
    events = log_of(home, 4)
    signer = read_signer(home.key_path)
    statement = statement_of(events, events[-1], signer.public_key)
    with Outbox(home.log_path) as outbox:
        outbox.record_cuts([Cut(statement, sign_segment(statement, signer))])


def test_kept_signatures_are_checked(home: Home) -> None:
    signed_log(home)
    report = verify(home)
    assert (report.logs, report.events, report.signatures, report.problems) == (1, 5, 1, [])
    tamper(home, "UPDATE segments SET signature = zeroblob(64)")
    assert first_problem(home).text == "a signature kept of it is wrong"


def test_events_that_were_signed_and_are_gone_are_found(home: Home) -> None:
    signed_log(home)
    tamper(home, "DELETE FROM events WHERE position & 0xff > 3")
    problem = first_problem(home)
    assert (problem.sequence, problem.text) == (5, "it was signed once and is missing now")


def scribble(home: Home) -> None:
    content = bytearray(home.log_path.read_bytes())
    for at in range(4096, len(content), 64):
        content[at : at + 16] = b"\xff" * 16
    home.log_path.write_bytes(content)


def truncate(home: Home) -> None:
    home.log_path.write_bytes(home.log_path.read_bytes()[: 4096 * 3])


@pytest.mark.parametrize("damage", [scribble, truncate])
def test_a_damaged_file_is_found_and_does_not_end_in_a_traceback(home: Home, damage: Callable[[Home], None]) -> None:
    log_of(home, 2_000)
    checkpoint(connect(home.log_path))
    damage(home)
    done = cli("verify", cwd=home.root)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert done.stderr


def checkpoint(connection: Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def test_verify_answers_in_json(home: Home) -> None:
    log_of(home, 2)
    assert cli_json("verify", cwd=home.root) == {
        "ok": True, "logs": 1, "events": 3, "signatures": 0, "pulled": 0, "problems": [],
    }  # fmt: skip
