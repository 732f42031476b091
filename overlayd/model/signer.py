"""What the node's own keys can do, wherever they lie: in a file, in a credential, on a token.

The node has three: one signs its log's checkpoints (Ed25519), one is its identity among others and one holds its coins
(both secp256k1). Whoever needs one is given an object of these shapes, never the secret. Every call may block, since a
key may lie in a device: make it in a thread unless `is_quick`.
"""

from collections.abc import Collection
from typing import Protocol

PUBLIC_KEY_BYTES = 32
"""An Ed25519 public key."""
CURVE_POINT_BYTES = 33
"""A compressed point of secp256k1."""


class CheckpointKey(Protocol):
    """An Ed25519 key that signs."""

    @property
    def public_key(self) -> bytes:
        """PUBLIC_KEY_BYTES."""
        ...

    @property
    def is_quick(self) -> bool:
        """Whether it signs in memory, in well under a millisecond."""
        ...

    def sign(self, message: bytes) -> bytes:
        """64 bytes. Raises SignerUnavailable when the key can't be reached."""
        ...


class CheckpointKeys(Protocol):
    """Where a log finds the keys that sign its checkpoints. Every call may block."""

    def first(self) -> CheckpointKey:
        """The key that a new log begins with; drawn if need be. Raises ConfigInvalid, LogInconsistent."""
        ...

    def find(self, public_key: bytes) -> CheckpointKey:
        """The one with that public key. One that can't be reached now may answer later. Raises LogInconsistent when none of
        them is it, ConfigInvalid."""
        ...

    def next(self, known: Collection[bytes]) -> CheckpointKey:
        """One to rotate to: not among the `known` public keys, drawn if need be. Raises SignerUnavailable, ConfigInvalid,
        KeyNotSuited when there is none."""
        ...


class CurveKey(Protocol):
    """A secp256k1 key that signs and, where `can_derive`, agrees on secrets with others."""

    @property
    def public_key(self) -> bytes:
        """CURVE_POINT_BYTES, compressed."""
        ...

    @property
    def is_quick(self) -> bool:
        """Whether it answers from memory, in well under a millisecond."""
        ...

    @property
    def trouble(self) -> str:
        """Why the key couldn't be reached the last time that it was asked; "" when it could."""
        ...

    @property
    def can_derive(self) -> bool:
        """Whether `agree` and a `tweak` work: what BRC-42 children of the key need. A token's key can't: it never signs
        with a number added to it."""
        ...

    def sign_digest(self, digest: bytes, tweak: bytes = b"") -> bytes:
        """A DER signature with low S over 32 bytes, at most 72 long; with `tweak` (32 bytes, big-endian) by the child
        key, which is this key plus that number. Raises SignerUnavailable, KeyNotSuited for a tweak it can't add."""
        ...

    def agree(self, other: bytes) -> bytes:
        """The shared point of ECDH with another's public key (33 bytes), compressed. Raises MalformedChainData for what is
        no public key, KeyNotSuited where the key can't, SignerUnavailable."""
        ...
