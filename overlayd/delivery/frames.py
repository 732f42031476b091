"""Frames: what a trigger looks like to its readers, in the packet and in the CloudEvents format.

A frame is a pure function of its trigger and the format, so one text serves every reader that gets it. The
payload is carried as stored, byte for byte.
"""

from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from overlayd.delivery.caching import ByteBounded
from overlayd.delivery.deflate import deflate_message
from overlayd.delivery.matching import PacketView
from overlayd.delivery.packet_text import encode_plain_packet
from overlayd.delivery.query import FrameFormat
from overlayd.model.bodies import StatusBody
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor, Epoch, format_epoch
from overlayd.model.definition import Definition
from overlayd.model.entry import Z32
from overlayd.model.loop_metrics import LoopCount
from overlayd.model.metrics import Metrics
from overlayd.model.wire import (
    ConfirmationStatus,
    ErasedMessage,
    GapMessage,
    GapReason,
    Packet,
    PacketMessage,
    StatusMessage,
    encode_wire,
    format_blake3,
    format_sha256,
)
from overlayd.model.wire_agents import AgentPacket, AgentPacketMessage, Producer

DEFAULT_EVENT_TYPE = "overlayd.packet"
NODE_SOURCE = "/node"
MessageKind: TypeAlias = Literal["packet", "status", "gap", "erased"]
_CACHED_MESSAGE_BYTES = 200


class PacketState(msgspec.Struct, frozen=True):
    """A packet's confirmation, as its trigger tells it."""

    status: ConfirmationStatus = "none"
    confirmations: int | None = None
    block_height: int | None = None
    block_hash: str = ""
    txid: str = ""


class Gap(msgspec.Struct, frozen=True):
    """What a reader should have got and can't, both ends inclusive; the epoch is that of both."""

    epoch: Epoch
    from_offset: int
    to_offset: int
    reason: GapReason


class StatusRun(msgspec.Struct, frozen=True):
    """A status of consecutive packets of one stream; sequences, both ends inclusive."""

    stream: str
    from_sequence: int
    to_sequence: int
    state: PacketState
    reason: str = ""


class Erased(msgspec.Struct, frozen=True):
    """One packet that was erased after the reader got it."""

    stream: str
    sequence: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message for a reader, not yet written in a format.

    `cursor` is where to resume behind it; `trigger_us` when its trigger was appended. `subject` says what it
    tells; a packet's with the state that its trigger gives it.
    """

    kind: MessageKind
    cursor: Cursor
    trigger_us: int
    subject: PacketView | StatusRun | Gap | Erased
    state: PacketState = PacketState()


class CloudEvent(msgspec.Struct, kw_only=True):
    """CloudEvents 1.0, structured JSON, with our extension attributes."""

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    subject: str | UnsetType = UNSET
    time: str | UnsetType = UNSET
    datacontenttype: str = "application/json"
    cursor: str | UnsetType = UNSET
    sub: str | UnsetType = UNSET
    sequence: Annotated[str, Meta(description="The packet's sequence in its stream")] | UnsetType = UNSET
    packetid: str | UnsetType = UNSET
    packetsource: str | UnsetType = UNSET
    contenthash: str | UnsetType = UNSET
    traceparent: str | UnsetType = UNSET
    confirmationstatus: str | UnsetType = UNSET
    confirmations: int | UnsetType = UNSET
    blockheight: int | UnsetType = UNSET
    blockhash: str | UnsetType = UNSET
    txid: str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET


def packet_id_of(view: PacketView) -> str:
    """The producer's id, else epoch and offset."""
    return view.meta.id or f"{format_epoch(Epoch(view.entry.epoch))}-{view.entry.offset}"


def state_at_append(definition: Definition) -> PacketState:
    """What an appended packet can say about its confirmation: whether there will be one."""
    return _NONE if definition.confirm.commit == "none" else _PENDING


def state_of(status: StatusBody) -> PacketState:
    """A status entry's body as its packets show it. What is taken back has no confirmations."""
    return PacketState(
        status=status.state, confirmations=None if status.state == "pending" else status.depth, block_height=status.height,
        block_hash=status.block, txid=status.txid,
    )  # fmt: skip


