"""The calls of `Cmf` about stages and executions, from threads and forked children too: what they record and refuse."""

import os
import threading
from pathlib import Path

import pytest
from tests.agent.cmflib.states import execution_state, state_of
from tests.agent.helpers import of_type, only

import cmf_agent as cmf
from cmf_agent.cmflib import Cmf
from cmf_agent.home import Home
from cmf_protocol.errors import CallerError

THREADS = 16
PARAMS = {"lr": 0.5, "epochs": 3, "fast": True, "name": "x"}


def test_a_pipeline_without_a_name_is_called_like_the_folder(project: Path, home: Home) -> None:
    writer = Cmf(custom_properties={"owner": "x"})
    assert writer.parent_context.name == project.name
    assert state_of(home, "pipeline", project.name).value("owner", "properties") == "x"


def test_a_stage_is_named_with_its_pipeline_and_keeps_its_properties(writer: Cmf, home: Home) -> None:
    context = writer.create_context("Train", {"a": 1})
    assert (context.name, context.id, context.type) == ("mnist/Train", "mnist/Train", "Pipeline_Stage")
    updated = writer.update_context("Pipeline_Stage", context.name, context.id, custom_properties={"b": 2})
    writer.update_context("Parent_Context", "mnist", "mnist", {"c": 3})
    assert updated.custom_properties == {"a": 1, "b": 2}
    assert state_of(home, "stage", ("mnist", "Train")).space("properties") == {"a": 1, "b": 2}
    assert state_of(home, "pipeline", "mnist").space("properties") == {"c": 3}


def test_properties_keep_their_types_and_the_callers_dictionary_stays_as_it_was(writer: Cmf, home: Home) -> None:
    given = dict(PARAMS)
    execution = writer.create_execution("Train-execution", given, "train.sh --fast 'a b'")
    assert given == PARAMS
    state = execution_state(home, execution.id)
    assert state.space("params") == PARAMS
    assert state.space("params")["fast"] is True
    assert state.value("name") == execution.name == "Train-execution"
    assert state.value("command") == ("train.sh", "--fast", "a b")
    assert execution.properties["Execution_uuid"] == execution.id


def test_the_next_execution_ends_the_one_before_which_can_still_be_said_more_of(writer: Cmf, home: Home) -> None:
    first = writer.create_execution("first")
    second = writer.create_execution("second")
    assert [s.status for s in execution_state(home, first.id).statuses] == ["finished"]
    assert execution_state(home, second.id).statuses[0].status == "running"
    writer.update_execution(first.id, {"late": 0.25})
    assert writer.execution is not None and writer.execution.id == first.id
    assert execution_state(home, first.id).space("params") == {"late": 0.25}


def test_a_reusable_execution_goes_on_in_another_writer(writer: Cmf, home: Home) -> None:
    writer.create_context("Train")
    first = writer.create_execution("reused", {"a": 1}, create_new_execution=False)
    same = writer.create_execution("reused", {"b": 2}, create_new_execution=False)
    assert len(of_type(home, "execution.started")) == 1
    writer.finalize()
    other = Cmf(pipeline_name="mnist")
    other.create_context("Train")
    again = other.create_execution("reused", {"b": 3}, create_new_execution=False)
    other.finalize()
    assert first.id == same.id == again.id
    assert (same.custom_properties, again.custom_properties) == ({"a": 1, "b": 2}, {"a": 1, "b": 3})
    assert execution_state(home, first.id).space("params") == {"a": 1, "b": 3}
    other.create_context("Test")
    assert other.create_execution("reused", create_new_execution=False).id != first.id
    other.finalize()


def test_context_and_execution_can_be_assigned(writer: Cmf, home: Home, data: Path) -> None:
    context = writer.create_context("Train")
    first = writer.create_execution("first")
    writer.finalize()
    later = Cmf(pipeline_name="mnist")
    later.child_context = context
    later.execution = first.id
    assert later.execution is not None and later.execution.name == "first"
    later.log_dataset("data.csv", "input")
    later.finalize()
    assert len(execution_state(home, first.id).used) == 1
    assert [body["status"] for _, body in of_type(home, "execution.finished")] == ["finished"]
    later.child_context = later.execution = None
    later.log_dataset("data.csv", "input")
    assert later.execution is not None and later.execution.id != first.id
    later.finalize()
    with pytest.raises(CallerError, match="nothing is known"):
        later.execution = "01890000-0000-7000-8000-000000000000"


def test_finalize_ends_and_logging_goes_on(writer: Cmf, home: Home) -> None:
    execution = writer.create_execution("x")
    writer.finalize()
    writer.finalize()
    writer.log_execution_metrics("metrics", {"auc": 0.5})
    assert only(home, "execution.finished")[1]["status"] == "finished"
    assert execution_state(home, execution.id).value("auc", "metrics") == 0.5


def test_threads_on_one_writer_lose_nothing_and_make_one_execution(writer: Cmf, home: Home, project: Path) -> None:
    paths = [project / f"{number}.txt" for number in range(THREADS)]
    for path in paths:
        path.write_text(path.name)
    start = threading.Barrier(THREADS)
    failures: list[BaseException] = []

    def log(path: Path) -> None:
        try:
            start.wait()
            writer.log_dataset(path, "input")
            for _ in range(20):
                writer.log_metric("m", {"loss": 1})
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=log, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    made = writer.commit_metrics("m")
    writer.finalize()
    only(home, "execution.started")
    assert len(of_type(home, "artifact.used")) == THREADS
    table = cmf.read_table(home, made.id)
    assert table.columns["SequenceNumber"] == list(range(1, 20 * THREADS + 1))
    assert writer.execution is not None
    steps = [block for _, body in of_type(home, "metrics.recorded") for block in body.get("steps", ())]
    assert sorted(step for block in steps for step in block[2]) == list(range(1, 20 * THREADS + 1))


def test_a_forked_child_says_more_of_its_parents_execution(writer: Cmf, home: Home, data: Path) -> None:
    execution = writer.create_execution("x")
    child = os.fork()
    if not child:
        try:
            writer.log_dataset("data.csv", "input")
            writer.log_metric("m", {"loss": 1})
            writer.finalize()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not of_type(home, "execution.finished")
    state = execution_state(home, execution.id)
    assert len(state.used) == 1
    assert state.value("loss", "metrics") == 1


def test_writers_that_are_open_at_once_have_no_part_in_each_other(home: Home) -> None:
    first, second = Cmf(pipeline_name="one"), Cmf(pipeline_name="two")
    with cmf.run("whole", "all") as around:
        first.create_execution("first")
        second.create_execution("second")
        second.create_execution("third")
    parents = {body["facts"].get("name"): body["facts"].get("parent") for _, body in of_type(home, "execution.started")}
    assert parents == {None: None, "first": around.execution, "second": around.execution, "third": around.execution}
    first.log_metric("m", {"loss": 1})
    for writer in (first, second):
        writer.finalize()
    assert len(of_type(home, "execution.finished")) == 4
