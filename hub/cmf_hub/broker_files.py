"""What the embedded NATS server keeps in its folder, and how any process changes its sites while it runs.

Rules
- The configuration is checked by the server itself, then put in place in one step, readable by its owner only.
- Whoever writes it holds `configuration.lock` from reading the list of sites until the server has taken it.
- A process is the folder's server only if its command line names the folder's configuration: a number in a pid
  file alone proves nothing.
- A running server is told twice: after one reload a new site's service imports answer "no responders" for ever
  (seen with 2.15.1).
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import IO

from cmf_graph.database import sync_folder
from cmf_hub.accounts import (
    CA_FILE,
    LOG_FILE,
    PID_FILE,
    TLS_FOLDER,
    Settings,
    Sites,
    configuration,
    read_settings,
)
from cmf_hub.addresses import Addresses
from cmf_hub.broker_program import check_configuration, find_server
from cmf_protocol.errors import StoreError

CONFIGURATION_FILE = "nats-server.conf"
LOCK_FILE = "configuration.lock"
RELOADS = 2
#: How long the server may take to read its configuration again, s.
RELOAD_TIMEOUT_S = 15.0
#: How long a server may take to end by itself before it is killed, s.
END_TIMEOUT_S = 10.0
#: How often a file or a process is looked at while it is waited for, s.
LOOK_EVERY_S = 0.02

_RELOADED = "Reloaded server configuration"
_NOT_RELOADED = "Failed to reload server configuration"


async def reload_running(folder: Path, sites: Sites) -> bool:
    """Give the server of `folder`, whoever started it, the sites of now; False if none runs there.

    A site that is gone is cut off at once; others notice nothing. Raises `StoreError`, and `CallerError` for a
    site that can't be one.
    """
    if not folder.is_dir():
        return False
    async with configuration_lock(folder):
        file = configuration_file(folder)
        if not file.exists():
            return False
        settings = read_settings(file.read_text(encoding="utf-8"))
        await asyncio.to_thread(write_configuration, folder, settings, sites())
        return await have_read(folder)


async def have_read(folder: Path) -> bool:
    """Have the server of `folder` read what lies there, its certificate too; False if none runs. The caller holds the lock."""
    pid = running_server(folder)
    if pid is None:
        return False
    for _ in range(RELOADS):
        await _reload(pid, folder / LOG_FILE)
    return True


def running_settings(folder: Path) -> Settings | None:
    """Return the settings of the server that runs on `folder`, None if none does."""
    if running_server(folder) is None:
        return None
    return read_settings(configuration_file(folder).read_text(encoding="utf-8"))


def tls_folder(folder: Path) -> Path:
    """Return where the CA and the certificate of the server on `folder` are."""
    return folder.resolve().with_name(TLS_FOLDER)


def read_ca(folder: Path, addresses: Addresses) -> str | None:
    """Return the CA (PEM) by which the server on `folder` is known, None if it speaks no TLS. Raises `StoreError`."""
    if not addresses.tls:
        return None
    with folder_errors(folder):
        return (tls_folder(folder) / CA_FILE).read_text(encoding="ascii")


def configuration_file(folder: Path) -> Path:
    """Return the absolute path by which a server of `folder` is started and recognised."""
    return folder.resolve() / CONFIGURATION_FILE


def write_configuration(folder: Path, settings: Settings, sites: Mapping[str, str]) -> None:
    """Write and check the configuration, then put it in place at once; the caller holds the lock."""
    text = configuration(settings, folder.resolve(), sites)
    file = configuration_file(folder)
    draft = file.with_suffix(".draft")
    with folder_errors(folder):
        write_draft(draft, text)
        check_configuration(find_server(), draft)
        put_in_place(draft, file)


def write_draft(draft: Path, text: str) -> None:
    """Write a file beside the one that it is for, readable by its owner only, and on disk on return."""
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def put_in_place(draft: Path, file: Path) -> None:
    """Let `draft` take the place of `file`, in one step, for good."""
    draft.replace(file)
    sync_folder(file.parent)


@contextlib.asynccontextmanager
async def configuration_lock(folder: Path) -> AsyncIterator[None]:
    """Hold the folder's configuration lock; others wait, and the kernel frees it if we die."""
    with folder_errors(folder), lock_file(folder / LOCK_FILE) as held:
        await asyncio.to_thread(fcntl.flock, held, fcntl.LOCK_EX)
        yield


def lock_file(file: Path) -> IO[str]:
    """Open `file`, to be locked, for its owner only; its folder is made. Raises `StoreError`."""
    with folder_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "w")


@contextlib.contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system raises about the server's folder into `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder}: {error.strerror or error}",
            "check the hub's data folder: rights, space, and that it is a local disk",
        ) from error


def running_server(folder: Path) -> int | None:
    """Return the process id of the server that runs on `folder`, None if none does."""
    try:
        pid = int((folder / PID_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if str(configuration_file(folder)) in _command_line(pid) else None


def _command_line(pid: int) -> list[str]:
    """Return a process's arguments, [] if there is none (a dead one that nobody has reaped has none either)."""
    if Path("/proc/self").exists():
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        except OSError:
            return []
    said = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return [said.stdout.strip().partition(" -c ")[2]]


async def end_leftover(folder: Path) -> None:
    """End the server that a killed hub left on `folder`, if there is one. Raises `StoreError` if it can't be."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        pid = running_server(folder)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, ending)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                while running_server(folder) is not None:
                    await asyncio.sleep(LOOK_EVERY_S)
    if running_server(folder) is not None:
        raise StoreError(f"the NATS server left over on {folder} (process {pid}) does not end", "end it by hand")


async def _reload(pid: int, log: Path) -> None:
    """Have the server read its configuration, and wait until it says so in its log."""
    seen = log.stat().st_size
    os.kill(pid, signal.SIGHUP)
    try:
        async with asyncio.timeout(RELOAD_TIMEOUT_S):
            while not _said_reloaded(_since(log, seen)):
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError as error:
        raise StoreError(
            f"the NATS server (process {pid}) does not say that it read its configuration", f"look into {log}"
        ) from error


def _since(log: Path, position: int) -> str:
    with log.open("rb") as lines:
        # A log that is shorter than it was has been rotated meanwhile.
        lines.seek(position if log.stat().st_size >= position else 0)
        return lines.read().decode("utf-8", "replace")


def _said_reloaded(text: str) -> bool:
    for line in text.splitlines():
        if _NOT_RELOADED in line:
            raise StoreError(line.partition("[ERR] ")[2], "the server goes on with the sites that it had")
        if _RELOADED in line:
            return True
    return False
