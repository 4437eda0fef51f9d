"""`cmf-agent run`: it is transparent for its child, and records it."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.helpers import CLI, called, cli, environment, of_type, only, recorded

from cmf_agent.home import Home
from cmf_agent.outcome import ENDING_SIGNALS
from cmf_agent.verify import verify

RUN = ("run", "-p", "p", "-s", "s")

Captured = pytest.CaptureFixture[str]


def test_it_hashes_inputs_before_and_outputs_after(home: Home, capfd: Captured) -> None:
    (home.root / "in").write_text("before")
    script = "cp in out; cp in model; echo changed > in"
    assert called(*RUN, "-i", "in", "-o", "out", "-m", "model", "--param", "lr=0.1", "--param", "name=x", "--name", "n",
                  "--kind", "deploy", "--", "sh", "-c", script) == 0  # fmt: skip
    assert capfd.readouterr() == ("", "")
    used, _ = only(home, "artifact.used")
    (out, _), (model, model_body) = of_type(home, "artifact.produced")
    assert used.about[0] == out.about[0] == model.about[0]
    assert model_body["facts"]["kind"] == "model"
    started = only(home, "execution.started")[1]
    assert started["params"] == {"lr": 0.1, "name": "x"}
    assert (started["facts"]["kind"], started["facts"]["name"]) == ("deploy", "n")
    assert started["facts"]["command"] == ("sh", "-c", script)
    finished = only(home, "execution.finished")[1]
    assert (finished["status"], finished["exit_code"]) == ("finished", 0)


@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        ("exit 3", 3, "failed"),
        ("exit 255", 255, "failed"),
        ("kill -9 $$", 137, "failed"),
        ("kill -15 $$", 143, "interrupted"),
    ],
)
def test_the_exit_code_is_the_childs_and_128_and_its_number_after_a_signal(
    home: Home, script: str, code: int, status: str
) -> None:
    assert called(*RUN, "--", "sh", "-c", script) == code
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == (status, code)


def test_what_is_not_there_or_not_executable_is_127_and_126(home: Home, capfd: Captured) -> None:
    assert called(*RUN, "--", "no-such-program") == 127
    out, told = capfd.readouterr()
    assert not out
    assert "no-such-program" in told
    (home.root / "data").write_text("x")
    assert called(*RUN, "--", "./data") == 126
    statuses = [(body["status"], body["exit_code"]) for _, body in of_type(home, "execution.finished")]
    assert statuses == [("failed", 127), ("failed", 126)]


def test_streams_and_arguments_pass_through(home: Home) -> None:
    script = "import sys; sys.stdout.write(sys.stdin.read() + repr(sys.argv[1:])); sys.stderr.write('err')"
    done = subprocess.run(
        [*CLI, *RUN, "--", sys.executable, "-c", script, "--", "-p", "--help", "a b"],
        cwd=home.root, env=environment(), input="in", capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "in['--', '-p', '--help', 'a b']"
    assert done.stderr == "err"


def test_the_child_learns_what_it_is_recorded_as(home: Home, capfd: Captured) -> None:
    names = "CMF_EXECUTION CMF_PIPELINE CMF_STAGE CMF_HOME"
    called(*RUN, "--", "sh", "-c", f"for n in {names}; do printenv $n; done")
    execution, *others = capfd.readouterr().out.split()
    assert others == ["p", "s", str(home.path)]
    started, _ = only(home, "execution.started")
    assert ("execution", bytes.fromhex(execution.replace("-", ""))) in started.about


def test_a_missing_file_is_recorded_and_told_and_the_code_is_the_childs(home: Home, capfd: Captured) -> None:
    assert called(*RUN, "-i", "no-input", "-o", "no-output", "--", "sh", "-c", "exit 3") == 3
    told = capfd.readouterr().err
    assert "no-input does not exist" in told
    assert "no-output does not exist" in told
    properties = [body["properties"] for _, body in of_type(home, "execution.updated")]
    assert properties == [{"missing_inputs": ("no-input",)}, {"missing_outputs": ("no-output",)}]


def test_secrets_are_masked(home: Home) -> None:
    called(*RUN, "--param", "api_key=hidden1", "--", "true", "--password", "hidden2", "TOKEN=hidden3")
    started = only(home, "execution.started")[1]
    assert started["params"] == {"api_key": "***"}
    assert "hidden" not in repr(recorded(home))


@pytest.mark.deep
@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_signals_reach_the_child_and_the_end_is_recorded(home: Home, number: signal.Signals) -> None:
    code = 128 + number
    process = started_process(home, "import time; print('ready', flush=True); time.sleep(600)")
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == ("interrupted", code)
    assert not verify(home).problems


def test_a_child_may_take_its_time_after_a_signal_and_choose_its_code(home: Home) -> None:
    script = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (open("out", "w").write("saved"), sys.exit(7)))
print("ready", flush=True)
signal.pause()
"""
    process = started_process(home, script, "-o", "out")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 7
    assert only(home, "artifact.produced")[1]["name"] == "out"
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == ("failed", 7)
    assert not verify(home).problems


def started_process(home: Home, script: str, *options: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*CLI, *RUN, *options, "--", sys.executable, "-c", script],
        cwd=home.root, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_child_gets_ordinary_signal_handling(home: Home) -> None:
    # a process of its own: what pytest was started with, ignored by nohup say, is not ours to answer for
    done = cli(*RUN, "--", "grep", "-E", "SigIgn|SigBlk", "/proc/self/status", cwd=home.root)
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    assert len(masks) == 2
    # glibc has the two signals that it keeps for itself, 32 and 33, ignored in what posix_spawn starts
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]


