"""Fan-out: one task follows the head and writes what comes to every session that stands there.

Subscriptions with equal selections are one *channel*: its entries are looked at and its filter is asked once. Those of
a channel that want the same bytes are a *group*: the frames are joined once and written to one session after the other
without waiting for any. A session that doesn't take everything at once falls behind; catching_up.py reads the log for
it and brings it back here when it stands where its channel stands.
"""

from collections.abc import Callable, Iterable

import trio

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.feed import Feed, Parcel
from overlayd.delivery.frames import Message
from overlayd.delivery.line import Line, Seat
from overlayd.delivery.matching import Matcher
from overlayd.delivery.reader import Batch, Reader
from overlayd.delivery.scanning import Judge, Pieces
from overlayd.delivery.shelves import Shelves
from overlayd.delivery.wheel import TimerWheel
from overlayd.delivery.wires import Wire
from overlayd.model.cursor import Cursor
from overlayd.model.entry import Kind, StoredEntry
from overlayd.model.errors import OverlaydError
from overlayd.storage import Page

SLICE_S = 0.002
WRITES_PER_SLICE = 256
WRITES_PER_LOOK = 16
"""Writes between two looks at the clock."""
REST_S = 0.008
REST_CHANNELS = 16
"""A page with at least so many entries for at least so many channels comes from many producers at full rate. After it
the fan-out rests, so that each session gets more at once: a write to a socket costs as much as storing a packet."""
SWEEP_PAUSE_S = 1.0
"""Sessions that nothing matches are told where they stand at most so often because of how much passed them."""


class Group:
    """Seats at the head that get the same bytes. `sent_at`, `told`: when something was written to all of them last, and
    up to which offset."""

    __slots__ = ("channel", "is_strict", "seats", "sent_at", "told", "wire")

    def __init__(self, channel: "Channel", wire: Wire, *, is_strict: bool) -> None:
        self.channel = channel
        self.wire = wire
        self.is_strict = is_strict
        self.seats: dict[Seat, None] = {}
        self.sent_at = 0.0
        self.told = 0

    def remove(self, seat: Seat) -> None:
        """The seat leaves."""
        seat.group = None
        del self.seats[seat]
        if not self.seats:
            self.channel.drop(self)


class Channel:
    """A selection that somebody at the head has.

    It stands where its `reader` stands; without one at `waits_at`, as long as the page behind that offset hasn't had its
    turn; else where the fan-out stands.
    """

    __slots__ = (
        "_fan_out", "groups", "is_delivering", "is_following", "judge", "matcher", "reader", "scanner", "waits_at",
    )  # fmt: skip

    def __init__(self, fan_out: "FanOut", matcher: Matcher, judge: Judge | None) -> None:
        self.matcher = matcher
        self.judge = judge
        self.groups: dict[tuple[Wire, bool], Group] = {}
        self.scanner = fan_out.delivery.scanner(matcher, judge)
        self.reader: Reader | None = None
        self.waits_at: int | None = None
        self.is_delivering = False
        self.is_following = False
        self._fan_out = fan_out

    def __repr__(self) -> str:
        seats = sum(len(group.seats) for group in self.groups.values())
        return f"Channel({self.matcher.selection}, position={self.position}, seats={seats})"

    @property
    def position(self) -> int:
        """The last offset that was looked at, or is being written."""
        if self.reader is not None:
            return self.reader.position
        return self._fan_out.position if self.waits_at is None else self.waits_at

    @property
    def cursor(self) -> Cursor:
        """Where to resume for who got everything of it."""
        return Cursor(self._fan_out.log.epoch, self.position) if self.reader is None else self.reader.cursor

    @property
    def is_between_entries(self) -> bool:
        return self.reader is None or self.reader.is_between_entries

    def group(self, wire: Wire, *, is_strict: bool) -> Group:
        found = self.groups.get((wire, is_strict))
        if found is None:
            found = self.groups[wire, is_strict] = Group(self, wire, is_strict=is_strict)
        return found

    @property
    def only_seat(self) -> Seat | None:
        """Its seat, if it has one and no more."""
        if len(self.groups) == 1:
            (group,) = self.groups.values()
            if len(group.seats) == 1:
                return next(iter(group.seats))
        return None

    def drop(self, group: Group) -> None:
        """The group is empty."""
        del self.groups[group.wire, group.is_strict]
        if not self.groups:
            self._fan_out.drop(self)


