"""Why packets are gone: runs of one stream's packets that were taken away, for ever in memory and in a table."""

import bisect

import msgspec

from overlayd.model.bodies import RemovalCause
from overlayd.model.entry import StoredEntry


class Removal(msgspec.Struct, frozen=True):
    """A run of one stream (offsets, inclusive; other streams' entries lie between) and the cause."""

    stream_hash: bytes
    from_offset: int
    to_offset: int
    cause: RemovalCause


class Removals:
    """All removals, by stream. About 200 bytes each; one exists per run, not per packet.

    Retention goes on for ever, so of its runs only the hull is kept: what is reduced inside of it and wasn't taken by
    retention is in a run of a cause that says more.
    """

    def __init__(self) -> None:
        self._by_stream: dict[bytes, list[tuple[int, int, RemovalCause]]] = {}
        self._retention: dict[bytes, tuple[int, int]] = {}

    def add(self, removal: Removal) -> None:
        if removal.cause == "retention":
            low, high = self._retention.get(removal.stream_hash, (removal.from_offset, removal.to_offset))
            hull = min(low, removal.from_offset), max(high, removal.to_offset)
            self._retention[removal.stream_hash] = hull
            return
        runs = self._by_stream.setdefault(removal.stream_hash, [])
        bisect.insort(runs, (removal.from_offset, removal.to_offset, removal.cause))

    def cause_of(self, entry: StoredEntry) -> RemovalCause:
        """Of a reduced entry. The cause that says most wins: erased, then deleted, then retention."""
        runs = self._by_stream.get(entry.stream_hash, [])
        at = entry.target_from or entry.offset  # what is about one packet goes with it
        causes = {cause for low, high, cause in runs if low <= at <= high}
        low, high = self._retention.get(entry.stream_hash, (1, 0))
        if low <= at <= high:
            causes.add("retention")
        for cause in _STRONGEST_FIRST:
            if cause in causes:
                return cause
        return "deleted"


_STRONGEST_FIRST: tuple[RemovalCause, ...] = ("erased", "deleted", "retention")
