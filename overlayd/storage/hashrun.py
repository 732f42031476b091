"""Runs of a hash index: (hash, offset) pairs in hash order, in blocks of about 4 KiB, with a filter in memory.

A pair is 16 bytes, hash and offset big-endian, so that bytes compare as pairs do. A block's id is the run's number
above the first pair's high 32 hash bits; pairs that share those bits share a block, so one look finds them all.

The filter sets four bits a pair: one at the hash's top bits, three near it (in the same 512 bytes) at its low bits.
Near, because a run is written in hash order: the filter too is then complete from its start up to there, and is
stored in parts as the run grows. With 11 to 22 bits a pair it lets 0.1 to 0.9 % of strange hashes pass.
"""

import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence

from overlayd.storage.packed import insert_rows, select_each

__all__ = [
    "PREFIX_END", "TABLES", "Build", "Run", "decode_pairs", "delete_rows", "encode_pair", "filter_bits_for", "offsets_of", "read_blocks",
    "read_run_filter", "read_slice", "remove_pairs", "write_pairs",
]  # fmt: skip

TABLES = """
CREATE TABLE hash_run (
    run INTEGER PRIMARY KEY,
    family INTEGER NOT NULL,
    state INTEGER NOT NULL,    -- 0 being built, 1 live, 2 dead: its rows are being deleted
    pairs INTEGER NOT NULL,
    oldest INTEGER NOT NULL,   -- offsets, inclusive
    newest INTEGER NOT NULL,
    filter_bits INTEGER NOT NULL,  -- the filter has 2^filter_bits bits
    done INTEGER NOT NULL,     -- being built: pairs below these high 32 hash bits are in
    sources TEXT NOT NULL      -- being built: JSON array of the runs it is merged from; [] of memory
) STRICT;
CREATE TABLE hash_block (
    id INTEGER PRIMARY KEY,    -- run << 32 | high 32 hash bits of the first pair
    pairs BLOB NOT NULL        -- hash u64 and offset u64, big-endian, ascending
) STRICT;
CREATE TABLE hash_filter (
    id INTEGER PRIMARY KEY,    -- run << 20 | number of the part
    bits BLOB NOT NULL
) STRICT;
"""

PREFIX_END = 1 << 32
"""One beyond the largest high half of a hash."""
BLOCK_PAIRS = 250
"""With its row's header this fits one page of 4 KiB."""
_PAIR_BYTES = 16
_PART_BITS = 16
_PART_BYTES = 1 << _PART_BITS - 3
_NEAR_MASK = (1 << 12) - 1
FILTER_BITS_MIN, FILTER_BITS_MAX = 12, 32
FILTER_BITS_PER_PAIR = 11

_BIT = bytes(1 << at for at in range(8))
_FLOOR = "SELECT pairs FROM hash_block WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
_FLOOR_ID = "SELECT id FROM hash_block WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1"
_SLICE = """
SELECT CAST(group_concat(pairs, '') AS BLOB) FROM hash_block WHERE id < ? AND id >= coalesce(
    (SELECT id FROM hash_block WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1), ?)
"""
"""group_concat joins blobs byte by byte; a slice comes back in one step."""


