"""BUMP (BRC-74): the Merkle paths of transactions up to their block's root.

Level 0 is the row of txids; hashes are in internal order. A `Bump` that was read is sound: each of its leaves leads
to the one root, every hash in it is needed, and nothing is missing. What is left to check is that root against the
header at that height (about 15 µs for one path of 12 levels, hashing included).
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256 as _sha256

import msgspec

from overlayd.bsv.octets import U32_MAX, ByteReader, encode_varint
from overlayd.model.errors import MalformedChainData, VerificationFailed
from overlayd.model.txid import HASH_BYTES, TxId, format_hash

BUMP_BYTES_MAX = 16 << 20
"""About 500,000 hashes."""
LEVELS_MAX = 64

_FLAG_HASH = 0
_FLAG_DUPLICATE = 1
_FLAG_TXID = 2
_LEAF_BYTES_MIN = 2

Row = dict[int, bytes]
"""Offset to hash, on one level. A copy of the left neighbour is written as empty bytes."""
_DUPLICATE = b""


class Bump(msgspec.Struct, frozen=True):
    """Paths of some transactions of one block. `rows[0]` holds their txids and neighbours, `txids` those asked for."""

    height: int
    rows: tuple[Row, ...]
    txid_offsets: frozenset[int]
    root: bytes

    @property
    def txids(self) -> list[TxId]:
        """The transactions that it was made for, by their place in the block."""
        return [TxId(self.rows[0][offset]) for offset in sorted(self.txid_offsets)]

    def find(self, txid: TxId) -> int | None:
        """The transaction's place in its block, when the paths hold it (also as a neighbour)."""
        for offset, value in self.rows[0].items():
            if value == txid:
                return offset
        return None

    def verify(self, txid: TxId, merkle_root: bytes) -> None:
        """Checks that a transaction is in the block of that root. Raises VerificationFailed."""
        if self.find(txid) is None:
            raise VerificationFailed("the proof isn't of this transaction", subject=f"txid {format_hash(txid)}")
        if self.root != merkle_root:
            raise VerificationFailed(
                f"the proof leads to {format_hash(self.root)}, not to the block's root",
                subject=f"txid {format_hash(txid)}",
            )

    def encode(self) -> bytes:
        """The binary form, offsets ascending on each level."""
        parts = [encode_varint(self.height), bytes((len(self.rows),))]
        for level, row in enumerate(self.rows):
            parts.append(encode_varint(len(row)))
            for offset in sorted(row):
                value = row[offset]
                flag = _FLAG_HASH if value else _FLAG_DUPLICATE
                if not level and offset in self.txid_offsets:
                    flag = _FLAG_TXID
                parts.append(encode_varint(offset) + bytes((flag,)) + value)
        return b"".join(parts)


def parse_bump(raw: bytes, *, bytes_max: int = BUMP_BYTES_MAX) -> Bump:
    """Reads a BUMP, whole, and follows its paths. Raises MalformedChainData."""
    if len(raw) > bytes_max:
        raise MalformedChainData(f"{len(raw)} bytes; at most {bytes_max} are taken", subject="BUMP")
    reader = ByteReader(raw, "BUMP")
    bump = read_bump(reader)
    reader.finish()
    return bump


def read_bump(reader: ByteReader) -> Bump:
    """Takes one BUMP from the front and follows its paths. Raises MalformedChainData."""
    height = reader.varint()
    if height > U32_MAX:
        raise reader.fault(f"a block height of {height}")
    levels = reader.u8()
    if not 1 <= levels <= LEVELS_MAX:
        raise reader.fault(f"a tree of {levels} levels; 1 to {LEVELS_MAX} are possible")
    txid_offsets: set[int] = set()
    rows = [_read_row(reader, level, txid_offsets) for level in range(levels)]
    return make_bump(height, rows, txid_offsets)


def _read_row(reader: ByteReader, level: int, txid_offsets: set[int]) -> Row:
    """One level. Written for speed: most levels hold one leaf, with an offset of one byte."""
    row: Row = {}
    data, size = reader.data, len(reader.data)
    at = reader.at
    if at + 1 < size and data[at] == 1 and data[at + 1] < 0xFD:
        count, at = 1, at + 1
    else:
        count = reader.count(_LEAF_BYTES_MIN)
        at = reader.at
    for _ in range(count):
        if at < size and data[at] < 0xFD:
            offset, at = data[at], at + 1
        else:
            reader.at = at
            offset = reader.varint()
            at = reader.at
        flag = data[at] if at < size else _FLAG_HASH
        at += 1
        is_legal = not flag or (flag == _FLAG_TXID and not level) or (flag == _FLAG_DUPLICATE and offset & 1)
        if offset in row or not is_legal:
            reader.at = at - 1
            raise _leaf_fault(reader, offset, flag, level, is_repeated=offset in row)
        if flag == _FLAG_DUPLICATE:
            row[offset] = _DUPLICATE
            continue
        if flag:
            txid_offsets.add(offset)
        row[offset] = data[at : at + HASH_BYTES]
        at += HASH_BYTES
        if at > size:
            raise reader.fault("ends early")
    reader.at = at
    return row


def _leaf_fault(reader: ByteReader, offset: int, flag: int, level: int, *, is_repeated: bool) -> MalformedChainData:
    if is_repeated:
        return reader.fault(f"offset {offset} stands twice at level {level}")
    if flag == _FLAG_DUPLICATE:
        return reader.fault(f"offset {offset} at level {level} is marked as a copy; only a right side can be")
    return reader.fault(f"flag {flag} at level {level}")


