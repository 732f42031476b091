"""The hashes of the chain."""

import hashlib

from overlayd.bsv import ripemd160

_sha256 = hashlib.sha256


def sha256(octets: bytes) -> bytes:
    """SHA-256."""
    return _sha256(octets).digest()


def hash256(octets: bytes) -> bytes:
    """SHA-256 twice: txids, block hashes, Merkle nodes, checksums."""
    return _sha256(_sha256(octets).digest()).digest()


def _has_ripemd160() -> bool:
    try:
        hashlib.new("ripemd160")
    except ValueError:
        return False
    return True


# OpenSSL 3.0.0 to 3.0.6, and builds without its legacy provider, lack it.
_RIPEMD160_IS_NATIVE = _has_ripemd160()


def hash160(octets: bytes) -> bytes:
    """RIPEMD-160 of SHA-256: what an address holds. 20 bytes."""
    inner = _sha256(octets).digest()
    if _RIPEMD160_IS_NATIVE:
        return hashlib.new("ripemd160", inner).digest()
    return ripemd160.digest(inner)
