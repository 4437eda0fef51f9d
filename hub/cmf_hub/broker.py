"""The embedded broker: a real nats-server that `cmf-hub serve` starts, watches and ends.

Rules
- One hub per folder, held by a lock that the kernel frees when the hub dies; so a server that still runs on the
  folder at a start was left over by a killed hub, and is ended first.
- It counts as started when the hub can log in.
- It is in a session of its own: Ctrl-C in a terminal reaches the hub, which ends it last.
- Sites change by `apply` here, or by `broker_files.reload_running` from any other process.
- Its certificate is looked at before each start and then regularly; a new one is told to it as sites are, and cuts
  no connection.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import re
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cmf_hub.accounts import LOG_FILE, PID_FILE, Settings, Sites
from cmf_hub.addresses import Addresses
from cmf_hub.broker_files import (
    END_TIMEOUT_S,
    LOOK_EVERY_S,
    configuration_file,
    configuration_lock,
    end_leftover,
    have_read,
    lock_file,
    read_ca,
    reload_running,
    tls_folder,
    write_configuration,
)
from cmf_hub.broker_program import find_server
from cmf_hub.proof import prove
from cmf_link.address import Address
from cmf_link.link import connect
from cmf_link.login import Login
from cmf_protocol.errors import CallerError, CmfError, LinkError, StoreError

if TYPE_CHECKING:  # it takes the package `cryptography`, which only a hub with TLS needs
    from cmf_hub.certificates import Certificates

logger = logging.getLogger("cmf_hub")

HUB_LOCK_FILE = "hub.lock"
#: How long a server may take until it lets the hub in: it reads its whole store first, s.
START_TIMEOUT_S = 60.0
#: How long one attempt to log in may take meanwhile, s.
LOGIN_TIMEOUT_S = 2.0
#: First and longest wait before a server that ended is started again, s.
RESTART_WAIT_S = 0.2
RESTART_WAIT_MAX_S = 30.0
#: A server that ran this long had started well, s.
STEADY_AFTER_S = 60.0
#: How often the certificate is looked at, s: renewal begins weeks before it ends.
CERTIFICATE_LOOK_S = 3600.0


class Broker:
    """A nats-server of our own on one folder; made by `start`, ended by `stop`."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        hub: Login,
        sites: Sites,
        held: IO[str],
        certificates: "Certificates | None",
    ) -> None:
        self.folder = folder
        #: By which this machine reaches the server; sites are told the advertised address.
        self.url = settings.addresses.local.url
        self._settings = settings
        self._hub = hub
        self._sites = sites
        self._held = held
        self._certificates = certificates
        self._certificate_untold = False
        self._stopping = False
        #: Held while the server is being started or ended, so that `stop` never misses one that just starts.
        self._changing = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, folder: Path, addresses: Addresses, hub: Login, sites: Sites) -> "Broker":
        """Start a server that keeps everything in `folder` (its TLS beside that); return once the hub can log in.

        Raises `CallerError` (no usable program, host or port) and `StoreError` (folder in use, no start).
        """
        certificates = _certificates(folder, addresses) if addresses.tls else None
        held = _hold(folder)
        broker = cls(folder.resolve(), Settings(addresses, hub.public), hub, sites, held, certificates)
        try:
            await broker._start()
        except BaseException:
            await broker.stop()
            raise
        return broker

    @property
    def ca(self) -> str | None:
        """The CA (PEM) by which to know the server, None if it speaks no TLS."""
        return read_ca(self.folder, self._settings.addresses)

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def apply(self) -> None:
        """Have the server take the sites of now: new ones can log in, removed ones are cut off. Raises `StoreError`."""
        if not await reload_running(self.folder, self._sites):
            raise StoreError(
                f"the NATS server on {self.folder} does not run", "it takes the sites when it starts again"
            )

    async def prove(self, site: str, seed: str) -> None:
        """Log in as `site` and see that what it needs answers; see `prove`."""
        await prove(self.url, self.ca, hub_seed=self._hub.seed, site=site, site_seed=seed)

    async def keep_certificate(self) -> None:
        """Renew the server's certificate whenever it is due, for ever; return at once if it speaks no TLS."""
        while self._certificates is not None:
            await asyncio.sleep(CERTIFICATE_LOOK_S)
            try:
                await self.renew(datetime.now(UTC))
            except CmfError as error:
                logger.error("the certificate could not be renewed: %s", error)

    async def renew(self, now: datetime) -> None:
        """Renew the server's certificate if it is due at `now`, and have the server take it. Raises `StoreError`."""
        async with configuration_lock(self.folder):
            self._certificate_untold |= await self._renew_file(now)
            if self._certificate_untold:  # also what an earlier attempt could not tell the server
                await have_read(self.folder)
                self._certificate_untold = False

    async def _renew_file(self, now: datetime) -> bool:
        return self._certificates is not None and await asyncio.to_thread(self._certificates.renew, now) is not None

    async def wait(self) -> int:
        """Wait until the server ends, for whatever reason, and return its exit code (negative: the signal)."""
        return await self._process.wait() if self._process else 0

    async def supervise(self, on_end: Callable[[int], None]) -> None:
        """Start the server again whenever it ends, with back-off, until `stop`; `on_end` gets the exit code."""
        clock = asyncio.get_running_loop().time
        wait_s = RESTART_WAIT_S
        while True:
            since = clock()
            code = await self.wait()
            if self._stopping:
                return
            on_end(code)
            if clock() - since > STEADY_AFTER_S:
                wait_s = RESTART_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RESTART_WAIT_MAX_S)
            try:
                await self._start()
            except CmfError as error:
                logger.error("the NATS server does not start: %s", error)

    async def stop(self) -> None:
        """End the server, first by asking, and let go of the folder. It is gone on return."""
        self._stopping = True
        async with self._changing:
            await self._end_process()
        self._held.close()

    async def _end_process(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        (self.folder / PID_FILE).unlink(missing_ok=True)

    async def _start(self) -> None:
        # The lock is held until the server is up, so that a site added meanwhile by another process is told to it.
        async with self._changing, configuration_lock(self.folder):
            if self._stopping:
                return
            await end_leftover(self.folder)
            _check_port(self._settings.addresses.listen)
            await self._renew_file(datetime.now(UTC))
            await asyncio.to_thread(write_configuration, self.folder, self._settings, self._sites())
            try:
                self._process = await self._spawn()
                await self._wait_ready()
            except BaseException:
                await self._end_process()
                raise

    async def _spawn(self) -> asyncio.subprocess.Process:
        with (self.folder / LOG_FILE).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                find_server(),
                "-c",
                configuration_file(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._lets_hub_in():
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise StoreError(
                f"the NATS server does not let the hub in within {START_TIMEOUT_S:.0f} s: {self._complaint()}",
                f"look into {self.folder / LOG_FILE}",
            ) from error

    async def _lets_hub_in(self) -> bool:
        if self._stopping:
            raise StoreError("the hub ends before its NATS server has started")
        if self.pid is None:
            raise StoreError(f"the NATS server ended: {self._complaint()}", f"look into {self.folder / LOG_FILE}")
        try:
            link = await connect(
                self.url, seed=self._hub.seed, name="cmf-hub start", ca=self.ca, timeout_s=LOGIN_TIMEOUT_S
            )
        except LinkError:
            return False
        await link.close()
        return True

    def _complaint(self) -> str:
        """Return the last error in the server's log, or else its last line."""
        lines = (self.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        complaints = [line for line in lines if "[FTL] " in line or "[ERR] " in line] or lines or ["it said nothing"]
        return re.sub(r"^.*\[(FTL|ERR)\] ", "", complaints[-1])


def _certificates(folder: Path, addresses: Addresses) -> "Certificates":
    try:
        from cmf_hub.certificates import Certificates
    except ImportError as error:
        raise CallerError(
            f"TLS needs the package {error.name}, which is not installed", "pip install 'cmf-sync[hub]'"
        ) from error
    return Certificates(tls_folder(folder), addresses.names(socket.gethostname()))


def _check_port(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        socket.create_server((address.host, address.port), family=family).close()
    except (OSError, OverflowError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        what = "is in use by another program" if in_use else f"can't be used: {error}"
        raise CallerError(
            f"{address} {what}", "end that program, or choose another address with --nats HOST:PORT"
        ) from error


def _hold(folder: Path) -> IO[str]:
    """Take the folder for this process. Raises `StoreError` if another hub has it."""
    held = lock_file(folder / HUB_LOCK_FILE)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise StoreError(f"another hub serves {folder}", "end it, or give this one another --data folder") from error
    return held
