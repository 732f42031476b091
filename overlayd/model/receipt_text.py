"""Receipts as text. Most say little that the one before them didn't, so their constant parts are kept ready."""

from functools import lru_cache

import msgspec

from overlayd.model.clock import format_time_us
from overlayd.model.cursor import Epoch, format_epoch
from overlayd.model.draft import Receipt
from overlayd.model.wire import encode_wire, receipt_body

_encode = msgspec.json.Encoder().encode


def encode_receipt(receipt: Receipt) -> bytes:
    """The same bytes as `encode_wire(receipt_body(…))` gives, in a third of the time."""
    if receipt.confirmation_status != "none" or receipt.commitment or receipt.txid or not receipt.content_hash:
        return encode_wire(receipt_body(receipt, Epoch(receipt.epoch)))
    offset = receipt.offset
    return (
        f'{{"stream":{_encode(receipt.stream).decode()},"sequence":{receipt.sequence},"offset":{offset}'
        f',"cursor":"e{format_epoch(Epoch(receipt.epoch))}-{offset}","id":{_encode(receipt.packet_id).decode()}'
        f',"content_hash":"blake3:{receipt.content_hash.hex()}","leaf_hash":"sha256:{receipt.leaf.hex()}"'
        f"{_tail(receipt.appended_us, receipt.duplicate)}"
    ).encode()


@lru_cache(maxsize=64)
def _tail(appended_us: int, duplicate: bool) -> str:
    """What the receipts of a group have in common."""
    rest = f'"durability":"full","duplicate":{"true" if duplicate else "false"},"confirmation_status":"none"}}'
    return f',"appended_at":"{format_time_us(appended_us)}",{rest}'
