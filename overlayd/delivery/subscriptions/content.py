"""What a unit delivers when its turn comes: packets as they can be given now, and what can't be given any more."""

from collections.abc import Callable, Iterable

import msgspec

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import Gap, Message, PacketState, state_at_append, state_of
from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.finding import WHOLE, gap_id
from overlayd.delivery.subscriptions.meters import SubscriptionMeters
from overlayd.delivery.subscriptions.subscription import Reading, Subscription
from overlayd.delivery.subscriptions.units import Item, Key, Unit
from overlayd.model.bodies import decode_status_body
from overlayd.model.cursor import Epoch, format_epoch
from overlayd.model.errors import DamagedEntry, UnknownPacket, VerificationFailed
from overlayd.model.outlet import DeliveryKind
from overlayd.model.wire import GapReason
from overlayd.storage import Stream

MayRead = Callable[[Reading, Stream], bool]
"""Whether a subscription's owner may read a stream, now."""


class Parcel(msgspec.Struct):
    """`messages` in order; `gaps`: packets of the unit that can't be given any more."""

    kind: DeliveryKind
    stream: str
    messages: list[Message]
    gaps: list[Gap]


class Contents:
    """Reads what units deliver."""

    def __init__(self, delivery: Delivery, may_read: MayRead, meters: SubscriptionMeters) -> None:
        self._delivery = delivery
        self._log = delivery.log
        self._may_read = may_read
        self._meters = meters

    @property
    def head(self) -> int:
        """The newest offset."""
        return self._log.head

    @property
    def epoch(self) -> Epoch:
        """The log's present one."""
        return self._log.epoch

    async def read(self, subscription: Subscription, unit: Unit) -> Parcel:
        """What the unit delivers now; nothing when its owner may not read it. A checkpoint only if the log is read."""
        first = unit.items[0]
        parcel = Parcel(first.kind, first.stream, [], [])
        if first.stream:
            stream = self._log.find_stream(first.stream)
            if stream is not None and not self._may_read(subscription.reading, stream):
                self._meters.withheld.inc(len(unit.items))
                return parcel
        for item in unit.items:
            message = item.message
            if message is None:
                found = await self._read_packet(item)
                if not isinstance(found, Message):
                    self._add_gap(subscription, parcel, unit, item, found)
                    continue
                message = found
            parcel.messages.append(message)
        return parcel

    async def _read_packet(self, item: Item) -> Message | GapReason:
        """The packet with the state that its trigger gives it, or why it can't be given any more."""
        try:
            entry = await self._log.read_entry(item.packet_offset)
            if entry.is_reduced:
                return self._log.removal_cause(entry)
            stream = self._log.find_stream_by_hash(entry.stream_hash)
            assert stream is not None
            view = self._delivery.views.view(entry, item.stream)
            state, trigger_us = state_at_append(stream.definition), entry.appended_us
            if item.key[0] != entry.offset:
                state, trigger_us = await self._state_of(item)
        except (DamagedEntry, VerificationFailed):
            return "damaged"
        except UnknownPacket:
            return "retention"
        return Message("packet", item.after, trigger_us, view, state)

    async def _state_of(self, item: Item) -> tuple[PacketState, int]:
        """What a confirmation told. Raises UnknownPacket where it was taken away with the packet."""
        trigger = await self._log.read_entry(item.key[0])
        if trigger.is_reduced:
            raise UnknownPacket("the status was taken away", subject=f"offset {trigger.offset}")
        return state_of(decode_status_body(trigger.body)), trigger.appended_us

    def _add_gap(self, subscription: Subscription, parcel: Parcel, unit: Unit, item: Item, reason: GapReason) -> None:
        """One that was never attempted can't have been taken, so its removal needn't be told again."""
        offset = item.packet_offset
        if not unit.attempts and reason in ("erased", "deleted"):
            subscription.note_told(offset, offset)
        last = parcel.gaps[-1] if parcel.gaps else None
        if last is not None and last.reason == reason and last.to_offset == offset - 1:
            parcel.gaps[-1] = msgspec.structs.replace(last, to_offset=offset)
        else:
            parcel.gaps.append(Gap(item.after.epoch, offset, offset, reason))


def delivery_id(subscription_id: str, unit: Unit) -> str:
    """The same for each attempt, and after a restart."""
    first, last = unit.items[0], unit.items[-1]
    if first.kind == "gap" and first.message is not None:
        assert isinstance(first.message.subject, Gap)
        return gap_id(subscription_id, first.message.subject)
    epoch = format_epoch(first.after.epoch)
    if first.kind == "erased" and first.packet_offset:
        return f"msg_{subscription_id}_{epoch}_{first.packet_offset}_erased"
    first_key, last_key = (unit.members[0], unit.members[-1]) if unit.members else (first.key, last.key)
    start = f"msg_{subscription_id}_{epoch}_{_place_text(first_key)}"
    if first.kind == "status":
        return f"{start}_status{first.key[2] or ''}"
    return start if first_key == last_key else f"{start}-{_place_text(last_key)}"


def body_bytes(messages: Iterable[Message]) -> int:
    """Bytes of the packets' payloads."""
    return sum(len(one.subject.entry.body) for one in messages if isinstance(one.subject, PacketView))


def _place_text(key: Key) -> str:
    offset, index, _ = key
    return f"{offset}" if index < 0 or index == WHOLE else f"{offset}_{index}"
