"""Which settings take effect while the node runs, and how they get to those who read them.

Parts are handed their settings once and read them where they use them, so a new value is put into the struct that they
all hold. Whatever is copied, or turned into something else when a part is made, isn't listed here and waits for a
restart, unless the part can be told of it (`TOLD`).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from overlayd.access.reloading import LIVE as LIVE_ACCESS
from overlayd.access.reloading import LIVE_OF_IDENTITY
from overlayd.config.schema import Key
from overlayd.config.settings import Settings

LIVE = frozenset(
    [
        "delivery.heartbeat",
        "delivery.ping_interval",
        "delivery.progress_interval",
        "delivery.progress_entries",
        "delivery.sse_retry",
        "delivery.bye_retry",
        "delivery.close_timeout",
        "delivery.subscriptions.disable_after",
        "delivery.subscriptions.dead_letter_retention",
        "delivery.subscriptions.position_interval",
        "delivery.subscriptions.drain_timeout",
        "usage.flush_interval",
        "usage.retention",
        "usage.deliveries_retention",
        "usage.deliveries_max",
        "usage.pending_max",
        "quotas.receipt_policy",
        "rates.local",
        "rates.save_interval",
        "chain.anchor_interval",
        "chain.anchor_packets",
        "chain.block_interval",
        "chain.watch.poll_interval",
        "chain.watch.hints_max",
        "chain.wallet.fee_sat_per_kb_max",
        "chain.wallet.day_sat_max",
        "chain.wallet.alarm_sat",
        "chain.wallet.pool_coins",
        "chain.wallet.coin_sat",
        "chain.wallet.unconfirmed_max",
        "storage.disk_high_water",
        "storage.disk_low_water",
    ]
)
"""Read where they are used. All of `[limits]` but `FIXED_LIMITS` belongs to them, too."""

FIXED_LIMITS = frozenset(
    [
        "head_bytes",
        "body_bytes",
        "packet_bytes",
        "message_bytes",
        "publishes_in_flight",
        "keep_alive_timeout",
        "handshake_threads",
        "opening_max",
        "bodies_in_flight_bytes",
        "other_lane_concurrency",
        "other_lane_queue",
        "readers",
        "tail_bytes",
        "connections_max",
        "sockets_unread_bytes",
        "outbound_requests",
        "outbound_lookups",
        "webhook_bodies_bytes",
        "deliveries_in_flight",
        "troubled_attempts_per_s",
        "agent_runs_per_hour",
        "agent_runs_per_day",
        "agent_bytes_per_day",
    ]
)
"""Limits that are built into something when the node starts: pools, buffers, ready-made decoders."""

TOLD: Mapping[str, str] = {
    "log": "log",
    "rates": "rates",
    "quotas.default_policy": "rates",
    "keys": "access",
    **{f"access.{name}": "access" for name in LIVE_ACCESS if name != "identity"},
    **{f"access.identity.{name}": "access" for name in LIVE_OF_IDENTITY},
    "chain.sources": "sources",
}
"""What a part is told of, by key or table, and as which change."""

FIXED_RATES = frozenset(("rates.buckets",))


def is_live(key: Key) -> bool:
    """Whether a new value is simply put where the old one is."""
    if key.path[0] == "limits":
        return key.path[-1] not in FIXED_LIMITS
    return key.name in LIVE


def told_as(name: str) -> str | None:
    """As which change a part is told of a setting that isn't simply put; None: it waits for a restart."""
    if name in FIXED_RATES:
        return None
    if name in TOLD:
        return TOLD[name]
    table = name.partition(".")[0]
    return TOLD.get(table)


def put(settings: Settings, attributes: tuple[str, ...], value: Any) -> None:
    """Changes a setting for everybody who holds it. The structs are frozen for all but the reload, which calls this on
    the event loop between two steps of anybody else; threads read one value at a time."""
    owner: Any = settings
    for word in attributes[:-1]:
        owner = getattr(owner, word)
    msgspec.structs.force_setattr(owner, attributes[-1], value)
