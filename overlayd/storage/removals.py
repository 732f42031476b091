"""Why packets are gone: runs of one stream's packets that were taken away, for ever in memory and in a table."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any

import msgspec

from overlayd.model.bodies import RemovalCause
from overlayd.model.entry import StoredEntry

SELECT_REMOVALS = "SELECT stream_hash, from_offset, to_offset, cause FROM removal ORDER BY stream_hash, from_offset"
"""In this order runs are added behind one another, which takes no time."""


class Removal(msgspec.Struct, frozen=True):
    """A run of one stream (offsets, inclusive; other streams' entries lie between) and the cause."""

    stream_hash: bytes
    from_offset: int
    to_offset: int
    cause: RemovalCause


class _Runs:
    """A set of offsets as disjoint runs in order: 16 bytes each. Runs that touch or overlap become one."""

    __slots__ = ("_highs", "_lows")

    def __init__(self) -> None:
        self._lows = array("Q")
        self._highs = array("Q")

    def __contains__(self, offset: int) -> bool:
        at = bisect_right(self._lows, offset) - 1
        return at >= 0 and offset <= self._highs[at]

    def __len__(self) -> int:
        return len(self._lows)

    def add(self, low: int, high: int) -> None:
        """At the end in no time; in the middle of a million runs in a millisecond."""
        first, behind = bisect_left(self._highs, max(0, low - 1)), bisect_right(self._lows, high + 1)
        if first < behind:
            low, high = min(low, self._lows[first]), max(high, self._highs[behind - 1])
        self._lows[first:behind] = array("Q", (low,))
        self._highs[first:behind] = array("Q", (high,))


class Removals:
    """All removals, by stream. Memory grows for ever with what is erased or deleted: by 16 bytes for each run that no other
    touches, and half a kilobyte for each stream. A packet that is erased alone is such a run, and so are up to 5,000 neighbours
    that go together.

    Retention goes on for ever, so of its runs only the hull is kept: what is reduced inside of it and wasn't taken by
    retention is in a run of a cause that says more.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[bytes, RemovalCause], _Runs] = {}
        self._retention: dict[bytes, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"Removals(streams={len(self._runs)}, runs={self.run_count})"

    @property
    def run_count(self) -> int:
        """Disjoint runs in memory, those of retention left out."""
        return sum(map(len, self._runs.values()))

    def load(self, rows: Iterable[tuple[Any, Any, Any, Any]]) -> None:
        """Adds the rows of `SELECT_REMOVALS`. One that can't be what was stored is passed over: what is reduced there counts as
        deleted."""
        for stream_hash, low, high, cause in rows:
            if isinstance(low, int) and isinstance(high, int) and 0 < low <= high:
                self.add(Removal(stream_hash, low, high, cause))

    def add(self, removal: Removal) -> None:
        if removal.cause == "retention":
            low, high = self._retention.get(removal.stream_hash, (removal.from_offset, removal.to_offset))
            hull = min(low, removal.from_offset), max(high, removal.to_offset)
            self._retention[removal.stream_hash] = hull
            return
        runs = self._runs.setdefault((removal.stream_hash, removal.cause), _Runs())
        runs.add(removal.from_offset, removal.to_offset)

    def cause_of(self, entry: StoredEntry) -> RemovalCause:
        """Of a reduced entry. The cause that says most wins: erased, then deleted, then retention."""
        at = entry.target_from or entry.offset  # what is about one packet goes with it
        for cause in _STRONGEST_FIRST:
            if at in self._runs.get((entry.stream_hash, cause), ()):
                return cause
        low, high = self._retention.get(entry.stream_hash, (1, 0))
        return "retention" if low <= at <= high else "deleted"


_STRONGEST_FIRST: tuple[RemovalCause, ...] = ("erased", "deleted")
