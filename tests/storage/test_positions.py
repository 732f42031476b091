"""Positions against a dict: memory, blocks, rollbacks, lost flushes, epoch jumps, drops."""

import sqlite3
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from overlayd.storage.positions import (
    TABLES,
    Positions,
    find_newest_stored,
    find_oldest_stored,
    find_stored,
    join_positions,
    read_stored,
    read_stored_back,
)

JUMP = 1 << 40


def _connect(path: Path | str = ":memory:") -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'position_block'").fetchone():
        connection.executescript(TABLES)
    return connection


def _flush(positions: Positions, connection: sqlite3.Connection, up_to: int) -> None:
    connection.execute("BEGIN")
    positions.flush(connection, up_to)
    connection.execute("COMMIT")
    positions.adopt()


def _blocks(connection: sqlite3.Connection) -> list[tuple[int, int, int]]:
    return connection.execute("SELECT stream, first, length(offsets) FROM position_block ORDER BY 1, 2").fetchall()


def test_recent_positions_are_found_in_memory() -> None:
    """What was added is found without the disk, one by one and as a range."""
    positions = Positions()
    for at in range(10):
        positions.add(1, at + 1, 10 * at + 5)
    positions.adopt()
    assert positions.find_recent(1, 3) == 25
    assert positions.find_recent(1, 11) is None
    assert positions.find_recent(2, 1) is None
    assert positions.read_recent(1, 9, 100) == [(9, 85), (10, 95)]
    assert positions.read_recent(1, 2, 2) == [(2, 15), (3, 25)]
    assert positions.is_recent(1, 1)
    assert positions.is_recent(1, 99)
    assert not positions.is_recent(2, 1)


def test_rolled_back_positions_are_gone() -> None:
    """A transaction that left no trace leaves none in memory, also where it began a stream or an epoch."""
    positions = Positions()
    positions.add(1, 1, 1)
    positions.adopt()
    positions.add(1, 2, 2)
    positions.add(1, JUMP + 1, 3)
    positions.add(2, 1, 4)
    positions.roll_back()
    assert positions.read_recent(1, 0, 9) == [(1, 1)]
    assert positions.read_recent(2, 0, 9) == []
    positions.add(1, 2, 2)
    assert positions.find_recent(1, 2) == 2


def test_sequences_only_grow() -> None:
    """A sequence that was given already is a bug of the caller."""
    positions = Positions()
    positions.add(1, 5, 1)
    with pytest.raises(AssertionError):
        positions.add(1, 5, 2)


def test_consecutive_offsets_take_no_room() -> None:
    """A stream that has the log to itself becomes one block of 13 bytes."""
    connection, positions = _connect(), Positions()
    for at in range(5_000):
        positions.add(1, at + 1, at + 1)
    positions.adopt()
    _flush(positions, connection, 5_000)
    assert _blocks(connection) == [(1, 1, 13)]
    assert find_stored(connection, 1, 4_321) == 4_321
    assert find_stored(connection, 1, 5_001) is None
    assert read_stored(connection, 1, 4_999, 10) == [(4_999, 4_999), (5_000, 5_000)]


@pytest.mark.parametrize(("factor", "width"), [(3, 2), (1_000, 4), (1 << 33, 8)])
def test_blocks_use_the_narrowest_form(factor: int, width: int) -> None:
    """Offsets far apart take more bytes and are read back exactly."""
    connection, positions = _connect(), Positions()
    for at in range(3_000):
        positions.add(1, at + 1, at * factor + 7)
    positions.adopt()
    _flush(positions, connection, 3_000 * factor + 7)
    assert sum(length - 13 for _stream, _first, length in _blocks(connection)) == 3_000 * width
    assert read_stored(connection, 1, 0, 5_000) == [(at + 1, at * factor + 7) for at in range(3_000)]
    assert [find_stored(connection, 1, at + 1) for at in (0, 511, 512, 2_047, 2_048, 2_999)] == [
        at * factor + 7 for at in (0, 511, 512, 2_047, 2_048, 2_999)
    ]


def test_blocks_of_slow_streams_grow() -> None:
    """Flush after flush of a few packets doesn't leave a stream in tiny blocks."""
    connection, positions = _connect(), Positions()
    offset, sequence = 0, 0
    for _ in range(200):
        for _ in range(12):
            offset, sequence = offset + 40, sequence + 1
            positions.add(7, sequence, offset)
        positions.adopt()
        _flush(positions, connection, offset)
    assert len(_blocks(connection)) == 3
    assert read_stored(connection, 7, 0, 9_999) == [(at, at * 40) for at in range(1, 2_401)]


