"""`cmf-agent run`: it is transparent for its child, and records it."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.helpers import CLI, cli, environment, of_type, only, recorded

from cmf_agent.home import Home
from cmf_agent.outcome import ENDING_SIGNALS
from cmf_agent.verify import verify

RUN = ("run", "-p", "p", "-s", "s")


def test_it_hashes_inputs_before_and_outputs_after(home: Home) -> None:
    (home.root / "in").write_text("before")
    script = "cp in out; cp in model; echo changed > in"
    done = cli(*RUN, "-i", "in", "-o", "out", "-m", "model", "--param", "lr=0.1", "--param", "name=x", "--name", "n",
               "--kind", "deploy", "--", "sh", "-c", script, cwd=home.root)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
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


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 77, 255])
def test_the_exit_code_is_the_childs(home: Home, code: int) -> None:
    done = cli(*RUN, "--", sys.executable, "-c", f"raise SystemExit({code})", cwd=home.root)
    assert done.returncode == code
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == ("failed" if code else "finished", code)


@pytest.mark.parametrize(("number", "status"), [(9, "failed"), (15, "interrupted"), (11, "failed")])
def test_a_child_ended_by_a_signal_gives_128_and_its_number(home: Home, number: int, status: str) -> None:
    done = cli(*RUN, "--", "sh", "-c", f"kill -{number} $$", cwd=home.root)
    assert done.returncode == 128 + number
    body = only(home, "execution.finished")[1]
    assert (body["status"], body["exit_code"]) == (status, 128 + number)


def test_what_is_not_there_or_not_executable_is_127_and_126(home: Home) -> None:
    missing = cli(*RUN, "--", "no-such-program", cwd=home.root)
    assert (missing.returncode, missing.stdout) == (127, "")
    assert "no-such-program" in missing.stderr
    (home.root / "data").write_text("x")
    assert cli(*RUN, "--", "./data", cwd=home.root).returncode == 126
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


def test_the_child_learns_what_it_is_recorded_as(home: Home) -> None:
    names = "CMF_EXECUTION CMF_PIPELINE CMF_STAGE CMF_HOME"
    done = cli(*RUN, "--", "sh", "-c", f"for n in {names}; do printenv $n; done", cwd=home.root)
    execution, *others = done.stdout.split()
    assert others == ["p", "s", str(home.path)]
    started, _ = only(home, "execution.started")
    assert ("execution", bytes.fromhex(execution.replace("-", ""))) in started.about


def test_a_run_in_the_child_names_the_command_as_its_parent(home: Home) -> None:
    script = "import os, cmf_agent as cmf\nos.chdir('/')\nwith cmf.run('p', 'inner'): pass"
    assert cli(*RUN, "--", sys.executable, "-c", script, cwd=home.root).returncode == 0
    (outer, _), (_, inner) = of_type(home, "execution.started")
    assert ("execution", inner["facts"]["parent"]) in outer.about


def test_a_missing_file_is_recorded_and_told_and_the_code_is_the_childs(home: Home) -> None:
    done = cli(*RUN, "-i", "no-input", "-o", "no-output", "--", "sh", "-c", "exit 3", cwd=home.root)
    assert done.returncode == 3
    assert "no-input does not exist" in done.stderr
    assert "no-output does not exist" in done.stderr
    properties = [body["properties"] for _, body in of_type(home, "execution.updated")]
    assert properties == [{"missing_inputs": ("no-input",)}, {"missing_outputs": ("no-output",)}]


def test_secrets_are_masked(home: Home) -> None:
    cli(*RUN, "--param", "api_key=hidden1", "--", "true", "--password", "hidden2", "TOKEN=hidden3", cwd=home.root)
    started = only(home, "execution.started")[1]
    assert started["params"] == {"api_key": "***"}
    assert "hidden" not in repr(recorded(home))


SIGNALS = [(number, 128 + number) for number in ENDING_SIGNALS]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_reach_the_child_and_the_end_is_recorded(home: Home, number: signal.Signals, code: int) -> None:
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


def started_process(home: Home, script: str, *options: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*CLI, *RUN, *options, "--", sys.executable, "-c", script],
        cwd=home.root, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_child_gets_ordinary_signal_handling(home: Home) -> None:
    done = cli(*RUN, "--", "grep", "-E", "SigIgn|SigBlk", "/proc/self/status", cwd=home.root)
    masks = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
    assert len(masks) == 2
    # glibc has the two signals that it keeps for itself, 32 and 33, ignored in what posix_spawn starts
    assert [mask & 0x7FFFFFFF for mask in masks] == [0, 0]


def test_without_a_home_the_command_runs_all_the_same(project: Path) -> None:
    done = cli(*RUN, "-o", "x", "--", "sh", "-c", "echo out; exit 4", cwd=project)
    assert (done.returncode, done.stdout) == (4, "out\n")
    assert "NOTHING of this run is recorded" in done.stderr


def test_a_damaged_log_does_not_keep_the_command_from_running(home: Home) -> None:
    home.log_path.write_bytes(b"damaged" * 2_000)
    done = cli(*RUN, "--", "sh", "-c", "echo out; exit 4", cwd=home.root)
    assert (done.returncode, done.stdout) == (4, "out\n")
    assert "NOT recorded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("run", "--", "true"), ("run", "-p", "p", "-s", "s"), (*RUN, "--param", "novalue", "--", "true"),
     (*RUN, "--kind", "other", "--", "true"), ("run", "-p", "", "-s", "s", "--", "true")],
)  # fmt: skip
def test_wrong_usage_is_2_and_runs_nothing(home: Home, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, cwd=home.root)
    assert done.returncode == 2
    assert done.stderr
    assert len(recorded(home)) == 1


def test_files_are_named_from_the_projects_root(home: Home) -> None:
    inner = home.root / "inner"
    inner.mkdir()
    (inner / "f").write_text("x")
    cli(*RUN, "-i", "f", "--", "true", cwd=inner)
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
import cmf_agent.runs
from cmf_agent.cli import main
cmf_agent.runs.hash_path = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
sys.exit(main())
"""


