"""Reads the log on for one subscription and puts what it wants into its ledger."""

from collections.abc import Iterator

import msgspec
import trio

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import Erased, Gap, Message
from overlayd.delivery.matching import PacketView
from overlayd.delivery.reader import Reader
from overlayd.delivery.subscriptions.given import is_untried
from overlayd.delivery.subscriptions.meters import SubscriptionMeters
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import AttemptBody
from overlayd.delivery.subscriptions.units import Item, Key
from overlayd.model.cursor import Cursor, format_epoch
from overlayd.model.entry import StoredEntry

WHOLE = 1 << 40
"""Index of what stands at the end of a range: behind every packet in it."""

_TOLD_REASONS = frozenset(("erased", "deleted"))


class Finder:
    """One subscription's reading. It ends when the subscription has caught up with the dispatcher."""

    def __init__(self, subscription: Subscription, delivery: Delivery, meters: SubscriptionMeters) -> None:
        self._subscription = subscription
        self.ledger = subscription.ledger
        self._delivery = delivery
        self._log = delivery.log
        self._meters = meters
        self._reader: Reader | None = None
        self._trigger: StoredEntry | None = None

    @property
    def is_at_head(self) -> bool:
        return self._reader is not None and self._reader.is_at_head

    async def step(self) -> int:
        """Reads at most a page and adds what it holds; gives how many entries were looked at. Checkpoint.

        Cancelled, or failed, nothing was added.
        """
        ledger = self.ledger
        if self._reader is None:
            subscription = self._subscription
            self._reader = await self._delivery.follow(subscription.matcher, ledger.position, subscription.judge)
        before = self._reader.cursor
        batch = await self._reader.read()
        items: list[Item] = []
        try:
            for message in batch.messages:
                items += await self._items_of(message, before, items[-1].key if items else ledger.last_key)
                before = message.cursor
        except BaseException:
            self._reader = None  # it is ahead of the ledger
            raise
        now = trio.current_time()
        for item in items:
            ledger.add(item, now)
        ledger.scanned(batch.cursor)
        return batch.scanned

    def caught_up(self, position: int) -> bool:
        """Whether the reader stands where the dispatcher does, or beyond; from here on that one looks out for it."""
        reader = self._reader
        if reader is None or not reader.is_between_entries or reader.position < position:
            return False
        self.ledger.scanned(Cursor(self._log.epoch, reader.position))
        self._reader = None
        return True

    async def _items_of(self, message: Message, before: Cursor, last: Key) -> list[Item]:
        subject = message.subject
        if isinstance(subject, PacketView):
            return [await self._packet(message, subject, before)]
        if isinstance(subject, Erased):
            item = await self._erased(message, subject, before, last)
            return [] if item is None else [item]
        if isinstance(subject, Gap):
            had = self._had_before(message, subject)
            items = list(self._gaps(message, subject, before, last))
            return items + await self._erased_again(had, message, before, items[-1].key if items else last)
        key = _ascending(_place_of(message.cursor), last)
        return [
            Item(
                key, "status", subject.stream, before=before, after=message.cursor, message=message,
                trigger_us=message.trigger_us,
            )
        ]  # fmt: skip

    async def _packet(self, message: Message, view: PacketView, before: Cursor) -> Item:
        cursor, offset = message.cursor, view.entry.offset
        index = -1
        if cursor.offset == offset:
            before = Cursor(cursor.epoch, offset - 1)
        else:
            trigger = await self._trigger_at(cursor.offset)
            if trigger.target_from != trigger.target_to:
                index = offset - trigger.target_from + 1
        return Item(
            (cursor.offset, index, 0), "packets", view.stream, before=before, after=cursor, message=message,
            packet_offset=offset, trigger_us=message.trigger_us, size=len(view.entry.body),
        )  # fmt: skip

    async def _erased(self, message: Message, subject: Erased, before: Cursor, last: Key) -> Item | None:
        """None for a packet that this subscription never had, or that it will be told of as a gap."""
        trigger = await self._trigger_at(message.cursor.offset)
        index = message.cursor.index
        offset = trigger.target_to if index is None else trigger.target_from + index - 1
        subscription = self._subscription
        if offset <= subscription.rest.start or subscription.was_told(offset):
            return None
        is_new = offset > subscription.rest.given_to
        if is_new and any(item.packet_offset == offset and is_untried(item) for item in self.ledger.items()):
            return None
        key = _ascending((message.cursor.offset, offset - trigger.target_from + 1, 0), last)
        return Item(
            key, "erased", subject.stream, before=before, after=message.cursor, message=message,
            trigger_us=message.trigger_us,
        )  # fmt: skip

    def _gaps(self, message: Message, gap: Gap, before: Cursor, last: Key) -> Iterator[Item]:
        """The gap without what was given, and without what was told already."""
        subscription = self._subscription
        is_ahead = message.cursor.offset == gap.to_offset or gap.epoch != self._log.epoch
        for low, high in self._missing(gap, is_ahead):
            if is_ahead and gap.reason in _TOLD_REASONS:
                subscription.note_told(low, high)
            part = msgspec.structs.replace(gap, from_offset=low, to_offset=high)
            told = Message("gap", message.cursor, message.trigger_us, part)
            if not subscription.rules.gaps:
                note_gap(subscription, part, self._delivery.clock.now_us())
                self._meters.gaps_untold.inc()
                continue
            last = _ascending(_place_of(message.cursor), last)
            yield Item(last, "gap", "", before=before, after=message.cursor, message=told, trigger_us=told.trigger_us)

    def _had_before(self, message: Message, gap: Gap) -> list[int]:
        """Offsets in front of a subscription that was sought back: somebody may have had what is erased there now."""
        subscription = self._subscription
        is_ahead = message.cursor.offset == gap.to_offset and gap.epoch == self._log.epoch
        if not is_ahead or gap.reason != "erased":
            return []
        low, high = max(gap.from_offset, subscription.rest.start + 1), min(gap.to_offset, subscription.rest.given_to)
        return [offset for offset in range(low, high + 1) if not subscription.was_told(offset)]

    async def _erased_again(self, offsets: list[int], message: Message, before: Cursor, last: Key) -> list[Item]:
        """The notices for them, behind the gap. A checkpoint only if there are any."""
        items: list[Item] = []
        for offset in offsets:
            entry = await self._log.read_entry(offset)
            stream = self._subscription.matcher.find_stream(entry.stream_hash) if entry.sequence else None
            if stream is None:
                continue
            last = _ascending(_place_of(message.cursor), last)
            told = Message("erased", message.cursor, message.trigger_us, Erased(stream.name, entry.sequence))
            items.append(
                Item(
                    last, "erased", stream.name, before=before, after=message.cursor, message=told,
                    packet_offset=offset, trigger_us=told.trigger_us,
                )
            )  # fmt: skip
        return items

    def _missing(self, gap: Gap, is_ahead: bool) -> Iterator[tuple[int, int]]:
        if gap.epoch != self._log.epoch:
            yield gap.from_offset, gap.to_offset
            return
        subscription = self._subscription
        if is_ahead:
            taken = [
                (offset, offset)
                for offset in self.ledger.settled_before()
                if gap.from_offset <= offset <= gap.to_offset
            ]
        else:
            taken = [(0, subscription.rest.start), *subscription.rest.told]
        yield from subtract(gap.from_offset, gap.to_offset, taken)

    async def _trigger_at(self, offset: int) -> StoredEntry:
        if self._trigger is None or self._trigger.offset != offset:
            self._trigger = await self._log.read_entry(offset)
        return self._trigger


