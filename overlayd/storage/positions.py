"""Where a stream's packets stand: (stream row id, sequence) → offset, without a B-tree entry per packet.

Newest positions are in memory, per stream as a first sequence and an array of offsets. A flush moves them into
blocks of neighbouring sequences, about 4 KiB each; blocks of slow streams grow by rewriting until they are half full.
What isn't flushed is rebuilt at start from the entries above `load`'s offset.

Changes follow the writer's transaction: `add` shows at once and is undone by `roll_back`; what a flush or a drop
does to memory happens in `adopt`, after the COMMIT. Exactly one of the two ends every transaction.

Costs, measured by benchmarks/positions.py: 0.2 to 0.7 µs to add, 4 to 8 µs to find on disk; a flush takes 0.1 to
0.3 µs a position for up to a hundred streams, 2 µs for ten thousand. On disk 5 bytes a position, for a stream that has
the log to itself next to nothing.
"""

import sqlite3
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

from overlayd.model.errors import DamagedEntry
from overlayd.storage.packed import insert_rows, select_each

__all__ = [
    "TABLES", "Positions", "find_newest_stored", "find_oldest_stored", "find_proven", "find_stored", "join_positions", "read_stored",
    "read_stored_back",
]  # fmt: skip

TABLES = """
CREATE TABLE position_block (
    stream INTEGER NOT NULL,
    first INTEGER NOT NULL,  -- sequence of the block's first position
    offsets BLOB NOT NULL,   -- width u8, count u32, first offset u64, then (offset - first offset) in `width` bytes each
    PRIMARY KEY (stream, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE position_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    stored_to INTEGER NOT NULL  -- blocks hold every position of an offset up to this one
) STRICT;
INSERT INTO position_state VALUES (1, 0);
"""

Position: TypeAlias = tuple[int, int]
"""(sequence, offset)."""

FLUSH_ROWS = 16_384

_HEAD = struct.Struct("<BIQ")
_CONSECUTIVE_MAX = 65_536
_FORMS = ((2, "H", 2_048), (4, "I", 1_024), (8, "Q", 512))
"""(bytes of a position, array code, most positions of a block), the narrowest first."""
_CODES = {width: code for width, code, _count in _FORMS}
_GROWING_MAX = 1_024
"""Blocks with fewer positions are rewritten when their stream goes on."""
_HEADS_FROM = "SELECT first, substr(offsets, 1, 13) FROM position_block WHERE stream = ? ORDER BY first LIMIT 256"
_STREAM_ROWS = 16
"""What a stream's block costs in a flush, in positions."""

_FLOOR = "(SELECT max(first) FROM position_block WHERE stream = ? AND first <= ?)"
_SELECT_ONE = f"SELECT first, offsets FROM position_block WHERE stream = ? AND first = {_FLOOR}"  # noqa: S608 - constants
_SELECT_FROM = (
    f"SELECT first, offsets FROM position_block WHERE stream = ? AND first >= coalesce({_FLOOR}, 0) ORDER BY first"  # noqa: S608 - constants
)
_E_AT = "SELECT e FROM entry WHERE offset = ?"
_SELECT_BACK = "SELECT first, offsets FROM position_block WHERE stream = ? AND first <= ? ORDER BY first DESC"
_DELETE_BELOW = f"DELETE FROM position_block WHERE stream = ? AND first < {_FLOOR}"  # noqa: S608 - constants
_LAST_FIRST = "SELECT first FROM position_block WHERE stream = ? ORDER BY first DESC LIMIT 1"
_LAST_BLOCK = "SELECT offsets FROM position_block WHERE stream = ? ORDER BY first DESC LIMIT 1"
_LAST_HEAD = f"SELECT substr(offsets, 1, {_HEAD.size}) FROM position_block WHERE stream = ? ORDER BY first DESC LIMIT 1"  # noqa: S608 - constants


