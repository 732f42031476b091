"""Webhook secrets as texts: `whsec_` and base64 of 24 to 64 bytes, as Standard Webhooks has them."""

import base64
import binascii
import re

from overlayd.model.clock import Entropy

PREFIX = "whsec_"
SECRET_BYTES = 32
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)


def draw_secret(entropy: Entropy) -> str:
    """A new secret."""
    return format_secret(entropy.draw(SECRET_BYTES))


def format_secret(key: bytes) -> str:
    """The text that `parse_secret` takes back."""
    return PREFIX + base64.b64encode(key).decode("ascii")


def parse_secret(text: str) -> bytes:
    """The key that signs. Raises ValueError that says what to write and doesn't repeat the text."""
    wanted = f"{PREFIX} and the base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
    if not text.startswith(PREFIX):
        raise ValueError(f"expected {wanted}")
    encoded = text.removeprefix(PREFIX)
    if not _BASE64.fullmatch(encoded):
        raise ValueError(f"expected {wanted}, in the standard alphabet")
    try:
        key = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), validate=True)
    except binascii.Error as err:
        raise ValueError(f"expected {wanted}; the base64 is cut") from err
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise ValueError(f"expected {wanted}, not {len(key)}")
    return key
