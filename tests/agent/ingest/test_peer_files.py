"""Files of the peer that are cut, damaged, in use, or something else: read right, or refused with nothing recorded."""

import json
import sqlite3
from pathlib import Path

import pytest
from tests.agent.helpers import cli, recorded
from tests.agent.ingest.peer import export, mlmd_store, written

from cmf_agent.home import Home
from cmf_agent.ingest.importing import ingest_cmf
from cmf_protocol.errors import CallerError, CmfError, IntegrityError
from cmf_protocol.types import EXECUTION_UPDATED


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(home: Home, path: Path, kind: type[CmfError], words: str) -> CmfError:
    """Import a file that must be refused, and return the error."""
    with pytest.raises(kind, match=words) as caught:
        ingest_cmf(home, path)
    assert len(recorded(home)) == 1
    assert caught.value.hint
    return caught.value


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 200, 5_000, -3])
def test_a_truncated_export_is_refused(home: Home, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(export())[:kept], encoding="utf-8")
    refused(home, path, CallerError, "damaged or cut off: .* in line 1, column")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, 'has no "Pipeline"'),
        ({"other": []}, 'has no "Pipeline"'),
        ("text", 'has no "Pipeline"'),
        (None, 'has no "Pipeline"'),
        ([1], 'entry 1 has no "Pipeline"'),
        ({"Pipeline": {}}, "'Pipeline' of the document is an object, not a list"),
        ({"Pipeline": [3]}, r"Pipeline\[0\] is a number, not an object"),
        ({"Pipeline": [{"name": "p", "stages": "none"}]}, r"'stages' of Pipeline\[0\] is text, not a list"),
        ({"Pipeline": [{"name": 3}]}, r"'name' of Pipeline\[0\] is a number, not text"),
        ({"Pipeline": [{"stages": []}]}, "has no name"),
        (
            {"Pipeline": [{"name": "p", "stages": [{"name": "s", "executions": [{"events": [{"type": 3}]}]}]}]},
            "the artifact of",
        ),
    ],
)
def test_json_of_another_form_is_refused_with_the_place(
    home: Home, tmp_path: Path, document: object, words: str
) -> None:
    refused(home, written(document, tmp_path / "e.json"), CallerError, words)


