"""Dead letters: what is written down of a delivery that exhausted its retries, and how it is tried again."""

from typing import Literal

import msgspec

from overlayd.delivery.frames import Erased, Gap, Message, StatusRun
from overlayd.delivery.subscriptions.subscription import Subscription
from overlayd.delivery.subscriptions.tables import DeadBody, DeadRow
from overlayd.delivery.subscriptions.units import Item, Unit
from overlayd.model.cursor import Cursor

EXCERPT_CHARS = 1024
_NOTICES: dict[str, type[Gap | Erased | StatusRun]] = {"gap": Gap, "erased": Erased, "status": StatusRun}


def letter_of(
    subscription: Subscription, unit: Unit, delivery_id: str, reason: str, *, status: int | None, excerpt: str,
    died_us: int, id: int,
) -> DeadRow:  # fmt: skip
    """The unit as a dead letter, parked."""
    first = unit.items[0]
    notice = "" if first.message is None or first.kind == "packets" else _text(first.message)
    body = DeadBody(
        delivery_id=delivery_id,
        kind=first.kind,
        stream=first.stream,
        cursors=(str(first.before), str(unit.items[-1].after)),
        members=[(item.key, item.packet_offset, item.after.index) for item in unit.items],
        reason=reason,
        status=status,
        excerpt=excerpt[:EXCERPT_CHARS],
        attempts=unit.attempts,
        first_us=unit.first_us,
        notice=notice,
        trigger_us=first.trigger_us,
    )
    return DeadRow(id, subscription.number, died_us, False, body)


def unit_of(letter: DeadRow) -> Unit:
    """The letter as a unit that may be delivered again. Its attempts count on, but its patience begins anew."""
    body = letter.body
    before, after = (Cursor.parse(text) for text in body.cursors)
    kind: Literal["packets", "gap", "status", "erased"] = body.kind  # type: ignore[assignment]
    message = None
    if body.notice and kind != "packets":
        subject = msgspec.json.decode(body.notice, type=_NOTICES[kind])
        message = Message(kind, after, body.trigger_us, subject)
    items = []
    for key, packet_offset, index in body.members:
        place = Cursor(after.epoch, key[0], index)
        items.append(
            Item(
                key, kind, body.stream, before=before, after=after if message else place, message=message,
                packet_offset=packet_offset, trigger_us=body.trigger_us,
            )
        )  # fmt: skip
    unit = Unit(items[0].key, items, body.stream, left=len(items), dead_id=letter.id)
    unit.first_us = body.first_us
    unit.attempts = unit.attempts_before = body.attempts
    unit.is_fixed = True
    for item in items:
        item.unit = unit
    return unit


def queue_letter(letter: DeadRow, *, attempts: int | None = None) -> DeadRow:
    """The letter as it is written down while it is tried again."""
    body = letter.body if attempts is None else msgspec.structs.replace(letter.body, attempts=attempts)
    return DeadRow(letter.id, letter.number, letter.died_us, True, body)


def _text(message: Message) -> str:
    return msgspec.json.encode(message.subject).decode()
