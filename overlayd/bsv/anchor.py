"""The output that commits to a packet or a checkpoint: `OP_FALSE OP_RETURN "overlayd" <kind> <32 bytes>`, 46 bytes."""

from enum import IntEnum

import msgspec

from overlayd.bsv.tx import Transaction, TxOutput

ANCHOR_BYTES = 46
HASH_BYTES = 32

_START = bytes.fromhex("006a086f7665726c61796401")
_LENGTH = bytes((HASH_BYTES,))


class AnchorKind(IntEnum):
    """What the 32 bytes are: a packet's commitment, or SHA-256 of a checkpoint's three lines."""

    COMMITMENT = 1
    CHECKPOINT = 2


class Anchor(msgspec.Struct, frozen=True):
    """What an anchor output says."""

    kind: AnchorKind
    hash: bytes


def encode_anchor_script(anchor: Anchor) -> bytes:
    """The output's script. Its kind is pushed as a byte, not as a small number: one form, found by its first bytes."""
    assert len(anchor.hash) == HASH_BYTES
    return _START + bytes((anchor.kind,)) + _LENGTH + anchor.hash


def anchor_output(anchor: Anchor) -> TxOutput:
    """An output of 0 satoshis: nobody can spend it, so nobody need keep it."""
    return TxOutput(0, encode_anchor_script(anchor))


def parse_anchor_script(script: bytes) -> Anchor | None:
    """What a script commits to; None unless it is exactly of the form, with a known kind."""
    if len(script) != ANCHOR_BYTES or not script.startswith(_START) or script[13:14] != _LENGTH:
        return None
    if script[12] not in (AnchorKind.COMMITMENT, AnchorKind.CHECKPOINT):
        return None
    return Anchor(AnchorKind(script[12]), script[14:])


def find_anchor(tx: Transaction, anchor: Anchor) -> int | None:
    """The index of the first output that commits to exactly this, or None."""
    script = encode_anchor_script(anchor)
    for index, output in enumerate(tx.outputs):
        if output.script == script:
            return index
    return None


def list_anchors(tx: Transaction) -> list[tuple[int, Anchor]]:
    """Every anchor among the outputs, with its index."""
    found = []
    for index, output in enumerate(tx.outputs):
        anchor = parse_anchor_script(output.script)
        if anchor is not None:
            found.append((index, anchor))
    return found
