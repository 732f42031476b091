"""The one consumer loop: a position in the log, a selection, and page by page what the selection wants.

Live and replay are the same: a reader that has caught up waits for the head to move and reads the next page.
Nothing is queued for it; between two reads it holds its position and nothing else.
"""

from collections.abc import Callable, Sequence

import msgspec
import trio

from overlayd.delivery.frames import Gap, Message
from overlayd.delivery.ranges import RangeWalk, is_single_status, walk_removal, walk_status
from overlayd.delivery.scanning import (
    Pieces,
    Scan,
    ScanBook,
    Scanner,
    add_gap,
    body_bytes,
    cut_page,
    join_gaps,
    rest_of_page,
)
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.entry import Kind
from overlayd.model.errors import CursorExpired, DamagedEntry, UnknownPacket
from overlayd.storage import Log, Page

_ANNOUNCED_MAX = 256
_LAST_AT_ONCE = 50
_TOLD_BYTES = 1 << 20
"""Payloads of confirmed packets in one batch, which stand elsewhere than the page that tells of them."""


class Batch(msgspec.Struct):
    """What one read gave. `cursor` stands behind all of it; `scanned` counts the entries that were looked at;
    `wire` holds the messages as bytes for a transport, shared with readers that got the same list."""

    messages: list[Message]
    cursor: Cursor
    is_at_head: bool
    scanned: int
    wire: dict[object, Pieces]


class Opening(msgspec.Struct):
    """Where a reader begins: `position` is the last offset taken; `prelude` comes first; `last` are offsets of
    packets to deliver before anything behind the position; `walk` is a trigger it stood inside of."""

    position: int
    prelude: list[Message] = msgspec.field(default_factory=list)
    last: Sequence[int] = ()
    walk: RangeWalk | None = None

    def cursor(self, epoch: Epoch) -> Cursor:
        """Where to resume when nothing was taken yet."""
        if self.walk is not None:
            return self.walk.cursor
        return Cursor(epoch, self.last[0] - 1 if self.last else self.position)


