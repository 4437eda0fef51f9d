"""The peer's history, of both forms: what becomes of it, that importing again appends nothing, and that sites agree."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.agent.helpers import cli, recorded
from tests.agent.ingest.peer import Document, artifacts, executions, export, mlmd_store, written
from tests.support.graphs import md5
from tests.support.sites import SiteFolder

from cmf_agent.home import Home
from cmf_agent.ingest.importing import Imported, ingest_cmf
from cmf_agent.tables import read_table
from cmf_agent.view import local_view
from cmf_graph.graph import Graph
from cmf_graph.projection import Projection
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Node
from cmf_protocol.resolve import NodeState

PREPARE = UUID("bf6754d0-e5e9-11f1-8e56-02fc00000001").bytes
TRAIN = UUID("c8cfcb92-e5e9-11f1-8bd8-02fc00000001").bytes
EVALUATE = UUID("cd42c3d2-e5e9-11f1-86d5-02fc00000001").bytes
DATA, LABELS = "md5:96354b526a756d118d57ea0c3e3943b0", "md5:13e556fa36c8a2a1f711be954edaa805"
MODEL, ENVIRONMENT = "md5:ae8a5605f46aae6a7978deb04bdf1f50", "md5:14c54bcec88d38bcd00ed9a1c71b0722"
STEPS = "md5:030a2badb49e4fab2afba01f4ebd3017"


def take(home: Home, document: object, tmp_path: Path, **options: Any) -> Imported:
    return ingest_cmf(home, written(document, tmp_path / "export.json"), **options)


def state(graph: Graph, kind: str, id_: Any) -> NodeState:
    node_id = graph.node_id((kind, id_))
    assert node_id is not None, (kind, id_)
    return graph.state(node_id)


def node(home: Home, kind: str, id_: Any) -> NodeState:
    with local_view(home) as graph:
        return state(graph, kind, id_)


def nodes(home: Home, kind: str) -> set[Any]:
    return {id_ for header, _ in recorded(home) for node_kind, id_ in header.about if node_kind == kind}


def unmapped(done: Imported) -> dict[str, int]:
    return {item["what"]: item["count"] for item in done.unmapped}


def everything(graph: Graph) -> dict[Node, dict[str, Any]]:
    """Return all that is said of each node but what only the database tells."""
    found = {}
    for (node_id,) in graph.rows("SELECT id FROM nodes WHERE kind != 5"):
        said = graph.state(node_id)
        values = {key: r.shown.value for key, r in said.values.items() if key != ("properties", "event_times")}
        assert not any(r.conflict for r in said.values.values()), said.node
        statuses = [(s.status, s.at) for s in said.statuses]
        found[said.node] = {
            "values": values, "used": said.used, "produced": said.produced, "names": said.names, "status": statuses,
            "started": said.started,
        }  # fmt: skip
    return found


# -- what becomes of it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """The graph of a site that imported the real export."""
    site = SiteFolder(tmp_path_factory.mktemp("imported") / "site")
    done = take(site.home, export(), site.folder)
    assert done.counts == (1, 4, 4, 10, 18, 2)
    assert done.unmapped == []
    with local_view(site.home) as graph:
        yield graph


def test_an_execution_keeps_its_uuid_its_times_its_code_and_its_parameters(imported: Graph) -> None:
    run = state(imported, "execution", PREPARE)
    assert run.started == 1795292752652 * 1000
    assert [(s.status, s.at) for s in run.statuses] == [("finished", 1795292752966 * 1000)]
    facts = run.space("facts")
    assert facts["stage"] == ("Test-env", "Prepare")
    assert facts["name"] == "Prepare"
    assert facts["command"] == ("src/parse.py", "artifacts/data.xml.gz", "artifacts/parsed")
    assert facts["git_commit"] == "671d5de5f25225e6d326373a64f20e014c9ee7df"
    assert facts["git_repo"] == "https://github.com/user/experiment-repo.git"
    assert facts["environment"] == ENVIRONMENT
    assert run.space("params") == {"seed": 20170428, "split": "0.2"}
    properties = run.space("properties")
    assert properties["Python_Env"] == "cmf_artifacts/python_env_21a8fd1831ba687c604341cdf1ec6ed4.txt"
    assert properties["Execution_uuid"] == "bf6754d0-e5e9-11f1-8e56-02fc00000001"
    assert (properties["Context_ID"], properties["Pipeline_id"]) == (2, 1)


def test_an_artifact_is_its_content_with_its_name_its_kind_and_its_properties(imported: Graph) -> None:
    model = state(imported, "artifact", MODEL)
    assert model.names == ["artifacts/model/model.pkl"]
    assert model.value("kind") == "model"
    properties = model.space("properties")
    assert properties["model_framework"] == "SKlearn"
    assert properties["url"] == "Test-env:/srv/dvc/files/md5/ae/8a5605f46aae6a7978deb04bdf1f50"
    assert properties["original_create_time_since_epoch"] == 1795292773834
    data = state(imported, "artifact", DATA)
    assert data.space("properties")["user-metadata1"] == "metadata_value"
    assert data.space("locations") == {}  # a folder of another machine
    kinds = {id_: state(imported, "artifact", id_).value("kind") for id_ in (DATA, LABELS, ENVIRONMENT, STEPS)}
    assert kinds == {DATA: "dataset", LABELS: "label", ENVIRONMENT: "environment", STEPS: "metrics"}


def test_edges_are_those_of_the_file(imported: Graph) -> None:
    assert state(imported, "execution", TRAIN).produced == sorted([STEPS, MODEL])
    evaluate = state(imported, "execution", EVALUATE)
    assert MODEL in evaluate.used
    assert len(evaluate.used) == 3


def test_a_label_is_attached_to_what_it_labels(imported: Graph) -> None:
    assert list(state(imported, "artifact", DATA).space("labels")) == [LABELS]
    assert list(state(imported, "artifact", LABELS).space("label_of")) == [DATA]


def test_pipelines_and_stages_keep_their_properties(imported: Graph) -> None:
    assert state(imported, "pipeline", "Test-env").space("properties")["Pipeline"] == "Test-env"
    stage = state(imported, "stage", ("Test-env", "Prepare")).space("properties")
    assert stage["user-metadata1"] == "metadata_value"
    assert stage["original_create_time_since_epoch"] == 1795292752643


def test_metrics_are_a_table_and_the_numbers_of_their_execution(home: Home, tmp_path: Path) -> None:
    take(home, export(), tmp_path)
    run = node(home, "execution", EVALUATE)
    assert run.space("metrics") == {"avg_prec": 1.0, "roc_auc": 1.0}
    table = read_table(home, run.produced[0])
    assert table.records() == [{"avg_prec": 1.0, "roc_auc": 1.0}]
    properties = node(home, "artifact", table.content_id).space("properties")
    assert properties["uri"] == "cecc7086-e5e9-11f1-86d5-02fc00000001"
    assert properties["metrics_name"] == "metrics:cecc7086-e5e9-11f1-86d5-02fc00000001:4"
    assert table.name == "metrics"


def test_equal_metrics_are_one_table_whatever_the_order_and_only_their_producer_has_the_numbers(
    home: Home, tmp_path: Path
) -> None:
    document = export()
    train, evaluate = list(executions(document))[2:]
    made = evaluate["events"][-1]["artifact"]
    turned = {**made, "id": 5, "custom_properties": dict(reversed(made["custom_properties"].items()))}
    train["events"].append({"type": 3, "artifact": turned})
    assert take(home, document, tmp_path).counts.artifacts == 10
    table = node(home, "execution", EVALUATE).produced[0]
    assert table in node(home, "execution", TRAIN).used
    assert node(home, "execution", TRAIN).space("metrics") == {}


def test_metrics_that_are_too_large_for_a_table_do_not_hold_up_the_rest(home: Home, tmp_path: Path) -> None:
    document = export()
    made = next(artifacts(document, "Metrics"))
    made["custom_properties"]["confusion"] = "x" * 300_000
    done = take(home, document, tmp_path)
    assert unmapped(done) == {"artifacts without a digest": 1}
    assert f"cmf:{made['uri']}" in node(home, "execution", EVALUATE).produced
    assert node(home, "execution", EVALUATE).space("metrics").keys() == made["custom_properties"].keys() - {"confusion"}


# -- again, elsewhere, in the other form -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "mlmd"])
def test_importing_again_appends_nothing(home: Home, tmp_path: Path, form: str) -> None:
    path = written(export(), tmp_path / "e") if form == "json" else mlmd_store(export(), tmp_path / "e")
    first = ingest_cmf(home, path)
    assert first.events.known == 0
    before = recorded(home)
    assert ingest_cmf(home, path).events == (0, first.events.recorded)
    assert recorded(home) == before


@pytest.mark.parametrize("version", [6, 10])
def test_the_database_says_what_its_export_says(home: Home, tmp_path: Path, version: int) -> None:
    done = take(home, export(), tmp_path)
    store = ingest_cmf(home, mlmd_store(export(), tmp_path / "mlmd", version=version))
    assert store.form == "mlmd"
    assert store.events == (0, done.events.recorded)
    assert (store.counts, store.unmapped) == (done.counts, [])


def test_two_sites_that_import_it_agree_and_add_no_second_entity(tmp_path: Path) -> None:
    berlin, kyoto = SiteFolder(tmp_path / "berlin"), SiteFolder(tmp_path / "kyoto")
    take(berlin.home, export(), tmp_path)
    ingest_cmf(kyoto.home, mlmd_store(export(), tmp_path / "mlmd"))
    with _folded(tmp_path / "one.db", berlin) as one, _folded(tmp_path / "both.db", berlin, kyoto) as both:
        assert everything(both) == everything(one)


@contextmanager
def _folded(path: Path, *sites: SiteFolder) -> Iterator[Graph]:
    projection = Projection(path)
    for site in sites:
        projection.apply(site.events())
    try:
        yield projection.graph
    finally:
        projection.close()


def test_a_newer_export_appends_what_is_new_and_takes_the_place_of_what_changed(home: Home, tmp_path: Path) -> None:
    document = export()
    take(home, document, tmp_path)
    old = copy.deepcopy(document)
    for model in artifacts(document, "Model"):
        model["custom_properties"]["approved"] = "yes"
    assert take(home, document, tmp_path).events.recorded == 2  # the model's two edges
    said = node(home, "artifact", MODEL)
    assert said.space("properties")["approved"] == "yes"
    assert not any(value.conflict for value in said.values.values())
    assert take(home, old, tmp_path).events.recorded == 0


def test_what_was_changed_back_is_as_it_was(home: Home, tmp_path: Path) -> None:
    for at, split in enumerate(["0.2", "0.3", "0.2"]):
        document = export()
        run = next(executions(document))
        run["custom_properties"]["split"] = split
        run["last_update_time_since_epoch"] += at
        take(home, document, tmp_path)
        assert node(home, "execution", PREPARE).space("params")["split"] == split


def test_a_dry_run_records_nothing(home: Home, tmp_path: Path) -> None:
    done = take(home, export(), tmp_path, dry_run=True)
    assert done.events.recorded > 30
    assert len(recorded(home)) == 1


# -- what is not as usual ----------------------------------------------------------------------------------------------


def test_of_a_list_of_uuids_the_first_is_the_execution(home: Home, tmp_path: Path) -> None:
    document = export()
    again = f"{UUID(bytes=PREPARE)},{UUID(int=7)}"
    next(executions(document))["properties"]["Execution_uuid"] = again
    assert take(home, document, tmp_path).unmapped == []
    assert node(home, "execution", PREPARE).value("Execution_uuid", "properties") == again
    assert len(nodes(home, "execution")) == 4


@pytest.mark.parametrize("given", ["", "no uuid", None, 5])
def test_an_execution_without_a_usable_uuid_gets_the_same_id_wherever_it_is_imported(
    tmp_path: Path, given: object
) -> None:
    document = export()
    next(executions(document))["properties"]["Execution_uuid"] = given
    found = []
    for name in ("one", "two"):
        site = SiteFolder(tmp_path / name)
        done = take(site.home, document, tmp_path)
        assert unmapped(done) == {"executions without a usable Execution_uuid": 1}
        found.append(nodes(site.home, "execution"))
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_reusable_execution_is_called_by_its_name_and_keeps_its_type(home: Home, tmp_path: Path) -> None:
    document = export()
    next(executions(document)).update(name="nightly", type="Test-env/Prepare")
    take(home, document, tmp_path)
    run = node(home, "execution", PREPARE)
    assert run.value("name") == "nightly"
    assert run.value("execution_type", "properties") == "Test-env/Prepare"


def test_what_the_server_added_is_no_value_and_tells_the_true_times(home: Home, tmp_path: Path) -> None:
    take(home, export(), tmp_path)
    document, imported_at = export(), 1_800_000_000_000
    for record in [*executions(document), *artifacts(document)]:
        record["custom_properties"].setdefault(
            "original_create_time_since_epoch", str(record["create_time_since_epoch"])
        )
        record["create_time_since_epoch"] = record["last_update_time_since_epoch"] = imported_at
    known = nodes(home, "artifact"), nodes(home, "execution")
    take(home, document, tmp_path)
    assert (nodes(home, "artifact"), nodes(home, "execution")) == known
    run = node(home, "execution", PREPARE)
    assert run.started == 1795292752652 * 1000
    assert run.statuses[0].at == 1795292756048 * 1000  # when the last of what it produced was made
    assert run.space("params") == {"seed": 20170428, "split": "0.2"}
    assert node(home, "artifact", MODEL).value("original_create_time_since_epoch", "properties") == 1795292773834


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (None, "finished"),
        (0, "finished"),
        (2, "running"),
        (3, "finished"),
        (4, "failed"),
        (5, "finished"),
        (6, "interrupted"),
    ],
)
def test_the_status_is_the_one_that_the_database_knows(
    home: Home, tmp_path: Path, state: int | None, status: str
) -> None:
    import sqlite3

    path = mlmd_store(export(), tmp_path / "mlmd")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE Execution SET last_known_state = ? WHERE id = 1", (state,))
    ingest_cmf(home, path)
    assert [s.status for s in node(home, "execution", PREPARE).statuses] == [status]


@pytest.mark.parametrize("bucket", ["b\ud800", "b" * 300_000])
def test_an_address_that_no_event_can_hold_is_only_a_property(home: Home, tmp_path: Path, bucket: str) -> None:
    document = export()
    digest = DATA.partition(":")[2]
    for artifact in artifacts(document, "Dataset"):
        if artifact["uri"] == digest:
            artifact["properties"]["url"] = f"Test-env:s3://{bucket}/files/md5/{digest[:2]}/{digest[2:]}"
    take(home, document, tmp_path)
    assert node(home, "artifact", DATA).space("locations") == {}


def test_remotes_are_places_where_the_bytes_are_and_lose_their_passwords(home: Home, tmp_path: Path) -> None:
    document = export()
    key = MODEL.partition(":")[2]
    places = [
        f"s3://bucket/dvc/files/md5/{key[:2]}/{key[2:]}",
        f"ssh://me:pw@host/old/{key[:2]}/{key[2:]}",
        "s3://other/file",
        f"s3://wrong/ff/{key[2:]}",
    ]
    for model in artifacts(document, "Model"):
        model["properties"]["url"] = ",".join(f"Test-env:{place}" for place in places)
    take(home, document, tmp_path)
    said = node(home, "artifact", MODEL)
    urls = sorted(place["url"] for place in said.space("locations").values())
    assert urls == ["s3://bucket/dvc", "ssh://me@host/old"]
    assert "pw" not in json.dumps(said.value("url", "properties"))


def test_secrets_are_masked_everywhere(home: Home, tmp_path: Path) -> None:
    document = export()
    run = next(executions(document))
    run["custom_properties"]["api_key"] = "hunter2"
    run["properties"]["Git_Repo"] = "https://me:hunter2@example.org/repo.git"
    run["properties"]["Execution"] = "['train.py', '--password', 'hunter2']"
    run["events"][1]["artifact"]["custom_properties"]["db_password"] = "hunter2"
    document["Pipeline"][0]["custom_properties"]["auth_token"] = "hunter2"
    next(artifacts(document, "Metrics"))["custom_properties"]["secret"] = "hunter2"
    take(home, document, tmp_path)
    assert "hunter2" not in repr(recorded(home))


def test_artifacts_of_one_content_are_one_and_nothing_that_they_say_is_lost(home: Home, tmp_path: Path) -> None:
    document = export()
    train, evaluate = list(executions(document))[2:]
    twin = copy.deepcopy(next(artifacts(document, "Metrics")))
    twin.update(id=5, uri="aaaaaaaa-e5e9-11f1-86d5-02fc00000001", name="other:aaaaaaaa-e5e9-11f1-86d5-02fc00000001:3")
    twin["properties"]["metrics_name"] = twin["name"]
    twin["last_update_time_since_epoch"] += 5
    train["events"].append({"type": 4, "artifact": twin})
    done = take(home, document, tmp_path)
    assert done.counts.artifacts == 10
    assert unmapped(done) == {"artifacts of one content that are described differently": 1}
    table = node(home, "execution", EVALUATE).produced[0]
    said = node(home, "artifact", table)
    assert said.names == ["metrics", "other"]
    assert said.value("uri", "properties") == twin["uri"]  # the one that was changed last
    kept = node(home, "execution", EVALUATE).value("artifacts", "properties")
    assert kept[table][0]["uri"] == evaluate["events"][-1]["artifact"]["uri"]
    assert not any(value.conflict for value in said.values.values())
    assert take(home, document, tmp_path).events.recorded == 0


def test_values_keep_their_types_and_a_renamed_key_its_name(home: Home, tmp_path: Path) -> None:
    document = export()
    given = {"a": 1, "b": 1.0, "c": "1", "d": True, "user_type": "kept", "ünï": "ø", "empty": ""}
    next(executions(document))["custom_properties"] = dict(given)
    take(home, document, tmp_path)
    params = node(home, "execution", PREPARE).space("params")
    given["type"] = given.pop("user_type")
    assert {key: (type(value), value) for key, value in params.items()} == {k: (type(v), v) for k, v in given.items()}


def test_other_edges_and_types_are_recorded_and_listed(home: Home, tmp_path: Path) -> None:
    document = export()
    run = next(executions(document))
    run["events"][4]["type"] = 6
    run["events"][3]["type"] = 99
    run["events"][2]["artifact"]["type"] = "Hologram"
    output = {"type": 4, "artifact": {"type": "Validation_output", "name": "v", "id": 50, "uri": str(UUID(int=9))}}
    run["events"].append(output)
    done = take(home, document, tmp_path)
    assert unmapped(done) == {
        "usage edges of other types than INPUT and OUTPUT": 1,
        "usage edges of an unknown type": 1,
        "artifacts of types that are no kind here": 1,
        "artifacts without a digest": 1,
    }
    said = node(home, "execution", PREPARE)
    train, test = "md5:e73ed84ada0a3b4c217b885a8d8dbed5", "md5:2aacb3aef814b5d06a18824bb1f04bd0"
    assert said.produced == sorted([f"cmf:{UUID(int=9)}", test])
    assert said.value("event_types", "properties") == {test: "INTERNAL_OUTPUT", train: "UNKNOWN (99)"}
    assert said.value("artifacts", "properties")[train][0]["name"].startswith("artifacts/parsed/train.tsv")
    assert node(home, "artifact", LABELS).value("artifact_type", "properties") == "Hologram"


def test_one_of_several_pipelines_can_be_taken(home: Home, tmp_path: Path) -> None:
    document = export()
    other = json.loads(json.dumps(document).replace("Test-env", "Other").replace("-02fc00000001", "-02fc00000002"))
    document["Pipeline"] += other["Pipeline"]
    assert take(home, document, tmp_path, pipelines=["Other"]).counts.pipelines == 1
    assert nodes(home, "stage") == {("Other", stage) for stage in ("Prepare", "Featurize", "Train", "Evaluate")}
    done = take(home, document, tmp_path)
    assert done.counts.executions == 8
    with pytest.raises(CallerError, match="no pipeline 'Third'"):
        take(home, document, tmp_path, pipelines=["Third"])


def test_the_command_says_what_it_did(project: Path, home: Home, tmp_path: Path) -> None:
    path = written(export(), tmp_path / "e.json")
    done = cli("ingest", "cmf", str(path), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "1 pipeline, 4 stages, 4 executions, 10 artifacts, 18 usage edges, 2 metrics artifacts" in done.stdout
    again = cli("ingest", "cmf", str(path), "--json", cwd=project)
    said = json.loads(again.stdout)
    assert said["events"] == {"new": 0, "known": len(recorded(home)) - 1}


def document_with(**changes: Any) -> Document:
    return {"Pipeline": [{"name": "p", "stages": [{"name": "p/s", "executions": [changes]}]}]}


def test_what_is_missing_is_empty(home: Home, tmp_path: Path) -> None:
    edge = {"type": 3, "artifact": {"uri": md5("x").partition(":")[2]}}
    done = take(home, document_with(events=[edge], properties=None), tmp_path)
    assert done.counts == (1, 1, 1, 1, 1, 0)
    assert node(home, "artifact", md5("x")).names
