"""What lock files of DVC become: no DVC is needed for any of this."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.agent.helpers import cli, cli_json, of_type, recorded
from tests.agent.ingest.dvc_projects import (
    commit_all,
    entry,
    git,
    md5,
    state_of,
    write_lock,
    write_pipeline,
    yaml_text,
)

import cmf_agent as cmf
from cmf_agent.commands.ingesting_dvc import outcome_notes
from cmf_agent.home import Home, future_home, init_home
from cmf_agent.ingest.dvc_lock import Ingested, Outcome, Wanted, ingest_dvc, split_blocks
from cmf_agent.ingest.dvc_stages import read_stages, read_yaml
from cmf_protocol.errors import CallerError, StoreError
from cmf_protocol.types import ARTIFACT_PRODUCED, ARTIFACT_STORED, EXECUTION_STARTED

DATA, MODEL, METRICS = b"a,b\n1,2\n", b"weights", b'{"auc": 0.9, "by": {"us": 1, "name": "x"}}'
TRAIN: dict[str, Any] = {
    "cmd": "python train.py --lr 0.1",
    "deps": [entry("data.csv", DATA)],
    "params": {"params.yaml": {"lr": 0.1, "net": {"layers": [1, 2]}}, "other.yaml": {"seed": 3}},
    "outs": [entry("metrics.json", METRICS), entry("model.pkl", MODEL)],
}
TRAIN_YAML = {
    "cmd": "python train.py --lr 0.1",
    "deps": ["data.csv"],
    "outs": [{"model.pkl": {"type": "model"}}],
    "metrics": [{"metrics.json": {"cache": False}}],
}


@pytest.fixture
def repository(project: Path, home: Home) -> Path:
    """A git repository with one stage, reproduced and not committed."""
    git(project, "init", "-q", "-b", "main")
    git(project, "remote", "add", "origin", "https://user:secret@example.org/team/iris.git")
    write_lock(project, {"train": TRAIN})
    write_pipeline(project, {"train": TRAIN_YAML})
    (project / "metrics.json").write_bytes(METRICS)
    (project / ".gitignore").write_text(".cmf/\n")
    return project


def ingest(home: Home, **wanted: Any) -> Outcome:
    return ingest_dvc(home, Wanted(**wanted))


def only_state(home: Home, **wanted: Any) -> Ingested:
    states = ingest(home, **wanted).states
    assert len(states) == 1, states
    return states[0]


def execution(home: Home, state: Ingested) -> Any:
    return state_of(home, ("execution", UUID(state.execution).bytes))


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_a_stage_becomes_an_execution_with_all_that_its_lock_says(repository: Path, home: Home) -> None:
    commit = commit_all(repository, at=1_700_000_000)
    state = only_state(home)
    assert (state.pipeline, state.stage, state.standing, state.git_commit) == ("iris", "train", "new", commit)
    said = execution(home, state)
    assert said.space("params") == {"lr": 0.1, "net.layers": (1, 2), "other.yaml:seed": 3}
    assert said.space("metrics") == {"auc": 0.9, "by.us": 1}
    assert said.space("facts") == {
        "name": "train",
        "kind": "step",
        "stage": ("iris", "train"),
        "command": ("python", "train.py", "--lr", "0.1"),
        "git_commit": commit,
        "git_repo": "https://example.org/team/iris.git",
        "working_dir": ".",
    }
    assert (said.used, said.produced) == ([f"md5:{md5(DATA)}"], sorted(f"md5:{md5(x)}" for x in (MODEL, METRICS)))
    assert [(status.status, status.at) for status in said.statuses] == [("finished", 1_700_000_000_000_000)]
    assert said.started == 1_700_000_000_000_000
    model, metrics = (state_of(home, ("artifact", f"md5:{md5(x)}")) for x in (MODEL, METRICS))
    assert (model.names, model.space("facts")) == (["model.pkl"], {"kind": "model", "size": len(MODEL)})
    assert metrics.value("kind") == "metrics"


def test_bytes_of_a_committed_output_are_found_by_the_lock_or_by_git(repository: Path, home: Home) -> None:
    commit = commit_all(repository, at=1)
    ingest(home)
    places = {header.about[0][1]: body["location"] for header, body in of_type(home, ARTIFACT_STORED)}
    blob = {name: git(repository, "rev-parse", f"HEAD:{name}") for name in ("dvc.lock", "metrics.json")}
    common = {"commit": commit, "repo": "https://example.org/team/iris.git"}
    assert places == {
        f"md5:{md5(MODEL)}": {"kind": "dvc.lock", "path": "dvc.lock", "blob": blob["dvc.lock"], **common},
        f"md5:{md5(METRICS)}": {"kind": "git", "path": "metrics.json", "blob": blob["metrics.json"], **common},
    }


def test_ingesting_again_records_nothing(repository: Path, home: Home) -> None:
    first = ingest(home)
    before = recorded(home)
    again = ingest(home)
    assert first.events > 0
    assert (again.events, [state.standing for state in again.states]) == (0, ["known"])
    assert recorded(home) == before


def test_two_sites_say_the_same_of_a_lock(repository: Path, home: Home, tmp_path: Path) -> None:
    commit_all(repository, at=5)
    ingest(home)
    git(tmp_path, "clone", "-q", str(repository), "elsewhere")
    git(tmp_path / "elsewhere", "remote", "set-url", "origin", "https://example.org/team/iris.git")
    other = future_home(tmp_path / "elsewhere")
    init_home(other)
    ingest(other, paths=(tmp_path / "elsewhere",))

    def said(home: Home) -> list[Any]:
        return [(header.type, header.about, body) for header, body in recorded(home) if header.type != "log.opened"]

    assert said(other) == said(home)


def test_the_id_of_a_lock_state_never_changes() -> None:
    lock = read_yaml(yaml_text({"schema": "2.0", "stages": {"train": TRAIN}}), "dvc.lock")
    stage = read_stages(lock, {}, "")[0]
    assert str(UUID(bytes=stage.execution("iris"))) == "6dcdd385-33c6-8179-abe6-8dc1715d4e1f"
    assert stage.execution("iris")[6] >> 4 == 8
    reordered = TRAIN | {"outs": [out | {"size": 1} for out in reversed(TRAIN["outs"])], "frozen": True}
    assert read_stages({"stages": {"train": reordered}}, {}, "")[0].execution("iris") == stage.execution("iris")


@pytest.mark.parametrize(
    "change",
    [
        {"cmd": "python train.py --lr 0.2"},
        {"params": {"params.yaml": {"lr": 0.2}}},
        {"deps": [entry("data.csv", b"other")]},
        {"outs": [entry("model.pkl", b"other")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_state_is_another_execution(change: dict[str, Any]) -> None:
    ids = {read_stages({"stages": {"t": stage}}, {}, "")[0].execution("p") for stage in (TRAIN, TRAIN | change)}
    assert len(ids) == 2


def test_the_commit_is_added_when_there_is_one(repository: Path, home: Home) -> None:
    state = only_state(home)
    assert state.git_commit is None
    assert of_type(home, ARTIFACT_STORED) == []
    commit = commit_all(repository, at=7)
    again = ingest(home)
    assert (again.states[0].standing, again.states[0].execution) == ("known", state.execution)
    assert execution(home, state).value("git_commit") == commit
    assert len(of_type(home, ARTIFACT_STORED)) == 2
    assert len(of_type(home, EXECUTION_STARTED)) == 1
    assert ingest(home).events == 0


def test_a_state_belongs_to_the_commit_that_brought_it(repository: Path, home: Home) -> None:
    first = commit_all(repository, at=10)
    write_lock(repository, {"train": TRAIN, "eval": {"cmd": "python eval.py"}})
    second = commit_all(repository, at=20)
    write_lock(repository, {"train": TRAIN, "eval": {"cmd": "python eval.py --all"}})
    found = {state.name: state.git_commit for state in ingest(home).states}
    assert found == {"train": first, "eval": None}
    git(repository, "checkout", "-q", "dvc.lock")
    assert {state.name: state.git_commit for state in ingest(home).states} == {"train": first, "eval": second}


def test_line_ends_of_another_system_hide_no_commit(repository: Path, home: Home) -> None:
    lock = repository / "dvc.lock"
    commits = []
    for stages in ({"train": TRAIN}, {"train": TRAIN, "eval": {"cmd": "run"}}):
        write_lock(repository, stages)
        lock.write_bytes(lock.read_bytes().replace(b"\n", b"\r\n"))
        commits.append(commit_all(repository, at=10))
    assert [state.git_commit for state in ingest(home).states] == commits


def test_history_brings_each_state_once_with_its_commit(repository: Path, home: Home) -> None:
    commits = [commit_all(repository, at=10)]
    other = TRAIN | {"params": {"params.yaml": {"lr": 0.2}}, "outs": [entry("model.pkl", b"second")]}
    write_lock(repository, {"train": other})
    commits.append(commit_all(repository, at=20))
    write_lock(repository, {"train": TRAIN})  # back again: no third state
    (repository / "metrics.json").unlink()  # its numbers are in git still
    commit_all(repository, at=30)
    (repository / "dvc.lock").write_text("<<<<<<< ours\nstages: {\n")
    commit_all(repository, at=40)
    write_lock(repository, {"train": TRAIN})
    commit_all(repository, at=50)
    done = ingest(home, history=True)
    assert [(state.git_commit, state.standing) for state in done.states] == [(commit, "new") for commit in commits]
    assert [execution(home, state).started for state in done.states] == [10_000_000, 20_000_000]
    assert [execution(home, state).value("auc", "metrics") for state in done.states] == [0.9, None]
    assert ingest(home, history=True).events == 0
    assert ingest(home).events == 0


def test_numbers_of_a_metrics_file_that_is_another_one_are_not_told(repository: Path, home: Home) -> None:
    (repository / "metrics.json").write_text('{"auc": 0.1}')
    state = only_state(home)
    assert execution(home, state).space("metrics") == {}
    (repository / "metrics.json").write_bytes(METRICS)
    assert ingest(home).events == 1
    assert execution(home, state).value("auc", "metrics") == 0.9


def test_secrets_are_not_recorded(repository: Path, home: Home) -> None:
    secret = {
        "cmd": ["python train.py --password hunter2", "echo done"],
        "params": {"params.yaml": {"api_token": "hunter2"}},
    }
    write_lock(repository, {"train": secret})
    state = only_state(home)
    said = execution(home, state)
    assert said.value("command") == ("python", "train.py", "--password", "***", "&&", "echo", "done")
    assert "hunter2" not in str(recorded(home))


def test_working_trees_and_folders_of_a_repository_have_its_name(repository: Path, home: Home) -> None:
    commit_all(repository, at=1)
    git(repository, "remote", "remove", "origin")
    git(repository, "worktree", "add", "-q", "linked")
    (repository / "linked" / "part" / ".dvc").mkdir(parents=True)
    write_lock(repository / "linked" / "part", {"train": TRAIN})
    folders = (repository, repository / "linked", repository / "linked" / "part")
    states = ingest(home, paths=folders).states
    assert [state.pipeline for state in states] == ["project", "project", "project/part"]
    assert states[0].execution == states[1].execution


def test_a_repository_that_git_refuses_to_read_is_not_taken_for_none(repository: Path, home: Home) -> None:
    (repository / ".git" / "config").write_text("[core\n")
    with pytest.raises(StoreError, match="bad config line"):
        ingest(home)


def test_without_git_and_without_a_pipeline_file(project: Path, home: Home) -> None:
    write_lock(project, {"train": TRAIN})
    state = only_state(home)
    assert (state.pipeline, state.git_commit, state.notes) == ("project", None, ())
    assert state_of(home, ("artifact", f"md5:{md5(MODEL)}")).value("kind") is None


def test_what_a_pattern_matches_is_a_model(project: Path, home: Home) -> None:
    write_lock(project, {"train": TRAIN})
    ingest(home, models=("*.pkl",))
    assert state_of(home, ("artifact", f"md5:{md5(MODEL)}")).value("kind") == "model"


def test_what_was_called_a_model_stays_one_where_nobody_says_what_it_is(project: Path, home: Home) -> None:
    write_lock(project, {"train": TRAIN})
    ingest(home, models=("*.pkl",))
    ingest(home)
    assert state_of(home, ("artifact", f"md5:{md5(MODEL)}")).value("kind") == "model"


def test_a_stage_says_where_its_command_runs(repository: Path, home: Home) -> None:
    wdirs = {"here": None, "there": "../work", "outside": "../../elsewhere"}
    stages = {name: {"cmd": name} | ({"wdir": wdir} if wdir else {}) for name, wdir in wdirs.items()}
    write_lock(repository / "part", {name: {"cmd": name} for name in stages})
    write_pipeline(repository / "part", stages)
    states = {state.name: state for state in ingest(home, paths=(repository / "part",)).states}
    folders = {name: execution(home, state).value("working_dir") for name, state in states.items()}
    assert folders == {"part/here": "part", "part/there": "work", "part/outside": None}


def test_what_git_has_of_the_inputs_is_found_there(repository: Path, home: Home) -> None:
    (repository / "data.csv").write_bytes(DATA)
    commit = commit_all(repository, at=1)
    ingest(home)
    places = [
        body["location"] for header, body in of_type(home, ARTIFACT_STORED) if header.about[0][1] == f"md5:{md5(DATA)}"
    ]
    assert [(place["kind"], place["path"], place["commit"]) for place in places] == [("git", "data.csv", commit)]


def test_a_dry_run_records_nothing(repository: Path, home: Home) -> None:
    would = ingest(home, dry_run=True)
    assert len(recorded(home)) == 1  # the opening of the log
    assert ingest(home).events == would.events > 0


# -- stages of groups, of folders, of other versions -------------------------------------------------------------------


def test_members_of_a_group_are_executions_of_one_stage(project: Path, home: Home) -> None:
    write_pipeline(
        project,
        {
            "listed": {"foreach": ["us", True], "do": {"cmd": "run ${item}", "metrics": ["m/${item}.json"]}},
            "keyed": {"foreach": {"a": {"lr": 1}}, "do": {"cmd": "run ${item.lr}"}},
            "indexed": {"foreach": [{"lr": 2}], "do": {"cmd": "run ${item.lr}"}},
            "named": {"foreach": "${regions}", "do": {"cmd": "run ${item}", "wdir": "in/${item}", "outs": ["o"]}},
            "grid": {"matrix": {"model": ["cnn", {"x": 1}], "lr": [0.1]}, "cmd": "run ${item.lr}"},
        },
    )
    member = {"cmd": "run"}
    locked = {
        "listed@us": member | {"outs": [entry("m/us.json", b"{}")]},
        "listed@true": member,
        "keyed@a": member,
        "indexed@0": member,
        "named@eu-1": member | {"outs": [entry("o", b"o")]},
        "grid@cnn-0.1": member,
        "grid@model1-0.1": member,
    }
    write_lock(project, locked)
    done = ingest(home)
    items = {state.name: execution(home, state).value("item", "properties") for state in done.states}
    assert items == {
        "listed@us": "us",
        "listed@true": "true",
        "keyed@a": {"lr": 1},
        "indexed@0": {"lr": 2},
        "named@eu-1": "eu-1",
        "grid@cnn-0.1": {"model": "cnn", "lr": 0.1},
        "grid@model1-0.1": {"model": {"x": 1}, "lr": 0.1},
    }
    assert {state.stage for state in done.states} == {"listed", "keyed", "indexed", "named", "grid"}
    assert state_of(home, ("artifact", f"md5:{md5(b'{}')}")).value("kind") == "metrics"
    assert state_of(home, ("artifact", f"md5:{md5(b'o')}")).names == ["in/eu-1/o"]
    assert done.notes == []


def test_stages_of_other_folders_are_named_by_them(project: Path, home: Home) -> None:
    git(project, "init", "-q")
    write_lock(project, {"train": TRAIN})
    write_lock(project / "prep" / "a", {"clean@x": {"cmd": "run", "outs": [entry("../../data.csv", DATA)]}})
    write_pipeline(project / "prep" / "a", {"clean": {"foreach": ["x"], "do": {"cmd": "run"}}})
    write_lock(project / ".dvc" / "tmp", {"hidden": {"cmd": "run"}})
    found = [(state.lock, state.stage, state.name) for state in ingest(home, everything=True).states]
    assert found == [("dvc.lock", "train", "train"), ("prep/a/dvc.lock", "prep/a/clean", "prep/a/clean@x")]
    assert state_of(home, ("artifact", f"md5:{md5(DATA)}")).names == ["data.csv"]
    assert ingest(home, paths=(project / "prep" / "a" / "dvc.yaml",)).states[0].standing == "known"


TEXT, UNIX = b"a\r\nb\r\n", md5(b"a\nb\n")


@pytest.mark.parametrize("content", [TEXT, b"a\nb\n", b"\0\r\nbinary", b""], ids=["crlf", "lf", "binary", "empty"])
def test_an_output_of_dvc_2_at_hand_is_known_by_its_true_digest_too(project: Path, home: Home, content: bytes) -> None:
    stated = md5(content if b"\0" in content else content.replace(b"\r\n", b"\n"))
    write_lock(project, {"old": {"cmd": "run", "outs": [{"path": "o", "md5": stated, "size": len(content)}]}})
    (project / "o").write_bytes(content)
    ingest(home)
    made = state_of(home, ("artifact", f"md5:{md5(content)}"))
    assert f"md5-dos2unix:{stated}" in made.aliases
    (project / "o").write_bytes(b"another")
    assert ingest(home).events == 0


def test_an_output_of_dvc_2_that_is_not_at_hand_is_its_own_node(project: Path, home: Home) -> None:
    write_lock(project, {"old": {"cmd": "run", "outs": [{"path": "o", "md5": UNIX, "size": 6}]}})
    state = only_state(home)
    assert execution(home, state).produced == [f"md5-dos2unix:{UNIX}"]
    (project / "o").write_bytes(TEXT)
    assert ingest(home).events == 1
    assert execution(home, state).produced == [f"md5-dos2unix:{UNIX}", f"md5:{md5(TEXT)}"]
    assert ingest(home).events == 0


def test_a_lock_of_dvc_1_is_read(project: Path, home: Home) -> None:
    (project / "dvc.lock").write_text(yaml_text({"train": TRAIN, "eval": {"cmd": "run"}}))
    assert [state.name for state in ingest(home).states] == ["train", "eval"]


def test_a_folder_and_what_lies_in_other_storages(project: Path, home: Home) -> None:
    folder = {"path": "d", "hash": "md5", "md5": f"{md5(b'[]')}.dir", "size": 9, "nfiles": 2}
    remote = {"path": "s3://me:hunter2@bucket/x", "etag": "abc", "size": 4}
    versioned = {
        "path": "v",
        "hash": "md5",
        "files": [{"relpath": "b", "md5": md5(b"b")}, {"relpath": "a", "md5": md5(b"a")}],
    }
    write_lock(project, {"train": {"cmd": "run", "deps": [remote, "junk"], "outs": [folder, versioned]}})
    state = only_state(home)
    said = execution(home, state)
    manifest = f'[{{"md5": "{md5(b"a")}", "relpath": "a"}}, {{"md5": "{md5(b"b")}", "relpath": "b"}}]'
    assert said.produced == sorted([f"md5:{md5(b'[]')}.dir", f"md5:{md5(manifest.encode())}.dir"])
    assert said.value("external", "properties") == {"s3://bucket/x": {"etag": "abc", "size": 4}, "junk": {}}
    assert state_of(home, ("artifact", f"md5:{md5(b'[]')}.dir")).space("facts") == {
        "files": 2,
        "size": 9,
    }


def test_blocks_of_a_lock_are_its_entries() -> None:
    text = yaml_text(
        {"schema": "2.0", "stages": {"a": TRAIN, "7": {"cmd": ["x", "y: z"]}, "g@a:b": {"cmd": "echo a:"}}}
    )
    blocks = split_blocks(text)
    whole = read_yaml(text, "")["stages"]
    assert {name: read_yaml(block, "")[name] for name, block in blocks.items()} == whole
    assert split_blocks(yaml_text({"train": TRAIN})) == {}
    assert split_blocks(yaml_text({"stages": {"g@" + "x" * 200: {"cmd": "x"}, "a": {"cmd": "x"}}})) == {}


def test_a_program_s_source_is_no_dataset() -> None:
    stated = {"cmd": "x", "deps": [entry("train.py", b"1"), entry("x.csv", b"2")], "outs": [entry("run.sh", b"3")]}
    stage = read_stages({"stages": {"t": stated}}, {}, "")[0]
    assert [each.kind for each in (*stage.deps, *stage.outs)] == ["other", None, "other"]


# -- executions that stages record of themselves -----------------------------------------------------------------------


def record_stage(project: Path, lr: float = 0.1, **names: str) -> str:
    (project / "model.pkl").write_bytes(MODEL)
    (project / "metrics.json").write_bytes(METRICS)
    with cmf.run(names.get("pipeline", "iris"), names.get("stage", "train"), {"lr": lr}) as run:
        run.output("model.pkl")
        run.output("metrics.json")
        run.metric("auc", 0.9)
    return run.id


def test_what_a_stage_recorded_of_itself_is_not_told_twice(repository: Path, home: Home) -> None:
    record_stage(repository)
    run = record_stage(repository)
    produced = len(of_type(home, ARTIFACT_PRODUCED))
    state = only_state(home)
    assert (state.standing, state.execution) == ("recorded", run)
    said = execution(home, state)
    assert said.used == [f"md5:{md5(DATA)}"]
    assert said.value("dvc_stage", "properties") == "train"
    assert said.space("params") == {"lr": 0.1, "net.layers": (1, 2), "other.yaml:seed": 3}
    assert said.space("metrics") == {"auc": 0.9, "by.us": 1}
    assert len(of_type(home, EXECUTION_STARTED)) == 2
    assert len(of_type(home, ARTIFACT_PRODUCED)) == produced
    assert not any(value.conflict for value in said.values.values())
    assert (ingest(home).events, only_state(home).execution) == (0, run)


@pytest.mark.parametrize(
    ("other", "named"),
    [({"pipeline": "x"}, "x/train"), ({"stage": "x"}, "iris/x"), ({"lr": 0.3}, "")],
    ids=["pipeline", "stage", "lr"],
)
def test_a_run_that_is_not_of_this_state_counts_for_nothing(
    repository: Path, home: Home, other: Any, named: str
) -> None:
    record_stage(repository, **other)
    done = ingest(home)
    assert [state.standing for state in done.states] == ["new"]
    notes = outcome_notes(done)
    assert [f"a run of {named} recorded the same outputs" in note for note in notes] == ([True] if named else [])
    assert outcome_notes(ingest(home)) == []


def test_a_run_that_read_other_data_is_not_of_this_state(repository: Path, home: Home) -> None:
    (repository / "data.csv").write_bytes(b"other")
    (repository / "model.pkl").write_bytes(MODEL)
    with cmf.run("iris", "train") as run:
        run.input("data.csv")
        run.output("model.pkl")
        run.output("metrics.json")
    assert only_state(home).standing == "new"


def test_an_ingested_state_is_not_taken_for_a_recording_of_another_one(repository: Path, home: Home) -> None:
    ingest(home)
    write_lock(repository, {"train": TRAIN | {"deps": []}})
    assert only_state(home).standing == "new"


# -- what is wrong with a lock -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages:\n<<<<<<< HEAD\n  a: {}\n=======\n  b: {}\n>>>>>>> x\n",
            "dvc.lock has the marks of an unresolved merge in line 2",
        ),
        ("schema: '2.0'\nstages:\n  a: [\n", "dvc.lock is no valid YAML in line"),
        ("a: 1\na: 2\n", "dvc.lock is no valid YAML in line 2"),
        ("- a\n", "dvc.lock holds no stages"),
        ("schema: '2.0'\nstages: [a]\n", "dvc.lock is no lock file of DVC"),
        ("schema: '2.0'\nstages:\n  a: text\n", "dvc.lock is no lock file of DVC"),
    ],
    ids=["conflict", "cut", "twice", "list", "stages", "stage"],
)
def test_a_lock_that_can_not_be_read_is_named(project: Path, home: Home, text: str, message: str) -> None:
    (project / "dvc.lock").write_text(text)
    with pytest.raises(CallerError, match=message):
        ingest(home)
    assert len(recorded(home)) == 1


def test_a_lock_that_is_no_text_is_named(project: Path, home: Home) -> None:
    (project / "dvc.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(CallerError, match=r"dvc\.lock is no text"):
        ingest(home)


def test_where_nothing_was_reproduced_the_way_out_is_told(project: Path, home: Home) -> None:
    with pytest.raises(CallerError, match=r"there is no dvc\.lock in"):
        ingest(home)
    with pytest.raises(CallerError, match=r"there is no dvc\.lock in"):
        ingest(home, everything=True)
    write_pipeline(project, {"train": TRAIN_YAML})
    with pytest.raises(CallerError, match=r"nothing of dvc\.yaml was reproduced yet") as raised:
        ingest(home)
    assert "dvc repro" in raised.value.hint


@pytest.mark.parametrize(
    ("declared", "note"),
    [
        ({"train": TRAIN_YAML | {"cmd": "python train.py --lr 0.2"}}, "train: its command in dvc.yaml is another one"),
        ({"train": TRAIN_YAML | {"plots": ["roc.csv"]}}, "train: dvc.yaml names further outputs"),
        ({"eval": {"cmd": "x"}}, "train: dvc.yaml has no such stage any more"),
        ({"train": TRAIN_YAML, "eval": {"cmd": "x"}}, "eval was not reproduced yet"),
    ],
    ids=["command", "output", "gone", "new"],
)
def test_a_lock_behind_its_pipeline_is_ingested_and_told(project: Path, home: Home, declared: Any, note: str) -> None:
    write_lock(project, {"train": TRAIN})
    write_pipeline(project, declared)
    done = ingest(home)
    assert any(note in each for each in outcome_notes(done)), outcome_notes(done)
    assert [(state.name, state.standing) for state in done.states] == [("train", "new")]


def test_empty_locks_and_entries_are_nothing(project: Path, home: Home) -> None:
    for text in ("", "schema: '2.0'\n", "schema: '2.0'\nstages: {}\n"):
        (project / "dvc.lock").write_text(text)
        assert ingest(home).states == []
    write_lock(project, {"train": {"cmd": None, "deps": None, "outs": [], "params": None}})
    assert only_state(home).standing == "new"


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_new(repository: Path, home: Home) -> None:
    first = cli("ingest", "dvc", "-p", "mnist", cwd=repository)
    assert (first.returncode, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert lines[0].startswith("new       train  ")
    assert lines[0].endswith("not committed")
    assert lines[1] == "mnist: 1 new, 0 known; 6 events recorded"
    answer = cli_json("ingest", "dvc", "-p", "mnist", "--dry-run", cwd=repository)
    assert (answer["dry_run"], answer["events"], answer["stages"][0]["standing"]) == (True, 0, "known")
    (repository / "dvc.lock").write_text("<<<<<<< ours\n")
    wrong = cli("ingest", "dvc", "--quiet", cwd=repository)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unresolved merge in line 1" in wrong.stderr
