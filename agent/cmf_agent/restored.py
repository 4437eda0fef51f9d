"""From what a hub told of a site's own logs to a log's database: which chain of each log, in which order, with which signatures.

Rules
- A log's database holds one chain per log. Of a log that forked it is the one with the latest head (by clock, then id); the other branches
  stay at the hub. What lies beyond an accepted gap stays there too: a log has no holes.
- Where the key is lost, a chain whose kept signatures cover it comes before one that nobody could send again.
- Nothing is taken that is not chained to its root, which names the key that signed it.
- All logs are put in by one transaction, each confirmed by the hub that told of it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cmf_agent.hub_file import HubFile
from cmf_agent.outbox import Cut
from cmf_agent.pull_checks import Piece, wrong
from cmf_agent.pulled import Pulled
from cmf_agent.schema import SEQUENCE_BITS
from cmf_graph.database import Connection, transaction
from cmf_protocol.encoding import encode
from cmf_protocol.errors import DecodeError
from cmf_protocol.events import Header, decode_body, trusted_header
from cmf_protocol.segments import Statement, unpack_segment
from cmf_protocol.signing import Succession
from cmf_protocol.types import LOG_OPENED

_PAGE_ROWS = 1_000

#: Sequence, event id, header, body.
Row = tuple[int, bytes, bytes, bytes | None]


class Chain(NamedTuple):
    """One chain of a log, from its root: the pieces that it goes through, its head, when and after which log it was opened."""

    pieces: tuple[Piece, ...]
    head_sequence: int
    head_id: bytes
    clock: int
    opened_us: int
    predecessor: bytes | None

    @property
    def log_id(self) -> bytes:
        """The log that it is of."""
        return self.pieces[0].log_id

    @property
    def key(self) -> bytes:
        """The key that signed it."""
        return self.pieces[0].key


class Chosen(NamedTuple):
    """The chains that a log's database is to hold, in the order of their opening, and how many pieces of logs are left at the hub."""

    chains: list[Chain]
    left: int


def choose(pulled: Pulled, key: bytes, hub: HubFile) -> Chosen:
    """Return which of the pulled chains are this site's logs from now on; `key` is the one that it signs with."""
    pieces = pulled.pieces()
    by_log: dict[bytes, list[Chain]] = {}
    for path in _paths(pieces):
        chain = _chain(pulled, path, hub)
        by_log.setdefault(chain.log_id, []).append(chain)
    has_forked = any(len(found) > 1 for found in by_log.values())
    cuts = _cuts(pulled) if has_forked else {}

    def rank(chain: Chain) -> tuple[bool, int, bytes]:
        can_send = chain.key == key or _is_covered(pulled, chain, cuts.get(chain.log_id, ()))
        return can_send, chain.clock, chain.head_id

    chains = in_order([max(found, key=rank) if has_forked else found[0] for found in by_log.values()])
    return Chosen(chains, len(pieces) - sum(len(chain.pieces) for chain in chains))


def in_order(chains: Sequence[Chain]) -> list[Chain]:
    """Return the logs in the order in which they were opened, none before the one that it goes on from."""
    due = sorted(chains, key=lambda chain: (chain.opened_us, chain.log_id))
    found: list[Chain] = []
    while due:
        waiting = {chain.log_id for chain in due}
        ready = next((chain for chain in due if chain.predecessor not in waiting - {chain.log_id}), due[0])
        due.remove(ready)
        found.append(ready)
    return found


def fill(connection: Connection, name: str, pulled: Pulled, chains: Sequence[Chain], hub: HubFile) -> None:
    """Put the chains into the empty database called `name`, all or none; raise `IntegrityError` for one that does not hold."""
    cuts = _cuts(pulled)
    with transaction(connection, name):
        for number, chain in enumerate(chains, 1):
            connection.execute(
                "INSERT INTO logs VALUES (?, ?, ?, ?)", (number, chain.log_id, chain.key, chain.opened_us)
            )
            connection.executemany(
                "INSERT INTO events (position, event_id, header, body) VALUES (?, ?, ?, ?)",
                ((number << SEQUENCE_BITS | row[0], *row[1:]) for row in _checked_rows(pulled, chain, hub)),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO segments VALUES (?, ?, ?, ?, ?, ?)",
                (_segment_row(number, cut) for cut in _cuts_of(pulled, chain, cuts.get(chain.log_id, ()))),
            )
            connection.execute(
                "INSERT INTO deliveries (hub, log, published, confirmed, confirmed_id) VALUES (?1, ?2, ?3, ?3, ?4)",
                (hub.hub_id, number, chain.head_sequence, chain.head_id),
            )


# -- chains ------------------------------------------------------------------------------------------------------------


def _paths(pieces: dict[bytes, Piece]) -> Iterator[tuple[Piece, ...]]:
    """Yield each way from a root to where nothing goes on without a hole, as pieces."""
    children: dict[bytes, list[Piece]] = {}
    for piece in pieces.values():
        if piece.parent is not None and piece.parent_sequence == piece.first_sequence - 1:
            children.setdefault(piece.parent, []).append(piece)
    due = [piece for piece in pieces.values() if piece.parent is None]
    while due:
        piece = due.pop()
        if piece.name in children:
            due += children[piece.name]
        else:
            yield _path_to(piece, pieces)


