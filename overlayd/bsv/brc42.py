"""Child keys that two parties derive without talking (BRC-42), and the names of their purposes (BRC-43)."""

import hmac
import re

from overlayd.bsv.keys import CURVE_ORDER, SECRET_BYTES, PrivateKey, PublicKey
from overlayd.model.errors import MalformedChainData

KEY_ID_CHARS_MAX = 800
PROTOCOL_CHARS_MIN = 5
PROTOCOL_CHARS_MAX = 400

_PROTOCOL = re.compile(r"[a-z0-9]+(?: [a-z0-9]+)*", re.ASCII)


def invoice_number(level: int, protocol: str, key_id: str) -> str:
    """`<level>-<protocol>-<key id>`; the protocol's name in small letters. Raises MalformedChainData.

    Level 0 asks nobody, 1 each application, 2 each counterparty as well.
    """
    name = protocol.strip().lower()
    if level not in (0, 1, 2):
        raise MalformedChainData("a security level is 0, 1 or 2", subject="protocol")
    if not PROTOCOL_CHARS_MIN <= len(name) <= PROTOCOL_CHARS_MAX or not _PROTOCOL.fullmatch(name):
        raise MalformedChainData(
            f"a protocol's name has {PROTOCOL_CHARS_MIN} to {PROTOCOL_CHARS_MAX} letters, digits and single spaces",
            subject="protocol",
        )
    if name.endswith(" protocol"):
        raise MalformedChainData("a protocol's name doesn't end with \" protocol\"", subject="protocol")
    if not 1 <= len(key_id) <= KEY_ID_CHARS_MAX:
        raise MalformedChainData(f"a key id has 1 to {KEY_ID_CHARS_MAX} characters", subject="protocol")
    return f"{level}-{name}-{key_id}"


class Pairing:
    """What two parties share, computed once: each child key of either then costs a hash and an addition."""

    __slots__ = ("_other", "_own", "_shared")

    def __init__(self, own: PrivateKey, other: PublicKey) -> None:
        self._own = own
        self._other = other
        self._shared = other.multiply(own.secret).encoded

    def own_child(self, invoice: str) -> PrivateKey:
        """The child of one's own key that the counterparty knows the public half of."""
        secret = (int.from_bytes(self._own.secret, "big") + self._tweak(invoice)) % CURVE_ORDER
        return PrivateKey(secret.to_bytes(SECRET_BYTES, "big"))

    def other_child(self, invoice: str) -> PublicKey:
        """The child of the counterparty's public key. Raises MalformedChainData."""
        return self._other.add(self._tweak(invoice).to_bytes(SECRET_BYTES, "big"))

    def _tweak(self, invoice: str) -> int:
        try:
            message = invoice.encode()
        except UnicodeEncodeError as err:
            raise MalformedChainData("the invoice number isn't text", subject="protocol") from err
        return int.from_bytes(hmac.digest(self._shared, message, "sha256"), "big") % CURVE_ORDER

    def __repr__(self) -> str:
        return f"Pairing({self._own.public_key.hex()}, {self._other.hex()})"


def derive_private(key: PrivateKey, counterparty: PublicKey, invoice: str) -> PrivateKey:
    """The child of one's own key that the counterparty knows the public half of."""
    return Pairing(key, counterparty).own_child(invoice)


def derive_public(key: PublicKey, own: PrivateKey, invoice: str) -> PublicKey:
    """The child of a counterparty's public key, derived with one's own private key."""
    return Pairing(own, key).other_child(invoice)
