"""Runs command lines in processes that are forked from one which has imported them: an interpreter's start costs more than most commands.

    code, out, err = run_forked("cmf-agent", ["status", "--json"], cwd, environment, limit_s)

Rules
- Each call is a process of its own, with its own folder, environment, standard streams and exit code, as a user's is; what differs is only
  that its modules are there already. What depends on the start itself (signals, kills, a terminal, `PYTHON…` variables) starts a real one.
- One server for each process that asks, started with the first call; it ends with who started it.
"""

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

_PROGRAMS = {"cmf-agent": "cmf_agent.cli", "cmf-hub": "cmf_hub.cli"}
#: What most commands import.
_IMPORTED = (
    "cmf_agent.commands",
    "cmf_agent.local_questions",
    "cmf_agent.push",
    "cmf_agent.recording",
    "cmf_hub.cli",
    "cmf_hub.projector",
    "cmf_hub.registry",
)
#: Read by an interpreter when it starts.
_START_VARIABLES = ("PYTHON", "LC_", "LANG", "MALLOC")
_READY = b"ready\n"


class _Server:
    """The process that forks, and the socket at which it listens."""

    def __init__(self) -> None:
        self.process_id = os.getpid()
        self.folder = tempfile.TemporaryDirectory(prefix="cmf-forks-")
        self.path = f"{self.folder.name}/socket"
        words = [sys.executable, "-m", "tests.support.forked", self.path]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.read(len(_READY)) == _READY


_servers: list[_Server] = []


def can_fork(program: str, changes: dict[str, str]) -> bool:
    """Tell if a program may be run with these variables without starting an interpreter."""
    return program in _PROGRAMS and not any(name.startswith(_START_VARIABLES) for name in changes)


def run_forked(
    program: str, arguments: list[str], cwd: Path, environment: dict[str, str], limit_s: float
) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error; raise `TimeoutError` after `limit_s` seconds, with the process killed."""
    if not _servers or _servers[-1].process_id != os.getpid():
        _servers.append(_Server())
    order = {"program": program, "arguments": arguments, "cwd": str(cwd), "environment": environment}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line,
    ):
        line.settimeout(limit_s)
        line.connect(_servers[-1].path)
        socket.send_fds(line, [json.dumps(order).encode()], [out.fileno(), err.fileno()])
        process_id = int(line.recv(64))
        try:
            code = line.recv(64)
        except TimeoutError:
            os.kill(process_id, signal.SIGKILL)
            raise
        assert code, f"{program} {arguments} was killed"
        texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        return int(code), texts[0], texts[1]


# -- the server --------------------------------------------------------------------------------------------------------


def _serve(path: str) -> None:
    for module in _IMPORTED:
        import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening, selectors.DefaultSelector() as selector:
        listening.bind(path)
        listening.listen(64)
        selector.register(listening, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.write(1, _READY)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:  # whoever started it has ended
                    return
                line, _ = listening.accept()
                if os.fork() == 0:
                    _be_command(line)
                line.close()


def _be_command(line: socket.socket) -> None:
    """Run a command, report its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, streams, _, _ = socket.recv_fds(line, 1 << 20, 2)
    order = json.loads(data)
    line.send(str(os.getpid()).encode())
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = [order["program"], *order["arguments"]]
        code = _main(_PROGRAMS[order["program"]])
    finally:
        with suppress(OSError):
            line.send(str(code).encode())
        os._exit(0)


def _main(module: str) -> int:
    try:
        code = import_module(module).main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001 - as an interpreter ends by it
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return int(code or 0)


if __name__ == "__main__":
    _serve(sys.argv[1])
