"""The bodies about usage and quotas, as they travel (docs/api.md, Usage and quotas)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.quota import QuotaPolicy
from overlayd.model.usage import Method
from overlayd.model.wire import Time

UsageMethod = Annotated[Method | str, Meta(description="How packets came in or went out")]
_Count = Annotated[int, Meta(ge=0)]


class UsageCounts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one principal did with one stream by one method in one span of time. What wasn't measured is left out."""

    start: Time
    principal: Annotated[str, Meta(description="Who; empty where too many were counted at once to tell them apart")]
    stream: Annotated[str, Meta(description="The stream, or the pattern that a reader named; empty for none")]
    method: UsageMethod
    requests: _Count = 0
    packets: _Count = 0
    bytes: _Count = 0
    errors: _Count = 0
    latency_ms_mean: Annotated[float | UnsetType, Meta(description="Mean of what was measured")] = UNSET
    latency_ms_max: Annotated[float | UnsetType, Meta(description="Longest single measurement or mean of a page")] = (
        UNSET
    )
    ended: Annotated[int, Meta(ge=0, description="Deliveries that ended")] = 0
    completed_percent: Annotated[
        float | UnsetType, Meta(description="How much of what there was the deliveries that ended had got, on average")
    ] = UNSET


class UsageBody(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """Usage between two times, in the order of time, principal, stream and method."""

    from_: Time
    to: Time
    by: Literal["hour", "day", "total"]
    usage: list[UsageCounts]
    next_after: Annotated[str | UnsetType, Meta(description="Give it as `after` for what follows")] = UNSET


class DeliveryBody(msgspec.Struct, kw_only=True):
    """One delivery that is over."""

    id: int
    session: str
    stream: str
    principal: str
    method: UsageMethod
    address_hash: Annotated[str, Meta(description="Keyed hash of the address (IPv6: of its /64)")]
    started_at: Time
    ended_at: Time
    packets: _Count
    bytes: _Count
    errors: _Count
    completed_percent: float
    latency_ms_mean: Annotated[
        float | UnsetType, Meta(description="Of webhooks and agents that are called, from the request to its answer")
    ] = UNSET
    reason: str


class DeliveryList(msgspec.Struct, kw_only=True):
    """Deliveries that are over, the newest first."""

    deliveries: list[DeliveryBody]
    next_before: Annotated[int | UnsetType, Meta(description="Give it as `before` for older ones")] = UNSET


class QuotaWindow(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """One window of the calendar, in UTC. Without `…_allowed` and `…_left` nothing is bounded."""

    from_: Time
    resets_at: Time
    bytes_used: _Count
    requests_used: _Count
    bytes_allowed: int | UnsetType = UNSET
    bytes_left: int | UnsetType = UNSET
    requests_allowed: int | UnsetType = UNSET
    requests_left: int | UnsetType = UNSET


class QuotaBurst(msgspec.Struct, kw_only=True):
    """Bytes beyond the hour's. `until` is there while a burst lasts."""

    bytes_allowance: _Count
    bytes_used: _Count
    duration_minutes: int
    until: Time | UnsetType = UNSET


class QuotaBody(msgspec.Struct, kw_only=True):
    """What a principal used and may use. Without `policy` it isn't held to one, as far as the node knows."""

    principal: str
    policy: QuotaPolicy | UnsetType = UNSET
    hour: QuotaWindow
    day: QuotaWindow
    month: QuotaWindow
    burst: QuotaBurst | UnsetType = UNSET
    streams_open: Annotated[int, Meta(ge=0, description="Live connections that are open")]


class PolicyList(msgspec.Struct, kw_only=True):
    """All quota policies, by name."""

    policies: list[QuotaPolicy]


class StreamingOpen(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Begins a streaming session."""

    receipt_id: Annotated[str, Meta(max_length=128, description="Also as query parameter or X-Receipt-Id")] = ""
    agent_id: Annotated[str, Meta(max_length=128)] | None = None
    webhook_url: (
        Annotated[str, Meta(max_length=2048, description="Kept and given back; nothing is sent there")] | None
    ) = None
    session_type: Literal["standard", "priority", "bulk", "webhook"] = "webhook"
    quality_requirements: Annotated[dict[str, Any], Meta(description="Kept and given back")] = {}
    estimated_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 0


class ReceiptWindow(msgspec.Struct, kw_only=True, rename="camel"):
    """One window of a receipt's quota. What isn't bounded is told as 2^53 - 1."""

    window_start: Time
    window_end: Time
    bytes_used: int
    bytes_allowed: int
    utilization_percentage: float
    requests_used: int
    requests_allowed: int


class ReceiptBurst(msgspec.Struct, kw_only=True, rename="camel"):
    """A receipt's burst."""

    available: bool
    bytes_allowance: int
    bytes_used: int
    duration_minutes: int


class ReceiptPolicy(msgspec.Struct, kw_only=True, rename="camel"):
    """A receipt's policy."""

    policy_name: str
    tier: str


class ReceiptStreams(msgspec.Struct, kw_only=True, rename="camel"):
    """Sessions that are open. `peak_bandwidth_mbps` is the policy's figure."""

    active_streams: int
    max_allowed: int
    peak_bandwidth_mbps: float


class ReceiptWindows(msgspec.Struct, kw_only=True, rename="camel"):
    """A receipt's windows."""

    hour: ReceiptWindow
    day: ReceiptWindow
    month: ReceiptWindow


class ReceiptProjections(msgspec.Struct, kw_only=True, rename="camel"):
    """Bytes at each window's end if it goes on as it did since the window's start."""

    hour_bytes: int
    day_bytes: int
    month_bytes: int


class ReceiptQuota(msgspec.Struct, kw_only=True, rename="camel"):
    """Where a receipt stands."""

    receipt_id: str
    quota_policy: ReceiptPolicy
    windows: ReceiptWindows
    burst: ReceiptBurst
    concurrent: ReceiptStreams
    projections: ReceiptProjections


class QuotaStatus(msgspec.Struct, kw_only=True, rename="camel"):
    """The part of a receipt's quota that comes with a session."""

    policy_name: str
    windows: ReceiptWindows
    burst: ReceiptBurst


class StreamingOpened(msgspec.Struct, kw_only=True, rename="camel"):
    """A session that has begun. Both ids are the same."""

    session_id: str
    agent_session_id: str
    receipt_id: str
    session_type: str
    quality_requirements: dict[str, Any]
    estimated_bytes: int
    estimated_cost_satoshis: int
    quota_status: QuotaStatus
    status: str = "created"


class StreamingState(msgspec.Struct, kw_only=True, rename="camel"):
    """A session as it stands."""

    session_id: str
    agent_id: str
    receipt_id: str
    session_type: str
    quality_requirements: dict[str, Any]
    total_content_bytes: int
    bytes_processed: int
    packets_processed: int
    last_sequence: int
    stream_count: Annotated[int, Meta(description="Updates so far")]
    estimated_cost_satoshis: int
    status: str
    created_at: Time
    updated_at: Time


class PolicyIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A quota policy as other systems write it. What is left out isn't bounded."""

    policy_name: Annotated[str, Meta(pattern="^[a-z0-9_-]{1,64}$")]
    description: Annotated[str, Meta(max_length=500)] = ""
    bytes_per_hour: Annotated[int, Meta(ge=0)] = 0
    bytes_per_day: Annotated[int, Meta(ge=0)] = 0
    bytes_per_month: Annotated[int, Meta(ge=0)] = 0
    requests_per_hour: Annotated[int, Meta(ge=0)] = 0
    requests_per_day: Annotated[int, Meta(ge=0)] = 0
    requests_per_month: Annotated[int, Meta(ge=0)] = 0
    max_concurrent_streams: Annotated[int, Meta(ge=0)] = 1
    max_bandwidth_mbps: Annotated[float, Meta(ge=0, le=1e6)] = 10.0
    burst_bytes_allowance: Annotated[int, Meta(ge=0)] = 0
    burst_duration_minutes: Annotated[int, Meta(ge=1, le=60)] = 5
    is_active: bool = True


class PolicyMade(msgspec.Struct, kw_only=True, rename="camel"):
    """A policy that was created or changed."""

    policy: PolicyIn
    status: Literal["created", "updated"]


class AgentSessionIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One step of an agent's session. Totals, not differences; what is left out stays as it is."""

    agent_id: Annotated[str, Meta(min_length=1, max_length=128)]
    receipt_id: Annotated[str, Meta(max_length=128, description="Also as query parameter or X-Receipt-Id")] = ""
    action: Literal["create", "update", "complete"]
    agent_session_id: Annotated[str, Meta(max_length=64)] = ""
    session_type: Literal["standard", "priority", "bulk"] = "standard"
    total_content_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    bytes_processed: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None
    packets_processed: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None
    last_sequence: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None


class AgentSessionOut(msgspec.Struct, kw_only=True, rename="camel"):
    """An agent's session after the step."""

    agent_session_id: str
    status: Literal["active", "updated", "completed"]
    estimated_cost: int
    bytes_processed: int
    packets_processed: int
    last_sequence: int
