"""What a page of the log holds for a selection: one pass, no position, no waiting.

Readers with equal selections at the same place share the result for as long as the head stays where it is.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from overlayd.delivery.caching import ByteBounded
from overlayd.delivery.frames import Gap, Message, PacketState, state_at_append
from overlayd.delivery.matching import Matcher, PacketView, ViewBook
from overlayd.delivery.query import Selection
from overlayd.model.bodies import decode_removal_body
from overlayd.model.cursor import Cursor, Epoch
from overlayd.model.entry import Z32, Kind, StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.model.wire import GapReason
from overlayd.storage import Log, Page

Judge = Callable[[PacketView, PacketState], Awaitable[bool | None]]
"""A filter's verdict on a packet with the state that its trigger gives it. None: the filter can't judge any more."""

_PACKET = int(Kind.PACKET)
_SHARED_BYTES = 16 << 20
_MESSAGE_BYTES = 400


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Frames to be written at once. `cursor`: where to resume behind them; `count`: how many messages they are;
    `plain`: the text that was compressed into them, where its sum is told at the end."""

    data: bytes
    cursor: Cursor
    count: int
    plain: bytes = b""


Pieces = tuple[Piece, ...]


class Scan(msgspec.Struct):
    """`after`: the last offset that was looked at. `trigger`: the entry behind it, which is about a range of others
    and has to be walked before the reading goes on. `wire`: the messages as bytes for a transport, made on demand.
    """

    messages: list[Message]
    after: int
    trigger: StoredEntry | None = None
    wire: dict[object, Pieces] = msgspec.field(default_factory=dict)


class ScanBook:
    """Scans made since the head moved last. Reductions are entries too, so nothing in here was taken away since."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._head = -1
        self._scans: ByteBounded[tuple[Selection, int, int], Scan] = ByteBounded(_SHARED_BYTES)

    def find(self, selection: Selection, after: int, horizon: int) -> Scan | None:
        """What a page behind an offset holds up to the horizon, if somebody looked already."""
        if self._log.head != self._head:
            self.clear()
            self._head = self._log.head
            return None
        return self._scans.get((selection, after, horizon))

    def put(self, selection: Selection, after: int, horizon: int, scan: Scan, page_head: int) -> None:
        """`page_head`: where the head stood before the page was read."""
        if page_head == self._head == self._log.head:
            cost = sum(_MESSAGE_BYTES + 3 * body_bytes(message) for message in scan.messages) + _MESSAGE_BYTES
            self._scans.put((selection, after, horizon), scan, cost)

    def clear(self) -> None:
        self._scans.clear()


class Scanner:
    """Scans pages for one selection."""

    def __init__(self, log: Log, matcher: Matcher, views: ViewBook, judge: Judge | None) -> None:
        self.matcher = matcher
        self._log = log
        self._epoch: Epoch = log.epoch
        self._views = views
        self._judge = judge
        selection = matcher.selection
        self._wants_packets = selection.deliver != "confirmed"
        self._wants_status = selection.status or selection.deliver != "appended"

    async def scan(self, page: Page, after: int) -> Scan:
        """A checkpoint only if the filter is one."""
        messages: list[Message] = []
        damaged = list(page.damaged)
        for entry in page.entries:
            while damaged and damaged[0][0] < entry.offset:
                self._add_damage(messages, damaged.pop(0))
            if entry.kind == Kind.PACKET:
                if self._wants_packets:
                    await self._add_packet(messages, entry)
            elif self.is_trigger(entry):
                return Scan(messages, entry.offset - 1, entry)
            elif entry.is_reduced and entry.kind == Kind.STATUS and self._is_wanted_status(entry):
                self._add_gap(messages, entry, self._log.removal_cause(entry))
        for run in damaged:
            self._add_damage(messages, run)
        return Scan(messages, max(page.after, after))

    def scan_plain(self, entries: Iterable[StoredEntry], views: ViewBook | None = None) -> list[Message] | None:
        """The same for packets that are all there, and a selection whose filter needn't be asked, at once. None for
        anything else. `views`: decodes in place of what everybody shares."""
        if self._judge is not None:
            return None
        messages: list[Message] = []
        find_stream, is_view_match = self.matcher.find_stream, self.matcher.is_view_match
        view_of = (views or self._views).view
        for entry in entries:
            if entry.kind != _PACKET or entry.is_reduced:
                return None
            stream = find_stream(entry.stream_hash)
            if stream is None or not self._wants_packets:
                continue
            try:
                view = view_of(entry, stream.name)
            except VerificationFailed:
                return None
            if is_view_match(view):
                state = state_at_append(stream.definition)
                messages.append(Message("packet", Cursor(self._epoch, entry.offset), entry.appended_us, view, state))
        return messages

    async def scan_entry(self, entry: StoredEntry) -> list[Message]:
        """One packet by itself. A checkpoint only if the filter is one."""
        messages: list[Message] = []
        await self._add_packet(messages, entry)
        return messages

    def is_trigger(self, entry: StoredEntry) -> bool:
        """Whether the entry is about others and this selection wants to know."""
        if entry.is_reduced:
            return False
        if entry.kind == Kind.STATUS:
            return self._is_wanted_status(entry)
        if entry.kind != Kind.REMOVAL or self.matcher.find_stream(entry.stream_hash) is None:
            return False
        return decode_removal_body(entry.body).cause != "retention"

    async def judge(self, view: PacketView, state: PacketState) -> bool | None:
        """Type, key, topic and filter; None when the filter can't judge any more. A checkpoint if the filter is one."""
        if not self.matcher.is_view_match(view):
            return False
        return True if self._judge is None else await self._judge(view, state)

    def view(self, entry: StoredEntry, stream: str) -> PacketView:
        """Raises VerificationFailed."""
        return self._views.view(entry, stream)

    def _is_wanted_status(self, entry: StoredEntry) -> bool:
        return self._wants_status and (
            entry.stream_hash == Z32 or self.matcher.find_stream(entry.stream_hash) is not None
        )

    async def _add_packet(self, messages: list[Message], entry: StoredEntry) -> None:
        stream = self.matcher.find_stream(entry.stream_hash)
        if stream is None:
            return
        if entry.is_reduced:
            self._add_gap(messages, entry, self._log.removal_cause(entry))
            return
        try:
            view = self.view(entry, stream.name)
        except VerificationFailed:
            self._add_gap(messages, entry, "damaged")
            return
        state = state_at_append(stream.definition)
        verdict = await self.judge(view, state)
        if verdict is None:
            self._add_gap(messages, entry, "filter_disabled")
        elif verdict:
            messages.append(
                Message("packet", Cursor(self._epoch, entry.offset), entry.appended_us, view, state)
            )  # fmt: skip

    def _add_gap(self, messages: list[Message], entry: StoredEntry, reason: GapReason) -> None:
        add_gap(messages, Gap(self._epoch, entry.offset, entry.offset, reason), entry.appended_us)

    def _add_damage(self, messages: list[Message], run: tuple[int, int]) -> None:
        """What stood there nobody knows, so every reader is told."""
        add_gap(messages, Gap(self._epoch, run[0], run[1], "damaged"), 0)


