"""What a start makes of what stands in the database: up to where it still holds, and when it is due."""

from typing import Any

import trio

from overlayd.delivery.start import common_offset
from overlayd.delivery.subscriptions.definition import LEASE_MAX_S
from overlayd.delivery.subscriptions.subscription import Rules
from overlayd.delivery.subscriptions.units import UnitRow
from overlayd.model.cursor import OFFSET_MAX, Cursor
from overlayd.model.errors import UnknownEpoch
from overlayd.model.limits import Limits
from overlayd.storage import Log


def common_of(log: Log, floor: Cursor) -> int:
    """Up to where what was written down is about this log: after a restore the offsets behind it stand for other
    entries. -1 where it is about another log altogether."""
    if floor.epoch == log.epoch:
        return OFFSET_MAX
    try:
        return common_offset(log, floor.epoch)
    except UnknownEpoch:
        return -1


def due_of(row: UnitRow, rules: Rules, now_us: int, *, is_pull: bool) -> float:
    """When a unit of before a restart is due. However the clock jumped meanwhile, not later than it could be."""
    left_s = (row.next_us - now_us) / 1e6
    longest_s = LEASE_MAX_S if is_pull else rules.retry.pause_max_s(row.attempts)
    return trio.current_time() + min(max(0.0, left_s), longest_s)


def ledger_rules(rules: Rules, limits: Limits) -> dict[str, Any]:
    """What the rules of a subscription mean for its ledger."""
    return {
        "is_ordered": rules.ordering == "stream", "batch_size": rules.batch_size, "batch_wait_s": rules.batch_wait_s,
        "batch_bytes": int(limits.webhook_body_bytes), "is_coalescing": rules.is_coalescing,
    }  # fmt: skip