class Reader:
    """One position in the log. Owned by one task at a time."""

    def __init__(
        self, log: Log, scanner: Scanner, scans: ScanBook, opening: Opening, *, run_entries_max: int,
        horizon: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """`run_entries_max`: a gap is told at the latest after so many entries, even if more of it follows.
        `horizon`: the last offset to look at, at the moment; without it the head."""
        self._log = log
        self._horizon = horizon or (lambda: log.head)
        self._scanner = scanner
        self._scans = scans
        self._position = opening.position
        self._prelude = opening.prelude
        self._last = opening.last
        self._walk = opening.walk
        self._run_entries_max = run_entries_max
        self._pending: Message | None = None
        self._pending_scanned = 0
        self._announced: list[tuple[int, int]] = []
        self._announced_at = 0
        self._cursor = opening.cursor(log.epoch)

    def __repr__(self) -> str:
        return f"Reader(cursor={self._cursor}, head={self._log.head})"

    @property
    def cursor(self) -> Cursor:
        """Resuming here loses nothing and repeats nothing."""
        return self._cursor

    @property
    def position(self) -> int:
        """The last offset that was looked at."""
        return self._position

    @property
    def is_at_head(self) -> bool:
        """Whether there is nothing to read at the moment."""
        return self.is_between_entries and self._position >= self._horizon()

    @property
    def is_between_entries(self) -> bool:
        """Whether the position says all about where it stands."""
        return not (self._prelude or self._last or self._walk or self._pending)

    @property
    def is_free_of_past(self) -> bool:
        """Whether another reader at the same position would read the same from here on: no removal can lie ahead of
        what this one was told that it won't get."""
        return self._position >= self._announced_at

    @property
    def matched_names(self) -> frozenset[str] | None:
        """The only streams it can ever read, None when a pattern may add more."""
        return self._scanner.matcher.exact_names

    async def wait(self) -> None:
        """Returns once there may be something to read. Checkpoint."""
        if self.is_at_head:
            await self._log.wait_beyond(self._position)
        else:
            await trio.lowlevel.checkpoint()

    def jump(self, position: int) -> None:
        """Goes on behind the offset. Everything up to there is known to hold nothing for this selection."""
        assert self.is_between_entries
        assert position >= self._position
        self._position = position
        self._cursor = Cursor(self._log.epoch, position)

    async def read(self, page: Page | None = None) -> Batch:
        """The next messages, of at most one page; often none, and then at least the cursor moved. Checkpoint, unless
        `page` already holds what stands behind the position; entries that nobody of this selection wants may be
        missing in it.

        It never waits for new entries. Cancelled, it has read nothing: everything that changes the reader comes
        after the last await.
        """
        before = self._position
        wire: dict[object, Pieces] = {}
        walked = 0
        if self._prelude:
            await trio.lowlevel.checkpoint()
            messages, self._prelude = self._prelude, []
        elif self._last:
            messages = await self._read_last()
        elif self._walk is not None:
            messages, walked = await self._read_walk(self._walk)
        elif self._position < self._log.minimum_index:
            await trio.lowlevel.checkpoint()
            messages = self._pass_cut()
        elif self._position >= self._horizon():
            await trio.lowlevel.checkpoint()
            messages = []
        else:
            scan = await self._scan() if page is None else await self._scanner.scan(page, before)
            self._position = scan.after
            messages, wire = scan.messages, scan.wire
            if scan.trigger is not None:
                self._walk = RangeWalk(scan.trigger, self._log.epoch)
                if scan.after == before:  # a read gets somewhere, or who resumes after each would stand still
                    messages, walked = await self._read_walk(self._walk)
                    wire = {}
        scanned = self._position - before + walked
        messages, wire = self._hold_gap(messages, wire, scanned)
        return Batch(messages, self._cursor, self.is_at_head, scanned, wire)

    async def _scan(self) -> Scan:
        """What the page behind the position holds. Checkpoint."""
        selection = self._scanner.matcher.selection
        after, head, horizon = self._position, self._log.head, self._horizon()
        found = self._scans.find(selection, after, horizon)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found
        page = cut_page(await self._log.read_page(after), horizon)
        scan = self._scans.find(selection, after, horizon)  # another reader may have come first while this one waited
        if scan is None:
            scan = await self._scan_page(page, after)
            self._scans.put(selection, after, horizon, scan, head)
        return scan

    async def _scan_page(self, page: Page, after: int) -> Scan:
        """What a page holds. Statuses of single packets are told in passing, for a block brings thousands of them; a
        trigger about more is left to be walked."""
        scan = await self._scanner.scan(page, after)
        messages, told_bytes = scan.messages, 0
        while scan.trigger is not None and is_single_status(scan.trigger):
            trigger = scan.trigger
            walk = RangeWalk(trigger, self._log.epoch)
            told = await walk_status(walk, await walk.read(self._log), self._scanner, self._log)
            messages += told
            told_bytes += sum(body_bytes(message) for message in told)
            if told_bytes >= _TOLD_BYTES:
                return Scan(messages, trigger.offset)
            scan = await self._scanner.scan(rest_of_page(page, trigger.offset), trigger.offset)
            messages += scan.messages
        return Scan(messages, scan.after, scan.trigger)

    async def _read_last(self) -> list[Message]:
        """Some of the newest packets, which `from=last` asked for."""
        messages: list[Message] = []
        offsets = self._last[:_LAST_AT_ONCE]
        for offset in offsets:
            try:
                entry = await self._log.read_entry(offset)
            except UnknownPacket:
                continue
            except DamagedEntry:
                add_gap(messages, Gap(self._log.epoch, offset, offset, "damaged"), 0)
                continue
            messages += await self._scanner.scan_entry(entry)
        self._last = self._last[len(offsets) :]
        return messages

    async def _read_walk(self, walk: RangeWalk) -> tuple[list[Message], int]:
        """A step through the range of a status or removal entry, and how many entries it looked at."""
        page = await walk.read(self._log)
        if walk.trigger.kind == Kind.STATUS:
            messages = await walk_status(walk, page, self._scanner, self._log)
        else:
            messages = walk_removal(walk, page, self._scanner, self._told_gaps())
        walked = walk.advance(page)
        if walk.is_done:
            self._walk = None
            self._position = walk.trigger.offset
        return messages, walked

    def _told_gaps(self) -> list[tuple[int, int]]:
        """Runs that the reader knows it won't get, the one that is kept back included."""
        if self._pending is None or not isinstance(self._pending.subject, Gap):
            return self._announced
        return [*self._announced, (self._pending.subject.from_offset, self._pending.subject.to_offset)]

    def _pass_cut(self) -> list[Message]:
        """The prefix of the log that isn't there any more."""
        first, self._position = self._position + 1, self._log.minimum_index
        messages: list[Message] = []
        add_gap(messages, Gap(self._log.epoch, first, self._position, "retention"), 0)
        return messages

    def _hold_gap(
        self, messages: list[Message], wire: dict[object, Pieces], scanned: int
    ) -> tuple[list[Message], dict[object, Pieces]]:
        """Keeps a gap at the end of a page back, for more of it may follow, and sets the cursor accordingly."""
        if self._pending is None and not any(message.kind == "gap" for message in messages):
            self._cursor = self._cursor_here(messages)
            return messages, wire
        out: list[Message] = []
        for message in messages:
            if not isinstance(message.subject, Gap):
                self._flush(out)
                out.append(message)
                continue
            joined = None if self._pending is None else join_gaps(self._pending, message)
            if joined is None:
                self._flush(out)
                self._pending_scanned = 0
            self._pending = joined or message
        self._pending_scanned += scanned
        is_over = self._position >= self._horizon() or self._pending_scanned >= self._run_entries_max
        is_inside = self._walk is not None and self._walk.trigger.kind == Kind.STATUS
        if is_over or is_inside or self._last:
            self._flush(out)
        if self._pending is None:
            self._cursor = self._cursor_here(out)
        elif out:
            self._cursor = out[-1].cursor
        return out, {}

    def _cursor_here(self, messages: list[Message]) -> Cursor:
        if self._last or self._prelude:
            return messages[-1].cursor if messages else self._cursor
        return Cursor(self._log.epoch, self._position) if self._walk is None else self._walk.cursor

    def _flush(self, out: list[Message]) -> None:
        """Tells the gap that was kept back."""
        if self._pending is None:
            return
        gap = self._pending.subject
        assert isinstance(gap, Gap)
        if gap.reason in ("erased", "deleted"):
            del self._announced[: len(self._announced) - _ANNOUNCED_MAX + 1]
            self._announced.append((gap.from_offset, gap.to_offset))
            self._announced_at = self._log.head
        out.append(self._pending)
        self._pending = None


def refuse_gaps(messages: list[Message]) -> None:
    """For readers with `on_gap=error`. Raises CursorExpired for the first gap; `oldest` is the cursor behind it."""
    for message in messages:
        if isinstance(message.subject, Gap):
            gap = message.subject
            oldest = str(message.cursor)
            raise CursorExpired(
                f"entries from {Cursor(gap.epoch, gap.from_offset)} to {Cursor(gap.epoch, gap.to_offset)} can't be "
                f"given any more: {gap.reason}", subject="after", hint=f"go on with after={oldest}",
                extra={"oldest": oldest, "reason": gap.reason},
            )  # fmt: skip
