"""Brings a site's own history back from its hub, after its disk was lost: `cmf-agent init --join FILE --restore`.

Theory of operation: the site joins again, with a new signing key or the old one, and pulls all events of its own keys, proven by their
signatures, into `.cmf/restoring/`. What came becomes the logs of a database there (`restored.py`), in which a successor of the newest log
is opened. Then this database is moved to where the log is looked for. Before that moment there is no log, so nothing can be appended to
half of one; a restore that was cut goes on with what is lacking, when the same command is run again.

Rules
- Nothing that was there is changed: a folder that holds a log is refused, a signing key that is there is used.
- Before it is done the hub is asked, with the heads of what came, whether it holds more: its lists may be late, its store is not.
- The old logs are never appended to, also where the old key is at hand: what the hub does not hold of them may turn up yet.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cmf_agent.fetching import Progress, PullReport
from cmf_agent.home import Home, make_folder
from cmf_agent.hub_file import HubFile, hub_in_force, join
from cmf_agent.keys import make_key, read_signer
from cmf_agent.locking import QueueLock
from cmf_agent.log import now_us, read_head
from cmf_agent.opening import has_log, open_successor
from cmf_agent.outbox import Outbox
from cmf_agent.place import read_place, reason_to_succeed, write_place
from cmf_agent.private_files import write_private
from cmf_agent.pull import CONNECT_WAIT_S, pull_all
from cmf_agent.pulled import Pulled
from cmf_agent.reading import LogReader
from cmf_agent.replaying import ask_hub
from cmf_agent.restored import Chain, choose, fill
from cmf_agent.schema import RESTORING, create_tables, open_database
from cmf_agent.version import AGENT
from cmf_graph.database import connect as open_sqlite
from cmf_graph.database import store_errors, sync_folder
from cmf_graph.locks import try_lock
from cmf_link.link import Link, connect
from cmf_protocol.encoding import Value
from cmf_protocol.errors import CallerError, CmfError, IntegrityError, StoreError
from cmf_protocol.filters import filter_of
from cmf_protocol.messages import HELLO_LOGS_MAX, Confirmation, sign_hello
from cmf_protocol.signing import Signer

OWN = filter_of(own=True)
REASON = "the site's disk was lost"
#: How long a hub gets to list what it holds, before it is asked again, s.
LATE_WAIT_S = 0.5


class Restored(NamedTuple):
    """What came back: logs and events (without the new log), pieces of logs left at the hub, and if the new log is proven to go on.

    Where it is not complete, time was up: what came is kept, and nothing is there to be used yet.
    """

    site: str
    logs: int = 0
    events: int = 0
    left: int = 0
    is_proven: bool = False
    is_complete: bool = False


def restore(
    home: Home,
    join_file: Path,
    *,
    url: str | None = None,
    key_file: Path | None = None,
    replaces: bool = False,
    timeout_s: float,
    progress: Progress = lambda _done, _total: None,
) -> Restored:
    """Join as `join_file` says, and bring back all that the hub holds of the site, within `timeout_s` seconds.

    `key_file` is a copy of the old signing key. Raises `CallerError` if `home` holds a log, or another key; `CmfError` if the hub holds
    nothing of this site; `HubUnreachable`, `AccessDenied`, `IntegrityError` like a pull.
    """
    staging = staging_of(home)
    if has_log(home.log_path) and not staging.log_path.exists():  # a restore was killed when all but this was done
        shutil.rmtree(staging.path, ignore_errors=True)
    _refuse_log(home)
    make_folder(home)
    take_key(home, key_file)
    join(home, join_file, url=url, replaces=replaces)
    hub = hub_in_force(home, url=url)
    with store_errors(staging.path):
        staging.path.mkdir(mode=0o700, exist_ok=True)
    lock = try_lock(staging.path / "restore.lock")
    if lock is None:
        raise StoreError("another restore of this site is running", "wait until it is done")
    with lock:
        try:
            return _bring_back(staging, home, hub, timeout_s, progress)
        except IntegrityError:  # what came does not hold together, or not with what came before: begin anew next time
            shutil.rmtree(staging.path)
            raise


def _bring_back(staging: Home, home: Home, hub: HubFile, timeout_s: float, progress: Progress) -> Restored:
    signer = read_signer(home.key_path)
    prepare(staging)
    if not has_log(staging.log_path) and not asyncio.run(_fetch(staging, hub, signer, timeout_s, progress)):
        return Restored(hub.site)
    done = build(staging, hub, signer)
    if not done.logs:
        shutil.rmtree(staging.path)
        raise CmfError(
            f"the hub {hub.url} holds nothing of {hub.site}, so there is nothing to bring back",
            "if that is right, `cmf-agent init --join FILE` makes a new log; else ask its operator for another file",
        )
    put_in_place(staging, home)
    return done


def staging_of(home: Home) -> Home:
    """Return where a log is brought back before it is put in place."""
    return Home(home.path / RESTORING, home.root)


def _refuse_log(home: Home) -> None:
    if has_log(home.log_path):
        raise CallerError(
            f"{home.path} holds a log already; --restore is for a new folder",
            f"nothing is lost: `cmf-agent push` brings over what is there; to restore all the same, move {home.path} aside",
        )


def take_key(home: Home, key_file: Path | None) -> None:
    """Have a signing key in `home`: the one that is there, else a copy of `key_file`, else a new one.

    Raises `CallerError` if the one that is there is not that of `key_file`, `StoreError` if that holds none.
    """
    if key_file is None:
        if not home.key_path.exists():
            make_key(home.key_path)
        return
    wanted = read_signer(key_file).public_key
    if not home.key_path.exists():
        with store_errors(key_file):
            write_private(home.key_path, key_file.read_bytes())
    elif read_signer(home.key_path).public_key != wanted:
        raise CallerError(
            f"{home.key_path} is another key than {key_file}",
            f"move {home.path} aside if it is not the one that is meant",
        )


# -- from the hub ------------------------------------------------------------------------------------------------------


def prepare(staging: Home) -> None:
    """Make the database that is to become the log, without a log in it."""
    with closing(open_sqlite(staging.log_path)) as connection:
        create_tables(connection, str(staging.log_path))


async def _fetch(staging: Home, hub: HubFile, signer: Signer, timeout_s: float, progress: Progress) -> bool:
    """Fetch what the hub holds of this site; tell if that is all here."""
    wait_s = min(CONNECT_WAIT_S, timeout_s)
    deadline = asyncio.get_running_loop().time() + timeout_s
    link = await connect(hub.url, seed=hub.login, name=f"cmf-agent {hub.site}", ca=hub.ca, timeout_s=wait_s)
    report = PullReport()
    try:
        await _say_hello(link, staging, hub, signer, [], wait_s)
        hub.forget_token()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while True:
                    await pull_all(
                        link, staging, hub, [OWN], prove=True, confirmed={}, progress=progress, report=report
                    )
                    if report.complete and await _is_all(link, staging, hub, signer, wait_s):
                        return True
                    await asyncio.sleep(LATE_WAIT_S)
        return False
    finally:
        await link.close()


async def _is_all(link: Link, staging: Home, hub: HubFile, signer: Signer, wait_s: float) -> bool:
    """Ask the hub's store, with the heads of what came, whether these logs go on there."""
    with Pulled(staging.pulled_path) as pulled:
        chains = choose(pulled, signer.public_key, hub).chains
        for start in range(0, len(chains), HELLO_LOGS_MAX):
            found = await _say_hello(link, staging, hub, signer, chains[start : start + HELLO_LOGS_MAX], wait_s)
            heads = {event_id for _, _, event_id in found}
            if heads - pulled.told(heads).keys():
                return False
    return True