def test_a_file_that_is_neither_form_is_refused(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "file"
    refused(home, path, CallerError, "does not exist")
    refused(home, tmp_path, CallerError, "is no file")
    path.write_bytes(b"")
    refused(home, path, CallerError, "is empty")
    path.write_bytes(bytes(range(256)))
    refused(home, path, CallerError, "neither JSON nor an SQLite file")
    path.write_text("[" * 100_000, encoding="utf-8")
    refused(home, path, CallerError, "nested too deep")


def test_a_number_that_can_not_be_read_is_named(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(export()).replace("20170428", "9" * 5_000), encoding="utf-8")
    refused(home, path, CallerError, "holds a number that can't be read: .*4300 digits")


@pytest.mark.parametrize("form", ["pipelines", "exports"])
def test_a_list_at_the_top_is_read_as_one_export(home: Home, tmp_path: Path, form: str) -> None:
    document = export()
    path = written(document["Pipeline"] if form == "pipelines" else [document, document], tmp_path / "e.json")
    assert ingest_cmf(home, path).counts.executions == 4


def test_an_export_without_pipelines_has_nothing_new(home: Home, tmp_path: Path) -> None:
    done = ingest_cmf(home, written({"Pipeline": []}, tmp_path / "e.json"))
    assert (done.counts, done.events) == ((0, 0, 0, 0, 0, 0), (0, 0))


# -- MLMD --------------------------------------------------------------------------------------------------------------


def test_reading_a_database_changes_no_file(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    folder.mkdir()
    path = mlmd_store(export(), folder / "mlmd")
    before = files_in(folder)
    ingest_cmf(home, path)
    assert files_in(folder) == before


def test_what_a_writer_has_only_in_its_wal_is_read_and_its_files_stay(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    folder.mkdir()
    path = mlmd_store(export(), folder / "mlmd")
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE Execution SET name = 'in the wal' WHERE id = 1")
        before = files_in(folder)
        assert before["mlmd-wal"]
        ingest_cmf(home, path)
        assert files_in(folder) == before
    writer.close()
    assert "in the wal" in repr(recorded(home))
    closed = files_in(folder)
    ingest_cmf(home, path)
    assert files_in(folder) == closed


def test_what_a_writer_that_died_had_not_committed_is_not_read(home: Home, tmp_path: Path) -> None:
    path = mlmd_store(export(), tmp_path / "mlmd")
    whole = path.read_bytes()
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("PRAGMA cache_size=1")
        writer.execute("BEGIN")
        writer.execute("UPDATE Execution SET name = 'half done'")
        writer.execute("UPDATE ArtifactProperty SET string_value = hex(randomblob(4000))")
        journal, torn = (tmp_path / "mlmd-journal").read_bytes(), path.read_bytes()
        writer.execute("ROLLBACK")
    writer.close()
    assert torn != whole
    copied = tmp_path / "died"
    copied.mkdir()
    (copied / "mlmd").write_bytes(torn)
    (copied / "mlmd-journal").write_bytes(journal)
    before = files_in(copied)
    ingest_cmf(home, copied / "mlmd")
    assert files_in(copied) == before
    assert "half done" not in repr(recorded(home))


def test_another_programs_database_is_refused(home: Home, tmp_path: Path) -> None:
    refused(home, home.log_path, CallerError, "no MLMD store: it has no table")
    with sqlite3.connect(tmp_path / "empty") as connection:
        connection.execute("CREATE TABLE Type (id INTEGER, name TEXT)")
    connection.close()
    refused(home, tmp_path / "empty", CallerError, "no table Artifact")


def test_a_damaged_database_is_refused(home: Home, tmp_path: Path) -> None:
    path = mlmd_store(export(), tmp_path / "mlmd")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(home, path, IntegrityError, "damaged")


def test_what_only_the_database_has_is_kept_and_listed(home: Home, tmp_path: Path) -> None:
    path = mlmd_store(export(), tmp_path / "mlmd")
    with sqlite3.connect(path) as connection:
        run = connection.execute
        run("UPDATE Event SET milliseconds_since_epoch = 1795292753520 WHERE id = 1")
        run("UPDATE Execution SET last_known_state = 3 WHERE id = 1")
        run("INSERT INTO EventPath VALUES (2, 0, NULL, 'elsewhere/data.gz:96354b526a756d118d57ea0c3e3943b0')")
        run("INSERT INTO Type (id, name, type_kind) VALUES (90, 'Experiment', 2)")
        run("INSERT INTO Context (id, type_id, name) VALUES (90, 90, 'night')")
        run("INSERT INTO Association (context_id, execution_id) VALUES (90, 1)")
        run(
            "INSERT INTO Artifact (id, type_id, uri, name) SELECT 90, type_id, 'u', 'attributed:u' FROM Artifact WHERE id = 2"
        )
        run("INSERT INTO Attribution (context_id, artifact_id) VALUES (2, 90)")
        run(
            "INSERT INTO Artifact (id, type_id, uri, name) SELECT 91, type_id, 'v', 'orphan:v' FROM Artifact WHERE id = 2"
        )
        run("INSERT INTO Event (artifact_id, execution_id, type) VALUES (404, 1, 3)")
        run(
            "INSERT INTO ExecutionProperty (execution_id, name, is_custom_property, bool_value) VALUES (1, 'flag', 1, 1)"
        )
        run(
            "INSERT INTO ExecutionProperty (execution_id, name, is_custom_property, proto_value) VALUES (1, 'proto', 1, x'00ff')"
        )
    connection.close()
    done = ingest_cmf(home, path)
    assert {item["what"]: (item["count"], item["examples"]) for item in done.unmapped} == {
        "usage edges whose artifact is missing": (1, ["execution 1"]),
        "artifacts that no execution and no stage names": (1, ["orphan:v"]),
        "artifacts that no execution used or produced": (1, ["attributed:u"]),
        "contexts that are no pipeline and no stage": (1, ["Experiment: night"]),
    }
    [properties] = [body["properties"] for header, body in recorded(home) if header.type == EXECUTION_UPDATED]
    assert properties == {
        "contexts": ("Experiment: night",),
        "event_times": {"md5:14c54bcec88d38bcd00ed9a1c71b0722": 1795292753520},
        "last_known_state": "COMPLETE",
    }
    said = repr(recorded(home))
    assert "'elsewhere/data.gz'" in said
    assert "'unused_artifacts'" in said
    params = next(body["params"] for _, body in recorded(home) if "params" in body)
    assert (params["flag"], params["proto"]) == (True, b"\x00\xff")


def test_an_execution_of_no_stage_is_put_where_its_properties_say(home: Home, tmp_path: Path) -> None:
    path = mlmd_store(export(), tmp_path / "mlmd")
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM Association WHERE execution_id = 1")
    connection.close()
    assert ingest_cmf(home, path).counts == (1, 4, 4, 10, 18, 2)


def test_the_command_names_the_way_out(project: Path, home: Home) -> None:
    done = cli("ingest", "cmf", "nowhere.json", cwd=project)
    assert done.returncode == 2
    assert "nowhere.json does not exist" in done.stderr
    assert "cmf metadata export" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(recorded(home)) == 1
