"""Block headers: 80 bytes, their hash, target and work."""

import msgspec

from overlayd.bsv.hashes import hash256
from overlayd.model.errors import MalformedChainData, VerificationFailed
from overlayd.model.txid import BlockHash, format_hash

HEADER_BYTES = 80
TARGET_MAX = (1 << 256) - 1


class BlockHeader(msgspec.Struct, frozen=True):
    """A header. `raw` is its 80 bytes and `hash` their hash, in internal order; the rest are the fields in them."""

    raw: bytes
    hash: BlockHash
    version: int
    previous: BlockHash
    merkle_root: bytes
    time_s: int
    bits: int
    nonce: int

    @property
    def target(self) -> int:
        """What the hash, as a number, may at most be. Raises MalformedChainData."""
        return target_of_bits(self.bits)

    @property
    def work(self) -> int:
        """Hashes that it takes on average to find such a block. Raises MalformedChainData."""
        return work_of_bits(self.bits)

    def verify_work(self, limit_bits: int) -> None:
        """Checks that the hash is under the target, and the target not easier than the network's.

        Raises VerificationFailed.
        """
        try:
            target = target_of_bits(self.bits)
        except MalformedChainData as err:
            raise VerificationFailed(err.detail, subject=f"block {format_hash(self.hash)}") from err
        if target > target_of_bits(limit_bits):
            raise VerificationFailed("the target is easier than the network allows", subject=f"block {self}")
        if int.from_bytes(self.hash, "little") > target:
            raise VerificationFailed("the hash lacks the work that its target demands", subject=f"block {self}")

    def __str__(self) -> str:
        return format_hash(self.hash)


def parse_header(raw: bytes) -> BlockHeader:
    """Reads exactly 80 bytes. Raises MalformedChainData. Neither target nor work is looked at."""
    if len(raw) != HEADER_BYTES:
        raise MalformedChainData(f"{len(raw)} bytes; a header has 80", subject="header")
    return BlockHeader(
        raw, BlockHash(hash256(raw)), int.from_bytes(raw[:4], "little"), BlockHash(raw[4:36]), raw[36:68],
        int.from_bytes(raw[68:72], "little"), int.from_bytes(raw[72:76], "little"), int.from_bytes(raw[76:], "little"),
    )  # fmt: skip


def encode_header(
    *, version: int, previous: BlockHash, merkle_root: bytes, time_s: int, bits: int, nonce: int
) -> bytes:
    """The 80 bytes of a header."""
    raw = b"".join((
        version.to_bytes(4, "little"), previous, merkle_root, time_s.to_bytes(4, "little"),
        bits.to_bytes(4, "little"), nonce.to_bytes(4, "little"),
    ))  # fmt: skip
    assert len(raw) == HEADER_BYTES
    return raw


def target_of_bits(bits: int) -> int:
    """The target that compact bits stand for: an exponent to the base 256 and three bytes of mantissa.

    Raises MalformedChainData when it is zero, negative or over 256 bits.
    """
    exponent, mantissa = bits >> 24, bits & 0x007FFFFF
    target = mantissa >> (8 * (3 - exponent)) if exponent <= 3 else mantissa << (8 * (exponent - 3))
    if bits & 0x00800000 and mantissa:
        raise MalformedChainData(f"bits {bits:08x} are negative", subject="header")
    if not target:
        raise MalformedChainData(f"bits {bits:08x} are a target of zero", subject="header")
    if target > TARGET_MAX:
        raise MalformedChainData(f"bits {bits:08x} are a target over 256 bits", subject="header")
    return target


def bits_of_target(target: int) -> int:
    """The compact form, rounded down to what it can hold."""
    assert 0 < target <= TARGET_MAX
    exponent = (target.bit_length() + 7) // 8
    mantissa = target << (8 * (3 - exponent)) if exponent <= 3 else target >> (8 * (exponent - 3))
    # The mantissa's top bit is a sign.
    if mantissa & 0x00800000:
        mantissa >>= 8
        exponent += 1
    return exponent << 24 | mantissa


def work_of_bits(bits: int) -> int:
    """2^256 over the target and one. Raises MalformedChainData."""
    return (1 << 256) // (target_of_bits(bits) + 1)
