"""API keys and tickets as texts: how they are drawn, recognized, hashed and compared.

A secret has 192 bits from the operating system's generator, so nobody finds it by guessing, and a plain SHA-256 of
it is as safe to store as a slow password hash: those only make up for secrets that people choose. Only its hash is
kept, and `is_same` is the only place where the node compares something secret.
"""

import hmac
import re
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Literal

import msgspec

from overlayd.model.clock import Entropy
from overlayd.model.errors import BadParameter

KeyKind = Literal["ovl", "ap"]

SECRET_BYTES = 24
SHOWN_CHARS = 6
"""Of a key's secret characters, so many are shown in lists, to tell keys apart: 36 of 192 bits."""
TICKET_PREFIX = "ovl_ticket_"
_KEY = re.compile(r"(?:ovl|ap)_live_[A-Za-z0-9_-]{32}", re.ASCII)
_TICKET = re.compile(r"ovl_ticket_[A-Za-z0-9_-]{32}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


class NewSecret(msgspec.Struct, frozen=True):
    """A secret that was just drawn. `text` goes to its owner, once, and is kept nowhere."""

    text: str
    digest: bytes
    prefix: str

    def __repr__(self) -> str:
        return f"NewSecret({self.prefix}…)"


def draw_key(kind: KeyKind, entropy: Entropy) -> NewSecret:
    """A new API key: `ovl_live_…` or `ap_live_…`."""
    return _draw(f"{kind}_live_", entropy)


def draw_ticket(entropy: Entropy) -> NewSecret:
    """A new ticket: `ovl_ticket_…`."""
    return _draw(TICKET_PREFIX, entropy)


def is_key(text: str) -> bool:
    """Whether the text has the form of an API key."""
    return _KEY.fullmatch(text) is not None


def holds_key(text: str) -> bool:
    """Whether an API key stands somewhere in the text."""
    return _KEY.search(text) is not None


def is_ticket(text: str) -> bool:
    """Whether the text has the form of a ticket."""
    return _TICKET.fullmatch(text) is not None


def shown_prefix(text: str) -> str:
    """As much of a key as may be shown."""
    return text[: text.index("_live_") + len("_live_") + SHOWN_CHARS]


def digest_of(text: str) -> bytes:
    """What is stored of a secret, 32 bytes."""
    return sha256(text.encode()).digest()


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two hashes of secrets are equal, in a time that doesn't depend on where they differ."""
    return hmac.compare_digest(one, other)


def format_digest(digest: bytes) -> str:
    """As it stands in the settings: `sha256:<64 hex>`."""
    return f"sha256:{digest.hex()}"


def parse_digest(text: str) -> bytes:
    """Raises BadParameter. The text isn't repeated: somebody may have written the key itself there."""
    match = _DIGEST.fullmatch(text.strip())
    if match is None:
        raise BadParameter(
            "a key's hash isn't sha256: and 64 hex digits", subject="hashes",
            hint="overlayd keys generate draws a key and shows its hash",
        )  # fmt: skip
    return bytes.fromhex(match[1])


def _draw(prefix: str, entropy: Entropy) -> NewSecret:
    text = prefix + urlsafe_b64encode(entropy.draw(SECRET_BYTES)).decode()
    return NewSecret(text, digest_of(text), text[: len(prefix) + SHOWN_CHARS])