class FanOut:
    """All channels, and the task that follows the head. `follow` runs once at a time."""

    def __init__(self, delivery: Delivery, start_soon: Callable[..., None]) -> None:
        """`start_soon` runs a function beside the others."""
        self.delivery = delivery
        self.log = delivery.log
        self.limits = delivery.limits
        self.settings = delivery.settings
        self.metrics = delivery.metrics
        self.wheel = TimerWheel()
        self.position = self.log.head
        self.catch_up: Callable[[Line], None]
        self.lines: set[Line] = set()
        self._start_soon = start_soon
        self._channels: dict[Matcher, Channel] = {}
        self._shelves: Shelves[Channel] = Shelves(self.log, delivery.views)
        self.version = 0
        self._moved = trio.lowlevel.ParkingLot()
        self._swept = self.position
        self._swept_at = 0.0
        groups = self.metrics.loop_counter(
            "overlayd_fan_out_groups", "Times that frames were joined for all sessions that get the same ones"
        )
        self._groups_written = groups
        self._fell_behind = self.metrics.counter(
            "overlayd_sessions_behind",
            "Times that a live session at the head didn't take everything at once",
            "transport",
        )
        self.metrics.gauge("overlayd_channels", "Distinct selections of sessions at the head").set_function(
            lambda: len(self._channels)
        )

    def __repr__(self) -> str:
        return f"FanOut(position={self.position}, channels={len(self._channels)})"

    def horizon(self, matcher: Matcher) -> int:
        """How far a session of the selection may read by itself."""
        channel = self._channels.get(matcher)
        return self.position if channel is None else channel.position

    def try_join(self, seat: Seat, feed: Feed) -> bool:
        """Puts a seat that stands where its channel stands among those that are written to. Whether it did."""
        reader, matcher = seat.opened.reader, seat.opened.matcher
        if not reader.is_between_entries or not reader.is_free_of_past or feed.is_refused:
            return False
        channel = self._channels.get(matcher)
        if channel is None:
            if reader.position != self.position:
                return False
            channel = self._channels[matcher] = Channel(self, matcher, seat.opened.judge)
            self._shelves.add(channel)
        elif reader.position != channel.position or not channel.is_between_entries:
            return False
        group = channel.group(seat.wire, is_strict=seat.is_strict)
        group.seats[seat] = None
        seat.group = group
        seat.feed = None
        seat.sent_at, seat.stopped_at = feed.sent_at, feed.stopped_at
        seat.told = feed.told.offset if feed.told.index is None else feed.told.offset - 1
        seat.opened.rest()
        del seat.line.behind[seat]
        seat.line.look_again()
        return True

    def fall_behind(self, seat: Seat, cursor: Cursor) -> None:
        """The seat goes on by itself, behind the cursor."""
        group = seat.group
        assert group is not None
        seat.sent_at, told = max(seat.sent_at, group.sent_at), max(seat.told, group.told)
        seat.told = min(told, cursor.offset)
        seat.resume_at = cursor
        group.remove(seat)
        seat.line.behind[seat] = None
        self.catch_up(seat.line)

    def drop(self, channel: Channel) -> None:
        """Nobody at the head wants it any more."""
        del self._channels[channel.matcher]
        self._shelves.remove(channel)

    async def wait_moved(self, version: int) -> None:
        """Until some channel stands somewhere else than when `version` was read. Checkpoint."""
        while self.version == version:
            await self._moved.park()

    def wake(self) -> None:
        """Has everybody who waits for a channel look again."""
        self.version += 1
        self._moved.unpark_all()

    def abandon(self) -> None:
        """After a fault: nobody knows what was written to whom any more. Every seat at the head goes back to what its
        group was told of last."""
        for channel in list(self._channels.values()):
            for group in list(channel.groups.values()):
                for seat in list(group.seats):
                    told = max(seat.told, group.told)
                    self.fall_behind(seat, Cursor(self.log.epoch, told))

    async def follow(self) -> None:
        """Follows the head until cancelled."""
        while True:
            await self.log.wait_beyond(self.position)
            if not self._channels:
                self.position = self.log.head
                self.wake()
                continue
            page = await self.log.read_page(self.position)
            before, self.position = self.position, page.after
            work, is_shared = self._route(page)
            for channel in work:
                if channel.reader is None:
                    channel.waits_at = before
            self.wake()
            is_whole = not page.damaged and before >= self.log.minimum_index
            for channel, entries in work.items():
                if channel.is_following or not channel.groups:
                    continue
                if not is_whole or channel.reader is not None:
                    await self._serve(channel, page, entries)
                elif is_shared or not self._deliver_alone(channel, entries, before):
                    await self._serve_plain(channel, page, entries, before)
            self.wake()
            self._sweep()
            if min(len(work), len(page.entries)) >= REST_CHANNELS:
                await trio.sleep(REST_S)

    def _route(self, page: Page) -> tuple[dict[Channel, list[StoredEntry]], bool]:
        """Which channels the entries of a page concern, and whether any of them concerns more than one."""
        work: dict[Channel, list[StoredEntry]] = {}
        is_shared = False
        if page.damaged:  # what stood there nobody knows, so everybody is told
            work = {channel: [] for channel in self._shelves.every()}
        for entry in page.entries:
            found = self._shelves.find(entry)
            is_shared = is_shared or len(found) > 1
            for channel in found:
                known = work.get(channel)
                if known is None:
                    work[channel] = [entry]
                else:
                    known.append(entry)
        return work, is_shared

    def _reader_at(self, channel: Channel, position: int) -> Reader:
        return self.delivery.shared_reader(channel.matcher, channel.judge, position, lambda: self.position)

    async def _serve_plain(self, channel: Channel, page: Page, entries: list[StoredEntry], before: int) -> None:
        """One page for one channel, without a reader where it holds nothing but whole packets."""
        messages = channel.scanner.scan_plain(entries)
        if messages is None:
            await self._serve(channel, page, entries)
            return
        channel.waits_at = None
        if messages:
            batch = Batch(messages, channel.cursor, True, len(entries), {})
            await self._deliver(channel, batch, Cursor(self.log.epoch, before))

    async def _serve(self, channel: Channel, page: Page, entries: list[StoredEntry]) -> None:
        """One page for one channel; on a task of its own where it may have to wait for something."""
        reader = channel.reader
        if reader is None:
            assert channel.waits_at is not None
            reader = channel.reader = self._reader_at(channel, channel.waits_at)
            channel.waits_at = None
        is_plain = channel.judge is None and all(entry.kind == Kind.PACKET for entry in entries)
        if not is_plain or not reader.is_between_entries:
            channel.is_following = True
            self._start_soon(self._follow_alone, channel)
            return
        before = reader.cursor
        batch = await reader.read(Page(entries, page.after, page.damaged))
        await self._deliver(channel, batch, before)
        self._settle(channel)

    async def _follow_alone(self, channel: Channel) -> None:
        """Filters may run in a thread, and what is about a range of entries is walked page by page: others needn't
        wait for that."""
        try:
            while channel.groups:
                reader = channel.reader
                assert reader is not None
                if reader.is_at_head:
                    break
                before = reader.cursor
                try:
                    batch = await reader.read()
                except OverlaydError:  # each tells its own client
                    for group in list(channel.groups.values()):
                        self._send_away(group, tuple(group.seats), before)
                    break
                await self._deliver(channel, batch, before)
                self.wake()
        finally:
            channel.is_following = False
        self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """A channel that has got to where the fan-out is needs no reader."""
        reader = channel.reader
        if reader is not None and reader.is_between_entries and reader.position == self.position:
            channel.reader = None
        self.wake()

    async def _deliver(self, channel: Channel, batch: Batch, before: Cursor) -> None:
        """Writes what a channel read to all of its groups. A checkpoint every few milliseconds."""
        if not batch.messages:
            return
        parcel = Parcel(batch.messages, batch.cursor, batch.wire, True)
        frames = self.delivery.frames
        plan = [(group, tuple(group.seats)) for group in channel.groups.values()]  # who comes later is ahead of this
        has_gap = any(message.kind == "gap" for message in batch.messages)
        channel.is_delivering = True
        try:
            for group, seats in plan:
                if has_gap and group.is_strict:
                    self._send_away(group, seats, before)
                    continue
                await self._write(group, seats, parcel.pieces(group.wire, frames), before, batch.messages)
                group.sent_at = trio.current_time()
                group.told = batch.cursor.offset if batch.cursor.index is None else batch.cursor.offset - 1
        finally:
            channel.is_delivering = False

    def _deliver_alone(self, channel: Channel, entries: list[StoredEntry], before: int) -> bool:
        """The same for a session that gets packets which nobody else at the head wants, at once and with nothing kept for
        others. False where there are more sessions, or for what isn't plain; nothing happened then."""
        delivery, seat = self.delivery, channel.only_seat
        group = None if seat is None else seat.group
        if seat is None or group is None:
            return False
        messages = channel.scanner.scan_plain(entries, delivery.views_once)
        if messages is None:
            return False
        channel.waits_at = None
        if messages:
            cursor = channel.cursor
            pieces = group.wire.pieces(messages, cursor, delivery.frames_once)
            is_written = self._write_one(seat, pieces, Cursor(self.log.epoch, before))
            self._groups_written.inc()
            delivery.meters.count_group(group.wire.transport, messages, int(is_written))
            group.sent_at = trio.current_time()
            group.told = cursor.offset
        return True

    def _send_away(self, group: Group, seats: Iterable[Seat], before: Cursor) -> None:
        """Each finds out for itself that it can't go on."""
        for seat in seats:
            if seat.group is group:
                self.fall_behind(seat, before)

    async def _write(
        self, group: Group, seats: tuple[Seat, ...], pieces: Pieces, before: Cursor, messages: list[Message]
    ) -> None:
        self._groups_written.inc()
        meters, transport = self.delivery.meters, group.wire.transport
        slice_end = trio.current_time() + SLICE_S
        written = 0
        for number, seat in enumerate(seats, 1):
            if seat.group is group:
                written += self._write_one(seat, pieces, before)
            if not number % WRITES_PER_LOOK and (
                not number % WRITES_PER_SLICE or trio.current_time() >= slice_end
            ):  # fmt: skip
                meters.count_group(transport, messages, written)
                written = 0
                await trio.lowlevel.checkpoint()
                slice_end = trio.current_time() + SLICE_S
        meters.count_group(transport, messages, written)

    def _write_one(self, seat: Seat, pieces: Pieces, before: Cursor) -> bool:
        """Whether the seat got all of it, or has the rest in its stream."""
        line = seat.line
        pace = line.session.pace
        if line.stream.unsent or (pace is not None and pace.wait_s() > 0):
            self._count_behind(seat)
            self.fall_behind(seat, before)
            return False
        try:
            for piece in pieces:
                if line.write(piece):
                    self._count_behind(seat)
                    self.fall_behind(seat, piece.cursor)
                    return piece is pieces[-1]
        except trio.BrokenResourceError:
            line.stream.abort()  # its own task sees it
            return False
        return True

    def _count_behind(self, seat: Seat) -> None:
        self._fell_behind.labels(seat.wire.transport).inc()

    def _sweep(self) -> None:
        """Has everybody looked at whom much passed by, so that resume points move."""
        now = trio.current_time()
        if self.position - self._swept < self.settings.progress_entries or now < self._swept_at + SWEEP_PAUSE_S:
            return
        self._swept, self._swept_at = self.position, now
        for line in self.lines:
            line.look_again()