def make_bump(height: int, rows: Sequence[Row], txid_offsets: Iterable[int]) -> Bump:
    """A Bump of given rows, its paths followed. Raises MalformedChainData."""
    return Bump(height, tuple(rows), frozenset(txid_offsets), _follow(rows))


def _follow(rows: Sequence[Row]) -> bytes:
    """The one root that all leaves lead to. Raises MalformedChainData.

    Each level's computed nodes are met by the given ones. A given node must be the neighbour of a computed one, or
    equal to it; a computed one without a neighbour has nowhere to go.
    """
    known = rows[0]
    if not known:
        raise MalformedChainData("no leaves at level 0", subject="BUMP")
    if len(rows) == 1 and len(known) == 1:
        return _root_of_one(known)
    for level, row in enumerate(rows):
        if level:
            if len(known) == 1 == len(row):
                ((offset, value),) = known.items()
                other = row.get(offset ^ 1)
                # The common step of a single path, without dicts in between. Copies and repeats take the long way.
                if other and other != value:
                    both = other + value if offset & 1 else value + other
                    known = {offset >> 1: _sha256(_sha256(both).digest()).digest()}
                    continue
            known = _meet(level, known, row)
        known = _climb(level, known)
    if known.keys() != {0}:
        raise MalformedChainData(f"offset {max(known) << len(rows)} lies beyond {len(rows)} levels", subject="BUMP")
    return known[0]


def _root_of_one(row: Row) -> bytes:
    """A block of nothing but its coinbase: the txid is the root."""
    ((offset, value),) = row.items()
    if offset or not value:
        raise MalformedChainData(f"missing hash for index {offset ^ 1} at level 0", subject="BUMP")
    return value


def _meet(level: int, computed: Row, given: Row) -> Row:
    for offset, value in given.items():
        own = computed.get(offset)
        if own is not None:
            if own != value:
                raise MalformedChainData(
                    f"mismatched roots: two hashes for index {offset} at level {level}", subject="BUMP"
                )
        elif offset ^ 1 not in computed:
            raise MalformedChainData(f"invalid offset {offset} at level {level}: no path passes there", subject="BUMP")
    return {**given, **computed}


def _climb(level: int, known: Row) -> Row:
    above: Row = {}
    for offset, value in known.items():
        if offset & 1:
            if offset - 1 not in known:
                raise MalformedChainData(f"missing hash for index {offset - 1} at level {level}", subject="BUMP")
            continue
        right = known.get(offset + 1)
        if right is None:
            raise MalformedChainData(f"missing hash for index {offset + 1} at level {level}", subject="BUMP")
        if right == value:
            # Whoever repeats a block's last transactions gets the same root: such a right side isn't there.
            raise MalformedChainData(
                f"index {offset + 1} at level {level} repeats its neighbour unmarked", subject="BUMP"
            )
        above[offset >> 1] = _sha256(_sha256(value + (right or value)).digest()).digest()
    return above


def merge_bumps(first: Bump, second: Bump) -> Bump:
    """One Bump for the transactions of both, without hashes that follow from others.

    Raises VerificationFailed when they aren't of one block.
    """
    if (first.height, first.root, len(first.rows)) != (second.height, second.root, len(second.rows)):
        raise VerificationFailed("the proofs are of different blocks", subject=f"block {first.height}")
    rows = [{**one, **other} for one, other in zip(first.rows, second.rows, strict=True)]
    return _trim(first.height, rows, first.txid_offsets | second.txid_offsets, first.root)


def extract_bump(bump: Bump, txids: Iterable[TxId]) -> Bump:
    """The paths of some of its transactions alone. Raises VerificationFailed when one isn't in it."""
    offsets = set()
    for txid in txids:
        offset = bump.find(txid)
        if offset is None:
            raise VerificationFailed("the proof isn't of this transaction", subject=f"txid {format_hash(txid)}")
        offsets.add(offset)
    return _trim(bump.height, bump.rows, frozenset(offsets), bump.root)


def _trim(height: int, rows: Sequence[Row], txid_offsets: frozenset[int], root: bytes) -> Bump:
    """Keeps what the paths of `txid_offsets` need, filling in what the rows leave to be computed."""
    if len(rows) == 1 and len(rows[0]) == 1:
        return Bump(height, tuple(rows), txid_offsets, root)
    full: list[Row] = []
    known = rows[0]
    for level, row in enumerate(rows):
        known = {**row, **known} if level else known
        full.append(known)
        known = {
            offset >> 1: _sha256(_sha256(value + (known[offset + 1] or value)).digest()).digest()
            for offset, value in known.items() if not offset & 1 and offset + 1 in known
        }  # fmt: skip
    return Bump(height, pick_rows(full, txid_offsets), txid_offsets, root)


def pick_rows(full: Sequence[Row], offsets: Iterable[int]) -> tuple[Row, ...]:
    """Of rows that hold more, the leaves at some offsets and what their paths need beside them."""
    path = set(offsets)
    picked = [{offset: full[0][offset] for offset in path | {offset ^ 1 for offset in path}}]
    for row in full[1:]:
        path = {offset >> 1 for offset in path}
        picked.append({offset ^ 1: row[offset ^ 1] for offset in path if offset ^ 1 not in path})
    return tuple(picked)