class Run:
    """A run as memory knows it: its filter and its bounds. `pins` counts reads under way, guarded by the index."""

    __slots__ = ("bits", "filter_bits", "newest", "number", "oldest", "pairs", "pins", "shift")

    def __init__(self, number: int, filter_bits: int, pairs: int = 0, oldest: int = 0, newest: int = 0) -> None:
        self.number = number
        self.pairs = pairs
        self.oldest = oldest
        self.newest = newest
        self.filter_bits = filter_bits
        self.shift = 64 - filter_bits
        self.bits = bytearray(1 << filter_bits - 3)
        self.pins = 0

    def __repr__(self) -> str:
        return f"Run({self.number}, pairs={self.pairs}, offsets={self.oldest}..{self.newest})"

    def may_hold(self, key: int) -> bool:
        """False: the run doesn't have the hash. True: look."""
        at = key >> self.shift
        bits, near = self.bits, at & ~_NEAR_MASK
        if not bits[at >> 3] & _BIT[at & 7]:
            return False
        for at in (near | key & _NEAR_MASK, near | key >> 10 & _NEAR_MASK, near | key >> 20 & _NEAR_MASK):
            if not bits[at >> 3] & _BIT[at & 7]:
                return False
        return True

    def may_hold_prefix(self, prefix: int) -> bool:
        """Whether to look for hashes with these high 32 bits."""
        at = prefix >> self.shift - 32
        return bool(self.bits[at >> 3] & _BIT[at & 7])

    def note(self, keys: Iterable[int]) -> None:
        """Put hashes into the filter. Noting one that isn't stored in the end costs a needless look, no more."""
        bits, shift, bit = self.bits, self.shift, _BIT
        for key in keys:
            at = key >> shift
            bits[at >> 3] |= bit[at & 7]
            near = at & ~_NEAR_MASK
            at = near | key & _NEAR_MASK
            bits[at >> 3] |= bit[at & 7]
            at = near | key >> 10 & _NEAR_MASK
            bits[at >> 3] |= bit[at & 7]
            at = near | key >> 20 & _NEAR_MASK
            bits[at >> 3] |= bit[at & 7]


class Build:
    """A run on its way: from memory (no sources) or from smaller runs. `done`: high halves below it are in."""

    __slots__ = ("buckets", "done", "run", "sources", "tier", "total")

    def __init__(self, run: Run, sources: tuple[Run, ...], tier: int, total: int, done: int = 0) -> None:
        self.run = run
        self.sources = sources
        self.tier = tier
        self.total = total
        self.done = done
        self.buckets: list[list[int]] = []


def filter_bits_for(pairs: int) -> int:
    """Binary logarithm of the bits that a filter for so many pairs should have."""
    wanted = (pairs * FILTER_BITS_PER_PAIR - 1).bit_length() if pairs else 0
    return min(max(wanted, FILTER_BITS_MIN), FILTER_BITS_MAX)


def encode_pair(key: int, offset: int) -> bytes:
    """The 16 bytes of a pair."""
    return key.to_bytes(8, "big") + offset.to_bytes(8, "big")


def decode_pairs(block: bytes) -> Iterator[tuple[int, int]]:
    """The (hash, offset) pairs of a block."""
    return struct.iter_unpack(">QQ", block)


def split_pairs(block: bytes) -> list[bytes]:
    """A block's pairs, 16 bytes each."""
    return [pair for (pair,) in struct.iter_unpack("16s", block)]


def offsets_of(block: bytes | None, key: int) -> list[int]:
    """The offsets that a block has for a hash, ascending."""
    offsets: list[int] = []
    wanted = key.to_bytes(8, "big")
    at = (block or b"").find(wanted)
    while block and at >= 0:
        if at % _PAIR_BYTES == 0:
            offsets.append(int.from_bytes(block[at + 8 : at + 16], "big"))
        at = block.find(wanted, at + 1)
    return offsets


def read_blocks(connection: sqlite3.Connection, probes: Sequence[tuple[int, int]]) -> list[bytes | None]:
    """For each (run number, high 32 bits) the one block that may hold such hashes."""
    return select_each(connection, _FLOOR, [_floor_of(number, prefix) for number, prefix in probes])


def read_slice(connection: sqlite3.Connection, numbers: Sequence[int], start: int, end: int) -> list[bytes]:
    """All pairs of some runs with start <= high 32 bits < end, in no order."""
    bases = [number << 32 for number in numbers]
    slices = select_each(connection, _SLICE, [(base + end, base, base + start, base) for base in bases])
    pairs = split_pairs(b"".join(part for part in slices if part))
    low = start.to_bytes(4, "big")
    pairs = [pair for pair in pairs if pair >= low]
    if end < PREFIX_END:
        high = end.to_bytes(4, "big")
        pairs = [pair for pair in pairs if pair < high]
    return pairs