@pytest.mark.usefixtures("project")
def test_without_a_home_the_command_runs_all_the_same(capfd: Captured) -> None:
    assert called(*RUN, "-o", "x", "--", "sh", "-c", "echo out; exit 4") == 4
    out, told = capfd.readouterr()
    assert out == "out\n"
    assert "NOTHING of this run is recorded" in told


def test_a_damaged_log_does_not_keep_the_command_from_running(home: Home, capfd: Captured) -> None:
    home.log_path.write_bytes(b"damaged" * 2_000)
    assert called(*RUN, "--", "sh", "-c", "echo out; exit 4") == 4
    out, told = capfd.readouterr()
    assert out == "out\n"
    assert "NOT recorded" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "arguments",
    [("run", "--", "true"), ("run", "-p", "p", "-s", "s"), (*RUN, "--param", "novalue", "--", "true"),
     (*RUN, "--kind", "other", "--", "true"), ("run", "-p", "", "-s", "s", "--", "true")],
)  # fmt: skip
def test_wrong_usage_is_2_and_runs_nothing(home: Home, arguments: tuple[str, ...], capfd: Captured) -> None:
    assert called(*arguments) == 2
    assert capfd.readouterr().err
    assert len(recorded(home)) == 1


def test_files_are_named_from_the_projects_root(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = home.root / "inner"
    inner.mkdir()
    (inner / "f").write_text("x")
    monkeypatch.chdir(inner)
    called(*RUN, "-i", "f", "--", "true")
    assert only(home, "artifact.used")[1]["name"] == "inner/f"
    assert list(inner.iterdir()) == [inner / "f"]


def test_an_interrupt_while_inputs_are_hashed_keeps_the_command_from_starting(home: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *RUN, "-i", "in", "--", "touch", "started"],
        cwd=home.root, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the command was not started" in told
    assert not (home.root / "started").exists()
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == ("interrupted", 130)


#: The interrupt comes just when the first input is looked at.
INTERRUPTED = """
import os, signal, sys
import cmf_agent.artifacts
from cmf_agent.cli import main
cmf_agent.artifacts.hash_path = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("starting", "start_facts"), ("artifacts", "hash_path"), ("recording", "DigestMemory"), ("runs", "execution_finished"),
     ("wrapping", "hashing_progress"), ("wrapping", "outcome_of_code"), ("wrapping", "marks"), ("wrapping", "unchanged")],
)  # fmt: skip
def test_no_fault_of_the_recording_reaches_the_command(
    home: Home, capfd: Captured, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    (home.root / "in").write_text("x")
    monkeypatch.setattr(f"cmf_agent.{module}.{name}", fail)
    assert called(*RUN, "-i", "in", "-o", "in", "--", "sh", "-c", "echo out; exit 4") == 4
    out, told = capfd.readouterr()
    assert out == "out\n"
    assert "ZeroDivisionError: a fault" in told
    assert "Traceback" not in told


def test_a_deleted_working_directory_does_not_keep_the_command_from_running(
    project: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert called(*RUN, "-o", "out", "-o", "*", "--metrics", "m.json", "--", "sh", "-c", "echo out; exit 4") == 4
    out, told = capfd.readouterr()
    assert out == "out\n"
    assert "the working directory is gone" in told


@pytest.mark.parametrize("hidden", [".", pytest.param(".cmf", marks=pytest.mark.deep)])
def test_a_folder_that_may_not_be_looked_into_does_not_keep_the_command_from_running(home: Home, hidden: str) -> None:
    assert os.getuid() == 0, "run this as root, as the build does"
    (home.root / hidden).chmod(0o700)
    for parent in home.root.parents[:3]:
        parent.chmod(0o755)
    script = """
import os, sys
from cmf_agent.cli import main
main()  # imports everything while it may
sys.stderr.write("as another user\\n")
os.setgid(54321)
os.setuid(54321)
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *RUN, "--", "sh", "-c", "echo out; exit 4"],
        cwd=home.root.parent, env=environment(CMF_HOME=str(home.path)), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "out\n" * 2)
    as_root, _, told = done.stderr.partition("as another user\n")
    assert not as_root
    assert "WARNING" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("option", ["-i", "-o", "-m"])
def test_an_empty_path_is_told_and_runs_nothing(home: Home, option: str, capfd: Captured) -> None:
    assert called(*RUN, option, "", "--", "touch", "started") == 2
    assert f"{option} '' names no file" in capfd.readouterr().err
    assert not (home.root / "started").exists()


def test_a_terminal_is_told_what_was_recorded(home: Home) -> None:
    (home.root / "in").write_text("x")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*CLI, *RUN, "-i", "in", "-o", "out", "-m", "model", "--", "touch", "out", "model"],
            cwd=home.root, env=environment(), stderr=theirs, stdout=subprocess.PIPE, timeout=120, check=False,
        )  # fmt: skip
        os.close(theirs)
        told = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
    assert (done.returncode, done.stdout) == (0, b"")
    assert re.fullmatch(r"cmf: recorded p/s [0-9a-f-]{13} \(1 in, 2 out\)\r\n", told)


def test_the_text_of_the_diff_is_kept_masked_and_cut(home: Home) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=home.root, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    (home.root / "code.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-qm", "first")
    home.config_path.write_text('[capture]\ndiff = "full"\n')
    for content in ("x = 1\n", 'password = "hunter2"\n', "y = 2\n" * 100_000):
        (home.root / "code.py").write_text(content)
        assert called(*RUN, "--", "true") == 0
    clean, small, large = [body["facts"] for _, body in of_type(home, "execution.started")]
    assert not {"git_diff", "git_diff_text", "git_diff_truncated"} & clean.keys()
    assert 'password = "***"' in small["git_diff_text"]
    assert "git_diff_truncated" not in small
    assert large["git_diff_truncated"] is True
    assert 100_000 < len(large["git_diff_text"].encode()) <= 200 << 10
