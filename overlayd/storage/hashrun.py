"""Runs of a hash index: (hash, offset) pairs in hash order, in blocks of about 4 KiB, with a filter in memory.

A pair is 16 bytes, hash and offset big-endian, so that bytes compare as pairs do. A block's id is the run's number
above the first pair's high 32 hash bits; pairs that share those bits share a block, so one look finds them all.

The filter sets four bits a pair: one at the hash's top bits, three near it (in the same 512 bytes) at its low bits.
Near, because a run is written in hash order: the filter too is then complete from its start up to there, and is
stored in parts as the run grows. With 11 to 22 bits a pair it lets 0.1 to 0.9 % of strange hashes pass, with the 22 to
44 of runs up to a million pairs 0.01 to 0.08 %.
"""

import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from overlayd.storage.packed import insert_rows, select_each

__all__ = [
    "PREFIX_END", "TABLES", "Build", "Run", "decode_pairs", "delete_rows", "encode_pair", "encode_pairs", "filter_bits_for",
    "find_held", "offsets_of", "read_blocks", "read_run_filter", "read_slice", "remove_pairs", "write_pairs",
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
_NEAR_BITS = 12
_NEAR_MASK = (1 << _NEAR_BITS) - 1
_NEAR_BYTES = 1 << _NEAR_BITS - 3
_NO_DIGITS, _ONE = b"0" * (1 << _NEAR_BITS), ord("1")
FILTER_BITS_MIN, FILTER_BITS_MAX = 12, 32
FILTER_BITS_PER_PAIR, FINE_FILTER_BITS_PER_PAIR = 11, 22
"""At least, in large runs and in others. Most runs are small, and the writer asks the disk about what passes any of them."""
FINE_FILTER_PAIRS_MAX = 1 << 20

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

    def note(self, pairs: bytes) -> None:
        """Put the hashes of pairs into the filter. Noting one that isn't stored in the end costs a needless look, no more.

        Quick for sorted ones: the bits of neighbours are collected as a digit each, and become bytes together.
        """
        down, near, digits = self.shift - 32, -1, bytearray()
        for high, low, _offset in struct.iter_unpack(">IIQ", pairs):
            at = high >> down
            if at >> _NEAR_BITS != near:
                self._set_near(near, digits)
                near, digits = at >> _NEAR_BITS, bytearray(_NO_DIGITS)
            digits[at & _NEAR_MASK] = digits[low & _NEAR_MASK] = _ONE
            digits[low >> 10 & _NEAR_MASK] = digits[low >> 20] = _ONE
        self._set_near(near, digits)

    def _set_near(self, near: int, digits: bytearray) -> None:
        """Sets those of 4,096 neighbouring bits whose digit is 1."""
        if digits:
            part = slice(near * _NEAR_BYTES, (near + 1) * _NEAR_BYTES)
            digits.reverse()
            bits = int(digits, 2) | int.from_bytes(self.bits[part], "little")
            self.bits[part] = bits.to_bytes(_NEAR_BYTES, "little")


def find_held(runs: Iterable[Run], shift: int, keys: Sequence[int]) -> Iterator[int]:
    """Those of the hashes that runs with filters of one size may hold, as `Run.may_hold`; one may come again.

    A step for all hashes at once, the next for those that are left: a fifth passes the first bit, a tenth of these the second.
    """
    high, bit = shift + 3, _BIT
    places = [(key >> high, bit[key >> shift & 7], key) for key in keys]
    for run in runs:
        bits = run.bits
        left = [key for at, one, key in places if bits[at] & one]
        left = [key for key in left if bits[(at := key >> shift & ~_NEAR_MASK | key & _NEAR_MASK) >> 3] & bit[at & 7]]
        for key in left:
            if run.may_hold(key):
                yield key


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

    def bounds_of(self, pairs: Sequence[bytes]) -> tuple[int, int]:
        """Oldest and newest offset of the run once these pairs are in. A merge takes its sources', which may be wider."""
        if self.sources:
            full = [source for source in self.sources if source.pairs]
            oldest, newest = min(run.oldest for run in full), max(run.newest for run in full)
        elif pairs:
            offsets = [pair[8:] for pair in pairs]
            oldest, newest = int.from_bytes(min(offsets), "big"), int.from_bytes(max(offsets), "big")
        else:
            return self.run.oldest, self.run.newest
        return min(oldest, self.run.oldest or oldest), max(newest, self.run.newest)


def filter_bits_for(pairs: int) -> int:
    """Binary logarithm of the bits that a filter for so many pairs should have."""
    each = FINE_FILTER_BITS_PER_PAIR if pairs <= FINE_FILTER_PAIRS_MAX else FILTER_BITS_PER_PAIR
    wanted = (pairs * each - 1).bit_length() if pairs else 0
    return min(max(wanted, FILTER_BITS_MIN), FILTER_BITS_MAX)


def encode_pair(key: int, offset: int) -> bytes:
    """The 16 bytes of a pair."""
    return key.to_bytes(8, "big") + offset.to_bytes(8, "big")


def encode_pairs(pairs: Sequence[tuple[int, int]]) -> list[bytes]:
    """The 16 bytes of each pair."""
    return split_pairs(struct.pack(f">{2 * len(pairs)}Q", *chain.from_iterable(pairs)))


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
    run.note(b"".join(pairs))
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