class _Run:
    """Neighbouring sequences of one stream."""

    __slots__ = ("first", "offsets")

    def __init__(self, first: int, offsets: "array[int]") -> None:
        self.first = first
        self.offsets = offsets

    @property
    def end(self) -> int:
        return self.first + len(self.offsets)


class Positions:
    """The positions of all streams of a log. Memory is touched by one thread at a time."""

    def __init__(self) -> None:
        self._recent: dict[int, list[_Run]] = {}
        self._stored_to = 0
        self._undo: list[int] = []
        self._flush_to: int | None = None
        self._waiting: list[int] = []
        self._gone: dict[int, int] = {}
        self._is_flushed = False

    def __repr__(self) -> str:
        return f"Positions(streams={len(self._recent)}, stored_to={self._stored_to})"

    def load(self, connection: sqlite3.Connection) -> int:
        """Gives the offset up to which blocks hold every position; the caller adds those of the entries above."""
        (self._stored_to,) = connection.execute("SELECT stored_to FROM position_state").fetchone()
        return self._stored_to

    @property
    def stored_to(self) -> int:
        """The offset up to which nothing needs to be added at a start."""
        return self._stored_to

    # A packet in.

    def add(self, stream: int, sequence: int, offset: int) -> None:
        """Note a packet; offsets and a stream's sequences ascend. Ignores what is stored already (a start re-reads)."""
        if offset <= self._stored_to:
            return
        runs = self._recent.get(stream)
        if runs is None:
            runs = self._recent[stream] = []
        if not runs or sequence != runs[-1].end:
            assert not runs or sequence > runs[-1].end, "a stream's sequences only grow"
            runs.append(_Run(sequence, array("Q")))
        runs[-1].offsets.append(offset)
        self._undo.append(stream)

    def add_each(self, packets: Sequence[tuple[int, int, int]]) -> None:
        """Note (stream, sequence, offset) of packets, as `add`."""
        last, run, end = 0, None, 0
        recent, undo, stored_to = self._recent, self._undo, self._stored_to
        for stream, sequence, offset in packets:
            if stream != last:
                last, runs = stream, recent.get(stream)
                run = runs[-1] if runs else None
                end = 0 if run is None else run.first + len(run.offsets)
            if run is None or sequence != end or offset <= stored_to:
                self.add(stream, sequence, offset)
                runs = recent.get(stream)
                run, end = runs[-1] if runs else None, sequence + 1
            else:
                run.offsets.append(offset)
                undo.append(stream)
                end += 1

    def adopt(self) -> None:
        """The transaction is committed: memory follows it."""
        self._undo.clear()
        for stream, below in self._gone.items():
            self._forget(stream, below)
        self._gone.clear()
        if self._is_flushed:
            assert self._flush_to is not None
            self._stored_to, self._flush_to, self._is_flushed = self._flush_to, None, False

    def roll_back(self) -> None:
        """The transaction left no trace: neither does memory."""
        for stream in reversed(self._undo):
            runs = self._recent[stream]
            runs[-1].offsets.pop()
            if not runs[-1].offsets:
                runs.pop()
            if not runs:
                del self._recent[stream]
        self._undo.clear()
        if self._gone:
            self._gone.clear()
            self._waiting = self._find_waiting()
        self._is_flushed = False

    # A packet out.

    def find_recent(self, stream: int, sequence: int) -> int | None:
        """The offset of a packet, if memory has it; else ask `find_stored`, after this."""
        for run in reversed(self._recent.get(stream, ())):
            if run.first <= sequence:
                return run.offsets[sequence - run.first] if sequence < run.end else None
        return None

    def read_recent(self, stream: int, sequence: int, limit: int) -> list[Position]:
        """The first positions in memory with at least this sequence."""
        positions: list[Position] = []
        for run in self._recent.get(stream, ()):
            if run.end > sequence and len(positions) < limit:
                start = max(0, sequence - run.first)
                offsets = run.offsets[start : start + limit - len(positions)]
                positions.extend(enumerate(offsets, run.first + start))
        return positions

    def read_recent_back(self, stream: int, sequence: int, limit: int) -> list[Position]:
        """The last positions in memory with at most this sequence, newest first. None: ask `read_stored_back`."""
        positions: list[Position] = []
        for run in reversed(self._recent.get(stream, ())):
            if run.first <= sequence and len(positions) < limit:
                end = min(len(run.offsets), sequence - run.first + 1)
                start = max(0, end - (limit - len(positions)))
                positions.extend((run.first + at, run.offsets[at]) for at in range(end - 1, start - 1, -1))
        return positions

    def is_recent(self, stream: int, sequence: int) -> bool:
        """Whether memory knows all that there is of this sequence and beyond, so that nobody need ask the disk."""
        runs = self._recent.get(stream)
        return runs is not None and runs[0].first <= sequence

    def find(self, connection: sqlite3.Connection, stream: int, sequence: int) -> int | None:
        """The offset of a packet, from memory or disk. Blocks."""
        offset = self.find_recent(stream, sequence)
        if offset is None and not self.is_recent(stream, sequence):
            offset = find_stored(connection, stream, sequence)
        return offset

    def read(self, connection: sqlite3.Connection, stream: int, sequence: int, limit: int) -> list[Position]:
        """The first positions of a stream with at least this sequence, from memory and disk. Blocks."""
        recent = self.read_recent(stream, sequence, limit)
        if self.is_recent(stream, sequence):
            return recent
        return join_positions(read_stored(connection, stream, sequence, limit), recent, limit)

    # From memory to disk.

    def begin_flush(self, up_to_offset: int) -> None:
        """Decide that everything up to this offset goes to disk; `flush_step` does it. One flush at a time."""
        assert self._flush_to is None
        assert not self._undo, "between transactions only"
        self._flush_to = max(up_to_offset, self._stored_to)
        self._waiting = self._find_waiting()

    def flush_step(self, connection: sqlite3.Connection, rows_max: int = FLUSH_ROWS) -> bool:
        """Write about `rows_max` positions to blocks; whether there is more to do. A step can be lost or repeated."""
        if self._flush_to is None or self._is_flushed:
            return False
        chosen: list[tuple[int, _Run]] = []
        room = rows_max
        while self._waiting and room > 0:
            taken, is_done = self._take(self._waiting[-1], room)
            if taken is not None:
                chosen.append((self._waiting[-1], taken))
                self._gone[self._waiting[-1]] = taken.end
                room -= len(taken.offsets) + _STREAM_ROWS
            if is_done:
                self._waiting.pop()
        _write(connection, chosen)
        if not self._waiting:
            connection.execute("UPDATE position_state SET stored_to = ?", (self._flush_to,))
            self._is_flushed = True
        return bool(self._waiting)

    def flush(self, connection: sqlite3.Connection, up_to_offset: int) -> None:
        """A whole flush in one transaction. Finishes one that is under way instead, if there is any."""
        if self._flush_to is None:
            self.begin_flush(up_to_offset)
        while self.flush_step(connection):
            pass

    def drop_before(self, connection: sqlite3.Connection, stream: int, sequence: int) -> None:
        """Delete the blocks that hold nothing from this sequence on. Positions in memory stay until they are flushed."""
        connection.execute(_DELETE_BELOW, (stream, stream, sequence))

    def drop_stream(self, connection: sqlite3.Connection, stream: int) -> None:
        """Delete everything of a stream: about one row per 1,000 packets."""
        connection.execute("DELETE FROM position_block WHERE stream = ?", (stream,))
        self._gone[stream] = 1 << 63

    def _find_waiting(self) -> list[int]:
        """Streams with something to flush, the next one last."""
        if self._flush_to is None:
            return []
        return sorted(
            (stream for stream, runs in self._recent.items() if runs[0].offsets[0] <= self._flush_to), reverse=True
        )

    def _take(self, stream: int, room: int) -> tuple[_Run | None, bool]:
        """The next run of a stream to write, at most `room` positions, and whether that is all of the stream."""
        assert self._flush_to is not None
        done = self._gone.get(stream, 0)
        runs = [run for run in self._recent.get(stream, ()) if run.end > done and run.offsets[0] <= self._flush_to]
        if not runs:
            return None, True
        run = runs[0]
        start = max(0, done - run.first)
        count = bisect_right(run.offsets, self._flush_to)
        end = min(count, start + room)
        if start == end:
            return None, True
        return _Run(run.first + start, run.offsets[start:end]), end == count and len(runs) == 1

    def _forget(self, stream: int, below: int) -> None:
        """Take a stream's sequences below this out of memory."""
        kept = []
        for run in self._recent.get(stream, ()):
            if run.end > below:
                if run.first < below:
                    run = _Run(below, run.offsets[below - run.first :])
                kept.append(run)
        if kept:
            self._recent[stream] = kept
        else:
            self._recent.pop(stream, None)