def packet_body(view: PacketView, state: PacketState) -> Packet:
    """The packet as consumers see it."""
    entry, meta = view.entry, view.meta
    txid = state.txid or meta.txid.hex()
    return Packet(
        stream_id=view.stream,
        packet_sequence=entry.sequence,
        packet_id=packet_id_of(view),
        offset=entry.offset,
        type=meta.type or UNSET,
        key=meta.key or UNSET,
        timestamp=meta.time or UNSET,
        appended_at=format_time_us(entry.appended_us),
        source=meta.source or UNSET,
        topics=list(view.topics),
        metadata=Raw(meta.metadata) if meta.metadata else UNSET,
        data_payload=Raw(entry.body),
        data_encoding="base64" if meta.is_octets else UNSET,
        content_hash=format_blake3(entry.content_hash),
        leaf_hash=format_sha256(entry.leaf),
        hops=meta.hops or UNSET,
        traceparent=meta.traceparent or UNSET,
        commitment=UNSET if entry.commitment == Z32 else format_sha256(entry.commitment),
        signature=Raw(meta.signature) if meta.signature else UNSET,
        txid=txid or UNSET,
        confirmation_status=state.status,
        confirmations=UNSET if state.confirmations is None else state.confirmations,
        block_height=UNSET if state.block_height is None else state.block_height,
        block_hash=state.block_hash or UNSET,
    )


def packet_message(message: Message) -> PacketMessage:
    """A packet's message in the packet format."""
    view = message.subject
    assert isinstance(view, PacketView)
    return PacketMessage(
        stream_id=view.stream, cursor=str(message.cursor), packet=packet_body(view, message.state)
    )  # fmt: skip


def producer_of(view: PacketView) -> Producer:
    """Who a packet is from, as far as the node knows."""
    return Producer(principal=view.meta.principal or UNSET, signature="verified" if view.meta.signature else "none")


def agent_packet(view: PacketView, state: PacketState) -> AgentPacket:
    """The packet as consumers see it, with who it is from and what it was made from."""
    return AgentPacket(
        **msgspec.structs.asdict(packet_body(view, state)),
        producer=producer_of(view),
        made_from=list(view.meta.derived_from) or UNSET,
    )


def agent_message(message: Message) -> AgentPacketMessage:
    """A packet's message as agents get it, in the packet format."""
    view = message.subject
    assert isinstance(view, PacketView)
    return AgentPacketMessage(
        stream_id=view.stream, cursor=str(message.cursor), packet=agent_packet(view, message.state)
    )  # fmt: skip


def other_message(message: Message) -> StatusMessage | GapMessage | ErasedMessage:
    """Everything but a packet, in the packet format."""
    subject = message.subject
    if isinstance(subject, Gap):
        return GapMessage(
            from_=str(Cursor(subject.epoch, subject.from_offset)), to=str(Cursor(subject.epoch, subject.to_offset)),
            reason=subject.reason, cursor=str(message.cursor),
        )  # fmt: skip
    if isinstance(subject, Erased):
        return ErasedMessage(stream_id=subject.stream, cursor=str(message.cursor), packet_sequence=subject.sequence)
    assert isinstance(subject, StatusRun)
    state = subject.state
    is_one = subject.from_sequence == subject.to_sequence
    return StatusMessage(
        stream_id=subject.stream,
        cursor=str(message.cursor),
        packet_sequence=subject.from_sequence if is_one else UNSET,
        from_=UNSET if is_one else subject.from_sequence,
        to=UNSET if is_one else subject.to_sequence,
        confirmation_status=state.status,
        confirmations=UNSET if state.confirmations is None else state.confirmations,
        block_height=UNSET if state.block_height is None else state.block_height,
        block_hash=state.block_hash or UNSET,
        txid=state.txid or UNSET,
        reason=subject.reason or UNSET,
    )


def _packet_event(message: Message) -> CloudEvent:
    view, state = message.subject, message.state
    assert isinstance(view, PacketView)
    entry, meta = view.entry, view.meta
    name = f"{format_epoch(Epoch(entry.epoch))}-{entry.offset}"
    is_later = state.confirmations is not None
    body = Raw(entry.body)
    return CloudEvent(
        id=f"{name}/{state.status}-{state.confirmations}" if is_later else name,
        source=f"/streams/{view.stream}",
        type=meta.type or DEFAULT_EVENT_TYPE,
        subject=meta.key or UNSET,
        time=meta.time or format_time_us(entry.appended_us),
        datacontenttype="application/octet-stream" if meta.is_octets else "application/json",
        cursor=str(message.cursor),
        sequence=str(entry.sequence),
        packetid=meta.id or UNSET,
        packetsource=meta.source or UNSET,
        contenthash=format_blake3(entry.content_hash),
        traceparent=meta.traceparent or UNSET,
        confirmationstatus=state.status if is_later else UNSET,
        confirmations=UNSET if state.confirmations is None else state.confirmations,
        blockheight=UNSET if state.block_height is None else state.block_height,
        blockhash=state.block_hash or UNSET,
        txid=state.txid or meta.txid.hex() or UNSET,
        data=UNSET if meta.is_octets else body,
        data_base64=body if meta.is_octets else UNSET,
    )