def cut_page(page: Page, last: int) -> Page:
    """The page without what lies behind an offset."""
    if page.after <= last:
        return page
    return Page(
        [entry for entry in page.entries if entry.offset <= last],
        last,
        [(low, min(high, last)) for low, high in page.damaged if low <= last],
    )


def rest_of_page(page: Page, first: int) -> Page:
    """The page behind an offset."""
    start = bisect_right(page.entries, first, key=lambda entry: entry.offset)
    return Page(page.entries[start:], page.after, [(low, high) for low, high in page.damaged if low > first])


def add_gap(messages: list[Message], gap: Gap, trigger_us: int, cursor: Cursor | None = None) -> None:
    """One gap per run: it joins the gap before it when nothing else came between them.

    `cursor`: where to resume behind it, when its trigger isn't the last of the missing entries themselves.
    """
    message = Message("gap", cursor or Cursor(gap.epoch, gap.to_offset), trigger_us, gap)
    joined = join_gaps(messages[-1], message) if messages else None
    if joined is None:
        messages.append(message)
    else:
        messages[-1] = joined


def join_gaps(before: Message, after: Message) -> Message | None:
    """Both as one, or None when they can't be: another reason, or the one tells of what lies ahead of the reader
    and the other of what it passed long ago."""
    old, new = before.subject, after.subject
    if not isinstance(old, Gap) or not isinstance(new, Gap) or (old.reason, old.epoch) != (new.reason, new.epoch):
        return None
    if _is_ahead(before, old) != _is_ahead(after, new):
        return None
    low, high = min(old.from_offset, new.from_offset), max(old.to_offset, new.to_offset)
    return Message("gap", after.cursor, after.trigger_us or before.trigger_us, Gap(new.epoch, low, high, new.reason))


def _is_ahead(message: Message, gap: Gap) -> bool:
    return message.cursor.offset == gap.to_offset


def body_bytes(message: Message) -> int:
    """Of its packet's payload, 0 for anything else."""
    return len(message.subject.entry.body) if isinstance(message.subject, PacketView) else 0
