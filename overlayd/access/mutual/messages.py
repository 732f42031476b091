"""Messages of mutual authentication over HTTP (BRC-103, BRC-104): headers, and the bytes that are signed. Sans-IO.

Lengths are Bitcoin's VarInts; what is absent has the length -1, as the clients write it. Where documents and
implementations differ, this follows `@bsv/sdk`: version "0.1", `initialNonce` in both directions.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable

import msgspec

from overlayd.access.gate import RequestHead
from overlayd.bsv.keys import SIGNATURE_BYTES_MAX, is_strict_der
from overlayd.bsv.octets import encode_varint
from overlayd.model.errors import Unauthorized

VERSION = "0.1"
AUTH_PATH = "/.well-known/auth"
PREFIX = b"x-bsv-auth-"
SESSION_NONCE_BYTES = 48
"""A multiple of three, so that its base64 needs no padding: clients put two of them one behind the other as texts."""
NONCE_BYTES = 32
NONCE_BYTES_MIN = 16
NONCE_BYTES_MAX = 64
_VERSION, _KEY, _NONCE, _YOURS, _ID, _SIGNATURE, _TYPE = (
    PREFIX + name for name in (b"version", b"identity-key", b"nonce", b"your-nonce", b"request-id", b"signature", b"message-type")
)  # fmt: skip
HEADERS = frozenset((_VERSION, _KEY, _NONCE, _YOURS, _ID, _SIGNATURE, _TYPE))
_NEEDED = HEADERS - {_TYPE}
_KEY_TEXT = re.compile(r"0[23][0-9a-fA-F]{64}", re.ASCII)
_ABSENT = b"\xff" * 9
Pairs = Iterable[tuple[bytes, bytes]]


class GeneralHead(msgspec.Struct, frozen=True):
    """What a signed request says about itself. `your_nonce` is the node's own, of the session; nonces as sent."""

    key: str
    nonce: str
    your_nonce: str
    request_id: bytes
    signature: bytes


def parse_general_head(head: RequestHead) -> GeneralHead:
    """Raises Unauthorized."""
    found: dict[bytes, str] = {}
    for name, value in head.headers:
        if name in HEADERS:
            if name in found:
                raise refusal(f"{name.decode()} stands there twice")
            found[name] = value.decode("latin-1")
    missing = sorted(_NEEDED - found.keys())
    if missing:
        raise refusal(f"{missing[0].decode()} is missing")
    if found[_VERSION] != VERSION:
        raise refusal(f"this node speaks version {VERSION}")
    if found.get(_TYPE, "general") != "general":
        raise refusal("only general messages are requests")
    if _KEY_TEXT.fullmatch(found[_KEY]) is None:
        raise refusal("x-bsv-auth-identity-key isn't a compressed public key in 66 hex digits")
    check_nonce(found[_NONCE], "x-bsv-auth-nonce")
    request_id = _decode(found[_ID])
    if len(request_id) != NONCE_BYTES:
        raise refusal(f"x-bsv-auth-request-id isn't {NONCE_BYTES} bytes in base64")
    return GeneralHead(
        found[_KEY].lower(), found[_NONCE], found[_YOURS], request_id, _parse_signature(found[_SIGNATURE])
    )  # fmt: skip


def check_nonce(text: str, name: str) -> bytes:
    """The bytes of somebody's nonce. Raises Unauthorized."""
    octets = _decode(text)
    if not NONCE_BYTES_MIN <= len(octets) <= NONCE_BYTES_MAX:
        raise refusal(f"{name} isn't {NONCE_BYTES_MIN} to {NONCE_BYTES_MAX} bytes in base64")
    return octets


def request_bytes(head: RequestHead, request_id: bytes, body: bytes) -> bytes:
    """What a client signs of a request."""
    query = b"?" + head.query.encode("latin-1") if head.query else b""
    return b"".join((
        request_id, _prefixed(head.method.encode("latin-1")), _prefixed(head.path.encode("latin-1")), _optional(query),
        _headers(_signed_of_request(head.headers)), _optional(body),
    ))  # fmt: skip


def answer_bytes(request_id: bytes, status: int, headers: Pairs, body: bytes) -> bytes:
    """What the node signs of an answer, whose body isn't empty."""
    assert body
    return b"".join((request_id, encode_varint(status), _headers(_signed_of_answer(headers)), _prefixed(body)))


def answer_headers(
    key: str, nonce: str, your_nonce: str, request_id: bytes, signature: bytes
) -> list[tuple[bytes, bytes]]:  # fmt: skip
    """The headers of a signed answer."""
    return [
        (_VERSION, VERSION.encode()), (_KEY, key.encode()), (_NONCE, nonce.encode()), (_YOURS, your_nonce.encode()),
        (_ID, binascii.b2a_base64(request_id, newline=False)), (_SIGNATURE, signature.hex().encode()),
        (_TYPE, b"general"),
    ]  # fmt: skip


def refusal(detail: str) -> Unauthorized:
    """What a client is told whose message doesn't count."""
    return Unauthorized(
        detail, subject="mutual authentication", hint="shake hands at /.well-known/auth (BRC-103, BRC-104)"
    )


def _signed_of_request(headers: Pairs) -> list[tuple[bytes, bytes]]:
    signed = _signed_of_answer(headers)
    signed += [(name, value.split(b";")[0].strip()) for name, value in headers if name == b"content-type"]
    return sorted(signed)


def _signed_of_answer(headers: Pairs) -> list[tuple[bytes, bytes]]:
    return sorted(
        (name, value)
        for name, value in headers
        if name == b"authorization" or (name.startswith(b"x-bsv-") and not name.startswith(b"x-bsv-auth"))
    )


def _headers(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return encode_varint(len(pairs)) + b"".join(_prefixed(name) + _prefixed(value) for name, value in pairs)


def _prefixed(octets: bytes) -> bytes:
    return encode_varint(len(octets)) + octets


def _optional(octets: bytes) -> bytes:
    return _prefixed(octets) if octets else _ABSENT


def _decode(text: str) -> bytes:
    """b"" for what isn't base64."""
    if len(text) > 2 * NONCE_BYTES_MAX:
        return b""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""


def _parse_signature(text: str) -> bytes:
    try:
        octets = bytes.fromhex(text) if len(text) <= 2 * SIGNATURE_BYTES_MAX and " " not in text else b""
    except ValueError:
        octets = b""
    if not is_strict_der(octets):
        raise refusal("x-bsv-auth-signature isn't a DER signature in hex")
    return octets
