"""`CmfQuery`: what scripts of the peer ask about pipelines, executions, artifacts and lineage."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.cmflib.query_projects import PARAMS, PIPELINE, Project, make_project

from cmf_agent.cmflib import CmfQuery
from cmf_agent.cmflib import query_executions as executions
from cmf_agent.cmflib.query_described import describe
from cmf_agent.home import Home
from cmf_agent.identity import new_execution_id
from cmf_agent.log import shared_log
from cmf_agent.view import local_view
from cmf_graph.reading import Reading
from cmf_graph.text import execution_text
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError
from cmf_protocol.events import Draft
from cmf_protocol.resolve import Chains, Said, resolve

A, B, C = ("md5:" + letter * 32 for letter in "abc")
#: The calls of cmf-compat.md, section B, with the names of their arguments.
CALLS = {
    "get_pipeline_names": [], "get_pipeline_id": ["pipeline_name"], "get_pipeline_stages": ["pipeline_name"],
    "get_all_exe_in_stage": ["stage_name"], "get_all_executions_in_stage": ["stage_name"],
    "get_all_executions_in_pipeline": ["pipeline_name"], "get_all_executions_by_ids_list": ["exe_ids"],
    "get_executions_with_execution_ids": ["exe_ids"], "get_all_executions_by_stage": ["stage_id", "execution_uuid"],
    "get_all_executions_for_artifact": ["artifact_name"], "get_all_executions_for_artifact_id": ["artifact_id"],
    "get_all_artifacts": [], "get_artifact_names": [], "get_artifact": ["name"], "get_artifact_df": ["artifact", "d"],
    "get_all_artifacts_by_context": ["pipeline_name"], "get_all_artifacts_by_ids_list": ["artifact_ids"],
    "get_all_artifacts_for_execution": ["execution_id"], "get_all_artifacts_for_executions": ["execution_ids"],
    "get_all_artifact_types": [], "get_one_hop_child_artifacts": ["artifact_name", "pipeline_id"],
    "get_all_child_artifacts": ["artifact_name"], "get_one_hop_parent_artifacts": ["artifact_name"],
    "get_one_hop_parent_artifacts_with_id": ["artifact_id"], "get_all_parent_artifacts": ["artifact_name"],
    "get_one_hop_parent_executions": ["execution_id", "pipeline_id"],
    "get_one_hop_parent_execution_ids": ["execution_id", "pipeline_id"],
    "get_all_parent_executions_by_id": ["execution_id", "pipeline_id"], "get_all_parent_executions": ["artifact_name"],
    "find_producer_execution": ["artifact_name"], "get_producer_execution": ["artifact_name"],
    "get_metrics": ["metrics_name"], "read_dataslice": ["name"], "dumptojson": ["pipeline_name", "exec_uuid"],
    "extract_to_json": ["last_sync_time"],
}  # fmt: skip


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        yield make_project(tmp_path_factory.mktemp("query") / "project", patch)


@pytest.fixture
def query(mnist: Project) -> CmfQuery:
    return CmfQuery(mnist.folder / "mlmd")


def record(home: Home, *drafts: Draft) -> None:
    with shared_log(home.log_path) as log:
        log.append(list(drafts))


def used_and_made(home: Home, pipeline: str, used: str, made: str) -> str:
    """Record an execution that used one content and produced another one; return its id."""
    execution = new_execution_id()
    record(
        home,
        t.execution_started(execution, pipeline, "step"),
        t.usage(t.ARTIFACT_USED, execution, used, name=used[4]),
        t.usage(t.ARTIFACT_PRODUCED, execution, made, name=made[4]),
    )
    return execution_text(execution)


# -- the interface -----------------------------------------------------------------------------------------------------


def test_every_call_has_the_peers_arguments_and_says_what_it_does() -> None:
    for name, arguments in CALLS.items():
        call = getattr(CmfQuery, name)
        assert list(inspect.signature(call).parameters)[1:] == arguments, name
        assert call.__doc__, name


def test_without_a_home_there_is_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMF_HOME", raising=False)
    with pytest.raises(CallerError, match=r"no \.cmf"):
        CmfQuery(str(tmp_path / "mlmd"))


def test_the_home_is_searched_from_the_folder_of_the_file(
    mnist: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CmfQuery(str(mnist.folder / "mlmd")).get_pipeline_names() == [PIPELINE]
    assert CmfQuery(mnist.folder).get_pipeline_names() == [PIPELINE]
    monkeypatch.chdir(mnist.folder)
    with pytest.warns(UserWarning, match="is_server"):
        assert CmfQuery(is_server=True).get_pipeline_names() == [PIPELINE]


def test_without_pandas_only_frames_are_refused(query: CmfQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert query.get_all_artifacts()
    assert query.get_all_exe_in_stage(f"{PIPELINE}/Train")
    assert query.dumptojson(PIPELINE)
    for call in (query.get_all_executions_in_stage, query.get_artifact, query.get_metrics, query.read_dataslice):
        with pytest.raises(CallerError, match="pandas") as refused:
            call("x")
        assert refused.value.hint == "pip install 'cmf-sync[pandas]'"


# -- pipelines, stages, executions -------------------------------------------------------------------------------------


def test_pipelines_and_stages_have_their_full_names(query: CmfQuery) -> None:
    assert query.get_pipeline_names() == [PIPELINE]
    assert query.get_pipeline_id(PIPELINE) == PIPELINE
    assert query.get_pipeline_id("nothing") == -1
    assert query.get_pipeline_stages(PIPELINE) == ["mnist/Prepare", "mnist/Train", "mnist/Evaluate"]
    assert query.get_pipeline_stages("mnis") == []


def test_a_stages_executions_have_the_peers_columns(query: CmfQuery, mnist: Project) -> None:
    found = query.get_all_executions_in_stage("mnist/Prepare")
    assert list(found.columns[: len(executions.COLUMNS)]) == list(executions.COLUMNS)
    row = found.iloc[0]
    assert row["id"] == row["Execution_uuid"] == mnist.executions["Prepare"]
    assert row["name"] == row["Execution_type_name"] == "Prepare"
    assert (row["Context_Type"], row["Pipeline_Type"], row["Pipeline_id"]) == ("mnist/Prepare", PIPELINE, PIPELINE)
    assert row["Execution"].startswith("[")
    custom = {key: row[f"custom_properties_{key}"] for key in PARAMS}
    assert custom == PARAMS
    assert [type(custom[key]) for key in ("sizes", "type")] == [list, str]
    assert row["custom_properties_Python_Env"] in query.get_all_artifacts()


def test_the_git_columns_can_be_dropped_of_any_frame(query: CmfQuery) -> None:
    for stage in (*query.get_pipeline_stages(PIPELINE), "mnist/Nothing"):
        kept = query.get_all_executions_in_stage(stage).drop(columns=["Git_Start_Commit", "Git_End_Commit"])
        assert len(kept) == (0 if stage.endswith("Nothing") else 1)


def test_executions_are_found_by_stage_pipeline_id_and_uuid(query: CmfQuery, mnist: Project) -> None:
    ids = list(mnist.executions.values())
    assert list(query.get_all_executions_in_pipeline(PIPELINE)["id"]) == ids
    assert list(query.get_all_executions_by_ids_list(ids[::-1])["id"]) == ids[::-1]
    assert list(query.get_executions_with_execution_ids(ids).columns) == ["id", "Execution_type_name", "Execution_uuid"]
    train = query.get_all_exe_in_stage("mnist/Train")
    assert [(each.id, each.name, each.custom_properties["n"]) for each in train] == [(ids[1], "Train-execution", 1)]
    assert query.get_all_executions_by_stage("mnist/Train", ids[1]) == train
    assert query.get_all_executions_by_stage("mnist/Train", ids[0]) == []
    assert list(query.get_all_executions_by_ids_list(train)["id"]) == [ids[1]], "what a call returned is an id too"


def test_a_stage_is_found_where_names_have_slashes(home: Home) -> None:
    first, second = new_execution_id(), new_execution_id()
    record(home, t.execution_started(first, "a", "b/c"), t.execution_started(second, "a/b", "c"))
    query = CmfQuery()
    assert query.get_pipeline_stages("a") == query.get_pipeline_stages("a/b") == ["a/b/c"]
    assert len(query.get_all_exe_in_stage("a/b/c")) == 2


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_every_name_that_is_returned_is_taken(query: CmfQuery, mnist: Project) -> None:
    found = query.get_all_artifacts()
    assert set(mnist.artifacts.values()) < set(found), "what Cmf returns is what CmfQuery returns"
    assert query.get_artifact_names() == found
    for name in found:
        row = query.get_artifact(name)
        assert row is not None
        assert list(row["name"]) == [name]
        for same in (row["id"][0], f"{name.partition(':')[0]}:{row['uri'][0]}", f" {name}\n"):
            other = query.get_artifact(same)
            assert other is not None
            assert list(other["id"]) == list(row["id"])


def test_of_our_own_name_the_last_content_is_meant(home: Home) -> None:
    execution = new_execution_id()
    record(home, t.execution_started(execution, "p", "s"))
    for content_id in (B, A, C):
        record(home, t.usage(t.ARTIFACT_PRODUCED, execution, content_id, name="data.csv"))
    found = CmfQuery().get_artifact("data.csv")
    assert found is not None
    assert list(found["id"]) == [C]


def test_artifacts_have_the_peers_columns(query: CmfQuery, mnist: Project) -> None:
    model = query.get_artifact(mnist.artifacts["model.pkl"])
    assert model is not None
    row = model.iloc[0]
    uri = row["id"].removeprefix("md5:")
    assert (row["type"], row["uri"], row["Commit"]) == ("Model", uri, uri)
    assert row["name"] == f"model.pkl:{uri}:{mnist.executions['Train']}"
    assert row["url"] == "mnist:model.pkl"
    assert (row["model_framework"], row["model_type"], row["model_name"]) == ("SK", "forest", "forest:default")
    assert 0 < row["create_time_since_epoch"] <= row["last_update_time_since_epoch"]
    types = query.get_all_artifact_types()
    assert types == ["Dataset", "Dataslice", "Environment", "Label", "Metrics", "Model", "Step_Metrics"]


def test_labels_stand_at_both_ends(query: CmfQuery, mnist: Project) -> None:
    found = query.get_all_artifacts_for_execution(mnist.executions["Prepare"]).set_index("type")
    label = found.loc["Label"]
    assert label["custom_properties_by"] == "bob"
    raw = query.get_artifact(mnist.artifacts["raw.csv"])
    assert raw is not None
    assert label["custom_properties_dataset_uri"] == raw["uri"][0]
    assert raw["custom_properties_labels"][0] == "labels.csv"
    assert raw["custom_properties_labels_uri"][0] == label["name"]
    assert raw["custom_properties_origin"][0] == "sensor"


def test_an_executions_artifacts_tell_their_direction(query: CmfQuery, mnist: Project) -> None:
    found = query.get_all_artifacts_for_execution(mnist.executions["Train"])
    assert list(zip(found["event"], found["type"], strict=True)) == [
        ("INPUT", "Dataset"), ("OUTPUT", "Step_Metrics"), ("OUTPUT", "Model"), ("OUTPUT", "Dataslice"),
    ]  # fmt: skip
    several = query.get_all_artifacts_for_executions(list(mnist.executions.values()))
    everything = query.get_all_artifacts_by_context(PIPELINE)
    assert sorted(several["id"]) == sorted(everything["id"])
    assert everything["id"].is_unique
    by_ids = query.get_all_artifacts_by_ids_list(list(everything["id"]))
    assert list(by_ids["name"]) == list(everything["name"])


def test_an_object_that_was_returned_becomes_a_row(query: CmfQuery, mnist: Project) -> None:
    from cmf_agent.cmflib import Cmf

    given = {"event": "INPUT"}
    artifact = Cmf(str(mnist.folder / "mlmd"), PIPELINE).get_artifact(mnist.artifacts["train.csv"])
    row = query.get_artifact_df(artifact, given)
    assert (row["event"][0], row["name"][0]) == ("INPUT", mnist.artifacts["train.csv"])
    assert given == {"event": "INPUT"}


# -- lineage -----------------------------------------------------------------------------------------------------------


def test_artifacts_lead_to_their_parents_and_children(query: CmfQuery, mnist: Project) -> None:
    names = mnist.artifacts
    assert list(query.get_one_hop_parent_artifacts(names["model.pkl"])["name"]) == [names["train.csv"]]
    assert list(query.get_one_hop_child_artifacts(names["model.pkl"])["name"]) == [names["metrics"]]
    up = list(query.get_all_parent_artifacts(names["metrics"])["name"])
    assert up[:3] == [names["model.pkl"], names["train.csv"], names["raw.csv"]]
    down = list(query.get_all_child_artifacts(names["raw.csv"])["name"])
    assert down == [names[key] for key in ("train.csv", "training", "model.pkl", "part", "metrics")]


def test_only_the_call_with_an_id_hides_labels(query: CmfQuery, mnist: Project) -> None:
    train = query.get_artifact(mnist.artifacts["train.csv"])
    assert train is not None
    by_name = query.get_one_hop_parent_artifacts(mnist.artifacts["train.csv"])
    by_id = query.get_one_hop_parent_artifacts_with_id(train["id"][0])
    assert list(by_name["type"]) == ["Dataset", "Label"]
    assert list(by_id["type"]) == ["Dataset"]


def test_executions_lead_to_their_parents(query: CmfQuery, mnist: Project) -> None:
    prepare, train, evaluate = mnist.executions.values()
    assert [each.id for each in query.get_one_hop_parent_executions([evaluate, train])] == [prepare, train]
    assert query.get_one_hop_parent_execution_ids(evaluate, PIPELINE) == [train]
    assert query.get_one_hop_parent_execution_ids(evaluate, "other") == []
    parents, links = query.get_all_parent_executions_by_id([evaluate])
    assert parents == [[train, "Train-execution", train], [prepare, "Prepare", prepare]]
    assert links == [{"source": train, "target": evaluate}, {"source": prepare, "target": train}]
    assert list(query.get_all_parent_executions(mnist.artifacts["metrics"])["id"]) == [prepare, train]


def test_who_made_and_used_an_artifact_is_known(query: CmfQuery, mnist: Project) -> None:
    name = mnist.artifacts["model.pkl"]
    users = query.get_all_executions_for_artifact(name)
    assert users.to_dict("list") == {
        "Type": ["OUTPUT", "INPUT"],
        "execution_id": [mnist.executions["Train"], mnist.executions["Evaluate"]],
        "execution_name": ["Train-execution", "Evaluate-execution"],
        "execution_type_name": ["Train-execution", "Evaluate-execution"],
        "stage": ["mnist/Train", "mnist/Evaluate"],
        "pipeline": [PIPELINE, PIPELINE],
    }
    row = query.get_artifact(name)
    assert row is not None
    assert query.get_all_executions_for_artifact_id(row["id"][0]).equals(users)
    producer = query.find_producer_execution(name)
    assert producer is not None
    assert producer.id == mnist.executions["Train"]
    assert query.get_producer_execution(mnist.artifacts["raw.csv"]) is None


def test_the_children_of_one_pipeline_can_be_asked_for(home: Home) -> None:
    used_and_made(home, "one", A, B)
    used_and_made(home, "two", A, C)
    query = CmfQuery()
    assert sorted(query.get_one_hop_child_artifacts(A)["id"]) == [B, C]
    assert list(query.get_one_hop_child_artifacts(A, "two")["id"]) == [C]
    assert len(query.get_one_hop_child_artifacts(A, "three")) == 0


def test_cycles_end(home: Home) -> None:
    first, second = used_and_made(home, "p", A, B), used_and_made(home, "p", B, A)
    in_place = used_and_made(home, "p", C, C)
    query = CmfQuery()
    assert list(query.get_all_child_artifacts(A)["id"]) == [B, A]
    assert list(query.get_all_parent_artifacts(A)["id"]) == [B, A]
    parents, links = query.get_all_parent_executions_by_id([first])
    assert [each[0] for each in parents] == [second, first]
    assert links == [{"source": second, "target": first}, {"source": first, "target": second}]
    assert len(query.get_all_child_artifacts(C)) == 0, "nothing is its own child"
    assert query.get_one_hop_parent_execution_ids(in_place) == []
    assert list(query.get_all_artifacts_for_execution(in_place)["event"]) == ["INPUT", "OUTPUT"]


def test_what_was_taken_back_is_no_edge(home: Home) -> None:
    execution = new_execution_id()
    used = t.usage(t.ARTIFACT_USED, execution, A, name="a")
    with shared_log(home.log_path) as log:
        _, edge = log.append([t.execution_started(execution, "p", "s"), used])
        assert len(CmfQuery().get_all_executions_for_artifact(A)) == 1
        log.append([t.retracted(edge.header.about, "mistake", event=edge.event_id)])
    assert len(CmfQuery().get_all_executions_for_artifact(A)) == 0
    assert len(CmfQuery().get_all_artifacts_for_execution(execution_text(execution))) == 0


def test_a_parameter_that_was_taken_back_is_not_shown(home: Home) -> None:
    execution = new_execution_id()
    with shared_log(home.log_path) as log:
        start = t.execution_started(execution, "p", "s", params={"lr": 1}, properties={"lr": 0, "note": "x"})
        _, update = log.append([start, t.execution_updated(execution, params={"lr": 2})])
        assert CmfQuery().get_all_exe_in_stage("p/s")[0].custom_properties == {"lr": 2, "note": "x"}
        log.append([t.retracted(update.header.about, "mistake", event=update.event_id)])
    assert CmfQuery().get_all_exe_in_stage("p/s")[0].custom_properties == {"lr": 1, "note": "x"}


def test_whole_numbers_stay_exact_beside_missing_ones(home: Home) -> None:
    large = 2**60 + 1
    starts = (t.execution_started(new_execution_id(), "p", "s", params=params) for params in ({"n": large}, {}))
    record(home, *starts)
    found = CmfQuery().get_all_executions_in_stage("p/s")["custom_properties_n"]
    assert large in list(found)


# -- nothing, and wrong ------------------------------------------------------------------------------------------------


def test_what_is_not_known_gives_an_empty_answer(query: CmfQuery) -> None:
    nobody = execution_text(new_execution_id())
    assert query.get_artifact("nothing:" + "0" * 32) is None
    assert query.get_artifact("") is None
    assert query.find_producer_execution("nothing") is None
    assert query.get_all_exe_in_stage("mnist") == []
    assert query.get_all_parent_executions_by_id([nobody]) == [[], []]
    for frame in (
        query.get_all_executions_in_pipeline("nothing"),
        query.get_all_executions_by_ids_list([nobody]),
        query.get_executions_with_execution_ids([]),
        query.get_all_executions_for_artifact("nothing"),
        query.get_all_artifacts_by_context("nothing"),
        query.get_all_artifacts_by_ids_list([A]),
        query.get_all_artifacts_for_execution(nobody),
        query.get_all_child_artifacts("nothing"),
        query.get_all_parent_executions("nothing"),
    ):
        assert len(frame) == 0
        assert "id" in frame.columns or "execution_id" in frame.columns


def test_what_can_be_no_id_is_refused(query: CmfQuery) -> None:
    with pytest.raises(CallerError, match="3 is not an execution's id"):
        query.get_all_artifacts_for_execution(3)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="7 is not an artifact's id"):
        query.get_all_artifacts_by_ids_list([7])
    with pytest.raises(CallerError, match="nothing is known of the artifact 'x'"):
        query.get_artifact_df("x")  # type: ignore[arg-type]
    for call in (query.get_pipeline_stages, query.dumptojson):
        with pytest.raises(CallerError, match="can't name a pipeline"):
            call(5)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="'yesterday' is no time"):
        query.extract_to_json("yesterday")  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="can't name a stage"):
        query.get_all_exe_in_stage(2)  # type: ignore[arg-type]


# -- many --------------------------------------------------------------------------------------------------------------


def test_many_executions_take_no_more_queries_than_few(home: Home) -> None:
    counts = []
    for added in (3, 300):
        drafts = [t.execution_started(new_execution_id(), "p", "s", params={"n": n}) for n in range(added)]
        record(home, *drafts)
        statements: list[str] = []
        with local_view(home) as graph, graph.snapshot():
            reading = Reading(graph, {})
            pipeline = graph.node_id(("pipeline", "p"))
            assert pipeline is not None
            graph.connection.set_trace_callback(statements.append)
            found = executions.executions(reading, executions.executions_of_pipeline(reading, pipeline))
        counts.append(len(statements))
    assert len(found) == 303
    assert counts[0] == counts[1], counts


NODE = "execution", bytes(range(16))
VALUES = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=2)
SAYINGS = st.one_of(
    st.builds(lambda at, facts: t.execution_started(NODE[1], "p", "s", facts=facts, at=at), st.integers(1, 9), VALUES),
    st.builds(lambda facts, params: t.execution_updated(NODE[1], facts=facts, params=params), VALUES, VALUES),
    st.builds(lambda at: t.execution_finished(NODE[1], "finished", at=at), st.integers(1, 9)),
)


@given(st.lists(SAYINGS, min_size=1, max_size=6), st.randoms())
def test_what_one_branch_says_is_what_resolving_says(drafts: list[Draft], random: Random) -> None:
    said = [
        Said(1, at, at, bytes([at]) * 32, at, draft.type, tuple(draft.about), draft.body)
        for at, draft in enumerate(drafts, start=1)
    ]
    random.shuffle(said)
    chains = Chains(trees={1: 1})
    state = resolve(NODE, said, chains)
    found = describe(NODE, said, chains)
    assert [found.facts, found.params, found.properties] == [
        state.space(space) for space in ("facts", "params", "properties")
    ]
    status = state.statuses[0] if state.statuses else None
    ended = status.at if status is not None and status.status != "running" else None
    assert (found.started, found.ended) == (state.started, ended)


def test_what_several_branches_say_is_resolved() -> None:
    said = [
        Said(branch, 1, clock, bytes([branch]) * 32, clock, draft.type, tuple(draft.about), draft.body)
        for branch, clock, draft in (
            (1, 9, t.execution_started(NODE[1], "p", "s", params={"lr": 1})),
            (2, 5, t.execution_updated(NODE[1], params={"lr": 2})),
        )
    ]
    chains = Chains(trees={1: 1, 2: 2})
    assert describe(NODE, said, chains).params == {"lr": 1}, "the clock decides, not the order"
    assert describe(NODE, said[::-1], chains).params == {"lr": 1}


def test_stages_come_in_the_order_of_their_first_executions(home: Home) -> None:
    stages = ["z", "a", "m", "b"]
    starts = [t.execution_started(new_execution_id(), "p", stage, at=at) for at, stage in enumerate(stages, start=1)]
    record(home, *starts[::-1])
    query = CmfQuery()
    assert query.get_pipeline_stages("p") == [f"p/{stage}" for stage in stages]


def test_names_are_found_however_their_letters_are_composed(home: Home) -> None:
    record(home, t.execution_started(new_execution_id(), "caf\u00e9", "s"))
    query = CmfQuery()
    assert query.get_pipeline_id("cafe\u0301") == "caf\u00e9"
    assert query.get_pipeline_stages("cafe\u0301") == ["caf\u00e9/s"]
    assert len(query.get_all_exe_in_stage("cafe\u0301/s")) == 1


def test_where_bytes_are_stands_in_the_url(home: Home) -> None:
    used_and_made(home, "p", A, B)
    place = {"kind": "dvc", "path": "b.dvc", "repo": "https://example.com/code.git"}
    remotes = [{"kind": "remote", "url": f"s3://bucket/{name}"} for name in "xy"]
    record(home, *(t.artifact_stored(B, said) for said in (place, *remotes)))
    found = CmfQuery().get_all_artifacts_by_ids_list([A, B])
    assert list(found["git_repo"]) == ["", "https://example.com/code.git"]
    assert found["url"][0] == "p:a"
    assert sorted(found["url"][1].split(",")) == ["p:s3://bucket/x", "p:s3://bucket/y"]


def test_two_digests_of_one_content_are_one_artifact(home: Home) -> None:
    other = "sha256:" + "d" * 64
    user = used_and_made(home, "p", other, C)
    maker = new_execution_id()
    made = t.usage(t.ARTIFACT_PRODUCED, maker, B, name="b", digests=[other])
    record(home, t.execution_started(maker, "p", "make"), made)
    query = CmfQuery()
    assert len(query.get_all_artifacts()) == 2
    for same in (other, B):
        assert list(query.get_all_artifacts_by_ids_list([same])["id"]) == [B]
    assert query.get_one_hop_parent_execution_ids(user) == [execution_text(maker)]
    assert list(query.get_all_child_artifacts(B)["id"]) == [C]
