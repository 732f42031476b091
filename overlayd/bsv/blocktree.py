"""The Merkle tree over a block's txids, from which every transaction's BUMP is cut."""

from collections.abc import Iterable, Sequence
from hashlib import sha256 as _sha256

from overlayd.bsv.bump import Bump, Row, pick_rows
from overlayd.model.txid import TxId


def merkle_root(txids: Sequence[TxId]) -> bytes:
    """The root over a block's txids, in their order."""
    row: list[bytes] = list(txids)
    assert row, "a block has a coinbase"
    while len(row) > 1:
        row = _pair(row)
    return row[0]


class BlockTree:
    """All levels of one block's tree, in memory: 64 bytes a transaction. A Bump costs a few microseconds."""

    __slots__ = ("_places", "_rows", "height", "root")

    def __init__(self, height: int, txids: Sequence[TxId]) -> None:
        row: list[bytes] = list(txids)
        assert row, "a block has a coinbase"
        rows = []
        while len(row) > 1:
            rows.append(row)
            row = _pair(row)
        self.height = height
        self.root = row[0]
        self._rows = rows or [row]
        self._places = {txid: place for place, txid in enumerate(txids)}

    def __contains__(self, txid: TxId) -> bool:
        return txid in self._places

    def bump(self, txids: Iterable[TxId]) -> Bump:
        """The paths of some of the block's transactions, in one. Raises KeyError for one that isn't in the block."""
        offsets = frozenset(self._places[txid] for txid in txids)
        if len(self._rows[0]) == 1:
            return Bump(self.height, ({0: self._rows[0][0]},), offsets, self.root)
        return Bump(self.height, pick_rows([_Levels(row) for row in self._rows], offsets), offsets, self.root)


class _Levels(Row):
    """A whole level looked up by offset; where it ends on a left side, the right one is a copy."""

    def __init__(self, hashes: list[bytes]) -> None:
        super().__init__()
        self._hashes = hashes

    def __getitem__(self, offset: int) -> bytes:
        return self._hashes[offset] if offset < len(self._hashes) else b""


def _pair(row: list[bytes]) -> list[bytes]:
    even = row if len(row) % 2 == 0 else [*row, row[-1]]
    return [_sha256(_sha256(even[at] + even[at + 1]).digest()).digest() for at in range(0, len(even), 2)]
