"""A private key in memory, behind the shape that the node's keys have wherever they lie (`model/signer.py`)."""

from overlayd.bsv.keys import CURVE_ORDER, SECRET_BYTES, PrivateKey, PublicKey
from overlayd.model.errors import MalformedChainData


class MemoryCurveKey:
    """Signs and agrees with a secret that was read from a file or a credential. Implements `CurveKey`."""

    __slots__ = ("_key",)

    is_quick = True
    trouble = ""
    can_derive = True

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    @classmethod
    def parse(cls, secret: bytes) -> "MemoryCurveKey":
        """Takes 32 bytes. Raises MalformedChainData, without repeating them."""
        return cls(PrivateKey(secret))

    @property
    def public_key(self) -> bytes:
        """33 bytes, compressed."""
        return self._key.public_key.encoded

    def sign_digest(self, digest: bytes, tweak: bytes = b"") -> bytes:
        """A DER signature; with `tweak` by the key plus that number. Raises MalformedChainData when their sum is 0."""
        return self._key.sign_digest_as_child(digest, tweak) if tweak else self._key.sign_digest(digest)

    def agree(self, other: bytes) -> bytes:
        """The shared point, compressed. Raises MalformedChainData."""
        return PublicKey.parse(other).multiply(self._key.secret).encoded

    def child(self, tweak: bytes) -> PrivateKey:
        """This key plus a number: for those who sign with one child often. Raises MalformedChainData."""
        if len(tweak) != SECRET_BYTES:
            raise MalformedChainData(f"what is added to a key has {SECRET_BYTES} bytes", subject="private key")
        total = int.from_bytes(self._key.secret, "big") + int.from_bytes(tweak, "big")
        return PrivateKey((total % CURVE_ORDER).to_bytes(SECRET_BYTES, "big"))

    def __repr__(self) -> str:
        return f"MemoryCurveKey(of {self._key.public_key.hex()})"
