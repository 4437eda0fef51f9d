"""Processes that work for `serve` beside it, each started again if it dies.

Rules
- A child ends when its standard input closes, so also when `serve` is killed.
- It has the hub's folder in its command line, so that whoever looks for what works there finds it.
"""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys

from cmf_hub.data import DataFolder

logger = logging.getLogger("cmf_hub")

#: How long a child may take to end, s: the commit that it is in.
CHILD_END_S = 10.0
CHILD_RESTART_S = 1.0
#: How long `serve` waits for a child that says when it answers, s; then it goes on without.
CHILD_READY_S = 30.0


class Child:
    """A module that runs as a process of its own on the hub's folder; `greeting` is the first line that it reads."""

    def __init__(self, name: str, module: str, data: DataFolder, greeting: bytes = b"") -> None:
        self._name = name
        self._command = [sys.executable, "-m", module, str(data.root)]
        self._greeting = greeting
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the process."""
        self._close_pipes(self._process)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)  # a poke that finds no room is not needed
        self._write(self._greeting)

    def poke(self) -> None:
        """Tell it that there is something new."""
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        pipe = self._process.stdin if self._process else None
        if pipe is not None:
            with contextlib.suppress(OSError):  # it died: `watch` starts it again, and it looks for itself
                os.write(pipe.fileno(), data)

    async def ready(self) -> None:
        """Wait until it writes to its standard output: it answers; or until it ends, or takes too long, which is logged."""
        pipe = self._process.stdout if self._process else None
        if pipe is None:
            return
        deadline = asyncio.get_running_loop().time() + CHILD_READY_S
        os.set_blocking(pipe.fileno(), False)
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(BlockingIOError):
                os.read(pipe.fileno(), 64)
                return
            await asyncio.sleep(0.01)
        logger.error("the %s do not answer yet", self._name)

    async def watch(self) -> None:
        """Start it again whenever it ends."""
        while True:
            await asyncio.sleep(CHILD_RESTART_S)
            if self._process is not None and self._process.poll() is not None:
                logger.error("the %s ended with %s: started again", self._name, self._process.returncode)
                self.start()

    def stop(self) -> None:
        """End it after what it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        self._close_pipes(process)
        try:
            process.wait(CHILD_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @staticmethod
    def _close_pipes(process: "subprocess.Popen[bytes] | None") -> None:
        for pipe in (process.stdin, process.stdout) if process else ():
            if pipe is not None:
                pipe.close()
