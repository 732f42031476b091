"""`X-Identity-Key`, `X-Nonce`, `X-Signature`: what they hold, and what is signed. Sans-IO.

Two schemes that clients of gitdata use. Both sign the body and the nonce, neither the method nor the path: docs/security.md
says what follows from that.
"""

import re
from hashlib import sha256

import msgspec

from overlayd.access.gate import RequestHead
from overlayd.access.identity.settings import SchemeName
from overlayd.bsv.keys import SIGNATURE_BYTES_MAX, is_strict_der
from overlayd.model.errors import Unauthorized

KEY_HEADER = b"x-identity-key"
NONCE_HEADER = b"x-nonce"
SIGNATURE_HEADER = b"x-signature"
HEADERS = frozenset((KEY_HEADER, NONCE_HEADER, SIGNATURE_HEADER))
NONCE_CHARS_MAX = 128
_MARK = b"Gitdata-Req|v1|"
_KEY = re.compile(r"0[23][0-9a-fA-F]{64}", re.ASCII)
_NONCE = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_DECIMAL = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_UNITS = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""Below which number a time is one of seconds, milliseconds, microseconds, and what makes microseconds of it."""


class Signed(msgspec.Struct, frozen=True):
    """What the three headers hold. `key` is hex in small letters, `signature` DER."""

    key: str
    nonce: str
    signature: bytes


def parse_identity_headers(head: RequestHead) -> Signed:
    """Raises Unauthorized."""
    found: dict[bytes, str] = {}
    for name, value in head.headers:
        if name in HEADERS:
            if name in found:
                raise _refusal("the request names its identity, nonce or signature twice")
            found[name] = value.decode("latin-1")
    if len(found) < len(HEADERS):
        raise _refusal("X-Identity-Key, X-Nonce and X-Signature belong together, and one of them is missing")
    key, nonce, text = found[KEY_HEADER], found[NONCE_HEADER], found[SIGNATURE_HEADER]
    if _KEY.fullmatch(key) is None:
        raise _refusal("X-Identity-Key isn't a compressed public key in 66 hex digits")
    if _NONCE.fullmatch(nonce) is None:
        raise _refusal(f"X-Nonce isn't 1 to {NONCE_CHARS_MAX} visible characters")
    octets = bytes.fromhex(text) if len(text) <= 2 * SIGNATURE_BYTES_MAX and _HEX.fullmatch(text) else b""
    if not is_strict_der(octets):
        raise _refusal("X-Signature isn't a DER signature in hex")
    return Signed(key.lower(), nonce, octets)


def signed_digest(scheme: SchemeName, nonce: str, body: bytes) -> bytes:
    """The 32 bytes that are signed. `preimage-v1` signs texts, `body-nonce` the body's bytes with the nonce behind."""
    octets = nonce.encode("ascii")
    if scheme == "preimage-v1":
        return sha256(_MARK + octets + b"|" + sha256(body).hexdigest().encode()).digest()
    assert scheme == "body-nonce"
    return sha256(body + octets).digest()


def parse_clock_nonce(nonce: str) -> int | None:
    """The Unix time in microseconds that a decimal nonce is, in s, ms, µs or ns by its magnitude; None for any other."""
    if _DECIMAL.fullmatch(nonce) is None:
        return None
    number = int(nonce)
    for below, factor in _UNITS:
        if number < below:
            return number * factor
    return number // 1000


def _refusal(detail: str) -> Unauthorized:
    return Unauthorized(detail, subject="identity headers", hint="docs/security.md says what is signed, and how")