def find_stored(connection: sqlite3.Connection, stream: int, sequence: int) -> int | None:
    """The offset of a packet in a block. Blocks the thread."""
    found = connection.execute(_SELECT_ONE, (stream, stream, sequence)).fetchone()
    if found is None:
        return None
    first, block = found
    width, count, base = _HEAD.unpack_from(block)
    at = sequence - first
    if at >= count:
        return None
    if width == 0:
        return int(base + at)
    start = _HEAD.size + at * width
    return int(base + int.from_bytes(block[start : start + width], "little"))


def find_proven(connection: sqlite3.Connection, stream: int, stream_hash: bytes, sequence: int) -> int | None:
    """As `find_stored`, and the entry there says that it is that packet: a damaged block leads to nobody else's. Of an entry
    that is damaged itself nothing is said here. Raises DamagedEntry."""
    offset = find_stored(connection, stream, sequence)
    row = None if offset is None or offset >= 1 << 63 else connection.execute(_E_AT, (offset,)).fetchone()
    if offset is None or (row is not None and row[0][:1] != b"\1"):
        return offset
    if row is None or row[0][26:66] != stream_hash + sequence.to_bytes(8, "big"):
        raise DamagedEntry(f"packet {sequence} isn't where its stream's positions say", subject=f"sequence {sequence}")
    return offset


