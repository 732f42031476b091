"""The bodies about statistics, as they travel (docs/observability.md)."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.draft import StreamStateName
from overlayd.model.wire import Time

_In = Annotated[int, Meta(description="Packets that were appended")]
_Out = Annotated[
    int, Meta(description="Messages about packets that went out, each reader's counted: live, read, pulled, pushed")
]
_Refused = Annotated[int, Meta(description="Packets that were offered and refused")]
_Failed = Annotated[int, Meta(description="Attempts to deliver that failed, and leases that ran out")]
_ErrorRate = Annotated[float, Meta(description="refused / (messages_in + refused); left out while both are 0")]


class StreamStats(msgspec.Struct, kw_only=True):
    """What happened to a stream since it was created."""

    stream: Annotated[str, Meta(description="Name")]
    state: StreamStateName
    messages_in: _In
    messages_out: _Out
    refused: _Refused
    failed: _Failed
    error_rate: _ErrorRate | UnsetType = UNSET
    latency_ms_mean: (
        Annotated[
            float,
            Meta(
                description="From append until written to a live session that waited at the head, or from a push's turn until it was taken; left out while there was none"
            ),
        ]
        | UnsetType
    ) = UNSET
    last_packet_at: Annotated[Time, Meta(description="When its newest packet was appended")] | UnsetType = UNSET
    packets: Annotated[int, Meta(description="Packets that are kept")]
    bytes: Annotated[int, Meta(description="Their bytes")]
    subscribers: Annotated[int, Meta(description="Live sessions that name it, or a pattern over it")]


class SubscriptionStats(msgspec.Struct, kw_only=True):
    """Durable subscriptions by their state."""

    active: int
    paused: int
    disabled: int
    lag_entries_max: Annotated[
        int, Meta(description="Entries behind the head of the active one that is furthest behind")
    ]
    outstanding: Annotated[int, Meta(description="Found and not settled, of all")]
    dead_letters: int


class SessionStats(msgspec.Struct, kw_only=True):
    """Live connections."""

    websocket: int = 0
    sse: int = 0
    ndjson: int = 0
    lag_entries_max: Annotated[int, Meta(description="Entries behind the head of the one that is furthest behind")] = 0


class StorageStatsBody(msgspec.Struct, kw_only=True):
    """The disk, and what waits for it."""

    database_bytes: int
    wal_bytes: int
    disk_free_bytes: int
    full: Annotated[bool, Meta(description="Publishing is refused for want of room")]
    intake_packets: Annotated[int, Meta(description="Packets that wait for the writer")]
    intake_bytes: int


class StatsBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/stats`: the node, and a page of its streams."""

    node: Annotated[str, Meta(description="Its name")]
    at: Annotated[Time, Meta(description="When this was so")]
    started_at: Time
    head: Annotated[int, Meta(description="Offset of the newest entry")]
    messages_in: _In
    messages_out: _Out
    refused: _Refused
    failed: _Failed
    error_rate: _ErrorRate | UnsetType = UNSET
    sessions: SessionStats
    subscriptions: SubscriptionStats
    storage: StorageStatsBody
    stream_count: Annotated[int, Meta(description="Streams that aren't deleted; the sums above are theirs")]
    streams: list[StreamStats]
    next_after: Annotated[str, Meta(description="Give it as `after` to go on")] | UnsetType = UNSET
