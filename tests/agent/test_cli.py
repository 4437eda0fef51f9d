"""The other commands: what they print, in which form, with which exit code."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.agent.helpers import CLI, DRAFT, cli, cli_json, environment, of_type, only, python, recorded

import cmf_agent as cmf
from cmf_agent.commands import app
from cmf_agent.commands.sending import push_text
from cmf_agent.home import Home
from cmf_agent.hub_file import HubFile
from cmf_agent.log import Log
from cmf_agent.push import PushReport
from cmf_agent.status import site_status, status_text
from cmf_agent.version import VERSION
from cmf_graph.console import guarded

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained_with_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"Example: cmf-agent {name}" in command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), (name, parameter.name)


def test_help_needs_no_home(project: Path) -> None:
    for arguments in (["--help"], ["status", "--help"], ["run", "--help"]):
        assert cli(*arguments, cwd=project).returncode == 0
    assert cli(cwd=project).returncode == 2
    assert cli("nonsense", cwd=project).returncode == 2
    assert cli("status", "--nonsense", cwd=project).returncode == 2


def test_status_tells_what_is_recorded_and_what_it_waits_for(home: Home) -> None:
    with Log(home.log_path) as log:
        event = log.append([DRAFT])[0]
    status = cli_json("status", cwd=home.root)
    assert status["log_id"] == event.header.log_id.hex()
    assert len(status["public_key"]) == 64
    assert {key: status[key] for key in ("site", "events", "published", "confirmed", "pending", "hub", "last_contact")} == {
        "site": None, "events": 2, "published": 0, "confirmed": 0, "pending": 2, "hub": None, "last_contact": None,
    }  # fmt: skip
    assert re.fullmatch(r"3\.\d+\.\d+", status["sqlite_version"])
    text = cli("status", cwd=home.root).stdout
    assert "waits for" in text
    assert "cmf-agent join" in text


def test_status_imports_no_typer(home: Home) -> None:
    script = """
import sys
sys.argv = ["cmf-agent", "status"]
from cmf_agent.cli import main
assert main() == 0
heavy = ("typer", "rich", "nacl", "git", "asyncio", "zstandard", "msgpack", "sqlite_utils")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    assert python(script, cwd=home.root).stderr == "[]\n"


def test_log_lists_newest_first_and_pages(home: Home) -> None:
    with cmf.run("one", "s") as run:
        run.metric("loss", 0.5)
    with cmf.run("two", "s"):
        pass
    everything = cli_json("log", cwd=home.root)
    assert everything["next"] is None
    sequences = [item["sequence"] for item in everything["items"]]
    assert sequences == list(range(len(recorded(home)), 0, -1))
    metric = next(item for item in everything["items"] if item["type"] == "metrics.recorded")
    assert metric["about"] == [{"kind": "execution", "id": run.id}]
    assert metric["summary"] == f"execution {run.id}: loss=0.5"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", metric["time"])
    assert len(metric["event_id"]) == 64
    pages: list[Any] = []
    cursor: list[str] = []
    while True:
        page = cli_json("log", "--limit", "3", *cursor, cwd=home.root)
        pages += page["items"]
        if page["next"] is None:
            break
        cursor = ["--cursor", page["next"]]
    assert pages == everything["items"]
    assert cli("log", "--cursor", "nonsense", cwd=home.root).returncode == 2


def test_log_of_a_pipeline_shows_only_what_is_about_it(home: Home) -> None:
    for pipeline in ("one", "two"):
        with cmf.run(pipeline, "s") as run:
            run.metric(pipeline, 1)
    types = [item["type"] for item in cli_json("log", "-p", "one", cwd=home.root)["items"]]
    assert types == ["execution.finished", "metrics.recorded", "execution.started"]
    assert "metrics.recorded" in cli("log", "-p", "one", cwd=home.root).stdout
    assert cli("log", "-p", "none", cwd=home.root).stdout == "no events\n"


def test_hostile_text_does_not_reach_the_terminal(home: Home) -> None:
    cmf.describe("p", x="\x1b[31mred\x1b]0;title\x07")
    assert "\x1b" not in cli("log", cwd=home.root).stdout


def test_describe_reads_json_values(home: Home) -> None:
    assert cli("describe", "-p", "p", "-s", "s", "n=1", "f=0.5", "b=true", "t=text", cwd=home.root).returncode == 0
    assert only(home, "stage.described")[1]["properties"] == {"n": 1, "f": 0.5, "b": True, "t": "text"}


def model_of(home: Home) -> "cmf.Run":
    (home.root / "model.pkl").write_bytes(b"model")
    with cmf.run("mnist", "train") as run:
        run.log_model("model.pkl")
    return run


