"""What agents are given and what they reply, as it travels (docs/agents.md)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from overlayd.model.wire import (
    ConfirmationStatus,
    CursorText,
    Json,
    Packet,
    Ref,
    SubscriptionId,
    Time,
    TxIdText,
)

Count = Annotated[int, Meta(ge=0)]


class Producer(msgspec.Struct, kw_only=True):
    """Who a packet is from, as far as the node knows."""

    principal: Annotated[str, Meta(description="Who published it, as the node let it in")] | UnsetType = UNSET
    signature: Annotated[
        Literal["none", "verified"],
        Meta(description="verified: the node checked the producer's signature when it took the packet"),
    ] = "none"


class AgentPacket(Packet, kw_only=True):
    """A packet as agents see it. A subclass because all members stand on one level."""

    producer: Producer
    made_from: Annotated[list[int], Meta(description="Offsets of the packets that it was made from")] | UnsetType = (
        UNSET
    )


class AgentPacketMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="packet"):
    """One packet for an agent that is attached live; `cursor` is what it acknowledges or replies to."""

    stream_id: str
    cursor: CursorText
    packet: AgentPacket
    sub: SubscriptionId | UnsetType = UNSET


class FetchedPacket(Packet, kw_only=True):
    """A packet as a worker fetches it; agents are told who it is from. A subclass because all members stand on one
    level."""

    producer: Annotated[Producer, Meta(description="To agents only")] | UnsetType = UNSET
    made_from: Annotated[list[int], Meta(description="To agents only")] | UnsetType = UNSET


class NotifiedPacket(msgspec.Struct, kw_only=True):
    """A packet in a body of format `agent`."""

    id: str
    version_id: Annotated[str, Meta(description="Version of the stream's definition that took it")]
    sequence: int
    timestamp: Annotated[str, Meta(description="The producer's time, else when it was appended")]
    txid: TxIdText | UnsetType = UNSET
    confirmations: Count | UnsetType = UNSET
    block_height: Count | UnsetType = UNSET
    data: Json
    size_bytes: int
    status: ConfirmationStatus
    type: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    hops: int | UnsetType = UNSET
    producer: Producer


class AgentNotification(msgspec.Struct, kw_only=True, tag_field="type", tag="realtime_packet_notification"):
    """A body of format `agent`: `packet` in mode realtime, `packets` in mode batch."""

    agent_id: str
    stream_id: str
    packet: NotifiedPacket | UnsetType = UNSET
    packets: list[NotifiedPacket] | UnsetType = UNSET
    notification_timestamp: Time
    processing_mode: Literal["realtime", "batch"]


class ReplyPacket(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One packet of a reply. The node gives it its id."""

    data: Json | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET
    type: Raw | UnsetType = UNSET
    time: Raw | UnsetType = UNSET
    source: Raw | UnsetType = UNSET
    key: Raw | UnsetType = UNSET
    topics: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET


class Reply(msgspec.Struct, kw_only=True):
    """What an agent replies; other members are left alone."""

    packets: list[ReplyPacket] = []


class AckMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="ack"):
    """Everything up to the cursor was dealt with, of a durable subscription; an agent may reply to the cursor's packet."""

    id: SubscriptionId
    cursor: CursorText
    ref: Ref | UnsetType = UNSET
    reply: Annotated[Reply, Meta(description="Agents: appended to the output stream with the settling")] | UnsetType = (
        UNSET
    )


class AgentsBody(msgspec.Struct, kw_only=True):
    """Answer of `GET /v1/agents` and of pause and resume."""

    paused: Annotated[bool, Meta(description="Whether no agent is given anything")]
    since: Annotated[str, Meta(description="Since when it is as it is")] | UnsetType = UNSET
    by: Annotated[str, Meta(description="Who switched it last")] | UnsetType = UNSET
    agents: Annotated[int, Meta(ge=0, description="Agents on the node")]
