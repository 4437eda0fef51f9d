"""Appending what an import says: only what is new, each once."""

from pathlib import Path

import pytest
from tests.agent.helpers import recorded
from tests.support.graphs import md5
from tests.support.sites import SiteFolder

from cmf_agent.bundle import export_bundle, take_bundle
from cmf_agent.home import Home
from cmf_agent.ingest import appending
from cmf_agent.ingest.appending import Appended, append_new, new_drafts
from cmf_agent.log import shared_log
from cmf_protocol import types as t
from cmf_protocol.errors import CmfError
from cmf_protocol.events import Draft

RUN, OTHER_RUN = bytes(range(16)), bytes(16)


def start(execution: bytes = RUN, **params: object) -> Draft:
    return t.execution_started(execution, "mnist", "train", params=params, at=5)


def a_run(execution: bytes = RUN) -> list[Draft]:
    return [
        t.stage_described("mnist", "train", {"owner": "maria"}),
        start(execution, lr=0.1),
        t.usage(t.ARTIFACT_USED, execution, md5("data"), name="data.csv"),
        t.artifact_stored(md5("data"), {"kind": "remote", "url": "s3://bucket"}),
        t.label_attached(md5("labels"), md5("data")),
        t.execution_finished(execution, "finished", at=6),
    ]


def types(home: Home) -> list[str]:
    return [header.type for header, _ in recorded(home)][1:]  # without log.opened


def test_everything_is_recorded_the_first_time_in_its_order_and_nothing_the_second(home: Home) -> None:
    drafts = a_run()
    assert append_new(home, drafts) == Appended(6, 0)
    assert types(home) == [draft.type for draft in drafts]
    assert append_new(home, drafts) == Appended(0, 6)
    assert types(home) == [draft.type for draft in drafts]


def test_only_what_differs_is_appended(home: Home) -> None:
    append_new(home, a_run())
    changed = [
        start(lr=0.2),
        start(lr=0.1),
        t.usage(t.ARTIFACT_PRODUCED, RUN, md5("data"), name="data.csv"),
        start(OTHER_RUN),
    ]
    assert append_new(home, changed) == Appended(3, 1)


def test_one_integer_and_one_float_are_two_values(home: Home) -> None:
    append_new(home, [start(n=1)])
    assert append_new(home, [start(n=1.0)]) == Appended(1, 0)
    assert append_new(home, [start(n=True)]) == Appended(1, 0)


def test_what_stands_twice_among_the_drafts_is_recorded_once(home: Home) -> None:
    assert append_new(home, [*a_run(), *a_run()]) == Appended(6, 6)


def test_a_dry_run_tells_the_same_and_records_nothing(home: Home) -> None:
    assert append_new(home, a_run(), dry_run=True) == Appended(6, 0)
    assert types(home) == []


def test_an_event_that_the_site_retracted_is_said_again(home: Home) -> None:
    drafts = a_run()
    append_new(home, drafts)
    with shared_log(home.log_path) as log:
        event = log.append([start(OTHER_RUN)])[0]
        log.append([t.retracted(event.header.about, "wrong", event=event.event_id)])
    assert append_new(home, drafts) == Appended(0, 6)
    assert append_new(home, [start(OTHER_RUN)]) == Appended(1, 0)
    assert append_new(home, [start(OTHER_RUN)]) == Appended(0, 1)


def test_a_second_try_completes_what_was_cut_off(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "CHUNK_EVENTS", 10)
    drafts = [t.note_added(("execution", RUN), f"note {at}") for at in range(25)]
    broken = [*drafts[:15], t.note_added(("execution", RUN), "too large" * 50_000), *drafts[15:]]
    with pytest.raises(CmfError):
        append_new(home, broken)
    assert len(types(home)) == 10  # the first chunk
    assert append_new(home, drafts) == Appended(15, 10)
    assert [body["text"] for _, body in recorded(home)[1:]] == [f"note {at}" for at in range(25)]


def test_what_only_another_site_said_counts_as_known(home: Home, tmp_path: Path) -> None:
    _bring(home, tmp_path, a_run())
    assert append_new(home, a_run()) == Appended(0, 6)


def test_an_end_that_is_new_here_brings_the_start_that_only_another_site_said(home: Home, tmp_path: Path) -> None:
    drafts = a_run()
    _bring(home, tmp_path, drafts[:-1])
    assert append_new(home, drafts) == Appended(2, 4)
    assert types(home) == [t.EXECUTION_STARTED, t.EXECUTION_FINISHED]
    assert append_new(home, drafts) == Appended(0, 6)


def _bring(home: Home, tmp_path: Path, drafts: list[Draft]) -> None:
    """Let another site record `drafts`, and import its bundle."""
    other = SiteFolder(tmp_path / "other")
    append_new(other.home, drafts)
    export_bundle(other.home, tmp_path / "other.bundle")
    assert take_bundle(home, tmp_path / "other.bundle").kept


def test_new_drafts_of_nothing_known_are_all() -> None:
    assert new_drafts(a_run(), {}) == a_run()


def test_thousands_of_events_about_one_artifact_are_compared_by_their_executions(home: Home) -> None:
    drafts = [t.usage(t.ARTIFACT_USED, at.to_bytes(16), md5("data")) for at in range(1_000)]
    assert append_new(home, drafts) == Appended(1_000, 0)
    assert append_new(home, [*drafts[:10], t.usage(t.ARTIFACT_USED, b"x" * 16, md5("data"))]) == Appended(1, 10)
