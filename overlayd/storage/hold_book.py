"""Legal holds as they are known in memory, and the table behind it."""

import sqlite3
from collections.abc import Sequence

import msgspec

from overlayd.storage.streams import Stream

NO_END = (1 << 63) - 1
"""`to_sequence` of a hold that covers everything to come."""

TABLES = """
CREATE TABLE legal_hold (
    id INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    from_sequence INTEGER NOT NULL,
    to_sequence INTEGER NOT NULL,  -- inclusive; 2^63 - 1: no end
    reason TEXT NOT NULL,
    principal TEXT NOT NULL,
    placed_us INTEGER NOT NULL
) STRICT;
"""


class Hold(msgspec.Struct, frozen=True):
    """A range of a stream's sequences, inclusive, that stays until somebody lifts the hold. `placed_us`: Unix µs."""

    id: int
    stream_id: int
    from_sequence: int
    to_sequence: int
    reason: str
    principal: str
    placed_us: int

    @property
    def is_open(self) -> bool:
        """Whether it covers what is still to come."""
        return self.to_sequence == NO_END

    def covers(self, low: int, high: int) -> bool:
        """Whether any sequence of the range is held."""
        return self.from_sequence <= high and low <= self.to_sequence


class HoldBook:
    """All holds by stream. The writer changes it, everybody reads it."""

    def __init__(self) -> None:
        self._by_stream: dict[int, list[Hold]] = {}
        self.next_id = 1
        self.generation = 0
        """Grows with every change, so that who remembers what was held knows to look again."""

    def __len__(self) -> int:
        return sum(map(len, self._by_stream.values()))

    def load(self, connection: sqlite3.Connection) -> None:
        """Blocking, at start."""
        for row in connection.execute("SELECT * FROM legal_hold ORDER BY id"):
            self.add(Hold(*row))

    def add(self, hold: Hold) -> None:
        """After the commit."""
        self._by_stream.setdefault(hold.stream_id, []).append(hold)
        self.next_id = max(self.next_id, hold.id + 1)
        self.generation += 1

    def drop(self, hold: Hold) -> None:
        """After the commit; two requests of one group may lift the same."""
        left = [one for one in self._by_stream.pop(hold.stream_id, []) if one.id != hold.id]
        if left:
            self._by_stream[hold.stream_id] = left
        self.generation += 1

    def list_of(self, stream: Stream) -> Sequence[Hold]:
        """The stream's holds, oldest first."""
        return tuple(self._by_stream.get(stream.id, ()))

    def held_ranges(self, stream: Stream, low: int, high: int) -> list[tuple[int, int]]:
        """What of a range of sequences is held: ranges (inclusive) that don't overlap, ascending."""
        found = sorted(
            (hold.from_sequence, hold.to_sequence)
            for hold in self._by_stream.get(stream.id, ())
            if hold.covers(low, high)
        )
        ranges: list[tuple[int, int]] = []
        for first, last in found:
            if ranges and first <= ranges[-1][1] + 1:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
            else:
                ranges.append((first, last))
        return ranges

    def find(self, stream: Stream, low: int, high: int) -> Hold | None:
        """A hold on any sequence of the range, inclusive."""
        for hold in self._by_stream.get(stream.id, ()):
            if hold.covers(low, high):
                return hold
        return None
