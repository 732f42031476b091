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


def derive_private(key: PrivateKey, counterparty: PublicKey, invoice: str) -> PrivateKey:
    """The child of one's own key that the counterparty knows the public half of."""
    tweak = int.from_bytes(child_tweak(counterparty.multiply(key.secret).encoded, invoice), "big")
    secret = (int.from_bytes(key.secret, "big") + tweak) % CURVE_ORDER
    return PrivateKey(secret.to_bytes(SECRET_BYTES, "big"))


def derive_public(key: PublicKey, own: PrivateKey, invoice: str) -> PublicKey:
    """The child of a counterparty's public key, derived with one's own private key."""
    return key.add(child_tweak(key.multiply(own.secret).encoded, invoice))


def child_tweak(shared: bytes, invoice: str) -> bytes:
    """What a key's child is further on than the key, 32 bytes. `shared`: the point that both sides know, compressed; who
    keeps it needs one hash for each child instead of a multiplication."""
    try:
        message = invoice.encode()
    except UnicodeEncodeError as err:
        raise MalformedChainData("the invoice number isn't text", subject="protocol") from err
    number = int.from_bytes(hmac.digest(shared, message, "sha256"), "big") % CURVE_ORDER
    return number.to_bytes(SECRET_BYTES, "big")
