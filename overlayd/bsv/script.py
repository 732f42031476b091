"""Scripts that this node writes and reads: pushes, P2PKH, P2PK, OP_FALSE OP_RETURN (BRC-18), PushDrop (BRC-48).

No interpreter: what is locked in another way is carried, never judged.
"""

from collections.abc import Sequence

import msgspec

from overlayd.bsv.hashes import hash160
from overlayd.bsv.keys import has_key_form
from overlayd.model.errors import MalformedChainData

OP_0 = 0x00
OP_PUSHDATA1 = 0x4C
OP_PUSHDATA2 = 0x4D
OP_PUSHDATA4 = 0x4E
OP_1NEGATE = 0x4F
OP_1 = 0x51
OP_16 = 0x60
OP_RETURN = 0x6A
OP_2DROP = 0x6D
OP_DROP = 0x75
OP_DUP = 0x76
OP_EQUALVERIFY = 0x88
OP_HASH160 = 0xA9
OP_CHECKSIG = 0xAC

_P2PKH_START = bytes((OP_DUP, OP_HASH160, 20))
_P2PKH_END = bytes((OP_EQUALVERIFY, OP_CHECKSIG))
_P2PKH_BYTES = 25
_DATA_START = bytes((OP_0, OP_RETURN))


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """One step of a script: an opcode and what it pushes, None when it isn't a push."""

    opcode: int
    data: bytes | None = None


class PushDrop(msgspec.Struct, frozen=True):
    """Fields on a spendable output: pushed, dropped again, and locked to a key."""

    locking_key: bytes
    fields: tuple[bytes, ...]


def encode_push(data: bytes) -> bytes:
    """The shortest way to push some bytes."""
    count = len(data)
    if not count:
        return bytes((OP_0,))
    if count == 1:
        if 1 <= data[0] <= 16:
            return bytes((OP_1 + data[0] - 1,))
        if data[0] == 0x81:
            return bytes((OP_1NEGATE,))
    if count < OP_PUSHDATA1:
        return bytes((count,)) + data
    if count <= 0xFF:
        return bytes((OP_PUSHDATA1, count)) + data
    if count <= 0xFFFF:
        return bytes((OP_PUSHDATA2,)) + count.to_bytes(2, "little") + data
    return bytes((OP_PUSHDATA4,)) + count.to_bytes(4, "little") + data


def parse_script(script: bytes) -> list[Chunk]:
    """The steps of a script. Raises MalformedChainData where a push is longer than the script.

    What follows an OP_RETURN isn't told apart from steps; such scripts may rightly fail to parse.
    """
    chunks: list[Chunk] = []
    at, end = 0, len(script)
    while at < end:
        opcode = script[at]
        at += 1
        if OP_0 < opcode <= OP_PUSHDATA4:
            count = opcode
            if opcode >= OP_PUSHDATA1:
                width = 1 << (opcode - OP_PUSHDATA1)
                if at + width > end:
                    raise MalformedChainData(f"a push has no length (byte {at})", subject="script")
                count = int.from_bytes(script[at : at + width], "little")
                at += width
            if at + count > end:
                raise MalformedChainData(f"a push of {count} bytes ends early (byte {at})", subject="script")
            chunks.append(Chunk(opcode, script[at : at + count]))
            at += count
        else:
            chunks.append(Chunk(opcode, _pushed_by(opcode)))
    return chunks


def _pushed_by(opcode: int) -> bytes | None:
    if opcode == OP_0:
        return b""
    if OP_1 <= opcode <= OP_16:
        return bytes((opcode - OP_1 + 1,))
    return b"\x81" if opcode == OP_1NEGATE else None


def lock_to_hash(key_hash: bytes) -> bytes:
    """A P2PKH locking script; `key_hash` is the hash160 of a public key."""
    assert len(key_hash) == 20
    return _P2PKH_START + key_hash + _P2PKH_END


def lock_to_key(public_key: bytes) -> bytes:
    """The P2PKH locking script of an encoded public key."""
    return lock_to_hash(hash160(public_key))


def unlock_with(signature: bytes, public_key: bytes) -> bytes:
    """A P2PKH unlocking script; `signature` is DER and the byte that says what it signs."""
    return encode_push(signature) + encode_push(public_key)


def parse_p2pkh(script: bytes) -> bytes | None:
    """The key hash that a locking script asks for, or None when it is something else."""
    if len(script) == _P2PKH_BYTES and script.startswith(_P2PKH_START) and script.endswith(_P2PKH_END):
        return script[3:23]
    return None


def parse_p2pk(script: bytes) -> bytes | None:
    """The encoded public key that a locking script asks for by itself, or None when it is something else."""
    if len(script) in (35, 67) and script[0] == len(script) - 2 and script[-1] == OP_CHECKSIG:
        return script[1:-1] if has_key_form(script[1:-1]) else None
    return None


def encode_data_script(pushes: Sequence[bytes]) -> bytes:
    """OP_FALSE OP_RETURN and pushes: data that can't be spent."""
    return _DATA_START + b"".join(encode_push(item) for item in pushes)


def parse_data_script(script: bytes) -> tuple[bytes, ...] | None:
    """The pushes behind OP_FALSE OP_RETURN, or None when it isn't such a script or holds something else."""
    if not script.startswith(_DATA_START):
        return None
    try:
        chunks = parse_script(script[2:])
    except MalformedChainData:
        return None
    pushes = [chunk.data for chunk in chunks if chunk.data is not None]
    return tuple(pushes) if len(pushes) == len(chunks) else None


def encode_pushdrop(pushdrop: PushDrop) -> bytes:
    """`<key> OP_CHECKSIG <field>… OP_2DROP…`, lock before data, as wallets write it.

    Raises MalformedChainData for an empty field, which readers would take for a zero byte.
    """
    if not pushdrop.fields or not all(pushdrop.fields):
        raise MalformedChainData("a PushDrop has fields, and none of them is empty", subject="script")
    pushes = b"".join(bytes((OP_0,)) if item == b"\0" else encode_push(item) for item in pushdrop.fields)
    drops = bytes((OP_2DROP,)) * (len(pushdrop.fields) // 2) + bytes((OP_DROP,)) * (len(pushdrop.fields) % 2)
    return encode_push(pushdrop.locking_key) + bytes((OP_CHECKSIG,)) + pushes + drops


def parse_pushdrop(script: bytes) -> PushDrop:
    """Reads a PushDrop, lock before data. Raises MalformedChainData.

    OP_0 is read as one zero byte: wallets write that byte so, and sign it as a byte. Every push must be dropped.
    """
    chunks = parse_script(script)
    key = chunks[0].data if chunks else None
    if key is None or not has_key_form(key):
        raise MalformedChainData("a PushDrop begins with a public key", subject="script")
    if len(chunks) < 2 or chunks[1].opcode != OP_CHECKSIG:
        raise MalformedChainData("a PushDrop's key is followed by OP_CHECKSIG", subject="script")
    fields: list[bytes] = []
    dropped = 0
    for chunk in chunks[2:]:
        if chunk.data is not None and not dropped:
            fields.append(chunk.data or b"\0")
        elif chunk.opcode in (OP_DROP, OP_2DROP):
            dropped += 1 if chunk.opcode == OP_DROP else 2
        else:
            raise MalformedChainData("a PushDrop holds pushes, then drops, and nothing else", subject="script")
    if not fields or dropped != len(fields):
        raise MalformedChainData(f"a PushDrop of {len(fields)} fields drops {dropped}", subject="script")
    return PushDrop(key, tuple(fields))
