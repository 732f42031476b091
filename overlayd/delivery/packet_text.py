"""Packets' frames as text: of most packets only a few members differ from those of the one before."""

import msgspec

from overlayd.delivery.matching import PacketView
from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Cursor, Epoch, format_epoch
from overlayd.model.entry import Z32

_encode = msgspec.json.Encoder().encode


def encode_plain_packet(view: PacketView, cursor: Cursor) -> bytes | None:
    """The frame in the packet format of a packet without a confirmation, the same bytes as its wire body gives. None
    for a packet that says more than most."""
    entry, meta = view.entry, view.meta
    if (
        meta.traceparent or meta.hops or meta.metadata or meta.signature or meta.txid or meta.is_octets or meta.source
        or meta.time or entry.commitment != Z32 or cursor.index is not None
    ):  # fmt: skip
        return None
    offset, stream = entry.offset, _encode(view.stream).decode()
    packet_id = _encode(meta.id).decode() if meta.id else f'"{format_epoch(Epoch(entry.epoch))}-{offset}"'
    named = ""
    if meta.type:
        named = f'"type":{_encode(meta.type).decode()},'
    if meta.key:
        named = f'{named}"key":{_encode(meta.key).decode()},'
    before = (
        f'{{"type":"packet","stream_id":{stream},"cursor":"e{format_epoch(cursor.epoch)}-{cursor.offset}","packet":'
        f'{{"stream_id":{stream},"packet_sequence":{entry.sequence},"packet_id":{packet_id},"offset":{offset},{named}'
        f'"appended_at":"{format_time_us(entry.appended_us)}","topics":{_topics(view.topics)},"data_payload":'
    )
    after = (
        f',"content_hash":"blake3:{entry.content_hash.hex()}","leaf_hash":"sha256:{entry.leaf.hex()}",'
        '"confirmation_status":"none"}}'
    )
    return b"".join((before.encode(), entry.body, after.encode()))


def _topics(topics: tuple[str, ...]) -> str:
    return _encode(topics).decode() if topics else "[]"