REFS = ["model.pkl", "id", "id-prefix", "content", "digest-prefix", "md5-prefix", "sha256", "mnist", "mnist/train"]


@pytest.mark.parametrize("form", REFS)
def test_a_ref_may_be_a_file_an_id_a_digest_or_a_name(home: Home, form: str) -> None:
    run = model_of(home)
    header, body = only(home, "artifact.produced")
    content_id = header.about[0][1]
    ref, node = {
        "id": (run.id, ("execution", run.execution)),
        "id-prefix": (run.id[:-8], ("execution", run.execution)),
        "content": (content_id, header.about[0]),
        "digest-prefix": (content_id[4:12], header.about[0]),
        "md5-prefix": (content_id[:14].upper().replace("MD5", "md5"), header.about[0]),
        "sha256": (body["digests"][0], ("artifact", body["digests"][0])),
        "mnist": ("mnist", ("pipeline", "mnist")),
        "mnist/train": ("mnist/train", ("stage", ("mnist", "train"))),
        "model.pkl": ("model.pkl", header.about[0]),
    }[form]
    done = cli("tag", ref, "good", cwd=home.root)
    assert done.returncode == 0, done.stderr
    assert only(home, "tag.added")[0].about == (node,)


def test_an_artifacts_name_is_found_when_its_file_is_gone(home: Home) -> None:
    model_of(home)
    (home.root / "model.pkl").unlink()
    assert cli("note", "model.pkl", "gone now", cwd=home.root).returncode == 0
    assert only(home, "note.added")[0].about[0][0] == "artifact"


def test_an_ambiguous_ref_lists_the_candidates_and_an_unknown_one_what_was_tried(home: Home) -> None:
    for content in ("one", "two"):
        (home.root / "same").write_text(content)
        with cmf.run("p", "s") as run:
            run.output("same")
    (home.root / "same").unlink()
    ambiguous = cli("tag", "same", "x", cwd=home.root)
    assert ambiguous.returncode == 2
    assert ambiguous.stderr.count("artifact md5:") == 2
    unknown = cli("tag", "abcdef99", "x", cwd=home.root)
    assert unknown.returncode == 2
    assert "it is not a digest" in unknown.stderr


def test_untag_names_the_adds_that_it_saw(home: Home) -> None:
    model_of(home)
    for _ in range(2):
        cli("tag", "mnist", "good", cwd=home.root)
    adds = cli_json("log", "--limit", "2", cwd=home.root)["items"]
    assert cli("untag", "mnist", "good", cwd=home.root).returncode == 0
    body = only(home, "tag.removed")[1]
    assert {event.hex() for event in body["adds"]} == {item["event_id"] for item in adds}
    again = cli("untag", "mnist", "good", cwd=home.root)
    assert again.returncode == 2
    assert "no tag 'good'" in again.stderr


def test_an_event_is_retracted_and_unretracted(home: Home) -> None:
    model_of(home)
    event: dict[str, Any] = next(
        item for item in cli_json("log", cwd=home.root)["items"] if item["type"] == "artifact.produced"
    )
    assert cli("retract", event["event_id"][:10], "--reason", "wrong file", cwd=home.root).returncode == 0
    header, body = only(home, "record.retracted")
    assert body["event"].hex() == event["event_id"]
    assert header.about == only(home, "artifact.produced")[0].about
    retraction = cli_json("log", "--limit", "1", cwd=home.root)["items"][0]["event_id"]
    assert cli("retract", retraction, "--reason", "no", cwd=home.root).returncode == 2
    assert cli("unretract", event["event_id"], cwd=home.root).returncode == 0
    assert only(home, "record.unretracted")[1]["retraction"].hex() == retraction
    assert cli("unretract", event["event_id"], cwd=home.root).returncode == 2


def test_a_node_is_disputed(home: Home) -> None:
    model_of(home)
    assert cli("retract", "model.pkl", cwd=home.root).returncode == 2
    answer = json.loads(cli("retract", "model.pkl", "--reason", "unsafe", "--json", cwd=home.root).stdout)
    assert answer["items"][0]["type"] == "record.retracted"
    assert "event" not in only(home, "record.retracted")[1]
    assert cli("unretract", "model.pkl", "--reason", "it is fine", cwd=home.root).returncode == 0
    assert only(home, "record.unretracted")[1]["reason"] == "it is fine"


@pytest.mark.parametrize("text", ["", "   ", "x" * 5_000])
def test_empty_and_endless_notes_are_refused(home: Home, text: str) -> None:
    model_of(home)
    assert cli("note", "mnist", text, cwd=home.root).returncode == 2
    assert not of_type(home, "note.added")