def test_block_never_spans_a_jump() -> None:
    """An epoch's sequences start in a block of their own; a read goes on across the jump."""
    connection, positions = _connect(), Positions()
    for sequence, offset in [(1, 1), (2, 3), (JUMP + 1, 5), (JUMP + 2, 6)]:
        positions.add(1, sequence, offset)
    positions.adopt()
    expected = [(2, 3), (JUMP + 1, 5), (JUMP + 2, 6)]
    assert positions.read(connection, 1, 2, 3) == expected
    _flush(positions, connection, 6)
    assert [first for _stream, first, _length in _blocks(connection)] == [1, JUMP + 1]
    assert positions.read(connection, 1, 2, 3) == expected
    assert positions.find(connection, 1, 3) is None
    assert positions.read(connection, 1, 3, 9) == expected[1:]


def test_flush_stops_at_its_offset() -> None:
    """Positions above the flushed offset stay in memory, and a read joins both parts."""
    connection, positions = _connect(), Positions()
    for at in range(100):
        positions.add(at % 3, at // 3 + 1, at + 1)
    positions.adopt()
    _flush(positions, connection, 50)
    assert positions.stored_to == 50
    assert [offset for _sequence, offset in read_stored(connection, 0, 0, 99)] == list(range(1, 51, 3))
    assert positions.read_recent(0, 0, 1) == [(18, 52)]
    assert positions.read(connection, 0, 15, 5) == [(15, 43), (16, 46), (17, 49), (18, 52), (19, 55)]
    assert positions.find(connection, 0, 2) == 4
    assert positions.find(connection, 0, 19) == 55
    assert find_oldest_stored(connection, 1) == (1, 2)
    assert find_oldest_stored(connection, 9) is None


def test_lost_slices_are_written_again() -> None:
    """A flush whose slices were rolled back ends with every stream on disk."""
    connection, positions = _connect(), Positions()
    for at in range(60):
        positions.add(at % 3, at // 3 + 1, at + 1)
    positions.adopt()
    positions.begin_flush(60)
    for rows_max in (10, 1_000, 30):
        connection.execute("BEGIN")
        positions.flush_step(connection, rows_max)
        connection.execute("ROLLBACK")
        positions.roll_back()
    assert positions.read(connection, 1, 0, 99) == [(at, 3 * at - 1) for at in range(1, 21)]
    _flush(positions, connection, 60)
    started = Positions()
    assert started.load(connection) == 60
    for stream in range(3):
        assert read_stored(connection, stream, 0, 99) == [(at, 3 * at - 2 + stream) for at in range(1, 21)]


def test_flush_that_a_crash_cut_short_is_repeated() -> None:
    """What the lost flush put behind a stream's last block isn't put there twice."""
    connection, positions = _connect(), Positions()
    for at in range(1, 11):
        positions.add(1, at, 2 * at)
    positions.adopt()
    _flush(positions, connection, 20)
    for at in range(11, 21):
        positions.add(1, at, 2 * at)
    positions.adopt()
    positions.begin_flush(40)
    assert positions.flush_step(connection, 6)
    started = Positions()
    assert started.load(connection) == 20
    for at in range(9, 26):
        started.add(1, at, 2 * at)
    started.adopt()
    assert not started.is_recent(1, 10)
    assert started.is_recent(1, 11)
    _flush(started, connection, 50)
    assert read_stored(connection, 1, 0, 99) == [(at, 2 * at) for at in range(1, 26)]
    assert len(_blocks(connection)) == 1


def test_join_takes_each_sequence_once() -> None:
    """A flush between the look in memory and the one on disk doubles nothing."""
    assert join_positions([(1, 1), (2, 4)], [(2, 4), (3, 5)], 9) == [(1, 1), (2, 4), (3, 5)]
    assert join_positions([], [(2, 4)], 9) == [(2, 4)]
    assert join_positions([(1, 1), (2, 4)], [(3, 5)], 2) == [(1, 1), (2, 4)]


def test_drops() -> None:
    """Retention deletes whole blocks only; deleting a stream deletes all it has, also in memory."""
    connection, positions = _connect(), Positions()
    for at in range(5_000):
        positions.add(1, at + 1, 3 * at + 1)
        positions.add(2, at + 1, 3 * at + 2)
    positions.adopt()
    _flush(positions, connection, 14_000)
    connection.execute("BEGIN")
    positions.drop_before(connection, 1, 2_100)
    positions.drop_stream(connection, 2)
    connection.execute("COMMIT")
    positions.adopt()
    assert find_oldest_stored(connection, 1) == (2_049, 6_145)
    assert positions.find(connection, 1, 2_100) == 6_298
    assert positions.read(connection, 2, 0, 9) == []


class PositionsModel(RuleBasedStateMachine):
    """Any mix of adding, rolling back, flushing in slices, losing a flush and starting again, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = _connect()
        self.positions = Positions()
        self.model: dict[int, dict[int, int]] = {}
        self.heads: dict[int, int] = {}
        self.offset = 0

    @initialize()
    def begin(self) -> None:
        self.positions.load(self.connection)

    def _add(self, counts: dict[int, int], jump: int | None) -> list[tuple[int, int, int]]:
        added = []
        for stream, count in counts.items():
            for at in range(count):
                sequence = self.heads.get(stream, 0) + 1 + at
                if stream == jump:
                    sequence += JUMP
                self.offset += 1 + stream
                self.positions.add(stream, sequence, self.offset)
                added.append((stream, sequence, self.offset))
        return added

    @rule(counts=st.dictionaries(st.integers(0, 4), st.integers(1, 40), min_size=1), jump=st.none() | st.integers(0, 4))
    def publish(self, counts: dict[int, int], jump: int | None) -> None:
        for stream, sequence, offset in self._add(counts, jump):
            self.model.setdefault(stream, {})[sequence] = offset
            self.heads[stream] = sequence
        self.positions.adopt()

    @rule(counts=st.dictionaries(st.integers(0, 5), st.integers(1, 40), min_size=1), jump=st.none() | st.integers(0, 4))
    def publish_in_vain(self, counts: dict[int, int], jump: int | None) -> None:
        before = self.offset
        self._add(counts, jump)
        self.positions.roll_back()
        self.offset = before

    @precondition(lambda self: self.positions._flush_to is None)
    @rule(back=st.integers(0, 60))
    def begin_flush(self, back: int) -> None:
        self.positions.begin_flush(self.offset - back)

    @rule(rows_max=st.integers(1, 60), steps=st.integers(1, 3), is_kept=st.booleans())
    def flush_some(self, rows_max: int, steps: int, is_kept: bool) -> None:
        self.connection.execute("BEGIN")
        for _ in range(steps):
            self.positions.flush_step(self.connection, rows_max)
        self.connection.execute("COMMIT" if is_kept else "ROLLBACK")
        if is_kept:
            self.positions.adopt()
        else:
            self.positions.roll_back()

    @rule()
    def start_again(self) -> None:
        self.positions = Positions()
        stored_to = self.positions.load(self.connection)
        rows = sorted((offset, stream, at) for stream, known in self.model.items() for at, offset in known.items())
        for offset, stream, sequence in rows:
            if offset > stored_to - 10:
                self.positions.add(stream, sequence, offset)
        self.positions.adopt()

    @rule(stream=st.integers(0, 4))
    def delete_stream(self, stream: int) -> None:
        self.positions.drop_stream(self.connection, stream)
        self.positions.adopt()
        self.model.pop(stream, None)

    @rule(stream=st.integers(0, 4), back=st.integers(0, 90), limit=st.integers(1, 50))
    def read(self, stream: int, back: int, limit: int) -> None:
        sequence = max(0, self.heads.get(stream, 0) - back)
        expected = sorted((at, offset) for at, offset in self.model.get(stream, {}).items() if at >= sequence)
        assert self.positions.read(self.connection, stream, sequence, limit) == expected[:limit]
        assert self.positions.find(self.connection, stream, sequence) == self.model.get(stream, {}).get(sequence)
        earlier = sorted(((at, o) for at, o in self.model.get(stream, {}).items() if at <= sequence), reverse=True)
        recent = self.positions.read_recent_back(stream, sequence, limit)
        assert recent == earlier[: len(recent)]
        stored = read_stored_back(self.connection, stream, recent[-1][0] - 1 if recent else sequence, limit)
        assert [*recent, *stored][:limit] == earlier[:limit]
        newest = find_newest_stored(self.connection, [stream, 99])
        assert newest[0] == max((at for at, _ in read_stored(self.connection, stream, 0, 10_000)), default=0)
        assert newest[1] == 0

    @invariant()
    def same_as_model(self) -> None:
        for stream in range(6):
            expected = sorted(self.model.get(stream, {}).items())
            assert self.positions.read(self.connection, stream, 0, 10_000) == expected

    def teardown(self) -> None:
        self.connection.close()


PositionsModel.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestPositionsModel = PositionsModel.TestCase
