"""The body of format `agent`. Pure."""

import msgspec
from msgspec import UNSET

from overlayd.delivery.frames import Message, packet_id_of, producer_of
from overlayd.delivery.matching import PacketView
from overlayd.model.clock import format_time_us
from overlayd.model.outlet import Delivery
from overlayd.model.subscription import AgentRule
from overlayd.model.wire import encode_wire
from overlayd.model.wire_agents import AgentNotification, NotifiedPacket


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
        hops=meta.hops or UNSET, producer=producer_of(view),
    )  # fmt: skip