def read_stored(connection: sqlite3.Connection, stream: int, sequence: int, limit: int) -> list[Position]:
    """The first positions in blocks with at least this sequence. Blocks the thread."""
    positions: list[Position] = []
    rows = connection.execute(_SELECT_FROM, (stream, stream, sequence))
    for first, block in rows:
        start = max(0, sequence - first)
        offsets = _decode(block, start, limit - len(positions))
        positions.extend(enumerate(offsets, first + start))
        if len(positions) >= limit:
            break
    rows.close()
    return positions


def read_stored_back(connection: sqlite3.Connection, stream: int, sequence: int, limit: int) -> list[Position]:
    """The last positions in blocks with at most this sequence, newest first. Blocks the thread."""
    positions: list[Position] = []
    rows = connection.execute(_SELECT_BACK, (stream, sequence))
    for first, block in rows:
        end = min(_HEAD.unpack_from(block)[1], sequence - first + 1)
        start = max(0, end - (limit - len(positions)))
        positions.extend(reversed([*enumerate(_decode(block, start, end - start), first + start)]))
        if len(positions) >= limit:
            break
    rows.close()
    return positions


def find_newest_stored(connection: sqlite3.Connection, streams: Sequence[int]) -> list[int]:
    """The largest sequence that a block of each stream has; 0 where there is none. Blocks the thread."""
    keys = [(stream,) for stream in streams]
    firsts = select_each(connection, _LAST_FIRST, keys)
    heads = select_each(connection, _LAST_HEAD, keys)
    return [
        0 if first is None else first + _HEAD.unpack_from(head)[1] - 1
        for first, head in zip(firsts, heads, strict=True)
    ]