def test_push_without_a_hub_says_how_to_join_one(home: Home) -> None:
    done = cli("push", cwd=home.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cmf-agent join" in done.stderr


def test_a_reader_that_stops_early_is_no_error_to_tell(home: Home) -> None:
    with Log(home.log_path) as log:
        log.append([DRAFT] * 3_000)
    for command in ("log --limit 3000", "status"):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [*CLI, *command.split()], cwd=home.root, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True
        )
        os.close(writer)
        os.close(reader)
        assert process.communicate(timeout=120)[1] == ""


def test_what_reads_works_in_a_home_that_may_not_be_written(home: Home) -> None:
    model_of(home)
    script = f"""
import os, sys
from cmf_agent.cli import main
os.chdir({str(home.root)!r})
def each():
    for arguments in (["status"], ["log"], ["verify"]):
        sys.argv = ["cmf-agent", *arguments]
        print(arguments, main(), file=sys.stderr)
each()  # imports everything while it may
os.setgid(65534); os.setuid(65534)
each()
"""
    for folder in (home.path, *home.path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = python(script, cwd=Path("/"), PYTHONDONTWRITEBYTECODE="1")
    assert done.stderr.splitlines() == ["['status'] 0", "['log'] 0", "['verify'] 0"] * 2


@pytest.mark.parametrize(
    ("report", "is_dry", "text"),
    [
        (PushReport(sent=6, confirmed=6, segments=1, bytes=2_900), False,
         "the hub has confirmed all 6 events (2.9 KB sent)"),
        (PushReport(sent=1, confirmed=1, segments=1, bytes=290), False,
         "the hub has confirmed the event (290 bytes sent)"),
        (PushReport(), False, "nothing to send: the hub has everything"),
        (PushReport(), True, "nothing to send: the hub has everything"),
        (PushReport(pending=5, segments=1, bytes=1_300), True, "would send 5 events in 1 segment, 1.3 KB"),
        (PushReport(sent=6, confirmed=4, pending=2, segments=2, bytes=2_000_000), False,
         "the hub has confirmed 4 events, 2 events not confirmed yet (2.0 MB sent): nothing is lost, run `cmf-agent push` "
         "again, with a longer --timeout on a slow line"),
    ],
)  # fmt: skip
def test_push_says_in_words_what_it_did(report: PushReport, is_dry: bool, text: str) -> None:
    assert push_text(report, dry_run=is_dry) == text


def test_push_to_what_is_no_address_is_wrong_usage(home: Home) -> None:
    hub = HubFile(
        home.hub_path, site="a", url="nats://h", hub_id=b"h" * 16, hub_key=b"k" * 32, login="SU" + "A" * 56, token=None, ca=None
    )  # fmt: skip
    hub.save()
    done = cli("push", "--hub", "foo bar", cwd=home.root)
    assert done.returncode == 2
    assert "'foo bar' is not an address of a hub" in done.stderr


def test_the_version_is_told(project: Path) -> None:
    done = cli("--version", cwd=project)
    assert (done.returncode, done.stdout) == (0, f"cmf-agent {VERSION}\n")


def test_an_old_sqlite_is_told_in_the_status(home: Home) -> None:
    status = site_status(home)
    assert "pysqlite3" in status_text(status | {"sqlite_version": "3.45.1"}).splitlines()[-1]
    assert "pysqlite3" not in status_text(status | {"sqlite_version": "3.51.3"})


def test_a_question_to_a_home_that_may_not_be_read_says_what_to_do(home: Home) -> None:
    assert os.getuid() == 0, "run this as root, as the build does"
    script = f"""
import os, sys
from cmf_agent.cli import main
os.chdir({str(home.root)!r})
sys.argv = ["cmf-agent", "query", "artifacts"]
main()  # imports everything while it may
os.setgid(65534); os.setuid(65534)
sys.exit(main())
"""
    for folder in (home.path, *home.path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = python(script, cwd=Path("/"), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1
    assert "view.lock: Permission denied" in done.stderr
    assert "hint: give this user the right to read and write there" in done.stderr


def test_a_stray_error_of_the_system_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert guarded(lambda: len((tmp_path / "missing").read_bytes())) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'missing'}: No such file or directory\n"


def test_of_several_tags_only_the_named_one_goes(home: Home) -> None:
    model_of(home)
    for name in ("good", "kept", "good"):
        cli("tag", "mnist", name, cwd=home.root)
    assert cli("untag", "mnist", "good", cwd=home.root).returncode == 0
    cli("tag", "mnist", "good", cwd=home.root)
    assert cli("untag", "mnist", "good", cwd=home.root).returncode == 0
    assert [len(body["adds"]) for _, body in of_type(home, "tag.removed")] == [2, 1]