def wrap_event(body: Any, *, id: str, source: str, time_us: int, cursor: str | UnsetType = UNSET) -> CloudEvent:
    """Any message but a packet as an event of type `overlayd.<name>`."""
    text = encode_wire(body)
    kind = type(body).__struct_config__.tag
    return CloudEvent(
        id=id, source=source, type=f"overlayd.{kind}", time=format_time_us(time_us), cursor=cursor, data=Raw(text)
    )


def _other_event(message: Message) -> CloudEvent:
    body = other_message(message)
    source = f"/streams/{body.stream_id}" if not isinstance(body, GapMessage) else NODE_SOURCE
    cursor = message.cursor
    place = f"{cursor.offset}" if cursor.index is None else f"{cursor.offset}.{cursor.index}"
    name = f"{format_epoch(cursor.epoch)}-{place}/{message.kind}"
    return wrap_event(body, id=name, source=source, time_us=message.trigger_us, cursor=str(cursor))


def encode_message(message: Message, format: FrameFormat) -> bytes:
    """The frame's JSON text."""
    if format == "agent" and message.kind == "packet":
        return encode_wire(agent_message(message))
    if format == "packet" and isinstance(message.subject, PacketView) and message.state == _NONE:
        text = encode_plain_packet(message.subject, message.cursor)
        if text is not None:
            return text
    if format != "cloudevents":
        return encode_wire(packet_message(message) if message.kind == "packet" else other_message(message))
    return encode_wire(_packet_event(message) if message.kind == "packet" else _other_event(message))


def tag_frame(text: bytes, sub: str) -> bytes:
    """The same frame for one of several subscriptions on a connection: with member `sub`."""
    return b'{"sub":' + msgspec.json.encode(sub) + b"," + text[1:]


class FrameBook:
    """Frames that were written last, so that a packet is encoded once however many readers get it."""

    def __init__(self, capacity_bytes: int, metrics: Metrics, *, counts_with: "FrameBook | None" = None) -> None:
        """`counts_with`: the book whose counter this one shares."""
        self._texts: ByteBounded[tuple[int, int | None, FrameFormat], bytes] = ByteBounded(capacity_bytes)
        self._packed: ByteBounded[tuple[int, int | None, FrameFormat], bytes] = ByteBounded(capacity_bytes // 4)
        if counts_with is not None:
            self._by_format: dict[str, LoopCount] = counts_with._by_format
            return
        encoded = metrics.loop_counter(
            "overlayd_frames_encoded", "Frames encoded; each serves every reader that gets it", "format"
        )
        self._by_format = {name: encoded.labels(name) for name in get_args(FrameFormat)}

    def text(self, message: Message, format: FrameFormat) -> bytes:
        """The frame's JSON text. Only packets are kept: the rest is rare, or one reader's own."""
        if message.kind != "packet":
            return encode_message(message, format)
        key = (message.cursor.offset, message.cursor.index, format)
        found = self._texts.get(key)
        if found is None:
            found = encode_message(message, format)
            self._by_format[format].inc()
            self._texts.put(key, found, len(found) + _CACHED_MESSAGE_BYTES)
        return found

    def packed(self, message: Message, format: FrameFormat, text: bytes) -> bytes | None:
        """The frame's text as the payload of a compressed WebSocket message; None if it is better sent as it is."""
        if message.kind != "packet":
            return deflate_message(text)
        key = (message.cursor.offset, message.cursor.index, format)
        found = self._packed.get(key)
        if found is None:
            found = deflate_message(text)
            if found is not None:
                self._packed.put(key, found, len(found) + _CACHED_MESSAGE_BYTES)
        return found

    def clear(self) -> None:
        self._texts.clear()
        self._packed.clear()


_NONE = PacketState()
_PENDING = PacketState(status="pending")