def find_oldest_stored(connection: sqlite3.Connection, stream: int) -> Position | None:
    """The smallest sequence that a block has, and its offset. Blocks the thread."""
    oldest = read_stored(connection, stream, 0, 1)
    return oldest[0] if oldest else None


def drop_cut(connection: sqlite3.Connection, stream: int, minimum: int) -> None:
    """Deletes a stream's blocks that hold nothing behind an offset, some at a time. For the writer's thread."""
    rows = connection.execute(_HEADS_FROM, (stream,)).fetchall()
    keep = None
    for first, head in rows:
        if _HEAD.unpack(head)[2] > minimum:
            break
        keep = first  # the last block that begins at or below it may reach beyond
    if keep is not None:
        connection.execute("DELETE FROM position_block WHERE stream = ? AND first < ?", (stream, keep))


def join_positions(stored: Sequence[Position], recent: Sequence[Position], limit: int) -> list[Position]:
    """What was read from disk and, before that, from memory: each sequence once."""
    beyond = stored[-1][0] if stored else -1
    return [*stored, *(position for position in recent if position[0] > beyond)][:limit]


def _write(connection: sqlite3.Connection, chosen: Sequence[tuple[int, _Run]]) -> None:
    """Put runs behind their streams' last blocks; what a lost flush had written already is left out."""
    streams = list(dict.fromkeys(stream for stream, _run in chosen))
    keys = [(stream,) for stream in streams]
    firsts = select_each(connection, _LAST_FIRST, keys)
    blocks = select_each(connection, _LAST_BLOCK, keys)
    tails = {
        stream: (first, block)
        for stream, first, block in zip(streams, firsts, blocks, strict=True)
        if first is not None
    }
    rows: list[tuple[int, int, bytes]] = []
    for stream, run in chosen:
        first, offsets = run.first, run.offsets
        if stream in tails:
            first, offsets = _continue(*tails[stream], run)
            if offsets:
                del tails[stream]
        while offsets:
            block, count = _encode(offsets)
            rows.append((stream, first, block))
            first, offsets = first + count, offsets[count:]
    insert_rows(connection, "INSERT OR REPLACE INTO position_block VALUES", rows)


def _continue(first: int, block: bytes, run: _Run) -> tuple[int, "array[int]"]:
    """What is to be written so that `run` follows a stream's last block: the run alone, or both in one."""
    _width, count, _base = _HEAD.unpack_from(block)
    offsets = run.offsets[max(0, first + count - run.first) :]
    start = run.end - len(offsets)
    if start != first + count or count >= _GROWING_MAX or not offsets:
        return start, offsets
    return first, _decode(block, 0, count) + offsets


def _encode(offsets: "array[int]") -> tuple[bytes, int]:
    """A block of the first offsets, in the narrowest form, and how many it holds."""
    base = offsets[0]
    count = min(len(offsets), _CONSECUTIVE_MAX)
    if offsets[count - 1] - base == count - 1:
        return _HEAD.pack(0, count, base), count
    for width, code, count_max in _FORMS:  # noqa: B007 - the one that fits is used below
        count = min(len(offsets), count_max)
        if offsets[count - 1] - base < 1 << 8 * width:
            break
    deltas = array(code, [offset - base for offset in offsets[:count]])
    if sys.byteorder == "big":
        deltas.byteswap()
    return _HEAD.pack(width, count, base) + deltas.tobytes(), count


def _decode(block: bytes, start: int, limit: int) -> "array[int]":
    """Up to `limit` offsets of a block, from position `start` on."""
    width, count, base = _HEAD.unpack_from(block)
    end = min(count, start + limit)
    if width == 0 or start >= end:
        return array("Q", range(base + start, base + max(start, end)))
    deltas = array(_CODES[width])
    deltas.frombytes(block[_HEAD.size + start * width : _HEAD.size + end * width])
    if sys.byteorder == "big":
        deltas.byteswap()
    return array("Q", [base + delta for delta in deltas])
