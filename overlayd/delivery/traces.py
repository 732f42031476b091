"""Where the node keeps anything of a packet beside the log, put together for erasure."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from overlayd.chain.forgetting import forget_packets
from overlayd.delivery.delivery import Delivery
from overlayd.delivery.subscriptions import tables
from overlayd.delivery.subscriptions.parts import DurableSubscriptions
from overlayd.privacy.recipients import Recipient, Traces
from overlayd.storage import Stream

NEAR_ENTRIES = 200
"""Packets this close to one another are looked at together, with whatever lies between."""


def find_traces(
    delivery: Delivery, durable: DurableSubscriptions, *, forget_filters: Callable[[], None], has_chain: bool,
    followers: Sequence[Callable[[int], Awaitable[None]]], backups_before: Callable[[int], Sequence[str]],
) -> Traces:  # fmt: skip
    """`forget_filters`: drops what filters keep of packets. `followers`, `backups_before`: as in `Traces`."""

    def forget(offsets: Sequence[int]) -> None:
        delivery.forget()
        forget_filters()
        durable.forget()
        for subscription in durable.engine.subscriptions.values():
            for at, (slot, body) in enumerate(subscription.attempts_new):
                if body.excerpt and tables.is_about(body.first_offset, body.last_offset or 1 << 62, offsets):
                    subscription.attempts_new[at] = (slot, msgspec.structs.replace(body, excerpt=""))
            subscription.dead_new[:] = [_without_excerpt(row, offsets) for row in subscription.dead_new]
            queued = subscription.dead_queued
            queued.update({id: _without_excerpt(row, offsets) for id, row in queued.items()})

    async def given_to(stream: Stream, offsets: Sequence[int], is_final: bool) -> list[Recipient]:
        ask, meant = durable.before_erasure if is_final else durable.given, set(offsets)
        found: dict[str, Recipient] = {}
        for low, high in _near(offsets):
            for one in await ask(stream, low, high):
                subscription = one.subscription
                if not meant.isdisjoint(one.offsets):
                    kind = subscription.definition.kind
                    found[subscription.id] = Recipient(subscription.id, subscription.name, kind)
        return list(found.values())

    clear = [tables.clear_excerpts, forget_packets] if has_chain else [tables.clear_excerpts]
    return Traces(forget, clear, followers, given_to, backups_before)


def _without_excerpt(row: tables.DeadRow, offsets: Sequence[int]) -> tables.DeadRow:
    if not row.body.excerpt or not tables.is_about(*row.body.offsets(), offsets):
        return row
    return msgspec.structs.replace(row, body=msgspec.structs.replace(row.body, excerpt=""))


def _near(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending offsets as a few ranges that hold them."""
    ranges: list[tuple[int, int]] = []
    for offset in offsets:
        if ranges and offset - ranges[-1][1] <= NEAR_ENTRIES:
            ranges[-1] = (ranges[-1][0], offset)
        else:
            ranges.append((offset, offset))
    return ranges
