"""A hub's event store and registry in a folder, as `serve` has them, but with no process and no broker."""

from pathlib import Path

from tests.support.strategies import SIGNERS

from cmf_hub.custody import Answer, Confirmation, Custody, stored_runs
from cmf_hub.data import DataFolder
from cmf_hub.registry import Registry
from cmf_protocol.events import Event
from cmf_protocol.signing import Signer

NOW_US = 1_750_000_000_000_000
SITES = ("ana", "boris", "chen")
ANA, BORIS, CHEN = SIGNERS
STRANGER = Signer(b"\x09" * 32)


class Store:
    """Custody with the sites ana, boris and chen enrolled, each by its key; `reopen` is what a restart does."""

    def __init__(self, folder: Path) -> None:
        self.data = DataFolder(folder)
        self.data.prepare()
        self.registry = Registry(self.data.registry)
        for name, signer in zip(SITES, SIGNERS, strict=True):
            self.registry.add(name, login=None, key=signer.public_key, now_us=NOW_US)
        self.custody = Custody(self.data.store, self.registry)

    def close(self) -> None:
        self.custody.close()
        self.registry.close()

    def reopen(self) -> None:
        self.close()
        self.registry = Registry(self.data.registry)
        self.custody = Custody(self.data.store, self.registry)

    def bring(self, carrier: str | None, *segments: bytes, now_us: int = NOW_US) -> list[Answer]:
        """Let a carrier bring segments in one batch."""
        return self.custody.receive([(carrier, segment) for segment in segments], now_us)

    def take(self, *segments: bytes) -> Answer:
        """Let the operator bring segments one by one; return the last answer."""
        answer = Answer()
        for segment in segments:
            (answer,) = self.bring(None, segment)
        return answer

    def allow_carrying(self, name: str) -> None:
        """Give a site the right to carry others' logs."""
        self.registry.allow(name, carrier=True)

    def count(self, table: str) -> int:
        """Return the number of a table's rows."""
        return int(self.custody.rows(f"SELECT count(*) FROM {table}")[0][0])

    def events(self) -> list[Event]:
        """Return every stored event, in the order in which they were stored."""
        return [event for _, run in stored_runs(self.custody, 0, 1_000_000) for event in run.events]

    def heads(self) -> set[Confirmation]:
        """Return the watermark of each branch."""
        sql = "SELECT l.log_id, b.head_sequence, b.head_id FROM branches b JOIN logs l ON l.id = b.log"
        return {(log_id, sequence, event_id) for log_id, sequence, event_id in self.custody.rows(sql)}
