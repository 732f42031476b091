"""Which packets a durable subscription was given. Asked before they are erased: afterwards nobody can look into them.

When in doubt a packet counts as given: a notice too many does no harm, one too few leaves erased data where it went.
"""

from collections.abc import Iterable

import msgspec

from overlayd.delivery.delivery import Delivery
from overlayd.delivery.frames import state_at_append
from overlayd.delivery.matching import PacketView, depth_of
from overlayd.delivery.scanning import cut_page
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.units import Item
from overlayd.model.entry import StoredEntry
from overlayd.model.errors import VerificationFailed
from overlayd.storage import Stream
from overlayd.storage.pace import Pace

LOOK_PACKETS = 0.1
"""What asking one subscription about a packet costs, in packets of the pace."""


class Given(msgspec.Struct, frozen=True):
    """What one subscription was given of a run of offsets, and what it wasn't because it didn't want it; offsets,
    ascending. `is_certain`: False where it may have been given less."""

    subscription: Subscription
    offsets: list[int]
    unwanted: list[int]
    is_certain: bool


async def find_given(
    delivery: Delivery, subscriptions: Iterable[Subscription], reached: int, stream: Stream, low: int, high: int
) -> list[Given]:
    """Of a stream's packets at offsets from `low` to `high`, as long as they are there; those that were given nothing and
    have nothing unwanted are left out. Checkpoint. Raises as reading the log. `reached`: by the dispatcher."""
    counts = [_Count(one, reached) for one in subscriptions if one.matcher.is_name_match(stream.name)]
    after, pace = low - 1, Pace()
    while counts and after < min(high, delivery.log.head):
        page = cut_page(await delivery.log.read_page(after), high)
        for entry in page.entries:
            if entry.sequence and entry.stream_hash == stream.stream_hash and not entry.is_reduced:
                view = _view(delivery, entry, stream)
                for count in counts:
                    await count.look(entry, view, stream)
                await pace.spend(1 + len(counts) * LOOK_PACKETS)
        after = page.after
    return [count.result for count in counts if count.result.offsets or count.result.unwanted]


class _Count:
    """One subscription's."""

    def __init__(self, subscription: Subscription, reached: int) -> None:
        self.result = Given(subscription, [], [], is_certain=subscription.selection.deliver == "appended")
        self._is_live = subscription.definition.reached_by == "live"
        self._position = reached if subscription.is_tracked else subscription.ledger.position.offset
        self._waiting = {item.packet_offset for item in subscription.ledger.items() if is_untried(item)}

    async def look(self, entry: StoredEntry, view: PacketView | None, stream: Stream) -> None:
        """A checkpoint where there is a filter."""
        subscription, offset = self.result.subscription, entry.offset
        if offset <= subscription.rest.start or subscription.was_told(offset):
            return
        is_ahead = not self._is_live and (offset > self._position or offset in self._waiting)
        if is_ahead and offset > subscription.rest.given_to:
            return
        is_wanted = await _is_wanted(subscription, view, stream)
        (self.result.offsets if is_wanted else self.result.unwanted).append(offset)


def is_untried(item: Item) -> bool:
    """Whether it can't have reached anybody: nothing was begun for it. One in flight may arrive."""
    unit = item.unit
    return item.kind == "packets" and (unit is None or (unit.state == "waiting" and not unit.attempts))


def joined(offsets: list[int]) -> list[tuple[int, int]]:
    """Ascending offsets as runs, both ends inclusive."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset - 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs


async def _is_wanted(subscription: Subscription, view: PacketView | None, stream: Stream) -> bool:
    """By what the packet holds. A filter over confirmations may have held at another time, so it rules nothing out."""
    selection = subscription.selection
    if selection.deliver == "confirmed" and depth_of(selection, stream) is None:
        return False
    if view is None:
        return True
    if not subscription.matcher.is_view_match(view):
        return False
    if subscription.judge is None or selection.deliver != "appended":
        return True
    return await subscription.judge(view, state_at_append(stream.definition)) is not False


def _view(delivery: Delivery, entry: StoredEntry, stream: Stream) -> PacketView | None:
    try:
        return delivery.views.view(entry, stream.name)
    except VerificationFailed:
        return None
