"""The newest entries, kept as they were built, so that readers near the head touch no disk."""

import bisect

import msgspec
import trio

from overlayd.model.entry import StoredEntry
from overlayd.storage.record import entry_cost


class Page(msgspec.Struct):
    """Entries in order, and how far the log was looked at.

    `after`: the last offset looked at; a reader goes on from it. `damaged`: runs of offsets (inclusive) that
    should be there and can't be served.
    """

    entries: list[StoredEntry]
    after: int
    damaged: list[tuple[int, int]] = msgspec.field(default_factory=list)


class Tail:
    """A ring of entries without holes, up to the head."""

    def __init__(self, size_max: int) -> None:
        self._entries: list[StoredEntry] = []
        self._size = 0
        self._size_max = size_max
        self._first = 1

    @property
    def first(self) -> int:
        """The oldest offset in memory; head + 1 when there is none."""
        return self._first

    def reset(self, head: int) -> None:
        """Empties it; the next entry has offset `head` + 1."""
        self._entries.clear()
        self._size = 0
        self._first = head + 1

    def extend(self, entries: list[StoredEntry]) -> None:
        """Adds the entries that follow the newest one. What goes over the bound leaves at the old end."""
        assert not entries or entries[0].offset == self._first + len(self._entries)
        self._entries += entries
        self._size += sum(map(entry_cost, entries))
        if self._size > self._size_max:
            self._trim()

    def find(self, offset: int) -> StoredEntry | None:
        at = offset - self._first
        return self._entries[at] if 0 <= at < len(self._entries) else None

    def find_at(self, time_us: int) -> int:
        """The first offset appended at or after a time; head + 1 if there is none. Times ascend."""
        return self._first + bisect.bisect_left(self._entries, time_us, key=lambda entry: entry.appended_us)

    def replace(self, entry: StoredEntry) -> None:
        """Puts what is left of a reduced entry in its place."""
        at = entry.offset - self._first
        if 0 <= at < len(self._entries):
            self._size += entry_cost(entry) - entry_cost(self._entries[at])
            self._entries[at] = entry

    def read(self, after: int, limit: int, size_max: int) -> Page | None:
        """The page after an offset, or None when that lies before the tail. At least one entry if there is one."""
        at = after + 1 - self._first
        if at < 0:
            return None
        entries = self._entries[at : at + limit]
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.body) + len(entry.meta)
            if size > size_max and count:
                del entries[count:]
                break
        return Page(entries, entries[-1].offset if entries else after)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Tail(first={self._first}, entries={len(self._entries)}, bytes={self._size})"

    def _trim(self) -> None:
        """Cuts an eighth more than needed, because deleting at a list's front moves all the rest."""
        target = self._size_max - self._size_max // 8
        count = 0
        for entry in self._entries:
            if self._size <= target:
                break
            self._size -= entry_cost(entry)
            count += 1
        del self._entries[:count]
        self._first += count


class Head:
    """The newest offset, and the readers that wait for it to move."""

    def __init__(self) -> None:
        self.offset = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def advance(self, offset: int) -> None:
        """Moves it and wakes everybody who waits. Doesn't yield."""
        assert offset >= self.offset
        self.offset = offset
        self._waiting.unpark_all()

    async def wait_beyond(self, offset: int) -> None:
        """Returns once the head is larger. A checkpoint."""
        if self.offset > offset:
            await trio.lowlevel.checkpoint()
            return
        while self.offset <= offset:
            await self._waiting.park()
