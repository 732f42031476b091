"""Where the packets about somebody are, read page by page: no step looks at more than `PLACES_PER_STEP` of them, however
many there are.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from overlayd.privacy import tables
from overlayd.privacy.tables import Asked, Place
from overlayd.storage import Log, Stream
from overlayd.storage.erasing import PLACES_PER_STEP


class StreamCount(msgspec.Struct):
    """How many packets about somebody a stream keeps, and from which sequence to which."""

    stream: Stream
    packets: int
    first_sequence: int
    last_sequence: int


class Position(msgspec.Struct, frozen=True):
    """Between two steps: of the names by which a subject stands in the index the one to go on with, and behind which
    offset."""

    name: int = 0
    after: int = 0


class SubjectPlaces:
    """One subject's packets. Places in streams that don't say any more where their subject stands are left out."""

    def __init__(self, log: Log, streams: Mapping[int, Stream], asked: Sequence[Asked]) -> None:
        """`streams`: those that are searched, by number. `asked`: the names that lead to packets."""
        self._log = log
        self._streams = streams
        self._asked = asked

    async def read_step(self, position: Position) -> tuple[list[tuple[Stream, Place]], Position | None]:
        """Some places behind a position, and the one to go on from; None at the end. Each name's ascend. Checkpoint."""
        if position.name >= len(self._asked):
            return [], None
        asked = self._asked[position.name]
        read = partial(tables.read_places, asked=asked, after=position.after, limit=PLACES_PER_STEP)
        found = await self._log.read(read)
        is_more = len(found) == PLACES_PER_STEP
        follows = Position(position.name, found[-1][1][1]) if is_more else Position(position.name + 1)
        return self._with_streams(found), follows

    async def read_after(self, after: int, limit: int) -> tuple[list[tuple[Stream, Place]], int | None]:
        """The first places behind an offset by all names, by offset, at most `limit`; and the offset to go on from, None at
        the end. Checkpoint."""
        merged: list[tuple[int, Place]] = []
        upto = (1 << 63) - 1
        limit = min(limit, PLACES_PER_STEP)
        for asked in self._asked:
            read = partial(tables.read_places, asked=asked, after=after, limit=limit, upto=upto)
            merged = sorted(merged + await self._log.read(read), key=_offset)[:limit]
            if len(merged) == limit:
                upto = merged[-1][1][1]
        return self._with_streams(merged), merged[-1][1][1] if len(merged) == limit else None

    async def count(self, limit: int) -> tuple[list[StreamCount], bool]:
        """By stream, and whether that is all: it ends behind about `limit` places. Checkpoint."""
        counts = dict[int, StreamCount]()
        looked, name, after = 0, 0, 0
        while name < len(self._asked):
            most = PLACES_PER_STEP if looked < limit else 1  # whether there is one more
            count = partial(tables.count_places, asked=self._asked[name], after=after, limit=most)
            rows = await self._log.read(count)
            seen = sum(row.rows for row in rows)
            if seen and looked >= limit:
                return list(counts.values()), False
            for row in rows:
                self._add(counts, row)
            looked += seen
            if seen == most:
                after = max(row.last_offset for row in rows)
            else:
                name, after = name + 1, 0
        return list(counts.values()), True

    def _add(self, counts: dict[int, StreamCount], row: tables.CountRow) -> None:
        stream = self._streams.get(row.stream_id)
        if stream is None or not row.kept:
            return
        known = counts.get(stream.id)
        if known is None:
            counts[stream.id] = StreamCount(stream, row.kept, row.first_sequence, row.last_sequence)
            return
        known.packets += row.kept
        known.first_sequence = min(known.first_sequence, row.first_sequence)
        known.last_sequence = max(known.last_sequence, row.last_sequence)

    def _with_streams(self, found: Sequence[tuple[int, Place]]) -> list[tuple[Stream, Place]]:
        return [(self._streams[id], place) for id, place in found if id in self._streams]


def _offset(found: tuple[int, Place]) -> int:
    return found[1][1]
