"""Hashes as they are written: `blake3:` or `sha256:` and 64 hex digits."""

import re

_DIGITS = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BLAKE3 = "blake3:"
_SHA256 = "sha256:"


def format_blake3(digest: bytes) -> str:
    """`blake3:` and 64 hex digits."""
    return _BLAKE3 + digest.hex()


def format_sha256(digest: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return _SHA256 + digest.hex()


def parse_blake3(text: str) -> bytes:
    """32 bytes. Raises ValueError."""
    return _parse_hash(text, _BLAKE3)


def parse_sha256(text: str) -> bytes:
    """32 bytes. Raises ValueError."""
    return _parse_hash(text, _SHA256)


def _parse_hash(text: str, prefix: str) -> bytes:
    if not text.startswith(prefix) or _DIGITS.fullmatch(text, len(prefix)) is None:
        raise ValueError(f"not a hash of the form {prefix}<64 hex digits>: {text[:90]!r}")
    return bytes.fromhex(text[len(prefix) :])
