"""Subscriptions, attempts and dead letters as the API shows them."""

from typing import Any, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType

from overlayd.delivery.frames import packet_body
from overlayd.delivery.matching import PacketView
from overlayd.delivery.subscriptions.content import Contents
from overlayd.delivery.subscriptions.letters import unit_of
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import AttemptBody as StoredAttempt
from overlayd.delivery.subscriptions.tables import DeadRow
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor
from overlayd.model.subscription import HIDDEN, WebhookRule
from overlayd.model.wire import Packet
from overlayd.model.wire_subscriptions import AgentRuns, AttemptBody, DeadLetterBody, SubscriptionBody


def subscription_body(
    subscription: Subscription, position: Cursor, head: int, *, now_us: int, secret: str = "",
    never: list[str] | None = None,
) -> SubscriptionBody:  # fmt: skip
    """The subscription as it is shown. `position`: the dispatcher's; `head`: the log's. Values of headers may be
    secrets, so only their names are told."""
    definition, rest, ledger = subscription.definition, subscription.rest, subscription.ledger
    floor = subscription.floor(position)
    oldest = next((item for item in ledger.items() if not item.is_settled), None)
    webhook = definition.webhook
    if isinstance(webhook, WebhookRule):
        webhook = msgspec.structs.replace(webhook, headers=dict.fromkeys(webhook.headers, HIDDEN))
    return SubscriptionBody(
        id=subscription.id,
        name=definition.name,
        kind=definition.kind,
        owner="api" if subscription.owner == "api" else "config",
        principal=subscription.reading.principal,
        created_at=format_time_us(subscription.created_us),
        streams=list(definition.streams),
        topics=list(definition.topics),
        types=list(definition.types),
        keys=list(definition.keys),
        filter=definition.filter,
        deliver=definition.deliver,
        min_confirmations=definition.min_confirmations,
        webhook=webhook,
        pull=definition.pull,
        agent=definition.agent,
        runs=_runs_of(subscription, now_us),
        state=rest.state,
        reason=rest.reason or UNSET,
        cursor=str(floor),
        outstanding=ledger.unsettled,
        lag_entries=max(0, head - floor.offset),
        oldest_undelivered_at=_time(oldest.trigger_us if oldest else 0),
        delivered=UNSET if definition.reached_by == "live" else rest.delivered,
        failed=UNSET if definition.reached_by == "live" else rest.failed,
        dead_letters=subscription.dead_letters,
        last_success_at=_time(rest.last_success_us),
        last_failure_at=_time(rest.last_failure_us),
        last_error=rest.last_error or UNSET,
        secret=secret or UNSET,
        never=never or UNSET,
    )


def _runs_of(subscription: Subscription, now_us: int) -> AgentRuns | UnsetType:
    if subscription.brakes is None:
        return UNSET
    runs, hold = subscription.rest.runs.at(now_us), subscription.brakes.hold(subscription.rest.runs, now_us)
    return AgentRuns(
        this_hour=runs.hour_runs, today=runs.day_runs, bytes_today=runs.day_bytes, coalesced=runs.coalesced,
        replies=runs.replies, held_by=UNSET if hold is None else cast(Any, hold.brake),
        held_until=UNSET if hold is None else format_time_us(now_us + round(hold.wait_s * 1e6)),
    )  # fmt: skip


def attempt_body(stored: StoredAttempt) -> AttemptBody:
    """An attempt as it is shown."""
    return AttemptBody(
        at=format_time_us(stored.at_us),
        delivery_id=stored.delivery_id,
        attempt=stored.attempt,
        outcome=cast(Literal["delivered", "retry", "disable", "undeliverable", "gap", "hops"], stored.outcome),
        reason=stored.reason or UNSET,
        status=UNSET if stored.status is None else stored.status,
        duration_ms=stored.duration_us / 1000,
        response=stored.excerpt or UNSET,
    )


def letter_body(letter: DeadRow, *, is_queued: bool, packets: list[Packet] | None = None) -> DeadLetterBody:
    """A dead letter as it is shown."""
    body = letter.body
    return DeadLetterBody(
        number=letter.id,
        delivery_id=body.delivery_id,
        state="queued" if is_queued else "parked",
        kind=cast(Literal["packets", "gap", "status", "erased"], body.kind),
        stream=body.stream or UNSET,
        cursor=body.cursors[1],
        offsets=[packet_offset for _, packet_offset, _ in body.members if packet_offset],
        reason=body.reason,
        status=UNSET if body.status is None else body.status,
        response=body.excerpt or UNSET,
        attempts=body.attempts,
        first_attempt_at=_time(body.first_us),
        died_at=format_time_us(letter.died_us),
        packets=UNSET if packets is None else packets,
    )


async def packets_of(letter: DeadRow, subscription: Subscription, contents: Contents) -> list[Packet]:
    """The packets of a dead letter that are still kept and that the subscription's owner may read. Checkpoint."""
    parcel = await contents.read(subscription, unit_of(letter))
    return [
        packet_body(message.subject, message.state)
        for message in parcel.messages
        if isinstance(message.subject, PacketView)
    ]


def _time(time_us: int) -> str | UnsetType:
    return format_time_us(time_us) if time_us else UNSET