def note_gap(subscription: Subscription, gap: Gap, now_us: int) -> None:
    """For a subscription without gap deliveries: it stands among its attempts."""
    places = f"{Cursor(gap.epoch, gap.from_offset)} to {Cursor(gap.epoch, gap.to_offset)}"
    body = AttemptBody(now_us, gap_id(subscription.id, gap), 0, "gap", f"{gap.reason}: {places}", None, 0, "")
    subscription.note_attempt(body)


def gap_id(subscription_id: str, gap: Gap) -> str:
    """The delivery id of a gap."""
    return f"msg_{subscription_id}_{format_epoch(gap.epoch)}_{gap.from_offset}-{gap.to_offset}_gap"


def subtract(low: int, high: int, taken: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of a run of offsets without some others; all ends inclusive."""
    for taken_low, taken_high in sorted(taken):
        if taken_high < low or taken_low > high:
            continue
        if taken_low > low:
            yield low, taken_low - 1
        low = max(low, taken_high + 1)
    if low <= high:
        yield low, high


def _place_of(cursor: Cursor) -> Key:
    return (cursor.offset, WHOLE if cursor.index is None else cursor.index, 0)


def _ascending(key: Key, last: Key) -> Key:
    """The key, or the next one behind the last when several things are told at one place."""
    return key if key > last else (last[0], last[1], last[2] + 1)
