"""Proofs as sources give them, turned into BUMP (BRC-74) and looked at: whether they are proofs, and of what.

Whether the block is one of ours is not asked here. Pure.
"""

from collections.abc import Sequence

from overlayd.bsv.bump import LEVELS_MAX, Bump, Row, make_bump, parse_bump
from overlayd.bsv.hashes import hash256
from overlayd.model.errors import MalformedChainData
from overlayd.model.txid import HASH_BYTES, TxId, format_hash

COPY = "*"
"""In a TSC proof: the other side of this pair is a copy of ours."""


def read_bump(text: str, txid: TxId) -> Bump:
    """A BUMP in hex, of this transaction. Raises MalformedChainData."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as err:
        raise MalformedChainData("not hex digits", subject="BUMP") from err
    bump = parse_bump(raw)
    if bump.find(txid) is None:
        raise MalformedChainData(f"it isn't of the transaction {format_hash(txid)}", subject="BUMP")
    return bump


def convert_tsc(txid: TxId, index: int, nodes: Sequence[str], height: int) -> Bump:
    """A TSC proof (BRC-10): the transaction's place in its block, and the other side of each pair on the way up.

    Some write a copy as `*`, others write it out. Raises MalformedChainData.
    """
    if not 0 <= index < 1 << len(nodes) or len(nodes) > LEVELS_MAX or height < 0:
        raise MalformedChainData(
            f"place {index} of height {height} isn't in a tree of {len(nodes)} levels", subject="TSC proof"
        )
    rows: list[Row] = []
    offset, own = index, bytes(txid)
    for node in nodes:
        other = _read_node(node)
        is_right = offset & 1
        if not other or other == own:
            if is_right:
                raise MalformedChainData("a left side can't be a copy of the right one", subject="TSC proof")
            rows.append({offset ^ 1: b""})
            own = hash256(own + own)
        else:
            rows.append({offset ^ 1: other})
            own = hash256(other + own if is_right else own + other)
        offset >>= 1
    if not rows:
        rows = [{}]
    rows[0][index] = bytes(txid)
    return make_bump(height, rows, {index})


def _read_node(text: str) -> bytes:
    """32 bytes in internal order; b"" for a copy."""
    if text == COPY:
        return b""
    try:
        octets = bytes.fromhex(text)
    except ValueError as err:
        raise MalformedChainData("a node isn't hex digits", subject="TSC proof") from err
    if len(octets) != HASH_BYTES or len(text) != 2 * HASH_BYTES:
        raise MalformedChainData("a node isn't 32 bytes", subject="TSC proof")
    return octets[::-1]
