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
    """All removals, by stream. About 200 bytes each; one exists per run, not per packet."""

    def __init__(self) -> None:
        self._by_stream: dict[bytes, list[tuple[int, int, RemovalCause]]] = {}

    def add(self, removal: Removal) -> None:
        runs = self._by_stream.setdefault(removal.stream_hash, [])
        bisect.insort(runs, (removal.from_offset, removal.to_offset, removal.cause))

    def cause_of(self, entry: StoredEntry) -> RemovalCause:
        """Of a reduced entry. The cause that says most wins: erased, then deleted, then retention."""
        runs = self._by_stream.get(entry.stream_hash, [])
        causes = {cause for low, high, cause in runs if low <= entry.offset <= high}
        for cause in _STRONGEST_FIRST:
            if cause in causes:
                return cause
        return "deleted"


_STRONGEST_FIRST: tuple[RemovalCause, ...] = ("erased", "deleted", "retention")
