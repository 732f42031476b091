"""Signed messages (BRC-77): `42423301`, signer, verifier or 0, key id, DER over SHA-256 of the message.

Each signature has a key of its own, derived for its verifier; made for anyone, everybody can check it.
"""

import base64

import msgspec

from overlayd.bsv.brc42 import derive_private, derive_public
from overlayd.bsv.keys import ANYONE, PrivateKey, PublicKey, is_strict_der
from overlayd.bsv.octets import ByteReader
from overlayd.model.errors import MalformedChainData, SignatureInvalid

KEY_ID_BYTES = 32
SIGNATURE_BYTES_MAX = 4 + 33 + 33 + KEY_ID_BYTES + 72

_MARK = bytes.fromhex("42423301")


class MessageSignature(msgspec.Struct, frozen=True):
    """A signature with who made it and for whom; `verifier` is None when anyone may check it."""

    signer: PublicKey
    verifier: PublicKey | None
    key_id: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The binary form."""
        verifier = b"\0" if self.verifier is None else self.verifier.encoded
        return _MARK + self.signer.encoded + verifier + self.key_id + self.signature

    def verify(self, message: bytes, verifier: PrivateKey = ANYONE) -> PublicKey:
        """Checks it over a message; gives the signer. `verifier` is the key of the one whom it was made for.

        Raises SignatureInvalid.
        """
        wanted = (self.verifier or ANYONE.public_key).encoded
        if verifier.public_key.encoded != wanted:
            raise SignatureInvalid(f"only the holder of {wanted.hex()} can check it", subject="signature")
        derive_public(self.signer, verifier, _invoice(self.key_id)).verify(message, self.signature)
        return self.signer


def parse_message_signature(raw: bytes) -> MessageSignature:
    """Reads the binary form, whole. Raises MalformedChainData."""
    if len(raw) > SIGNATURE_BYTES_MAX:
        raise MalformedChainData(f"{len(raw)} bytes; at most {SIGNATURE_BYTES_MAX} are possible", subject="signature")
    reader = ByteReader(raw, "signature")
    if reader.take(len(_MARK)) != _MARK:
        raise MalformedChainData(f"doesn't begin with {_MARK.hex()}", subject="signature")
    signer = PublicKey.parse(reader.take(33))
    first = reader.take(1)
    verifier = None if first == b"\0" else PublicKey.parse(first + reader.take(32))
    key_id = reader.take(KEY_ID_BYTES)
    signature = reader.take(reader.remaining)
    if not is_strict_der(signature):
        raise MalformedChainData("doesn't end with a DER signature", subject="signature")
    return MessageSignature(signer, verifier, key_id, signature)


def sign_message(message: bytes, key: PrivateKey, key_id: bytes, verifier: PublicKey | None = None) -> MessageSignature:
    """Signs a message for one verifier, or for anyone. `key_id` is 32 random bytes, new for each signature."""
    assert len(key_id) == KEY_ID_BYTES
    child = derive_private(key, verifier or ANYONE.public_key, _invoice(key_id))
    return MessageSignature(key.public_key, verifier, key_id, child.sign(message))


def _invoice(key_id: bytes) -> str:
    return "2-message signing-" + base64.b64encode(key_id).decode()
