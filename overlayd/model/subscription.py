"""A durable subscription's definition: what its owner says about it. Shapes of the native API.

`delivery/subscriptions/definition.py` judges what the shapes alone can't say.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from overlayd.model.definition import decode_unit
from overlayd.model.units import Duration, Size

SubscriptionKind = Literal["webhook", "agent", "pull", "live", "forward"]
Ordering = Literal["none", "stream"]
OutletFormat = Literal["packet", "cloudevents", "template", "agent"]
AgentMode = Literal["realtime", "batch"]
AgentAttachment = Literal["webhook", "pull", "live"]
HIDDEN = "(hidden)"
"""Stands for the value of a header wherever a definition is shown."""


class RetryRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a failed delivery is tried again: exponentially, or after the pauses of a list. Never both.

    Nothing of it given: the schedule that goes with the ordering.
    """

    max_retries: (
        Annotated[
            int, Meta(ge=0, le=100, description="Attempts after the first; what fails them all becomes a dead letter")
        ]
        | UnsetType
    ) = UNSET
    backoff: Annotated[Duration, Meta(description="Pause before the first retry; it doubles with each")] | UnsetType = (
        UNSET
    )
    max_backoff: Annotated[Duration, Meta(description="Longest pause")] | UnsetType = UNSET
    jitter: (
        Annotated[Literal["full", "none"], Meta(description="full: anything between no pause and the whole of it")]
        | UnsetType
    ) = UNSET
    schedule: (
        Annotated[
            tuple[Duration, ...], Meta(max_length=100, description="Pauses before each retry, instead of the rest")
        ]
        | UnsetType
    ) = UNSET


class WebhookRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a webhook's packets are posted and how."""

    url: Annotated[str, Meta(max_length=2048, description="Where packets are posted, https:// or http://")]
    secret: (
        Annotated[str, Meta(max_length=256, description="whsec_ and base64; generated when left out, shown once")]
        | UnsetType
    ) = UNSET
    format: Annotated[OutletFormat, Meta(description="Body of a delivery")] = "packet"
    template: (
        Annotated[
            str, Meta(max_length=65_536, description="A JSON document with {{ path }} in it, for format template")
        ]
        | UnsetType
    ) = UNSET
    batch_size: Annotated[int, Meta(ge=1, le=1000, description="Packets of one stream in one delivery, at most")] = 1
    batch_wait: Annotated[Duration, Meta(description="Longest wait until a delivery is full")] = Duration(0)
    ordering: Annotated[
        Ordering, Meta(description="stream: one delivery in flight per stream, and a failing one holds its stream")
    ] = "none"
    concurrency: Annotated[int, Meta(ge=1, le=1000, description="Deliveries in flight, at most")] = 16
    timeout: Annotated[Duration, Meta(description="The whole exchange of one attempt")] = Duration(15)
    headers: Annotated[dict[str, str], Meta(description="Further headers of each request")] = {}
    retry: RetryRule | UnsetType = UNSET
    rate_per_second: Annotated[float, Meta(gt=0, le=100_000, description="Attempts a second, at most")] | UnsetType = (
        UNSET
    )
    gaps: (
        Annotated[bool, Meta(description="Tell what can't be delivered any more as a delivery of its own")] | UnsetType
    ) = UNSET


class PullRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How workers share what they fetch."""

    lease: Annotated[Duration, Meta(description="A worker must acknowledge or extend what it fetched within it")] = (
        Duration(30)
    )
    max_deliveries: Annotated[
        int, Meta(ge=1, le=1000, description="After so many leases without an acknowledgement: a dead letter")
    ] = 10
    ordering: Annotated[Ordering, Meta(description="stream: one message of a stream is out at a time, in order")] = (
        "none"
    )


class AgentRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What wakes an agent, how it is reached, and what it may answer."""

    trigger: (
        Annotated[
            str | dict[str, Any],
            Meta(description="A CEL expression, or a predicate of and, or, not, gt, gte, lt, lte, eq, includes"),
        ]
        | UnsetType
    ) = UNSET
    mode: Annotated[AgentMode, Meta(description="realtime: a packet a run; batch: several of one stream")] = "realtime"
    attach: Annotated[AgentAttachment, Meta(description="How it is reached")] = "webhook"
    output: Annotated[str, Meta(max_length=128, description="The stream that its replies go to")] | UnsetType = UNSET
    runs_per_hour: Annotated[int, Meta(ge=1, description="Deliveries to it in an hour, at most")] | UnsetType = UNSET
    runs_per_day: Annotated[int, Meta(ge=1, description="Deliveries to it in a day, at most")] | UnsetType = UNSET
    bytes_per_day: (
        Annotated[Size, Meta(description="Payload that it is given and replies with in a day, at most")] | UnsetType
    ) = UNSET
    coalesce: Annotated[
        Literal["none", "key"], Meta(description="key: of packets that wait, the newest of each key counts")
    ] = "none"


class SubscriptionDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that says what a durable subscription is. Where it stands isn't part of it."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="Unique on the node")]
    kind: SubscriptionKind
    streams: Annotated[tuple[str, ...], Meta(description="Patterns over stream names; none: every stream")] = ()
    topics: Annotated[tuple[str, ...], Meta(description="Patterns over topics")] = ()
    types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    filter: Annotated[str, Meta(description="A CEL expression")] | UnsetType = UNSET
    deliver: Literal["appended", "confirmed", "both"] = "appended"
    min_confirmations: Annotated[int, Meta(ge=1, le=9999)] | UnsetType = UNSET
    webhook: WebhookRule | UnsetType = UNSET
    pull: PullRule | UnsetType = UNSET
    agent: AgentRule | UnsetType = UNSET

    @property
    def reached_by(self) -> str:
        """Which way its packets take: its kind, or an agent's attachment."""
        return self.agent.attach if isinstance(self.agent, AgentRule) else self.kind


def encode_subscription(definition: SubscriptionDefinition) -> bytes:
    """Compact JSON; the same definition always gives the same bytes."""
    return _ENCODER.encode(definition)


def decode_subscription(text: bytes) -> SubscriptionDefinition:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _DECODER.decode(text)


def _encode_unit(value: Any) -> Any:
    if isinstance(value, (Duration, Size)):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")  # pragma: no cover - a programming error


_ENCODER = msgspec.json.Encoder(enc_hook=_encode_unit, order="deterministic")
_DECODER = msgspec.json.Decoder(SubscriptionDefinition, dec_hook=decode_unit)
