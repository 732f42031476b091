"""The node's own anchors and packets' own transactions that are in blocks, read from its database for whoever shows them.
Blocking."""

import sqlite3
from hashlib import sha256

import msgspec

from overlayd.bsv.anchor import Anchor, AnchorKind, find_anchor
from overlayd.bsv.chain_check import anchor_of
from overlayd.bsv.tx import parse_transaction
from overlayd.chain.header_tables import read_header_at
from overlayd.model.errors import MalformedChainData
from overlayd.model.proof_file import ProofAnchor

_ANCHORS = """
SELECT a.size, a.note, t.raw, t.bump, t.height, t.block FROM chain_anchor AS a JOIN chain_tx AS t ON t.id = a.tx_id
WHERE a.size BETWEEN ? AND ? AND t.height IS NOT NULL AND t.raw IS NOT NULL AND t.bump IS NOT NULL ORDER BY a.size"""


_OWN = """
SELECT i.vout, t.raw, t.bump, t.height, t.block FROM chain_item AS i JOIN chain_tx AS t ON t.id = i.tx_id
WHERE i.is_range = 0 AND i.offset = ? AND i.vout IS NOT NULL AND t.height IS NOT NULL AND t.raw IS NOT NULL
AND t.bump IS NOT NULL"""


class AnchoredCheckpoint(msgspec.Struct, frozen=True):
    """A signed checkpoint and the block that holds it."""

    size: int
    note: str
    anchor: ProofAnchor


def read_anchored(connection: sqlite3.Connection, low: int, high: int) -> list[AnchoredCheckpoint]:
    """Those of sizes from `low` to `high`, in blocks of the best chain, ascending. Empty where the node has no chain."""
    network = _read_network(connection)
    found = []
    for size, note, raw, bump, height, block in connection.execute(_ANCHORS, (low, high)).fetchall() if network else ():
        held = read_header_at(connection, height)
        if held is None or held.hash != block:
            continue  # between a reorg and the watcher's next step
        lines = "".join(f"{line}\n" for line in note.split("\n", 3)[:3])
        wanted = Anchor(AnchorKind.CHECKPOINT, sha256(lines.encode()).digest())
        try:
            output = find_anchor(parse_transaction(raw), wanted)
            if output is not None:
                anchor = anchor_of(network, raw, bump, held.header.raw, height, output)
                found.append(AnchoredCheckpoint(size, note, anchor))
        except MalformedChainData:
            continue  # damaged; the watcher fetches it again
    return found


class OwnTransactions:
    """Of packets whose stream commits each by a transaction of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._network = _read_network(connection)

    def find(self, offset: int, commitment: bytes) -> ProofAnchor | None:
        """The packet's, if a block of the best chain holds it."""
        row = self._connection.execute(_OWN, (offset,)).fetchone() if self._network else None
        if row is None:
            return None
        vout, raw, bump, height, block = row
        held = read_header_at(self._connection, height)
        try:
            is_its = find_anchor(parse_transaction(raw), Anchor(AnchorKind.COMMITMENT, commitment)) is not None
            if held is None or held.hash != block or not is_its:
                return None  # between a reorg and the watcher's next step, or damaged
            return anchor_of(self._network, raw, bump, held.header.raw, height, vout)
        except MalformedChainData:
            return None


def _read_network(connection: sqlite3.Connection) -> str:
    """Empty where the node has no chain."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'chain_%'")}
    if not tables >= {"chain_anchor", "chain_tx", "chain_item", "chain_header", "chain_network"}:
        return ""
    named = connection.execute("SELECT name FROM chain_network").fetchone()
    return "" if named is None else str(named[0])