#: A fault in what records: it is no error of ours, and comes where the first word says.
FAULTY = """
import sys
import cmf_agent.{module} as module
from cmf_agent.cli import main
def fail(*_, **__):
    raise ZeroDivisionError("a fault")
module.{name} = fail
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [("runs", "start_facts"), ("runs", "hash_path"), ("runs", "DigestMemory"), ("runs", "execution_finished"),
     ("wrapping", "hashing_progress"), ("wrapping", "outcome_of_code")],
)  # fmt: skip
def test_no_fault_of_the_recording_reaches_the_command(home: Home, module: str, name: str) -> None:
    (home.root / "in").write_text("x")
    done = subprocess.run(
        [sys.executable, "-c", FAULTY.format(module=module, name=name), *RUN, "-i", "in", "-o", "in", "--",
         "sh", "-c", "echo out; exit 4"],
        cwd=home.root, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "out\n")
    assert "ZeroDivisionError: a fault" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_deleted_working_directory_does_not_keep_the_command_from_running(project: Path) -> None:
    command = " ".join(map(shlex.quote, [*CLI, *RUN, "--", "sh", "-c", "echo out; exit 4"]))
    gone = project / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f"rmdir ../gone; {command}"],
        cwd=gone, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "out\n")
    assert "the working directory is gone" in done.stderr


@pytest.mark.parametrize("hidden", [".", ".cmf"])
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
def test_an_empty_path_is_told_and_runs_nothing(home: Home, option: str) -> None:
    done = cli(*RUN, option, "", "--", "touch", "started", cwd=home.root)
    assert done.returncode == 2
    assert f"{option} '' names no file" in done.stderr
    assert not (home.root / "started").exists()


def test_a_terminal_is_told_what_was_recorded(home: Home) -> None:
    (home.root / "in").write_text("x")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*CLI, *RUN, "-i", "in", "-o", "in", "-m", "in", "--", "true"],
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
        assert cli(*RUN, "--", "true", cwd=home.root).returncode == 0
    clean, small, large = [body["facts"] for _, body in of_type(home, "execution.started")]
    assert not {"git_diff", "git_diff_text", "git_diff_truncated"} & clean.keys()
    assert 'password = "***"' in small["git_diff_text"]
    assert "git_diff_truncated" not in small
    assert large["git_diff_truncated"] is True
    assert 100_000 < len(large["git_diff_text"].encode()) <= 200 << 10
