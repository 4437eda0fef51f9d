"""To which other hubs this one forwards: `hub.toml`, and how far each of them is.

    [[upstream]]
    join = "north.join"       # what `cmf-hub site add NAME --carrier -o FILE` made at the other hub; relative to the data folder
    # url = "tls://..."       # instead of the file's address
    # bandwidth = "1MB/s"     # no more than that is sent

Rules
- What is kept here is for people and for not sending twice; nothing is lost with it: the other hub is asked what it holds.
- A branch is named by its first event, since numbers may be given anew when the store is brought back from a copy.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cmf_graph.database import connect, store_errors, transaction
from cmf_hub.data import DataFolder
from cmf_link.address import read_address
from cmf_link.pace import read_rate
from cmf_link.replay import Target
from cmf_protocol.chains import Mark
from cmf_protocol.errors import CallerError

JOIN_VERSION = 1
_HINT = "name the file that `cmf-hub site add NAME --carrier -o FILE` made at the other hub"

_TABLES = """
CREATE TABLE IF NOT EXISTS upstreams (hub BLOB PRIMARY KEY, url TEXT NOT NULL, state TEXT NOT NULL, detail TEXT NOT NULL, since_us INTEGER);
CREATE TABLE IF NOT EXISTS forwarded (
  hub BLOB, branch BLOB, confirmed INTEGER, published INTEGER, stream_id TEXT, stream_sequence INTEGER,
  code TEXT, message TEXT, PRIMARY KEY (hub, branch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS supplied (hub BLOB, digest BLOB, branch BLOB NOT NULL, PRIMARY KEY (hub, digest)) WITHOUT ROWID
"""


class Upstream(NamedTuple):
    """Another hub: where it is replayed to, and the token that binds this hub's key there."""

    target: Target
    token: str | None


class Forwarded(NamedTuple):
    """How far another hub is with a branch: confirmed up to this sequence, published up to a mark, or refused and why."""

    confirmed: int
    mark: Mark | None
    refused: str | None


def configured(data: DataFolder) -> list[Upstream]:
    """Return what `hub.toml` names; raise `CallerError` for what can't be meant, `StoreError` for what can't be read."""
    file = data.root / "hub.toml"
    if not file.exists():
        return []
    with store_errors(file):
        content = file.read_bytes()
    try:
        found = tomllib.loads(content.decode())
    except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError both are
        raise CallerError(f"{file} is not valid TOML: {error}", "mend that line") from error
    tables = found.get("upstream", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise CallerError(f"{file}: upstream is no table", 'write [[upstream]] and below it join = "FILE"')
    upstreams = [_upstream(file, table) for table in tables]
    hubs = [upstream.target.hub_id for upstream in upstreams]
    if len(set(hubs)) < len(hubs):
        raise CallerError(f"{file} names one hub twice", "forward to each hub once")
    return upstreams


def _upstream(file: Path, table: Mapping[str, Any]) -> Upstream:
    join = table.get("join")
    if not isinstance(join, str):
        raise CallerError(f"{file}: an upstream names no join file", 'write join = "FILE" below [[upstream]]')
    path = file.parent / join
    if not path.exists():
        raise CallerError(f"{file}: there is no {path}", _HINT)
    with store_errors(path):
        content = path.read_bytes()
    try:
        fields = json.loads(content)
        if fields["version"] != JOIN_VERSION:
            raise ValueError(f"its version is {fields['version']!r}")
        rate = table.get("bandwidth")
        url = str(table.get("url") or fields["url"])
        read_address(url)
        target = Target(
            url=url, seed=fields["login"], name=f"cmf-hub {fields['site']}",
            carrier=fields["site"], hub_id=bytes.fromhex(fields["hub_id"]), ca=fields["ca"],
            bytes_per_s=None if rate is None else read_rate(str(rate)),
        )  # fmt: skip
        return Upstream(target, fields["token"])
    except (ValueError, KeyError, TypeError) as error:
        raise CallerError(f"{path} is not a join file: {error}", _HINT) from error


class Progress:
    """How far the other hubs are, in a database of its own; for one thread."""

    def __init__(self, data: DataFolder) -> None:
        self._name = str(data.root / "upstreams.db")
        self._connection = connect(self._name)
        with transaction(self._connection, self._name):
            for statement in _TABLES.split(";\n"):
                self._connection.execute(statement)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with store_errors(self._name):
            return self._connection.execute(sql, parameters).fetchall()

    def of(self, hub: bytes) -> dict[bytes, Forwarded]:
        """Return how far a hub is with each branch, by the branch's first event."""
        sql = "SELECT branch, confirmed, published, stream_id, stream_sequence, code, message FROM forwarded WHERE hub = ?"
        return {
            branch: Forwarded(confirmed or 0, None if stream is None else Mark(published, stream, at), code and f"{code}: {message}")
            for branch, confirmed, published, stream, at, code, message in self._rows(sql, hub)
        }  # fmt: skip

    def keep(
        self,
        hub: bytes,
        confirmed: Mapping[bytes, int],
        marks: Mapping[bytes, Mark],
        refused: Mapping[bytes, tuple[str, str]],
    ) -> None:
        """Keep what changed; what is confirmed is not refused any more."""
        if not (confirmed or marks or refused):
            return
        with transaction(self._connection, self._name):
            touched = {*confirmed, *marks, *refused}
            self._many("INSERT OR IGNORE INTO forwarded (hub, branch) VALUES (?, ?)", ((hub, b) for b in touched))
            self._many(
                "UPDATE forwarded SET confirmed = ?, code = NULL, message = NULL WHERE hub = ? AND branch = ?",
                ((sequence, hub, branch) for branch, sequence in confirmed.items()),
            )
            self._many(
                "UPDATE forwarded SET published = ?, stream_id = ?, stream_sequence = ? WHERE hub = ? AND branch = ?",
                ((*mark, hub, branch) for branch, mark in marks.items()),
            )
            self._many(
                "UPDATE forwarded SET code = ?, message = ? WHERE hub = ? AND branch = ?",
                ((*reason, hub, branch) for branch, reason in refused.items()),
            )

    def _many(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._connection.executemany(sql, rows)

    def supplied(self, hub: bytes) -> set[bytes]:
        """Return the digests of the stored segments of which a hub has the bodies that came late."""
        return {row[0] for row in self._rows("SELECT digest FROM supplied WHERE hub = ?", hub)}

    def note_supplied(self, hub: bytes, branch: bytes, digest: bytes) -> None:
        """Note that a hub has the bodies of a segment that came late."""
        with transaction(self._connection, self._name):
            self._connection.execute("INSERT OR REPLACE INTO supplied VALUES (?, ?, ?)", (hub, digest, branch))

    def forget_supplied(self, hub: bytes, branch: bytes) -> None:
        """Note that a hub may have lost bodies of a branch that it had."""
        with transaction(self._connection, self._name):
            self._connection.execute("DELETE FROM supplied WHERE hub = ? AND branch = ?", (hub, branch))

    def say(self, hub: bytes, url: str, state: str, detail: str, now_us: int) -> None:
        """Keep what forwarding to a hub is doing."""
        with transaction(self._connection, self._name):
            self._connection.execute(
                "INSERT INTO upstreams VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (hub) DO UPDATE SET url = ?2, state = ?3, detail = ?4, "
                "since_us = iif(state = ?3, since_us, ?5)",
                (hub, url, state, detail, now_us),
            )

    def states(self) -> list[tuple[bytes, str, str, str, int]]:
        """Return (hub, address, state, detail, since µs) of the hubs that were forwarded to."""
        return self._rows("SELECT hub, url, state, detail, since_us FROM upstreams ORDER BY url")


def read_progress(data: DataFolder) -> Progress | None:
    """Open what is known of other hubs, None if nothing was ever forwarded."""
    return Progress(data) if (data.root / "upstreams.db").exists() else None
