"""What agents are given: packets with who they are from, and the body of format `agent`. Pure."""

import msgspec
from msgspec import UNSET

from overlayd.delivery.frames import Message, PacketState, packet_body, packet_id_of
from overlayd.delivery.matching import PacketView
from overlayd.model.clock import format_time_us
from overlayd.model.outlet import Delivery
from overlayd.model.subscription import AgentRule
from overlayd.model.wire import PacketMessage, encode_wire
from overlayd.model.wire_agents import AgentNotification, AgentPacket, NotifiedPacket, Producer


def agent_packet(view: PacketView, state: PacketState) -> AgentPacket:
    """The packet as consumers see it, with who it is from and what it was made from."""
    return AgentPacket(
        **msgspec.structs.asdict(packet_body(view, state)),
        producer=_producer_of(view),
        made_from=list(view.meta.derived_from) or UNSET,
    )


def agent_message(message: Message) -> bytes:
    """The message of a packet as an agent gets it, in the packet format."""
    view = message.subject
    assert isinstance(view, PacketView)
    body = PacketMessage(stream_id=view.stream, cursor=str(message.cursor), packet=agent_packet(view, message.state))
    return encode_wire(body)


def agent_notification(delivery: Delivery[Message], now_us: int) -> bytes:
    """The body of format `agent` for a delivery of packets."""
    agent = delivery.definition.agent
    assert isinstance(agent, AgentRule)
    packets = [_notified(message) for message in delivery.messages]
    body = AgentNotification(
        agent_id=delivery.subscription_id, stream_id=delivery.stream,
        packet=packets[0] if agent.mode == "realtime" else UNSET,
        packets=UNSET if agent.mode == "realtime" else packets,
        notification_timestamp=format_time_us(now_us), processing_mode=agent.mode,
    )  # fmt: skip
    return encode_wire(body)


def _notified(message: Message) -> NotifiedPacket:
    view, state = message.subject, message.state
    assert isinstance(view, PacketView)
    entry, meta = view.entry, view.meta
    return NotifiedPacket(
        id=packet_id_of(view), version_id=str(meta.definition_version), sequence=entry.sequence,
        timestamp=meta.time or format_time_us(entry.appended_us), txid=state.txid or meta.txid.hex() or UNSET,
        confirmations=UNSET if state.confirmations is None else state.confirmations,
        block_height=UNSET if state.block_height is None else state.block_height, data=msgspec.Raw(entry.body),
        size_bytes=len(entry.body), status=state.status, type=meta.type or UNSET, key=meta.key or UNSET,
        hops=meta.hops or UNSET, producer=_producer_of(view),
    )  # fmt: skip


def _producer_of(view: PacketView) -> Producer:
    return Producer(principal=view.meta.principal or UNSET, signature="verified" if view.meta.signature else "none")