def _path_to(piece: Piece, pieces: dict[bytes, Piece]) -> tuple[Piece, ...]:
    found = [piece]
    while found[-1].parent is not None:
        found.append(pieces[found[-1].parent])
    return tuple(reversed(found))


def _chain(pulled: Pulled, path: tuple[Piece, ...], hub: HubFile) -> Chain:
    newest = pulled.rows(
        "SELECT sequence, event_id, header FROM events WHERE piece = ? ORDER BY sequence DESC LIMIT 1", (path[-1].id,)
    )
    root = pulled.rows("SELECT header, body FROM events WHERE piece = ? AND sequence = 1", (path[0].id,))
    if not newest or not root:
        raise wrong(hub.url, f"it lists branch {path[-1].name.hex()[:12]}, and nothing of it came")
    sequence, event_id, header = newest[0]
    opening = trusted_header(root[0][0])
    if opening.type != LOG_OPENED or opening.about != (("key", path[0].key),):
        raise wrong(hub.url, f"log {path[0].log_id.hex()} does not open with an event that names its key")
    return Chain(path, sequence, event_id, trusted_header(header).clock, opening.wall_us, _predecessor(root[0][1]))


def _predecessor(body: bytes | None) -> bytes | None:
    """Return the log that a root's body says it goes on from, whether or not that is proven."""
    try:
        succession = None if body is None else Succession.from_body(decode_body(body).get("succeeds"))
    except DecodeError:
        return None
    return None if succession is None else succession.log_id


def _checked_rows(pulled: Pulled, chain: Chain, hub: HubFile) -> Iterator[Row]:
    """Yield the events of a chain, each chained to the one before it, up to the last that the hub lists."""
    reached: tuple[int, bytes | None] = 0, None
    for piece in chain.pieces:
        for row in _rows(pulled, piece.id):
            header: Header = trusted_header(row[2])
            if (header.sequence, header.previous) != (reached[0] + 1, reached[1]):
                raise wrong(hub.url, f"event {row[0]} of log {chain.log_id.hex()} is not chained to the one before it")
            reached = row[0], row[1]
            yield row
    listed = pulled.rows("SELECT max(upto) FROM listings WHERE piece = ?", (chain.pieces[-1].id,))[0][0]
    if reached[0] != listed:
        raise wrong(hub.url, f"it lists {listed} events of log {chain.log_id.hex()}, of which {reached[0]} came")


def _rows(pulled: Pulled, piece: int) -> Iterator[Row]:
    sql = (
        "SELECT sequence, event_id, header, body FROM events WHERE piece = ? AND sequence > ? AND proven "
        "ORDER BY sequence LIMIT ?"
    )
    after = 0
    while rows := pulled.rows(sql, (piece, after, _PAGE_ROWS)):
        for row in rows:
            yield row[0], row[1], row[2], row[3]
        after = rows[-1][0]


# -- signatures --------------------------------------------------------------------------------------------------------


def _cuts(pulled: Pulled) -> dict[bytes, list[Cut]]:
    """Return the signatures that came, by log, in the order of their events."""
    found: dict[bytes, list[Cut]] = {}
    for (number,) in pulled.rows("SELECT id FROM proofs"):
        for (data,) in pulled.rows("SELECT data FROM proofs WHERE id = ?", (number,)):
            statement, signature, _ = unpack_segment(data)
            found.setdefault(statement.log_id, []).append(Cut(statement, signature))
    return {log_id: sorted(cuts, key=lambda cut: cut.statement.first_sequence) for log_id, cuts in found.items()}


def _cuts_of(pulled: Pulled, chain: Chain, cuts: Sequence[Cut]) -> Iterator[Cut]:
    """Yield those that end on a chain: since each event names the one before it, all they signed is on it."""
    for cut in cuts:
        if _id_at(pulled, chain, cut.statement.last_sequence) == cut.statement.last_id:
            yield cut


def _is_covered(pulled: Pulled, chain: Chain, cuts: Sequence[Cut]) -> bool:
    """Tell if all of a chain can be sent again as it was signed."""
    reached = 0
    for cut in _cuts_of(pulled, chain, cuts):
        if cut.statement.first_sequence <= reached + 1:
            reached = max(reached, cut.statement.last_sequence)
    return reached >= chain.head_sequence


def _id_at(pulled: Pulled, chain: Chain, sequence: int) -> bytes | None:
    piece = next((piece for piece in reversed(chain.pieces) if piece.first_sequence <= sequence), chain.pieces[0])
    rows = pulled.rows("SELECT event_id FROM events WHERE piece = ? AND sequence = ?", (piece.id, sequence))
    return rows[0][0] if rows else None


def _segment_row(number: int, cut: Cut) -> tuple[object, ...]:
    statement: Statement = cut.statement
    ends = statement.first_sequence, statement.last_sequence, statement.head_sequence
    return (number, *ends, encode(list(statement)), cut.signature)
