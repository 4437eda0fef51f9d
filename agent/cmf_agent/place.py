"""Where the log lies: what betrays that its file was copied, or that an older one was put back.

Theory of operation: `place.json` lies beside the log's database. It says on which machine and in which file the newest
log was opened, and which event of it left the site last. Where a folder was copied, a backup put back, or a database
brought back alone, what is found does not fit what is written, and the next append opens a successor log
(`opening.succeed_if_copied`) instead of going on in a log that another copy may go on in too. Where all fits
nonetheless, a hub's answer names an event that this site has not (`another_writer`), and `mark_forked` leaves word.

Rules
- Only what opens a log writes the file anew. A missing or damaged one is never made good: it counts as copied.
- Whoever writes it holds the log's lock.
- An unknown machine (no /etc/machine-id: macOS, most containers) is no reason, so that a host and its containers can share a log.
- It holds no secret, and everyone who may read the log may read it: whoever appends has to.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cmf_agent.home import Home
from cmf_agent.locking import QueueLock
from cmf_agent.private_files import write_whole
from cmf_agent.schema import SEQUENCE_BITS, SEQUENCE_MASK
from cmf_graph.database import Connection, store_errors

PLACE_VERSION = 1
#: The machine's id is to be told nobody as it is, but hashed by each program for itself (machine-id(5)).
_MACHINE_TAG = b"cmf-sync machine v1\0"
_MACHINE_FILE = Path("/etc/machine-id")
_MACHINE_CHARS = 32
_FILE_MODE = 0o644

FORKED = "another copy of this log goes on"


class Place(NamedTuple):
    """What `place.json` says: machine (None: unknown) and inode where the log `log_id` was opened, and what is known of it.

    `pushed` is (sequence, event id) of its newest event that has left this site.
    """

    machine: str | None
    inode: int
    log_id: bytes
    pushed: tuple[int, bytes] | None = None
    is_forked: bool = False


class Found(NamedTuple):
    """What is found: machine, inode, the newest log, and the id of its event at the sequence of `Place.pushed`, if any."""

    machine: str | None
    inode: int
    log_id: bytes
    pushed_id: bytes | None = None


def why_copied(place: Place | None, found: Found) -> str | None:
    """Return why the log can't be gone on in, None if it can. Pure."""
    if place is None:
        return "place.json is missing or damaged"
    if place.machine is not None and found.machine is not None and place.machine != found.machine:
        return "it lies on another machine"
    if place.log_id != found.log_id:
        return "the log that was opened here last is missing"
    if place.pushed is not None and place.pushed[1] != found.pushed_id:
        return f"an older copy was put back: event {place.pushed[0]}, which was sent, is missing"
    if place.inode != found.inode:
        return "the file is another one"
    return FORKED if place.is_forked else None


def another_writer(
    confirmed: Iterable[tuple[bytes, int, bytes]], own_id_at: Callable[[bytes, int], bytes | None]
) -> set[bytes]:
    """Return the logs of which a hub holds an event that this site has not: another copy of them goes on. Pure.

    `confirmed` is what the hub says of this site's own logs, (log id, sequence, event id); `own_id_at` returns the site's id
    at (log id, sequence), None beyond the head, and has to know what was recorded until now.
    """
    return {log_id for log_id, sequence, event_id in confirmed if own_id_at(log_id, sequence) != event_id}


# -- the file ----------------------------------------------------------------------------------------------------------


def reason_to_succeed(home: Home, connection: Connection) -> str | None:
    """Return why the next append has to open a successor log, None if it goes on in the newest one.

    Raises `StoreError` if `place.json` is there and may not be read.
    """
    newest = connection.execute("SELECT id, log_id FROM logs ORDER BY id DESC LIMIT 1").fetchone()
    if newest is None:  # what appends says so
        return None
    number, log_id = newest
    place = read_place(home)
    pushed_id = None
    if place is not None and place.pushed is not None:
        position = number << SEQUENCE_BITS | place.pushed[0]
        row = connection.execute("SELECT event_id FROM events WHERE position = ?", (position,)).fetchone()
        pushed_id = row[0] if row else None
    return why_copied(place, Found(this_machine(), _inode(home), log_id, pushed_id))


def place_here(home: Home, log_id: bytes) -> Place:
    """Return the place of a log that is opened here and now."""
    return Place(this_machine(), _inode(home), log_id)


def note_pushed(home: Home, log_id: bytes, sequence: int, event_id: bytes) -> None:
    """Note, durably, that a log's events up to this one leave the site: over NATS, in a bundle, in any way.

    To be called before they do, as `Outbox.record_cuts` does: an event that was sent and not noted would not be missed in an
    older copy that is put back. Of a log that is not the newest, or of an older event, nothing is noted.
    """
    with closing(QueueLock(home.lock_path)) as lock, lock:
        place = read_place(home)
        if place is not None and place.log_id == log_id and (place.pushed is None or place.pushed[0] < sequence):
            write_place(home, place._replace(pushed=(sequence, event_id)))


def mark_forked(home: Home, log_id: bytes) -> None:
    """Note that another copy of this log goes on, so that the next append opens a successor; of an older log nothing."""
    with closing(QueueLock(home.lock_path)) as lock, lock:
        place = read_place(home)
        if place is not None and place.log_id == log_id and not place.is_forked:
            write_place(home, place._replace(is_forked=True))


def read_place(home: Home) -> Place | None:
    """Return what `place.json` says, None if it is missing or damaged."""
    with store_errors(home.place_path):
        try:
            content = home.place_path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return _from_json(json.loads(content))
    except (ValueError, KeyError, TypeError):
        return None


def write_place(home: Home, place: Place) -> None:
    """Write `place.json`, whole or not at all; the caller holds the log's lock."""
    pushed = place.pushed
    content = {
        "version": PLACE_VERSION,
        "machine": place.machine,
        "inode": place.inode,
        "log": place.log_id.hex(),
        "pushed": {"sequence": pushed[0], "event": pushed[1].hex()} if pushed else None,
        "forked": place.is_forked,
    }
    write_whole(home.place_path, json.dumps(content, indent=2).encode() + b"\n", _FILE_MODE)


def _from_json(content: dict[str, object]) -> Place:
    machine, inode, pushed = content["machine"], content["inode"], content["pushed"]
    if not (machine is None or isinstance(machine, str)) or not isinstance(inode, int):
        raise TypeError
    return Place(machine, inode, bytes.fromhex(str(content["log"])), _pushed_of(pushed), content.get("forked") is True)


def _pushed_of(content: object) -> tuple[int, bytes] | None:
    if content is None:
        return None
    if not isinstance(content, dict) or not 0 < content["sequence"] <= SEQUENCE_MASK:
        raise TypeError
    return int(content["sequence"]), bytes.fromhex(content["event"])


def this_machine(file: Path = _MACHINE_FILE) -> str | None:
    """Return what stands for this machine, None where it has no id (machine-id(5): 32 hexadecimal digits)."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    if len(text) != _MACHINE_CHARS or not all(char in "0123456789abcdef" for char in text):
        return None  # such as "uninitialized", in an image
    return sha256(_MACHINE_TAG + text.encode()).hexdigest()


def _inode(home: Home) -> int:
    """Return the file's number; not its device's, which may change when the machine starts again."""
    with store_errors(home.log_path):
        return home.log_path.stat().st_ino