async def _say_hello(
    link: Link, staging: Home, hub: HubFile, signer: Signer, chains: Sequence[Chain], wait_s: float
) -> tuple[Confirmation, ...]:
    """Say hello, which binds the key the first time, and return what the hub holds of these chains."""
    logs: list[Value] = [[chain.log_id, [[chain.head_sequence, chain.head_id]]] for chain in chains]
    data = sign_hello(
        signer, site=hub.site, hub_id=hub.hub_id, token=hub.token, time_us=now_us(), agent=AGENT, logs=logs
    )
    answer = await ask_hub(link, hub, data, wait_s)
    with Outbox(staging.log_path) as outbox:
        outbox.record_contact(hub.hub_id, answer.incarnation)
    return answer.confirmed


# -- to the log --------------------------------------------------------------------------------------------------------


def build(staging: Home, hub: HubFile, signer: Signer) -> Restored:
    """Make of what came the logs of the staged database, with a successor of the newest; if that was done before, say what came of it.

    Raises `IntegrityError`, with nothing made, if what came does not hold together.
    """
    with Pulled(staging.pulled_path) as pulled, closing(open_database(staging.log_path)) as connection:
        chosen = choose(pulled, signer.public_key, hub)
        if not chosen.chains:
            return Restored(hub.site, is_complete=True)
        if not has_log(staging.log_path):
            fill(connection, str(staging.log_path), pulled, chosen.chains, hub)
        if reason_to_succeed(staging, connection) is not None:
            newest = read_head(connection, staging.log_path)[1]
            open_successor(connection, staging, signer, predecessor=newest, reason=REASON)
    with LogReader(staging.log_path) as reader:
        *old, _ = reader.logs()
    return Restored(
        hub.site, len(old), sum(log.head_sequence for log in old), chosen.left, old[-1].key == signer.public_key, True
    )


def put_in_place(staging: Home, home: Home) -> None:
    """Move the staged log to where it is looked for, and remove the rest."""
    with closing(open_database(staging.log_path)) as connection, store_errors(staging.log_path):
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise StoreError(f"another program has {staging.log_path} open", "stop it, and run this again")
    with closing(QueueLock(home.lock_path)) as lock, lock, store_errors(home.path):
        _refuse_log(home)
        place = read_place(staging)
        assert place is not None, "whoever opened the successor wrote it"
        write_place(home, place)
        for suffix in ("-wal", "-shm"):  # of a log that was removed: SQLite would take them for this one's
            home.log_path.with_name(home.log_path.name + suffix).unlink(missing_ok=True)
        staging.log_path.replace(home.log_path)
        sync_folder(home.path)
    shutil.rmtree(staging.path)
