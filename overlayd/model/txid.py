"""The name of a transaction or block, and its two orders."""

from typing import NewType

from overlayd.model.errors import MalformedChainData

TxId = NewType("TxId", bytes)
"""32 bytes in internal order, as hashed and as written in transactions."""
BlockHash = NewType("BlockHash", bytes)
"""32 bytes in internal order."""

HASH_BYTES = 32
_HEX = frozenset("0123456789abcdefABCDEF")


def format_hash(octets: bytes) -> str:
    """64 hex digits in display order: reversed, as explorers and JSON show it."""
    return octets[::-1].hex()


def parse_txid(text: str) -> TxId:
    """Reads 64 hex digits in display order. Raises MalformedChainData."""
    return TxId(_parse_hash(text, "txid"))


def parse_block_hash(text: str) -> BlockHash:
    """Reads 64 hex digits in display order. Raises MalformedChainData."""
    return BlockHash(_parse_hash(text, "block hash"))


def _parse_hash(text: str, name: str) -> bytes:
    # bytes.fromhex would skip white space.
    if len(text) != 2 * HASH_BYTES or not _HEX.issuperset(text):
        raise MalformedChainData(f"a {name} is 64 hex digits", subject=name)
    return bytes.fromhex(text)[::-1]