def worth_keeping(pairs: list[bytes], floor: int, newest_max: int) -> list[bytes]:
    """Sorted pairs without those of offsets below the floor and, per hash, without all but the newest few (0: all)."""
    if floor:
        oldest = floor.to_bytes(8, "big")
        pairs = [pair for pair in pairs if pair[8:] >= oldest]
    if newest_max:
        last = len(pairs) - newest_max
        pairs = [pair for at, pair in enumerate(pairs) if at >= last or pairs[at + newest_max][:8] != pair[:8]]
    return pairs


def write_pairs(connection: sqlite3.Connection, run: Run, pairs: Sequence[bytes], start: int, end: int) -> None:
    """Append sorted pairs with start <= high 32 bits < end to a run: blocks, filter, and the filter's parts."""
    insert_rows(connection, "INSERT INTO hash_block VALUES", list(_block_rows(run.number, pairs)))
    run.note(struct.unpack(f">{2 * len(pairs)}Q", b"".join(pairs))[::2])
    first = start << 32 >> run.shift >> _PART_BITS
    last = ((end << 32) - 1) >> run.shift >> _PART_BITS
    parts = [
        (run.number << 20 | part, bytes(run.bits[part * _PART_BYTES : (part + 1) * _PART_BYTES]))
        for part in range(first, last + 1)
    ]
    insert_rows(connection, "INSERT OR REPLACE INTO hash_filter VALUES", parts)


def read_run_filter(connection: sqlite3.Connection, run: Run) -> None:
    """Fill a run's filter from its stored parts."""
    parts = connection.execute(
        "SELECT id, bits FROM hash_filter WHERE id BETWEEN ? AND ?", (run.number << 20, (run.number + 1 << 20) - 1)
    )
    for part_id, bits in parts:
        at = (part_id - (run.number << 20)) * _PART_BYTES
        run.bits[at : at + len(bits)] = bits


def remove_pairs(connection: sqlite3.Connection, run: Run, pairs: Sequence[tuple[int, int]]) -> None:
    """Take (hash, offset) pairs out of a run's blocks, where they are in. The filter keeps their bits."""
    wanted = [(key, offset) for key, offset in pairs if run.may_hold(key)]
    floors = [_floor_of(run.number, key >> 32) for key, _offset in wanted]
    by_block: dict[int, set[bytes]] = {}
    for (key, offset), block_id in zip(wanted, select_each(connection, _FLOOR_ID, floors), strict=True):
        if block_id is not None:
            by_block.setdefault(block_id, set()).add(encode_pair(key, offset))
    blocks = select_each(connection, "SELECT pairs FROM hash_block WHERE id = ?", [(at,) for at in by_block])
    rows = []
    for (block_id, gone), block in zip(by_block.items(), blocks, strict=True):
        kept = b"".join(pair for pair in split_pairs(block) if pair not in gone)
        if len(kept) < len(block):
            rows.append((block_id, kept))
    insert_rows(connection, "INSERT OR REPLACE INTO hash_block VALUES", rows)


def delete_rows(connection: sqlite3.Connection, number: int, rows_max: int) -> bool:
    """Delete up to `rows_max` rows of a dead run; whether that was all of it."""
    for table, bits in (("hash_block", 32), ("hash_filter", 20)):
        deleted = connection.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id BETWEEN ? AND ? LIMIT ?)",  # noqa: S608 - constants
            (number << bits, (number + 1 << bits) - 1, rows_max),
        )
        if deleted.rowcount >= rows_max:
            return False
    connection.execute("DELETE FROM hash_run WHERE run = ?", (number,))
    return True


def _block_rows(number: int, pairs: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Rows of about BLOCK_PAIRS pairs; a block ends only where the high 32 bits change."""
    at, count = 0, len(pairs)
    while at < count:
        end = min(at + BLOCK_PAIRS, count)
        while end < count and pairs[end][:4] == pairs[end - 1][:4]:
            end += 1
        yield number << 32 | int.from_bytes(pairs[at][:4], "big"), b"".join(pairs[at:end])
        at = end


def _floor_of(number: int, prefix: int) -> tuple[int, int]:
    return number << 32, number << 32 | prefix
