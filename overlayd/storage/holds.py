"""Legal holds and least ages: what nobody takes away, neither retention nor shedding, erasure or deletion.

A hold lies on a range of one stream's sequences, open at its end if it is to cover what is still to come. It stands in a
table and, because every removal asks, in memory; both change with the commit that places or lifts it.
"""

import bisect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import trio

from overlayd.model.clock import Clock, format_time_us
from overlayd.model.errors import LimitReached, UnderHold, UnknownHold, UnknownStream
from overlayd.storage import queries
from overlayd.storage.group import Group, LogState
from overlayd.storage.hold_book import NO_END, Hold
from overlayd.storage.jobs import ChangeJob
from overlayd.storage.own import OwnPacket, append_own
from overlayd.storage.positions import read_stored_back
from overlayd.storage.readers import ReaderPool
from overlayd.storage.streams import Stream

Place = tuple[int, int]
"""Sequence and offset of a packet."""

_INSERT = (
    "INSERT INTO legal_hold (id, stream_id, from_sequence, to_sequence, reason, principal, placed_us)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)


class Kept(msgspec.Struct, frozen=True):
    """Packets that can't go now: how many are under a legal hold, how many too young, and when the first of those won't be
    any more (Unix µs; 0 where there is none)."""

    held: int = 0
    young: int = 0
    until_us: int = 0


class Holds:
    """Placing, lifting and minding holds. Changes are durable when they return."""

    def __init__(
        self, state: LogState, readers: ReaderPool, clock: Clock, change: Callable[[ChangeJob], Awaitable[Any]]
    ) -> None:
        self._state = state
        self._readers = readers
        self._clock = clock
        self._change = change
        self.book = state.holds

    async def place(
        self, stream: Stream, low: int, high: int, *, reason: str, principal: str, own: Sequence[OwnPacket] = ()
    ) -> Hold:
        """Holds sequences `low` to `high` (`NO_END`: whatever comes). `own`: packets of the node's own streams that tell
        about it, in the same transaction. Checkpoint. Raises UnknownStream, LimitReached, and as an append."""
        assert 1 <= low <= high <= NO_END

        def change(group: Group) -> Hold:
            _check_exists(group, stream)
            count, limit = len(self.book.list_of(stream)), self._state.limits.holds_per_stream
            if count >= limit:
                self._state.metrics.count_limit_hit("holds_per_stream")
                raise LimitReached(
                    f"{stream.name} has {count} holds, which is the limit", subject=stream.name,
                    hint="lift some, or hold a longer range instead",
                )  # fmt: skip
            hold = Hold(self.book.next_id, stream.id, low, high, reason, principal, self._clock.now_us())
            self.book.next_id += 1
            group.statements.append((_INSERT, msgspec.structs.astuple(hold)))
            group.on_adopt(lambda: self.book.add(hold))
            append_own(group, own)
            return hold

        placed: Hold = await self._change(ChangeJob(change))
        return placed

    async def lift(self, stream: Stream, hold_id: int, *, own: Sequence[OwnPacket] = ()) -> Hold:
        """The hold that was. Checkpoint. Raises UnknownHold, and as an append."""

        def change(group: Group) -> Hold:
            hold = next((one for one in self.book.list_of(stream) if one.id == hold_id), None)
            if hold is None:
                raise UnknownHold(f"{stream.name} has no hold {hold_id}", subject=str(hold_id))
            group.statements.append(("DELETE FROM legal_hold WHERE id = ?", (hold_id,)))
            group.on_adopt(partial(self.book.drop, hold))
            append_own(group, own)
            return hold

        lifted: Hold = await self._change(ChangeJob(change))
        return lifted

    async def refuse_if_held(self, stream: Stream, low: int, high: int) -> None:
        """Nothing, if nothing keeps the packets of a range of sequences (inclusive) from being taken away.

        Ask it before the first of several steps, so that none is taken in vain; each step asks again by itself.
        Checkpoint. Raises UnderHold for a legal hold, and where one is younger than the stream's `min_age`.
        """
        self.check_hold(stream, low, high)
        if float(stream.definition.retention.min_age) <= 0:
            await trio.lowlevel.checkpoint()
            return
        newest_us = await self._read_newest_time(stream, low, high)
        if newest_us is not None:
            self.check_age(stream, newest_us)

    async def split(self, stream: Stream, places: Sequence[Place]) -> tuple[list[Place], Kept]:
        """Those of some packets, by their ascending (sequence, offset), that may go now, and what keeps the others.

        A few hundred at once. It is how things stand now: what takes them away asks again in the writer. Checkpoint.
        """
        if not places:
            await trio.lowlevel.checkpoint()
            return [], Kept()
        free, held = [], 0
        ranges = self.book.held_ranges(stream, places[0][0], places[-1][0])
        for place in places:
            while ranges and ranges[0][1] < place[0]:
                ranges.pop(0)
            if ranges and ranges[0][0] <= place[0]:
                held += 1
            else:
                free.append(place)
        age_us = int(float(stream.definition.retention.min_age) * 1_000_000)
        if age_us <= 0 or not free:
            await trio.lowlevel.checkpoint()
            return free, Kept(held)
        offsets = [offset for _, offset in free]
        times = await self._readers.read(partial(queries.read_appended_times, offsets=offsets))
        now_us = self._clock.now_us()
        ends = {offset: appended_us + age_us for offset, appended_us in times.items() if appended_us + age_us > now_us}
        old = [place for place in free if place[1] not in ends]
        return old, Kept(held, len(ends), min(ends.values(), default=0))

    async def refuse_places(self, stream: Stream, places: Sequence[Place]) -> None:
        """As `refuse_if_held` for packets by their ascending (sequence, offset), a few hundred at once. Checkpoint. Raises
        UnderHold."""
        if places:
            for low, high in self.book.held_ranges(stream, places[0][0], places[-1][0]):
                at = bisect.bisect_left(places, low, key=_sequence)
                if at < len(places) and places[at][0] <= high:
                    self.check_hold(stream, places[at][0], places[at][0])
        free, kept = await self.split(stream, places)
        if kept.young:
            gone = {offset for _, offset in free}
            newest = max(offset for _, offset in places if offset not in gone)
            times = await self._readers.read(partial(queries.read_appended_times, offsets=[newest]))
            self.check_age(stream, times[newest])

    async def _read_newest_time(self, stream: Stream, low: int, high: int) -> int | None:
        """When the newest packet of a range was appended (µs); None where there is none."""
        position = self._state.positions.read_recent_back(stream.id, high, 1)
        if not position:
            position = await self._readers.read(lambda c: read_stored_back(c, stream.id, high, 1))
        if not position or position[0][0] < low:
            return None
        return await self._readers.read(lambda c: queries.read_appended_us(c, position[0][1]))

    def check_hold(self, stream: Stream, low: int, high: int) -> None:
        """Raises UnderHold for a legal hold on any sequence of the range."""
        hold = self.book.find(stream, low, high)
        if hold is not None:
            end = "on" if hold.is_open else f"to {hold.to_sequence}"
            raise UnderHold(
                f"hold {hold.id} keeps {stream.name} from sequence {hold.from_sequence} {end}: {hold.reason}",
                subject=stream.name, hint="nothing of it can be taken away until the hold is lifted",
                extra={"hold": hold.id},
            )  # fmt: skip

    def check_age(self, stream: Stream, appended_us: int) -> None:
        """Raises UnderHold for a packet that is younger than the stream's `min_age`."""
        until_us = appended_us + int(float(stream.definition.retention.min_age) * 1_000_000)
        if until_us > self._clock.now_us():
            until = format_time_us(until_us)
            raise UnderHold(
                f"{stream.name} keeps its packets for at least {stream.definition.retention.min_age}",
                subject=stream.name, hint=f"ask again after {until}, or shorten the stream's min_age",
                extra={"until": until},
            )  # fmt: skip


def _sequence(place: Place) -> int:
    return place[0]


def _check_exists(group: Group, stream: Stream) -> None:
    if stream.is_deleted or group.touch(stream).is_deleted:
        raise UnknownStream(f"no stream {stream.name}", subject=stream.name)
