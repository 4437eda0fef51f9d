"""The query verbs: what they print, for programs and for people, and that nobody's metadata drives a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from tests.support.graphs import Site, World, id_text, md5
from typer.testing import CliRunner

from cmf_graph import output
from cmf_graph.commands import add_query_commands
from cmf_graph.questions import Questions
from cmf_graph.text import clean
from cmf_protocol import types as t
from cmf_protocol.errors import CallerError

VERBS = ("pipelines", "stages", "executions", "artifacts", "metrics", "show", "lineage")
Run = Callable[..., str]


@pytest.fixture
def run(world: World) -> Run:
    @contextmanager
    def open_questions(
        behind: Annotated[bool, typer.Option("--behind", help="Ask an empty graph.")] = False,
    ) -> Iterator[Questions]:
        yield World(world.path.parent / "empty").questions() if behind else world.questions()

    @contextmanager
    def sites_of() -> Iterator[list[dict[str, Any]]]:
        yield [{"name": "berlin", "logs": [], "complete_until": None, "last_contact": None, "revoked": False}]

    (world.path.parent / "empty").mkdir()
    app = typer.Typer()
    add_query_commands(app, open_questions, sites_of=sites_of)

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


@pytest.fixture
def berlin(world: World) -> Site:
    return world.site("berlin")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(run: Run, verb: str) -> None:
    text = run(verb, "--help")
    assert f"Example: {verb}" in text and "--json" in text


@pytest.mark.parametrize("verb", VERBS[:5])
def test_lists_print_one_json_document(run: Run, berlin: Site, verb: str) -> None:
    berlin.run(makes={"model.pkl": md5("model")}, metrics={"auc": float("nan")})
    answer = json.loads(run(verb, "--json", "--pipeline", "mnist", "--site", "berlin", "--since", "1d", "-n", "5"))
    assert len(answer["items"]) == 1 and answer["next"] is None


def test_pages_follow_each_other(run: Run, berlin: Site) -> None:
    runs = [id_text(berlin.run()) for _ in range(3)]
    first = json.loads(run("executions", "--json", "--limit", "2", "--sort", "started_at"))
    rest = json.loads(run("executions", "--json", "--limit", "2", "--sort", "started_at", "--cursor", first["next"]))
    assert [item["id"] for item in first["items"] + rest["items"]] == runs


def test_where_there_is_no_terminal_a_list_is_lines_of_fields(run: Run, berlin: Site) -> None:
    name = "a very long name " * 20
    berlin.run(makes={name: md5("model"), "tab\there": md5("x")})
    header, *lines = run("artifacts").splitlines()
    assert header.split("\t")[:2] == ["name", "content id"]
    assert len(lines) == 2 and all(len(line.split("\t")) == len(header.split("\t")) for line in lines)
    assert any(md5("model") in line and "a very long name" in line for line in lines)


def test_show_and_lineage_print_for_people_and_for_programs(run: Run, berlin: Site) -> None:
    execution = berlin.run(
        uses={"data.csv": md5("data")}, makes={"model.pkl": md5("model")}, params={"lr": 0.1}, metrics={"auc": 0.9}
    )
    berlin.record(t.metrics_recorded(execution, steps=[("loss", "", [1, 2], [0.5, 0.25], [0, 1])]))
    text = run("show", id_text(execution)[:13])
    for part in ("execution", "pipeline: mnist", "lr: 0.1", "auc: 0.9", "model.pkl", "loss"):
        assert part in text, part
    assert json.loads(run("show", "model.pkl", "--json"))["content_id"] == md5("model")
    assert run("lineage", "model.pkl", "--up").splitlines()[1].startswith("└── produced by mnist/train")
    assert json.loads(run("lineage", "model.pkl", "--json", "--depth", "1"))["truncated"] == 0
    assert json.loads(run("lineage", "model.pkl", "--format", "json", "--limit", "1"))["truncated"] == 1
    assert run("lineage", "model.pkl", "--down", "--format", "dot").startswith("digraph")


def test_show_says_each_thing_once_and_whole(run: Run, berlin: Site) -> None:
    facts = {"command": ["python", "train.py", "-n", "3"], "user": "maria", "cpus": 4}
    execution = berlin.run(makes={"model.pkl": md5("model")}, facts=facts, metrics={"auc": 0.123456789012})
    berlin.record(t.note_added(("execution", execution), "looks good"))
    lines = run("show", id_text(execution)[:13]).splitlines()
    assert "command: python train.py -n 3" in lines
    assert "  auc: 0.123456789012" in lines
    assert [line for line in lines if "maria" in line] == ["user: maria"]
    assert "  cpus: 4" in lines
    assert any(line.startswith('  "looks good" (berlin, 20') for line in lines)
    shown = run("show", "model.pkl").splitlines()
    assert "produced by (1):" in shown
    assert not any("used" in line for line in shown)


def test_a_hub_can_add_its_sites(run: Run) -> None:
    assert json.loads(run("sites", "--json"))["items"][0]["name"] == "berlin"
    assert run("sites").splitlines()[1].startswith("berlin\t")


def test_the_options_of_whoever_opens_the_graph_are_options_of_every_verb(run: Run, berlin: Site) -> None:
    berlin.run()
    assert len(json.loads(run("executions", "--json"))["items"]) == 1
    assert json.loads(run("executions", "--json", "--behind"))["items"] == []
    assert "--behind" in run("lineage", "--help")


def test_errors_are_left_to_the_command_lines(run: Run, berlin: Site) -> None:
    for arguments in (
        ("show", "nothing"),
        ("lineage", "nothing"),
        ("executions", "--cursor", "x"),
        ("lineage", "x", "--format", "png"),
    ):
        with pytest.raises(CallerError):
            run(*arguments)


# -- terminals ---------------------------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m\x9b1;1H\u202eevil\u2066 [bold]x[/bold] :skull: \r\n next\x00"[:-1]


def hostile_world(world: World, berlin: Site) -> bytes:
    world.sites[berlin.key] = HOSTILE
    execution = berlin.run(
        "mnist", HOSTILE, uses={HOSTILE: md5("data")}, params={HOSTILE: HOSTILE}, properties={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
        metrics={HOSTILE: 1}, status=None, facts={"name": HOSTILE, "git_commit": HOSTILE, "host": HOSTILE, "command": [HOSTILE]},
    )  # fmt: skip
    node = ("execution", execution)
    berlin.record(
        t.tag_added(node, HOSTILE), t.note_added(node, HOSTILE), t.retracted((node,), HOSTILE),
        t.execution_finished(execution, "failed", error={"type": HOSTILE, "message": HOSTILE}),
        t.metrics_recorded(execution, steps=[(HOSTILE, HOSTILE, [1], [1], [1])]),
        t.pipeline_described("mnist", {HOSTILE: HOSTILE}),
    )  # fmt: skip
    return execution


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_no_metadata_reaches_the_output_with_control_characters(run: Run, world: World, berlin: Site) -> None:
    execution = hostile_world(world, berlin)
    for arguments in (
        *((verb,) for verb in VERBS[:5]), *((verb, "--json") for verb in VERBS[:5]),
        ("show", id_text(execution)), ("show", id_text(execution), "--json"), ("show", md5("data")), ("show", "mnist"),
        ("lineage", md5("data")),
    ):  # fmt: skip
        text = run(*arguments)
        assert not _CONTROL.search(text), arguments
        assert "--json" in arguments or "red" in text or "execution" in text


def test_on_a_terminal_a_table_is_drawn_and_nobody_elses_sequences_are(world: World, berlin: Site) -> None:
    """A real pseudo-terminal: what rich draws there holds no sequence of the metadata's, and every wide cell whole, folded."""
    hostile_world(world, berlin)
    items = world.questions().executions()["items"]
    code = (
        "import json, sys; from cmf_graph import output, commands; "
        "output.print_table(json.load(open(sys.argv[1])), commands._EXECUTIONS, following='c')"
    )
    path = world.path.with_suffix(".json")
    path.write_text(json.dumps(items))
    shown = on_terminal([sys.executable, "-c", code, str(path)])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # rich's own colours
    assert "\x1b" not in plain and "\u202e" not in plain and "\x9b" not in plain
    assert "[bold]" in plain.replace("\n", "") or "[bol" in plain
    assert max(len(line) for line in plain.splitlines()) <= 100


def on_terminal(command: list[str]) -> str:
    """Run a command whose standard output is a terminal 100 columns wide; return what it wrote."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            written += chunk
        os.close(ours)
        assert process.wait(120) == 0
    return written.decode().replace("\r\n", "\n")


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b[]m;\x07\x9b\x9d\x9c\u202e\n\r"), max_size=60))
def test_clean_text_has_nothing_that_a_terminal_acts_on(text: str) -> None:
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", clean(text))
    assert clean(clean(text)) == clean(text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_clean_text_keeps_plain_text(text: str) -> None:
    assert clean(text) == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_any_value_fits_a_cell(value: Any) -> None:
    assert "\n" not in output.cell(value)


# -- what a command costs ----------------------------------------------------------------------------------------------


def test_asking_imports_no_heavy_module() -> None:
    code = "import sys, cmf_graph.questions, cmf_graph.views, cmf_graph.output; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"typer", "rich", "networkx", "sqlite_utils", "nacl", "pandas"} & set(loaded)
